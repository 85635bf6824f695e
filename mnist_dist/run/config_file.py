"""Reads `config.json` as it is; needs no TensorFlow."""

import json
from typing import Any

from mnist_dist.errors import InputError
from mnist_dist.files.local import read_bytes
from mnist_dist.run.paths import config_path

_MAX_BYTES = 1 << 24  # of config.json

# What runs were trained with before it was an option, and so was recorded.
EARLIER_SETTINGS = {"validation_split": "last", "num_microbatches": 0}


def load_config(model_dir: str) -> dict[str, Any] | None:
    """Reads `config.json`; None where there is none.

    Raises:
      InputError: it is no regular file, or not what `save_config` wrote.
    """
    path = config_path(model_dir)
    content = read_bytes(path, max_bytes=_MAX_BYTES)
    if content is None:
        return None
    try:
        config = json.loads(content, parse_constant=_refuse_constant)
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        for section in ("settings", "flags", "resolved"):
            if not isinstance(config.get(section), dict):
                raise ValueError(f"it has no object {section!r}")
        return config
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the settings of a run, as JSON: {error}"
        ) from error


def starts_in(config: dict[str, Any]) -> list[dict[str, float]]:
    """Returns `step` and `time`, in seconds since 1970, of each start of a run.

    Runs of earlier versions have recorded none; what is no start is left out.

    Args:
      config: the content of its `config.json`.
    """
    recorded = config.get("resolved", {}).get("starts")
    return [
        {"step": start["step"], "time": float(start["time"])}
        for start in (recorded if isinstance(recorded, list) else [])
        if isinstance(start, dict)
        and type(start.get("step")) is int
        and type(start.get("time")) in (int, float)
        and abs(start["time"]) < 1e12
    ]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
