import os

import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.files import durable
from mnist_dist.run import set_aside
from mnist_dist.run.checkpoints import list_checkpoints, load_arrays, save_checkpoint
from mnist_dist.run.lock import open_for_writing
from mnist_dist.run.set_aside import set_aside_later


def save(run, folder, *steps):
    for step in steps:
        arrays = {"step": np.array(step), "from": np.array(folder == "best")}
        save_checkpoint(arrays, directory=f"{run}/{folder}", step=step)


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1 to 4, of which 4 is the best."""
    save(tmp_path, "checkpoints", 1, 2, 3, 4)
    save(tmp_path, "best", 4)
    return str(tmp_path)


def test_later_checkpoints_are_set_aside(run):
    assert set_aside_later(run, 2) == {
        f"{run}/best/ckpt-4": 4,
        f"{run}/checkpoints/ckpt-3": 3,
        f"{run}/checkpoints/ckpt-4": 4,
    }
    assert list_checkpoints(f"{run}/checkpoints") == [2, 1]
    assert list_checkpoints(f"{run}/best") == []
    for folder, step in (("best", 4), ("checkpoints", 3), ("checkpoints", 4)):
        aside = load_arrays(f"{run}/{folder}/later-than-2/ckpt-{step}")
        assert (aside["step"], aside["from"]) == (step, folder == "best")
    assert sorted(os.listdir(f"{run}/best")) == ["checkpoint", "later-than-2"]


def test_second_time_loses_nothing_of_the_first(run):
    set_aside_later(run, 2)
    save(run, "checkpoints", 3)
    set_aside_later(run, 2)
    assert list_checkpoints(f"{run}/checkpoints/later-than-2") == [4, 3]
    assert list_checkpoints(f"{run}/checkpoints/later-than-2.2") == [3]


def test_where_nothing_is_later_nothing_changes(run):
    before = sorted(os.walk(run))
    assert set_aside_later(run, 4) == {}
    assert sorted(os.walk(run)) == before


class Killed(BaseException):
    pass


def count_and_kill(monkeypatch, number):
    """Ends the process, so to speak, before its n-th change of names on the disk."""
    count, rename, remove = 0, tf.io.gfile.rename, durable.remove

    def before_change(change):
        def changed(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            change(*args, **kwargs)

        return changed

    monkeypatch.setattr(tf.io.gfile, "rename", before_change(rename))
    monkeypatch.setattr(set_aside, "remove", before_change(remove))
    return lambda: count


def test_killed_at_any_moment_it_is_as_before_or_is_completed(run, monkeypatch):
    with monkeypatch.context() as patch:
        count = count_and_kill(patch, -1)
        set_aside_later(run, 2)
        num_changes = count()
    expected = {folder: sorted(names) for folder, _, names in os.walk(run)}
    assert num_changes == 2 + 2 * 3 + 2  # markers, files, markers
    for number in range(1, num_changes + 1):
        for folder in ("best", "checkpoints"):
            aside = f"{run}/{folder}/later-than-2"
            for name in os.listdir(aside):
                os.rename(f"{aside}/{name}", f"{run}/{folder}/{name}")
            os.rmdir(aside)
        with monkeypatch.context() as patch:
            count_and_kill(patch, number)
            with pytest.raises(Killed):
                set_aside_later(run, 2)
        is_begun = number > 1
        # Who only reads sees no checkpoint in part, and none past the step.
        newest = max(list_checkpoints(f"{run}/checkpoints"))
        assert newest == (2 if number > 2 else 4)
        assert list_checkpoints(f"{run}/best") == ([] if is_begun else [4])
        # A plain start goes on from the step that was asked for.
        open_for_writing(run).close()
        newest = max(list_checkpoints(f"{run}/checkpoints"))
        assert newest == (2 if is_begun else 4)
        set_aside_later(run, 2)
        os.remove(f"{run}/.lock")
        assert {f: sorted(n) for f, _, n in os.walk(run)} == expected
