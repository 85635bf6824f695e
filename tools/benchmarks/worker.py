"""A process in which the sides of one framework wait for their turns.

  python -m benchmarks.worker FRAMEWORK NUM_REPLICAS RANK [HOST:PORT HOST:PORT]

Sides of different frameworks share no process: their threads, their settings and their
memory are their own. It reads one JSON object a line and answers each with another; it ends
with its standard input.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.side import CreateSide, Rank, Side, SideError
from benchmarks.work import Case, comparison_images, comparison_loss


def load_framework(
    framework: str, rank: Rank, *, num_replicas: int
) -> Mapping[str, CreateSide]:
    """Imports a framework and returns how each of its sides is made.

    Raises:
      ImportError: it is not installed.
    """
    if framework == "torch":
        from benchmarks import torch_sides

        return torch_sides.create_sides(rank)
    if framework == "jax":
        from benchmarks import jax_sides

        return jax_sides.create_sides(rank)
    from benchmarks import tensorflow_sides

    return tensorflow_sides.create_sides(rank, num_replicas=num_replicas)


class Worker:
    """Does what it is asked: creates sides, and trains with them."""

    def __init__(self, create: Mapping[str, CreateSide]) -> None:
        """Begins without a side.

        Args:
          create: how each side is made, by name.
        """
        self._create = create
        self._sides: dict[str, Side] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Does one thing.

        Args:
          request: `do` is `create` with `side` and `case`; `train` with `side` and how
            many `passes`; or `forget`, which lets all sides go.

        Returns:
          Of `create`: `loss` after one pass. Of `train`: the `seconds` that it took.
        """
        if request["do"] == "forget":
            self._sides.clear()
            return {}
        name = request["side"]
        if request["do"] == "create":
            side = self._create[name](Case(**request["case"]))
            side.train()  # compiles
            self._sides[name] = side
            return {"loss": comparison_loss(side.predict(comparison_images()))}
        began = time.perf_counter()
        for _ in range(request["passes"]):
            self._sides[name].train()
        return {"seconds": time.perf_counter() - began}


def main() -> None:
    """Answers until standard input ends."""
    framework, num_replicas, number, *addresses = sys.argv[1:]
    rank = Rank(int(number), tuple(addresses))
    # Whatever frameworks print goes to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            create = load_framework(framework, rank, num_replicas=int(num_replicas))
        except ImportError as error:
            print(json.dumps({"missing": str(error)}), file=answers)
            return
        print(json.dumps({"sides": list(create)}), file=answers)
        worker = Worker(create)
        for line in sys.stdin:
            try:
                answer = worker.answer(json.loads(line))
            except SideError as error:
                answer = {"error": str(error)}
            except Exception as error:  # one side's; others go on
                text = str(error).strip().partition("\n")[0]
                answer = {"error": f"{type(error).__name__}: {text}"}
            print(json.dumps(answer), file=answers)
    os._exit(0)  # tearing several workers down takes seconds


if __name__ == "__main__":
    main()
