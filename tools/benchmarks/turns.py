"""Sides take turns, so that other load on the machine meets all of them."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.group import Group
from benchmarks.side import SideError
from benchmarks.work import Case

# Losses of the same computation differ by less, relative to the first side's. Rounding
# differs, and grows with each step.
_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Timing:
    """How fast one side trains.

    Attributes:
      case: what was trained.
      side: its name in the table.
      loss: on the test images after one pass.
      rates: images/s of each turn.
      ratios: how many times as fast the first side was in the same round.
    """

    case: Case
    side: str
    loss: float
    rates: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """The median of the turns."""
        return statistics.median(self.rates)


class NotTheSameError(Exception):
    """Sides that should compute the same came to different losses."""


def compare(
    case: Case,
    sides: Iterable[tuple[Group, str]],
    *,
    rounds: int,
    seconds: float,
) -> tuple[list[Timing], list[str]]:
    """Checks that sides compute the same, then times them in turns.

    Args:
      case: what each trains.
      sides: the first is the one to which the others are compared.
      rounds: turns of each.
      seconds: that a turn should take at least.

    Returns:
      A timing for each side; and a line for each one that was left out, as it cannot
      do this.

    Raises:
      NotTheSameError: a loss differs.
      SideError: the first side cannot do it.
    """
    losses: dict[tuple[Group, str], float] = {}
    left_out = []
    for group, side in sides:
        try:
            answer = group.ask("create", side=side, case=dataclasses.asdict(case))
        except SideError as error:
            if not losses:
                raise
            left_out.append(f"{side}, {case}: left out: {error}")
        else:
            losses[group, side] = answer["loss"]
    _check_losses(case, list(losses.values()))
    passes = {key: _count_passes(*key, seconds=seconds) for key in losses}
    rates: dict[tuple[Group, str], list[float]] = {key: [] for key in losses}
    for number in range(rounds):
        # Forth and back, so that no side always follows the same other.
        for key in list(passes)[:: -1 if number % 2 else 1]:
            images = passes[key] * case.steps * case.batch
            rates[key].append(images / _train(*key, passes=passes[key]))
    for group in {group for group, _ in losses}:
        group.ask("forget")
    first = next(iter(rates.values()))
    return [
        Timing(
            case,
            side,
            losses[group, side],
            tuple(values),
            tuple(a / b for a, b in zip(first, values, strict=True)),
        )
        for (group, side), values in rates.items()
    ], left_out


def _check_losses(case: Case, losses: Sequence[float]) -> None:
    expected = losses[0]
    if not all(abs(loss - expected) < _TOLERANCE * expected for loss in losses):
        found = ", ".join(f"{loss:.4f}" for loss in losses)
        raise NotTheSameError(f"{case}: found losses {found}, expected the same")


def _train(group: Group, side: str, *, passes: int) -> float:
    return group.ask("train", side=side, passes=passes)["seconds"]


def _count_passes(group: Group, side: str, *, seconds: float) -> int:
    """Returns how many passes a turn has: one is tried, and its time taken."""
    taken = _train(group, side, passes=1)
    return max(round(seconds / taken), 1)
