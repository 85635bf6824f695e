"""MODEL_DIR: where what a run writes lies. Nothing here looks at the disk."""

import os

LOCK = ".lock"


def checkpoint_dir(model_dir: str) -> str:
    """Returns where the newest checkpoints lie."""
    return os.path.join(model_dir, "checkpoints")


def best_dir(model_dir: str) -> str:
    """Returns where the best checkpoint so far lies."""
    return os.path.join(model_dir, "best")


def checkpoint_dirs(model_dir: str) -> list[str]:
    """Returns where all checkpoints lie that a run can go on from."""
    return [checkpoint_dir(model_dir), best_dir(model_dir)]


def export_dir(model_dir: str) -> str:
    """Returns where SavedModels lie by default."""
    return os.path.join(model_dir, "export")


def watch_dir(model_dir: str) -> str:
    """Returns where `evaluate --watch` writes by default."""
    return os.path.join(model_dir, "eval_watch")


def metrics_path(model_dir: str) -> str:
    """Returns where every training and evaluation metric is recorded, as JSON lines."""
    return os.path.join(model_dir, "metrics.jsonl")


def flag_file_path(model_dir: str) -> str:
    """Returns where the settings of a run are recorded as a flag file."""
    return os.path.join(model_dir, "config.flags")


def config_path(model_dir: str) -> str:
    """Returns where the settings of a run are recorded."""
    return os.path.join(model_dir, "config.json")


def evaluation_path(directory: str, step: int) -> str:
    """Returns where `evaluate --watch` records what it found at a step, as JSON."""
    return os.path.join(directory, f"ckpt-{step}.json")


def evaluation_events_path(directory: str, step: int) -> str:
    """Returns where `evaluate` writes what TensorBoard shows of a step.

    TensorBoard reads the files of a directory in the order of their names.
    """
    return os.path.join(directory, f"events.out.tfevents.{step:012}.v2")
