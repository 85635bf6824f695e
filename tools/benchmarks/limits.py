"""What the machine can do at most, by which figures are judged.

As a program, `python -m benchmarks.limits`, it prints them as a JSON object.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.processes import environ_of_tools

_SIZE = 3072  # of the matrices: large enough for the highest rate, 38 MB each
_COPY_BYTES = 1 << 28  # more than any cache holds
_ROUNDS = 5  # the best counts


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates of this machine's processors and memory.

    Attributes:
      operations_per_second: of a large matrix product, by dtype.
      bytes_per_second: read and written by a large copy in one thread.
    """

    operations_per_second: dict[str, float]
    bytes_per_second: float


def measure_limits_apart() -> Limits:
    """Measures in a process of its own.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.limits"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ_of_tools(),
        check=True,
    )
    return Limits(**json.loads(process.stdout))


def measure_limits() -> Limits:
    """Measures in this process: the better of NumPy's product and TensorFlow's."""
    import tensorflow as tf

    from mnist_dist.device.strategy import create_strategy

    create_strategy("one_device", num_gpus=0)
    matrix = np.random.default_rng(1).standard_normal((_SIZE, _SIZE), np.float32)

    def multiply(matrix: tf.Tensor) -> None:
        tf.matmul(matrix, matrix).numpy()  # waits for the device

    copies = {name: tf.constant(matrix, name) for name in ("float32", "bfloat16")}
    products = {
        name: 2 * _SIZE**3 / _best(functools.partial(multiply, copy))
        for name, copy in copies.items()
    }
    of_numpy = 2 * _SIZE**3 / _best(lambda: matrix @ matrix)
    products["float32"] = max(products["float32"], of_numpy)
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    return Limits(products, 2 * _COPY_BYTES / _best(lambda: np.copyto(target, source)))


def _best(function: Callable[[], object]) -> float:
    """Returns the seconds of the fastest of several calls."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure_limits())))
