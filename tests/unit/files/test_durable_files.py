import errno
import fcntl
import os
import signal
import socket
import time

import pytest
import tensorflow as tf

from mnist_dist.files import durable
from mnist_dist.files.durable import (
    list_names,
    list_unfinished,
    publishing,
    remove,
    remove_unfinished,
    replacing,
    staging_folder,
)


class Broken(Exception):
    pass


def breaking():
    """Expects the block to end in `Broken`, and in no other error."""
    return pytest.raises(Broken)


def read(path):
    with tf.io.gfile.GFile(str(path), "rb") as file:
        return file.read()


def write_folder(path, **contents):
    os.makedirs(path)
    for name, content in contents.items():
        with open(os.path.join(path, name), "wb") as file:
            file.write(content)


@pytest.fixture(params=["local", "remote"])
def directory(request, tmp_path):
    """A directory of the operating system, and one that TensorFlow alone knows."""
    path = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    tf.io.gfile.makedirs(path)
    return path


def test_file_is_the_old_one_until_the_new_one_is_whole(directory):
    with replacing(f"{directory}/file") as file:
        file.write(b"old")
        assert not tf.io.gfile.exists(f"{directory}/file")
    with replacing(f"{directory}/file") as file:
        file.write(b"new" * 5000)
        assert read(f"{directory}/file") == b"old"
    with breaking(), replacing(f"{directory}/file") as file:
        file.write(b"half")
        raise Broken
    assert read(f"{directory}/file") == b"new" * 5000
    assert list_names(directory) == ["file"]


def test_file_may_be_empty(directory):
    with replacing(f"{directory}/file"):
        pass
    assert read(f"{directory}/file") == b""


def test_folder_appears_with_all_that_is_in_it_or_not_at_all(directory):
    path = f"{directory}/1"
    with breaking(), publishing(path) as staging:
        write_folder(staging, top=b"half")
        raise Broken
    assert list_names(directory) == []
    with publishing(path, overwrite=False) as staging:
        write_folder(f"{staging}/variables", data=b"data")
        write_folder(f"{staging}/empty")
        assert list_names(path) == []
    assert list_names(path) == ["empty", "variables"]
    assert read(f"{path}/variables/data") == b"data"
    with (
        pytest.raises(tf.errors.AlreadyExistsError),
        publishing(path, overwrite=False) as staging,
    ):
        write_folder(staging, top=b"other")
    assert read(f"{path}/variables/data") == b"data"
    with publishing(path) as staging:
        write_folder(staging, top=b"other")
    assert list_names(path) == ["top"]
    assert list_names(directory) == ["1"]


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync, rename = [], os.fsync, tf.io.gfile.rename

    def note_sync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def note_rename(source, target, overwrite):
        inside = [source, f"{source}/sub", f"{source}/sub/file"]
        assert {os.stat(path).st_ino for path in inside} <= set(synced)
        synced.clear()
        rename(source, target, overwrite)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(tf.io.gfile, "rename", note_rename)
    with publishing(f"{tmp_path}/1") as staging:
        write_folder(f"{staging}/sub", file=b"x")
    assert synced == [tmp_path.stat().st_ino]


def test_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    path, rename = f"{tmp_path}/1", os.rename
    write_folder(path, file=b"old")

    def fail_once(source, target):
        if target == path:
            monkeypatch.setattr(os, "rename", rename)
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(durable, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="no"), publishing(path) as staging:
        write_folder(staging, file=b"new")
    assert read(f"{path}/file") == b"old"
    assert os.listdir(tmp_path) == ["1"]


def test_folder_that_is_replaced_is_there_at_every_moment(tmp_path, monkeypatch):
    path, exchange = f"{tmp_path}/1", durable._exchange
    write_folder(path, file=b"old")
    swapped = []

    def note_exchange(first, second):
        swapped.append(exchange(first, second))
        assert read(f"{path}/file") == b"new"
        return swapped[-1]

    def fail(source, target):
        raise AssertionError("a second step")

    monkeypatch.setattr(durable, "_exchange", note_exchange)
    monkeypatch.setattr(os, "rename", fail)
    with publishing(path) as staging:
        write_folder(staging, file=b"new")
    assert swapped == [True]
    assert os.listdir(tmp_path) == ["1"]


def in_a_process_that_is_killed(function):
    """Runs `function` in a fork that ends as SIGKILL ends it, at the end at latest."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_killed_while_it_replaces_a_folder_in_two_steps_leaves_the_old_or_the_new(
    num_renames, tmp_path, monkeypatch
):
    path, rename = f"{tmp_path}/1", os.rename
    write_folder(path, file=b"old")
    renamed = []

    def rename_until_killed(source, target):
        if len(renamed) == num_renames:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        renamed.append(target)

    def replace():
        monkeypatch.setattr(durable, "_exchange", lambda first, second: False)
        monkeypatch.setattr(os, "rename", rename_until_killed)
        monkeypatch.setattr(durable, "remove", lambda path: None)
        with publishing(path) as staging:
            write_folder(staging, file=b"new")

    in_a_process_that_is_killed(replace)
    assert os.path.isdir(path) == (num_renames != 1)
    remove_unfinished(str(tmp_path), is_mine=False)
    assert os.listdir(tmp_path) == ["1"]
    assert read(f"{path}/file") == (b"new" if num_renames == 2 else b"old")


def test_file_never_takes_the_place_of_a_folder(tmp_path):
    write_folder(tmp_path / "taken", file=b"old")
    with pytest.raises(tf.errors.OpError), replacing(f"{tmp_path}/taken") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["taken"]
    assert read(tmp_path / "taken" / "file") == b"old"


def test_first_error_is_told_even_if_cleaning_up_fails_too(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("cannot be removed")

    with breaking(), replacing(f"{tmp_path}/file"):
        monkeypatch.setattr(durable, "remove", fail)
        raise Broken


def test_file_has_the_permissions_of_any_other(tmp_path):
    mask = os.umask(0o027)
    try:
        with replacing(f"{tmp_path}/file") as file:
            file.write(b"x")
    finally:
        os.umask(mask)
    assert os.stat(tmp_path / "file").st_mode & 0o777 == 0o640


def test_of_a_link_the_link_alone_is_removed(tmp_path):
    write_folder(tmp_path / "precious", file=b"x")
    (tmp_path / "folder").mkdir()
    for link in ("folder/link", "link"):
        (tmp_path / link).symlink_to(tmp_path / "precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("folder", "link", "dangling", "nothing"):
        remove(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["precious"]
    assert read(tmp_path / "precious" / "file") == b"x"


def leave_staging(directory):
    """Leaves what a writer that is killed leaves."""

    def write():
        with staging_folder(str(directory)) as folder:
            write_folder(f"{folder}/half", file=b"x")
            os.kill(os.getpid(), signal.SIGKILL)

    in_a_process_that_is_killed(write)
    (left,) = list_unfinished(str(directory))
    return left


def test_leftover_of_a_dead_writer_goes_when_the_next_one_publishes(tmp_path):
    left = leave_staging(tmp_path)
    with replacing(f"{tmp_path}/file") as file:
        assert not os.path.exists(left)
        file.write(b"x")
    assert os.listdir(tmp_path) == ["file"]
    left = leave_staging(tmp_path)
    remove_unfinished(str(tmp_path), is_mine=False)
    assert os.listdir(tmp_path) == ["file"]


def test_writers_of_one_host_name_and_process_number_leave_each_other_alone(
    tmp_path, monkeypatch
):
    # As two containers do, each of which is process 1.
    monkeypatch.setattr(socket, "gethostname", lambda: "same")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with publishing(f"{tmp_path}/1") as first:
        write_folder(first, file=b"first")
        with publishing(f"{tmp_path}/2") as second:
            remove_unfinished(str(tmp_path), is_mine=False)
            assert os.path.exists(first)
            write_folder(second, file=b"second")
    assert read(f"{tmp_path}/1/file") == b"first"
    assert read(f"{tmp_path}/2/file") == b"second"


def test_where_there_are_no_locks_the_old_go(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    young, old, busy, foreign = (tmp_path / f".writing-{n}" for n in range(4))
    for folder in (young, old, busy, foreign):
        folder.mkdir()
    for folder in (young, old, busy):
        (folder / ".lock").touch()
    (busy / "file").touch()
    (foreign / "file").touch()
    long_ago = time.time() - 25 * 3600
    for path in (old, old / ".lock", busy, busy / ".lock"):
        os.utime(path, (long_ago, long_ago))
    remove_unfinished(str(tmp_path), is_mine=False)
    assert sorted(tmp_path.iterdir()) == [young, busy, foreign]
    remove_unfinished(str(tmp_path), is_mine=True)
    assert os.listdir(tmp_path) == []
    remove_unfinished(str(tmp_path / "nothing"), is_mine=True)


def test_folder_without_anything_in_it_is_a_dead_writer_s(tmp_path):
    (tmp_path / ".writing-1").mkdir()
    with replacing(f"{tmp_path}/file") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["file"]


def test_writer_whose_folder_was_taken_for_an_abandoned_one_makes_another(
    tmp_path, monkeypatch
):
    flock, taken = fcntl.flock, []

    def remove_before(lock, operation):
        if not taken:
            taken.append(lock.name)
            monkeypatch.setattr(fcntl, "flock", flock)
            remove_unfinished(str(tmp_path), is_mine=False)
            assert os.listdir(tmp_path) == []
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", remove_before)
    with publishing(f"{tmp_path}/1") as staging:
        assert os.path.dirname(staging) != os.path.dirname(taken[0])
        write_folder(staging, file=b"x")
    assert os.listdir(tmp_path) == ["1"]


def test_names_are_listed_whatever_their_bytes(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"\xff"), "w"):
        pass
    assert list_names(str(tmp_path)) == [os.fsdecode(b"\xff")]
    assert list_names(str(tmp_path / "nothing")) == []
