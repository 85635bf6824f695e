"""Runs side by side: which there are, and in which options they differ."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from mnist_dist.errors import InputError
from mnist_dist.files.local import is_local, kind_at
from mnist_dist.files.untrusted import quoted
from mnist_dist.reporting.run_summary import RunSummary, load_run_summary
from mnist_dist.run.paths import config_path, metrics_path

# Options that say where a run lies and how it was started, not what it computes.
_PLACES = {
    *("model_dir", "export_dir", "worker_hosts", "task_index", "progress"),
    *("restore", "overwrite", "override_config", "dry_run", "profile_steps"),
}


@dataclasses.dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    Attributes:
      runs: what each has recorded, in the order in which they were named or found.
      differing: names of the options in which they differ, sorted.
      left_out: why a directory is not among the runs, a line each.
    """

    runs: Sequence[RunSummary]
    differing: Sequence[str]
    left_out: Sequence[str]


def compare_runs(model_dirs: Sequence[str]) -> RunComparison:
    """Reads what runs have recorded, and finds in which options they differ.

    Runs that are still written are read too. Nothing is written. TensorFlow is not
    imported, but for paths with a scheme, as `gs://`.

    Args:
      model_dirs: directories of runs; or folders that are searched for runs, at any
        depth. Links below them are not followed.

    Raises:
      InputError: no directory is a run's, nor has a run in it.
    """
    left_out: list[str] = []
    found: dict[str, str] = {}  # where it really lies -> as it was named
    for directory in model_dirs:
        paths = list(_find_runs(directory))
        if not paths:
            what = kind_at(directory, follow_links=True)
            if what == "a folder":
                what = "a folder without config.json and metrics.jsonl"
            left_out.append(
                f"{quoted(directory)}: found {what or 'nothing there'}, expected a run "
                "or a folder of runs"
            )
        for path in paths:
            found.setdefault(os.path.realpath(path) if is_local(path) else path, path)
    runs = []
    for path, name in zip(found.values(), _names(list(found)), strict=True):
        try:
            runs.append(load_run_summary(path, name=name))
        except InputError as error:
            left_out.append(str(error))
    if not runs:
        raise InputError(f"--model_dir: found no run: {'; '.join(left_out)}")
    return RunComparison(runs, _differing(runs), left_out)


def _find_runs(directory: str) -> Iterator[str]:
    """Yields the directories in a folder, or itself, that have a run's files."""
    if not is_local(directory) or _is_run(directory):
        yield directory
        return
    for parent, folders, _ in os.walk(directory):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not os.path.islink(f"{parent}/{name}")
        )
        inside = [name for name in folders if _is_run(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in inside)
        # What lies in a run is its own.
        folders[:] = [name for name in folders if name not in inside]


def _is_run(directory: str) -> bool:
    return bool(kind_at(config_path(directory)) or kind_at(metrics_path(directory)))


def _names(paths: Sequence[str]) -> list[str]:
    """Returns short names for paths, each different."""
    if not all(map(is_local, paths)):
        return list(paths)
    if len(paths) < 2:
        return [os.path.basename(path) for path in paths]
    common = os.path.commonpath(paths)
    return [
        os.path.relpath(path, common) if path != common else os.path.basename(path)
        for path in paths
    ]


def _differing(runs: Sequence[RunSummary]) -> list[str]:
    """Returns the options that not all runs have alike, of those that record options."""
    told = [run for run in runs if run.options]
    names = {name for run in told for name in run.options} - _PLACES
    return sorted(
        name
        for name in names
        if any(run.options.get(name) != told[0].options.get(name) for run in told)
    )
