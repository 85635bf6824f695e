"""When the watch over a training ends."""

import json
import os
import time

import pytest
from run_factory import create_run, save_data_set

from mnist_dist.evaluation import new_checkpoints
from mnist_dist.evaluation.new_checkpoints import follow_checkpoints
from mnist_dist.run.lock import open_for_writing
from mnist_dist.run.paths import config_path


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run whose last step is there, and looks that come fast."""
    monkeypatch.setattr(new_checkpoints, "_POLL_SECONDS", 0.01)
    create_run(tmp_path / "run", data_dir=save_data_set(tmp_path / "data"), steps=(1,))
    return tmp_path / "run"


def follow(model_dir, visit=lambda found: None, *, timeout=0.5, **kwargs):
    return follow_checkpoints(
        str(model_dir), visit, is_stopped=lambda: False, timeout=timeout, **kwargs
    )


def test_finished_run_that_nobody_writes_is_at_its_end(finished, monkeypatch):
    assert follow(finished, timeout=0) == "last"
    monkeypatch.setattr(new_checkpoints, "_GRACE_SECONDS", 0.1)
    assert follow(finished, timeout=600) == "last"


def test_evaluator_waits_for_the_training_that_it_came_with(finished, monkeypatch):
    monkeypatch.setattr(new_checkpoints, "_GRACE_SECONDS", 0)
    steps = []

    def prolong(found):
        steps.append(found.step)
        if len(steps) < 3:
            create_run(
                finished, data_dir=finished.parent / "data", steps=(found.step + 1,)
            )

    later = time.time() + 1000
    began = time.monotonic()
    assert follow(finished, training_since=later) == "last"
    assert time.monotonic() - began >= 0.5
    # Those that appear are waited for no longer; and nor is a training that came.
    assert follow(finished, prolong, timeout=600, training_since=later) == "last"
    assert steps == [1, 2, 3]
    lock = open_for_writing(str(finished))
    looks = iter([True, True, False])
    monkeypatch.setattr(
        new_checkpoints, "is_being_written", lambda model_dir: next(looks, False)
    )
    assert follow(finished, timeout=600, training_since=later) == "last"
    lock.close()


def test_evaluator_that_comes_after_its_training_does_not_wait_for_it(
    finished, monkeypatch
):
    assert follow(finished, timeout=600, training_since=time.time() - 100) == "last"
    # It had nothing to do but to write the settings.
    monkeypatch.setattr(new_checkpoints, "_GRACE_SECONDS", 0.1)
    for path in (finished / "checkpoints").iterdir():
        os.utime(path, (1, 1))
    assert follow(finished, timeout=600, training_since=time.time()) == "last"


def test_run_is_at_no_end_while_it_is_written(finished):
    with open_for_writing(str(finished)):
        assert follow(finished, timeout=0.1) == "timeout"
    assert follow(finished, timeout=0.1) == "last"


@pytest.mark.parametrize("total_steps", [2, None])
def test_run_that_was_made_longer_or_started_over_is_at_no_end(total_steps, finished):
    def go_on(found):
        if total_steps is None:
            (finished / "config.json").unlink()
            return
        config = dict(found.config.contents)
        config["resolved"] |= {"total_steps": total_steps}
        with open(config_path(str(finished)), "w") as file:
            json.dump(config, file)

    assert follow(finished, go_on, timeout=0.1) == "timeout"
