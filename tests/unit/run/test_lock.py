import errno
import fcntl
import os
import threading

import numpy as np
import pytest

from mnist_dist.errors import InputError, RunError
from mnist_dist.run.activity import is_being_written
from mnist_dist.run.checkpoints import list_checkpoints, save_checkpoint
from mnist_dist.run.lock import open_for_writing
from mnist_dist.run.paths import checkpoint_dir


def test_second_writer_is_told_who_the_first_is(tmp_path):
    with open_for_writing(str(tmp_path)):
        with pytest.raises(InputError, match=f"being written by process {os.getpid()}"):
            open_for_writing(str(tmp_path))
        (tmp_path / ".lock").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="being written by"):
            open_for_writing(str(tmp_path))
    open_for_writing(str(tmp_path)).close()


def test_who_looks_whether_a_run_is_written_does_not_keep_others_from_it(tmp_path):
    assert not is_being_written(str(tmp_path / "nothing"))
    with open_for_writing(str(tmp_path)):
        assert is_being_written(str(tmp_path))
    assert not is_being_written(str(tmp_path))
    look = open(tmp_path / ".lock", "rb")  # noqa: SIM115
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.03, look.close).start()
    open_for_writing(str(tmp_path)).close()


def test_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    open_for_writing(str(tmp_path)).close()
    (record,) = caplog.records
    assert f"{tmp_path} cannot be locked (No locks available)" in record.message


@pytest.mark.parametrize("name", ["file", "file/below", "\udcff"])
def test_directory_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    path = str(tmp_path / name)
    with pytest.raises(
        InputError, match=r"--model_dir: found .*, expected a directory"
    ):
        open_for_writing(path)


def test_run_whose_writer_was_killed_is_completed_by_the_next(tmp_path):
    run = str(tmp_path)
    for step in (1, 2, 3):
        save_checkpoint(
            {"step": np.array(step)}, directory=f"{run}/checkpoints", step=step
        )
    index = f"{run}/checkpoints/ckpt-3.index"
    os.mkdir(f"{run}/checkpoints/.writing-host-1")
    os.rename(index, f"{run}/checkpoints/.writing-host-1/ckpt-3.index")
    assert list_checkpoints(checkpoint_dir(run)) == [2, 1]
    with open_for_writing(run):
        assert list_checkpoints(checkpoint_dir(run)) == [3, 2, 1]


def test_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(precious)
    with pytest.raises(InputError, match=r"\.lock: found a link, expected a regular"):
        open_for_writing(str(run))
    assert precious.read_text() == "keep me"
    assert not is_being_written(str(run))


def test_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"\.lock: found a folder, expected a regular"):
        open_for_writing(str(tmp_path))


@pytest.mark.parametrize("name", [".lock", "checkpoints", "best", "metrics.jsonl"])
def test_pipe_in_place_of_a_part_of_the_run_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"found a named pipe"):
        open_for_writing(str(tmp_path))
    assert not is_being_written(str(tmp_path))


@pytest.mark.parametrize("name", ["best", "train", "config.json"])
def test_link_to_elsewhere_in_place_of_a_part_of_the_run_is_refused(tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path)
    with pytest.raises(InputError, match=rf"found a link at \S+/{name}, expected a f"):
        open_for_writing(str(run))
    assert not is_being_written(str(run))  # it let go of the lock


def test_lock_knows_that_the_run_was_moved_deleted_or_replaced(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    with open_for_writing(str(run)) as lock:
        lock.check()
        run.rename(elsewhere)
        with pytest.raises(RunError, match=rf"{run} was moved or deleted"):
            lock.check()
        with open_for_writing(str(run)) as other:
            other.check()
            with pytest.raises(RunError, match="was moved or deleted"):
                lock.check()
        (run / ".lock").unlink()
        run.rmdir()
        elsewhere.rename(run)
        lock.check()
        (run / ".lock").unlink()
        with pytest.raises(RunError, match="was moved or deleted"):
            lock.check()


def test_checkpoint_does_not_bring_a_deleted_run_back(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"ckpt-1 cannot be written: .*No such file"):
        save_checkpoint(
            {"step": np.array(1)}, directory=checkpoint_dir(str(run)), step=1
        )
    assert not run.exists()
