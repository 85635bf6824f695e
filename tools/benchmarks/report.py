"""What was measured, as tables and as JSON."""

import dataclasses
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.limits import Limits
from benchmarks.side import num_processors
from benchmarks.turns import Timing


def format_limits(limits: Limits) -> str:
    """Returns a line with the machine and what it can do at most."""
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype, rate in limits.operations_per_second.items()
    )
    return (
        f"{describe_machine()}: matrix products {products}; "
        f"copies {limits.bytes_per_second / 1e9:.1f} GB/s"
    )


def describe_machine() -> str:
    """Returns the model of the processor and how many there are."""
    model = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            if found := re.search(
                r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE
            ):
                model = found[1]
    return f"{model}, {num_processors()} processors"


def shares(timing: Timing, limits: Limits) -> tuple[float, float]:
    """Returns which part of the machine's limits a training uses.

    Returns:
      Of the largest matrix product's rate, by the operations of the model's products; of
      the copy's rate, by the bytes of the update, which can be more than 1 as a cache is
      faster than memory.
    """
    case, rate = timing.case, timing.images_per_second
    products = rate * case.operations / limits.operations_per_second[case.dtype]
    return products, rate / case.batch * case.update_bytes / limits.bytes_per_second


def format_timings(timings: Sequence[Timing], limits: Limits) -> str:
    """Returns a table of one case; the first line is what the others are compared to."""
    first, *_ = timings
    lines = [
        f"{first.case}: test loss {first.loss:.4f} to "
        f"{max(t.loss for t in timings):.4f} after {first.case.steps} steps",
        f"  {'':<34}{'images/s':>10}  {'ours is x times as fast':<24}"
        f"{'of product':>10}{'of copy':>9}",
    ]
    for timing in timings:
        ratios = timing.ratios
        of_product, of_copy = shares(timing, limits)
        ratio = (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            if timing is not first
            else ""
        )
        lines.append(
            f"  {timing.side:<34}{timing.images_per_second:>10,.0f}  {ratio:<24}"
            f"{of_product:>10.1%}{of_copy:>9.1%}"
        )
    return "\n".join(lines)


def format_programs(found: Mapping[str, Any]) -> str:
    """Returns lines on whole programs, as `Benchmark.measure_programs` found them."""
    imported, first = found["import_seconds"], found["first_step_seconds"]
    rest = [b - a for a, b in zip(imported, first, strict=True)]
    events = found["event_seconds"]
    return "\n".join(
        [
            f"From the command to the first step of the cnn: {_median(first, 's')}, "
            f"of which TensorFlow's import {_median(imported, 's')}, the rest "
            f"{_median(rest, 's')}",
            f"A short run with events and export: {found['seconds']:.1f} s, peak of "
            f"memory {found['peak_bytes'] / 1e9:.2f} GB",
            f"An evaluation of 10,000 images: {1e3 * events['evaluation']:.0f} ms; "
            f"a checkpoint holds the loop for {1e3 * events['checkpoint']:.1f} ms; "
            f"summaries and the host's rest {1e3 * events['host']:.1f} ms a record",
        ]
    )


def _median(values: Sequence[float], unit: str) -> str:
    return (
        f"{statistics.median(values):.2f} {unit} ({min(values):.2f}-{max(values):.2f})"
    )


def to_json(
    timings: Sequence[Timing],
    limits: Limits,
    *,
    programs: Mapping[str, Any],
    left_out: Sequence[str],
) -> dict[str, Any]:
    """Returns all that was measured as JSON values; rates are in images/s."""
    return {
        "machine": describe_machine(),
        "limits": dataclasses.asdict(limits),
        "timings": [
            dataclasses.asdict(timing)
            | dict(zip(("of_product", "of_copy"), shares(timing, limits), strict=True))
            for timing in timings
        ],
        "programs": programs,
        "left_out": list(left_out),
    }
