"""What is found out about one worker, and how it is shown."""

import dataclasses
import json
from collections.abc import Sequence


@dataclasses.dataclass
class Diagnosis:
    """What is known of one worker.

    Attributes:
      rank: of the worker.
      facts: a line of text by topic, in the order in which they were found out.
      numbers: what was measured, by name; the unit is the end of the name.
      stops: what would stop a run.
      slows: what would slow a run.
    """

    rank: int = 0
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    stops: list[str] = dataclasses.field(default_factory=list)
    slows: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """Returns all of it as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Diagnosis":
        """Takes what `to_json` returned."""
        return cls(**json.loads(text))


def is_healthy(workers: Sequence[Diagnosis]) -> bool:
    """Whether nothing would stop or slow a run."""
    return not any(worker.stops or worker.slows for worker in workers)


def format_json(workers: Sequence[Diagnosis]) -> str:
    """Returns the diagnoses as one JSON object."""
    return json.dumps(
        {
            "healthy": is_healthy(workers),
            "workers": [dataclasses.asdict(worker) for worker in workers],
        },
        allow_nan=False,
    )


def format_table(workers: Sequence[Diagnosis]) -> str:
    """Returns the first worker's facts, what others have otherwise, and all findings."""
    first, *others = workers
    lines = _rows(first.facts)
    for worker in others:
        different = {
            name: text
            for name, text in worker.facts.items()
            if first.facts.get(name) != text
        }
        lines += ["", f"worker {worker.rank}, where it differs", *_rows(different)]
    lines.append("")
    lines += _findings("STOPS A RUN", {w.rank: w.stops for w in workers})
    lines += _findings("SLOWS A RUN", {w.rank: w.slows for w in workers})
    if is_healthy(workers):
        lines.append("nothing found that would stop or slow a run")
    return "\n".join(lines)


def _findings(effect: str, by_rank: dict[int, list[str]]) -> list[str]:
    """Returns a line for each finding, with the workers that have it if not all."""
    lines = []
    for text in dict.fromkeys(text for found in by_rank.values() for text in found):
        ranks = [str(rank) for rank, found in by_rank.items() if text in found]
        who = "" if len(ranks) == len(by_rank) else f"worker {', '.join(ranks)}: "
        lines.append(f"{effect}  {who}{text}")
    return lines


def _rows(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts), default=0) + 2
    return [f"{name:<{width}}{text}" for name, text in facts.items()]
