"""Times the same training side by side: ours, plain loops, Keras, PyTorch, JAX.

  python tools/benchmark.py [--quick] [--json=FILE] [--part=sides,workers]

`--quick` takes five minutes on two quiet cores. It trains `mlp` and `cnn` with Adam 1e-3,
without augmentation. First all sides must reach the same loss from the same weights and
batches; then they take turns, each in a process of its framework's own, so that other load
on the machine meets all of them. It prints images/s after compilation (median of the turns),
how many times as fast ours is (median and range of the ratios), and which part that is of
the machine's limits: its largest matrix product, and its rate of copying memory.

Besides: oneDNN's kernels against the others, two replicas on one host against one, two
workers against PyTorch's DDP, the time from the command to the first step, what events cost,
and the peak of memory. bfloat16 takes part where the machine's products are faster in it.

PyTorch and JAX take part where they are installed (`python -m pip install torch jax`).
Sides run where `train` would: on the first GPU, or on the CPU where there is none.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from benchmarks import programs, report
from benchmarks.group import Group
from benchmarks.limits import Limits, measure_limits_apart
from benchmarks.turns import NotTheSameError, Timing, compare
from benchmarks.work import Case

_ALL_PARTS = ["sides", "kernels", "replicas", "workers", "programs"]
QUICK = flags.DEFINE_bool("quick", False, "Fewer and shorter turns.")
JSON = flags.DEFINE_string("json", None, "File for all that was measured.")
PARTS = flags.DEFINE_list("part", _ALL_PARTS, "What is measured.")

_IN_BFLOAT16 = ("mnist_dist", "Keras fit at its best", "PyTorch eager")


class Benchmark:
    """Measures part after part, prints each, and keeps what it found."""

    def __init__(self, limits: Limits, *, is_quick: bool) -> None:
        """Begins with nothing measured.

        Args:
          limits: of this machine.
          is_quick: fewer and shorter turns.
        """
        self.timings: list[Timing] = []
        self.left_out: list[str] = []
        self.programs: dict[str, object] = {}
        self._limits = limits
        self._is_quick = is_quick
        self._closing = contextlib.ExitStack()

    def start(self, framework: str, **details: Any) -> Group:
        """Starts the processes of a framework; `close` ends them."""
        group = Group(framework, **details)
        self._closing.callback(group.close)
        if group.missing:
            self._leave_out(f"{framework}: left out: {group.missing}")
        return group

    def close(self) -> None:
        """Ends the processes that were started."""
        self._closing.close()

    def compare(
        self,
        case: Case,
        sides: Sequence[tuple[Group, str]],
        *,
        names: Sequence[str] = (),
    ) -> None:
        """Times sides on one case.

        Args:
          case: what each trains.
          sides: the first is the one to which the others are compared.
          names: for the table, where those of the sides do not tell them apart.
        """
        timings, left_out = compare(
            case,
            sides,
            rounds=5 if self._is_quick else 9,
            seconds=0.25 if self._is_quick else 1.0,
        )
        for line in left_out:
            self._leave_out(line)
        if names:
            timings = [
                dataclasses.replace(timing, side=name)
                for timing, name in zip(timings, names, strict=True)
            ]
        self.timings += timings
        print(f"\n{report.format_timings(timings, self._limits)}", flush=True)

    def compare_frameworks(self) -> None:
        """Times every side of every framework in one process each."""
        groups = [self.start(name) for name in ("tensorflow", "torch", "jax")]
        sides = [(group, side) for group in groups for side in group.sides]
        scale = 1 if self._is_quick else 4
        for model, batch, steps in (
            ("mlp", 32, 300),
            ("mlp", 128, 150),
            ("mlp", 1024, 40),
            ("cnn", 128, 15),
        ):
            case = Case(model, batch, steps * scale)
            self.compare(case, sides)
        products = self._limits.operations_per_second
        if products["bfloat16"] < 1.2 * products["float32"]:
            self._leave_out(
                "bfloat16: left out: products are no faster in it on this machine, and "
                "convolutions take minutes"
            )
            return
        for model, batch, steps in (("mlp", 1024, 40), ("cnn", 128, 15)):
            case = Case(model, batch, steps * scale, "bfloat16")
            self.compare(case, [key for key in sides if key[1] in _IN_BFLOAT16])

    def compare_kernels(self) -> None:
        """Times oneDNN's kernels against the others that TensorFlow has on CPUs."""
        on, off = (
            self.start("tensorflow", environ={"TF_ENABLE_ONEDNN_OPTS": value})
            for value in ("1", "0")
        )
        for case in (Case("mlp", 32, 300), Case("cnn", 32, 40), Case("cnn", 128, 15)):
            sides = [(on, "mnist_dist"), (off, "mnist_dist")]
            self.compare(case, sides, names=["with oneDNN", "without"])

    def compare_replicas(self) -> None:
        """Times two replicas in one process against one on the same processors."""
        two = self.start("tensorflow", num_replicas=2)
        one = self.start("tensorflow")
        for case in (Case("mlp", 256, 200), Case("cnn", 128, 15)):
            self.compare(case, [(two, "mnist_dist, 2 replicas"), (one, "mnist_dist")])

    def compare_workers(self) -> None:
        """Times two workers, each on half of the processors, against PyTorch's DDP."""
        groups = [
            self.start(framework, num_workers=2)
            for framework in ("tensorflow", "torch")
        ]
        sides = [(group, side) for group in groups for side in group.sides]
        self.compare(Case("mlp", 256, 60 if self._is_quick else 600), sides)

    def measure_programs(self) -> None:
        """Times whole programs, and what they wait for."""
        rounds = 3 if self._is_quick else 7
        imports, firsts = [], []
        for _ in range(rounds):
            imports.append(programs.time_import())
            firsts.append(programs.time_first_step())
        whole = programs.time_training(
            num_intervals=8, steps_per_interval=25 if self._is_quick else 234
        )
        self.programs = {
            "import_seconds": imports,
            "first_step_seconds": firsts,
            "seconds": whole.seconds,
            "peak_bytes": whole.peak_bytes,
            "event_seconds": whole.event_seconds,
        }
        print(f"\n{report.format_programs(self.programs)}", flush=True)

    def _leave_out(self, line: str) -> None:
        self.left_out.append(line)
        print(line, flush=True)


def main(argv: list[str]) -> int:
    """Measures what was asked for."""
    if argv[1:] or set(PARTS.value) - set(_ALL_PARTS):
        print(f"--part: expected of {', '.join(_ALL_PARTS)}", file=sys.stderr)
        return 2
    limits = measure_limits_apart()
    print(report.format_limits(limits), flush=True)
    benchmark = Benchmark(limits, is_quick=QUICK.value)
    parts = {
        "sides": benchmark.compare_frameworks,
        "kernels": benchmark.compare_kernels,
        "replicas": benchmark.compare_replicas,
        "workers": benchmark.compare_workers,
        "programs": benchmark.measure_programs,
    }
    try:
        for part in PARTS.value:
            parts[part]()
            benchmark.close()
    except NotTheSameError as error:
        print(f"nothing was timed: {error}", file=sys.stderr)
        return 1
    finally:
        benchmark.close()
    if JSON.value:
        found = report.to_json(
            benchmark.timings,
            limits,
            programs=benchmark.programs,
            left_out=benchmark.left_out,
        )
        with open(JSON.value, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
