import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from full_disk import file_size_limit

from mnist_dist.errors import InputError, RunError
from mnist_dist.files import durable, local
from mnist_dist.files.durable import remove_unfinished
from mnist_dist.run import checkpoints
from mnist_dist.run.checkpoint_choice import load_restored
from mnist_dist.run.checkpoint_writer import CheckpointWriter
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.directory import check_directory
from mnist_dist.run.set_aside import set_aside_later

ARRAYS = {
    "step": np.array(3, np.int64),
    "model/dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "optimizer/mean/dense/kernel": np.ones((2, 3), np.float32),
    "optimizer/mean/block/conv.1/bias": np.array([1.5, -2.0], np.float64),
}
SPECS = {name: (a.shape, a.dtype) for name, a in ARRAYS.items()}


@pytest.fixture
def directory(tmp_path):
    """Checkpoints of the steps 1 to 3."""
    writer = CheckpointWriter()
    for step in (1, 2, 3):
        arrays = ARRAYS | {"step": np.array(step, np.int64)}
        writer.save(arrays, directory=str(tmp_path), step=step, max_to_keep=3)
    writer.close()
    return str(tmp_path)


def test_what_was_saved_is_read_by_us_and_by_tensorflow(directory):
    _, found = load_restored([directory], restore="auto", specs=SPECS)
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert tf.train.latest_checkpoint(directory) == f"{directory}/ckpt-3"
    kernel, mean = tf.Variable(tf.zeros([2, 3])), tf.Variable(tf.zeros([2, 3]))
    bias, step = (
        tf.Variable([0.0, 0.0], dtype=tf.float64),
        tf.Variable(0, dtype=tf.int64),
    )
    checkpoint = tf.train.Checkpoint(
        step=step,
        model={"dense": {"kernel": kernel}},
        optimizer={
            "mean": {"dense": {"kernel": mean}, "block": {"conv.1": {"bias": bias}}}
        },
    )
    checkpoint.read(f"{directory}/ckpt-3").assert_consumed()
    np.testing.assert_array_equal(kernel, ARRAYS["model/dense/kernel"])
    np.testing.assert_array_equal(mean, ARRAYS["optimizer/mean/dense/kernel"])
    np.testing.assert_array_equal(bias, ARRAYS["optimizer/mean/block/conv.1/bias"])
    assert step == 3
    listed = {name for name, _ in tf.train.list_variables(f"{directory}/ckpt-3")}
    assert "model/dense/kernel/.ATTRIBUTES/VARIABLE_VALUE" in listed


def test_what_tensorflow_saved_is_read_by_us(tmp_path):
    kernel = tf.Variable([[1.0, 2.0]])
    checkpoint = tf.train.Checkpoint(model={"dense": {"kernel": kernel}})
    checkpoint.write(f"{tmp_path}/ckpt-1")
    found = checkpoints.read_step(str(tmp_path), 1)
    assert found.keys() == {"model/dense/kernel"}
    np.testing.assert_array_equal(found["model/dense/kernel"], [[1.0, 2.0]])


def test_only_the_newest_are_kept_and_nothing_else_is_left(directory):
    writer = CheckpointWriter()
    writer.save(ARRAYS, directory=directory, step=10, max_to_keep=2)
    writer.close()
    assert list_checkpoints(directory) == [10, 3]
    assert len(os.listdir(directory)) == 2 * 2 + 1


def test_paths_with_a_scheme_are_like_any_other(tmp_path):
    directory = f"ram://{tmp_path.name}/checkpoints"
    writer = CheckpointWriter()
    for step in range(1, 6):
        arrays = ARRAYS | {"step": np.array(step, np.int64)}
        writer.save(arrays, directory=directory, step=step, max_to_keep=3)
    writer.close()
    assert list_checkpoints(directory) == [5, 4, 3]
    assert len(tf.io.gfile.listdir(directory)) == 3 * 2 + 1
    tf.io.gfile.remove(f"{directory}/ckpt-5.{DATA}")
    assert load_restored([directory], restore="auto", specs=SPECS)[1]["step"] == 4
    _, found = load_restored([directory], restore=f"{directory}/ckpt-3", specs=SPECS)
    assert found["step"] == 3
    set_aside_later(f"ram://{tmp_path.name}", 3)
    assert list_checkpoints(directory) == [3]
    assert list_checkpoints(f"{directory}/later-than-3") == [5, 4]


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
    os.truncate(path, 0)


def flip_bit(path):
    with open(path, "r+b") as file:
        file.seek(20)
        byte = file.read(1)[0]
        file.seek(20)
        file.write(bytes([byte ^ 4]))


def fill_with_garbage(path):
    with open(path, "wb") as file:
        file.write(bytes(range(256)) * 4)


DATA, INDEX = "data-00000-of-00001", "index"
DAMAGE = [
    (DATA, truncate),
    (DATA, empty),
    (DATA, flip_bit),
    (DATA, os.remove),
    (INDEX, truncate),
    (INDEX, empty),
    (INDEX, fill_with_garbage),
    (INDEX, os.remove),
]


@pytest.mark.parametrize(("part", "damage"), DAMAGE)
def test_damaged_newest_falls_back_to_the_one_before(part, damage, directory, caplog):
    damage(f"{directory}/ckpt-3.{part}")
    _, found = load_restored([directory], restore="auto", specs=SPECS)
    assert found["step"] == 2
    assert "is damaged and skipped" in caplog.text
    assert "ckpt-3: " in caplog.text


@pytest.mark.parametrize(("part", "damage"), DAMAGE)
def test_all_damaged_is_an_error_and_never_step_0(part, damage, directory):
    for step in (1, 2, 3):
        damage(f"{directory}/ckpt-{step}.{part}")
    before = sorted(os.listdir(directory))
    with pytest.raises(InputError, match="all 3 checkpoints are damaged"):
        load_restored([directory], restore="auto", specs=SPECS)
    assert sorted(os.listdir(directory)) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b'model_checkpoint_path: "../elsewhere/ckpt-9"\n', None],
)
def test_the_state_file_is_never_believed(content, directory):
    if content is None:
        os.remove(f"{directory}/checkpoint")
    else:
        with open(f"{directory}/checkpoint", "wb") as file:
            file.write(content)
    assert load_restored([directory], restore="auto", specs=SPECS)[1]["step"] == 3


def test_link_to_outside_the_run_is_not_followed(directory, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    for part in (DATA, INDEX):
        os.rename(f"{directory}/ckpt-3.{part}", outside / f"ckpt-3.{part}")
        os.symlink(outside / f"ckpt-3.{part}", f"{directory}/ckpt-3.{part}")
    assert load_restored([directory], restore="auto", specs=SPECS)[1]["step"] == 2


@pytest.mark.parametrize("part", [DATA, INDEX])
def test_one_linked_file_is_enough_not_to_be_believed(
    part, directory, tmp_path_factory
):
    outside = tmp_path_factory.mktemp("outside") / "file"
    os.rename(f"{directory}/ckpt-3.{part}", outside)
    os.symlink(outside, f"{directory}/ckpt-3.{part}")
    assert load_restored([directory], restore="auto", specs=SPECS)[1]["step"] == 2


def test_names_that_are_no_checkpoints_are_passed_over(directory):
    elsewhere = f"{directory}/ckpt-3"  # a folder, whose state file names another
    os.mkdir(elsewhere)
    with open(f"{elsewhere}/checkpoint", "w") as file:
        file.write(f'model_checkpoint_path: "{directory}/ckpt-1"\n')
    for name in (b"ckpt-\xff.index", b"ckpt-007.index", "ckpt-٩.index".encode()):
        with open(os.path.join(os.fsencode(directory), name), "w"):
            pass
    assert list_checkpoints(directory) == [3, 2, 1]
    assert load_restored([directory], restore="auto", specs=SPECS)[1]["step"] == 3
    with pytest.raises(InputError, match="--restore: found '²', expected the path"):
        load_restored([directory], restore="²", specs=SPECS)


def test_checkpoint_of_another_model_names_every_difference(directory):
    specs = {
        "step": ((), np.dtype(np.int64)),
        "model/dense/kernel": ((2, 4), np.dtype(np.float32)),
        "model/dense/bias": ((4,), np.dtype(np.float32)),
    }
    with pytest.raises(InputError) as error:
        load_restored([directory], restore="auto", specs=specs)
    assert "model/dense/bias: found nothing, expected float32 [4]" in str(error.value)
    assert (
        "optimizer/mean/dense/kernel: found float32 [2, 3], expected no such array"
        in str(error.value)
    )
    assert "model/dense/kernel: found float32 [2, 3], expected float32 [2, 4]" in str(
        error.value
    )


class Killed(BaseException):
    pass


def kill_before_index(monkeypatch, directory, arrays, *, step):
    """A save that ends where a SIGKILL between its two renames would end it."""
    rename = tf.io.gfile.rename

    def rename_all_but_index(source, target, overwrite=False):
        if target.endswith(".index"):
            raise Killed
        rename(source, target, overwrite=overwrite)

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "rename", rename_all_but_index)
        patch.setattr(durable, "remove", lambda path: None)
        with pytest.raises(Killed):
            checkpoints.save_checkpoint(arrays, directory=directory, step=step)


def test_save_killed_before_its_index_is_none_yet_and_is_completed(
    tmp_path, monkeypatch, caplog
):
    kill_before_index(monkeypatch, str(tmp_path), ARRAYS, step=3)
    assert list(tmp_path.glob("ckpt-3.data-*"))
    assert list_checkpoints(str(tmp_path)) == []
    assert load_restored([str(tmp_path)], restore="auto", specs=SPECS) == (None, {})
    assert "damaged" not in caplog.text
    checkpoints.finish_interrupted_saves(str(tmp_path))
    remove_unfinished(str(tmp_path), is_mine=True)
    _, found = load_restored([str(tmp_path)], restore="auto", specs=SPECS)
    np.testing.assert_array_equal(found["model/dense/kernel"], [[0, 1, 2], [3, 4, 5]])


def test_save_over_another_killed_before_its_index_is_completed(directory, monkeypatch):
    changed = ARRAYS | {"model/dense/kernel": np.full([2, 3], 7, np.float32)}
    kill_before_index(monkeypatch, directory, changed, step=3)
    checkpoints.finish_interrupted_saves(directory)
    _, found = load_restored([directory], restore="3", specs=SPECS)
    np.testing.assert_array_equal(found["model/dense/kernel"], np.full([2, 3], 7))


def test_save_killed_before_any_rename_is_not_completed(directory, monkeypatch):
    monkeypatch.setattr(durable, "remove", lambda path: None)
    monkeypatch.setattr(checkpoints, "sync", lambda path: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        checkpoints.save_checkpoint(ARRAYS, directory=directory, step=4)
    checkpoints.finish_interrupted_saves(directory)
    assert list_checkpoints(directory) == [3, 2, 1]


def test_failed_save_is_raised_as_soon_as_it_has_failed(tmp_path):
    writer = CheckpointWriter()
    (tmp_path / "file").write_text("")
    writer.save(ARRAYS, directory=f"{tmp_path}/file/no", step=1, max_to_keep=1)
    with pytest.raises(RunError, match="file"):
        call_for_seconds(writer.collect, 10)
    writer.close()


def call_for_seconds(function, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        function()
        time.sleep(0.01)


def test_wrong_restore_says_what_there_is(directory, tmp_path_factory):
    def refused(restore, match):
        with pytest.raises(InputError, match=match):
            load_restored([directory], restore=restore, specs=SPECS)

    refused("7", r"--restore: found 7, expected auto, none or one of .* 3, 2, 1")
    refused("none", "--restore=none: found checkpoints")
    refused(f"{directory}/ckpt-7", "--restore: found '.*ckpt-7', expected the path")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    writer = CheckpointWriter()
    writer.save(ARRAYS, directory=str(elsewhere), step=1, max_to_keep=3)
    writer.close()
    refused(f"{elsewhere}/ckpt-1", "a checkpoint of another run")
    empty_run = str(elsewhere / "new")
    _, found = load_restored([empty_run], restore=f"{elsewhere}/ckpt-1", specs=SPECS)
    assert found["step"] == 3


def test_path_of_an_own_checkpoint_is_restored(directory):
    for path in (
        f"{directory}/ckpt-2",
        f"{directory}/../{os.path.basename(directory)}/ckpt-2.index",
    ):
        assert load_restored([directory], restore=path, specs=SPECS)[1]["step"] == 2


def test_newest_of_both_directories_counts(directory, tmp_path):
    best = str(tmp_path / "best")
    writer = CheckpointWriter()
    arrays = ARRAYS | {"step": np.array(4, np.int64)}
    writer.save(arrays, directory=best, step=4, max_to_keep=1)
    writer.close()
    directories = [directory, best]
    assert load_restored(directories, restore="auto", specs=SPECS)[1]["step"] == 4
    assert load_restored(directories, restore="4", specs=SPECS)[1]["step"] == 4
    truncate(f"{best}/ckpt-4.{DATA}")
    assert load_restored(directories, restore="auto", specs=SPECS)[1]["step"] == 3


def test_failed_save_is_raised_and_the_old_checkpoint_stays(directory):
    os.makedirs(f"{directory}/ckpt-9.index/in the way")
    writer = CheckpointWriter()
    writer.save(ARRAYS, directory=directory, step=9, max_to_keep=3)
    with pytest.raises(RunError, match=r"ckpt-9 cannot be written: .*[Dd]irectory"):
        writer.close()
    assert not [name for name in os.listdir(directory) if name.startswith(".")]
    assert load_restored([directory], restore="auto", specs=SPECS)[1]["step"] == 3


def test_full_disk_is_told_in_words(directory):
    with file_size_limit(100):
        writer = CheckpointWriter()
        writer.save(ARRAYS, directory=directory, step=4, max_to_keep=3)
        with pytest.raises(
            RunError, match=r"/ckpt-4 cannot be written: /\S+; File too large; the ones"
        ):
            writer.close()
    assert list_checkpoints(directory) == [3, 2, 1]
    assert not [name for name in os.listdir(directory) if name.startswith(".")]


def test_what_must_come_first_is_done_first_and_its_failure_ends_the_save(directory):
    writer, listed = CheckpointWriter(), []
    writer.save(
        ARRAYS,
        directory=directory,
        step=4,
        max_to_keep=9,
        first=lambda: listed.extend(list_checkpoints(directory)),
    )
    writer.close()
    assert listed == [3, 2, 1]

    def fail():
        raise RunError("no")

    writer = CheckpointWriter()
    writer.save(ARRAYS, directory=directory, step=5, max_to_keep=9, first=fail)
    with pytest.raises(RunError, match="no"):
        writer.close()
    assert list_checkpoints(directory) == [4, 3, 2, 1]


def test_checkpoint_is_on_the_disk_before_an_older_one_goes(directory, monkeypatch):
    synced, sync = set(), os.fsync

    def note_sync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def note_delete(directory, step):
        needed = [directory, *(f"{directory}/ckpt-4.{p}" for p in (DATA, INDEX))]
        assert {os.stat(path).st_ino for path in needed} <= synced
        delete(directory, step)

    delete = checkpoints.delete_checkpoint
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(checkpoints, "delete_checkpoint", note_delete)
    writer = CheckpointWriter()
    writer.save(ARRAYS, directory=directory, step=4, max_to_keep=1)
    writer.close()
    assert list_checkpoints(directory) == [4]


@pytest.mark.parametrize("num_removed", [0, 1])
def test_removal_that_is_killed_is_no_damage_and_is_completed(
    num_removed, directory, monkeypatch
):
    removed = []

    def remove_until_killed(path):
        if len(removed) == num_removed:
            raise Killed
        removed.append(path)
        os.remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", remove_until_killed)
        with pytest.raises(Killed):
            checkpoints.delete_checkpoint(directory, 2)
    assert list_checkpoints(directory) == [3, 1]
    checkpoints.finish_interrupted_saves(directory)
    assert not [name for name in os.listdir(directory) if "ckpt-2" in name]
    assert list_checkpoints(directory) == [3, 1]


def save_without_end(directory):
    step = max(list_checkpoints(directory), default=0)
    writer = CheckpointWriter()
    while True:
        step += 1
        arrays = {"w": np.full(100_000, step, np.float32)}
        writer.save(arrays, directory=directory, step=step, max_to_keep=2)


def test_killed_15_times_while_saving_a_whole_checkpoint_is_always_there(
    fork_server, tmp_path
):
    program = "import test_checkpoints as t, sys; t.fork_and_kill(sys.argv[1])"
    process = fork_server.start(
        "-c", program, str(tmp_path), folder=Path(__file__).parent
    )
    assert process.wait() == 0, process.stderr()


def fork_and_kill(directory):
    """Runs where TensorFlow is imported but has not started, so that forks can use it."""
    specs = {"w": ((100_000,), np.dtype(np.float32))}
    rng, steps, cut_short = random.Random(0), [], 0
    for _ in range(15):
        child = os.fork()
        if child == 0:
            save_without_end(directory)
        time.sleep(rng.uniform(0.1, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cut_short += any(name.startswith(".writing") for name in os.listdir(directory))
        # Read in a fork too: reading starts TensorFlow.
        reader = os.fork()
        if reader == 0:
            remove_unfinished(directory, is_mine=True)
            _, found = load_restored([directory], restore="auto", specs=specs)
            step = next(iter(list_checkpoints(directory)), 0)  # killed too early
            # At most the one whose files were between two renames is not whole.
            is_good = not found or found["w"][0] in (step, step - 1)
            os._exit(0 if is_good and (found or not steps) else 1)
        assert os.waitpid(reader, 0)[1] == 0
        steps = os.listdir(directory)
    assert cut_short >= 3


@pytest.mark.parametrize("name", ["lr[0.1]", "back\\slash", "a*b?", "space é"])
def test_any_name_of_a_folder_is_no_pattern(directory, tmp_path, name):
    moved = tmp_path / name
    os.mkdir(moved)
    for file in os.listdir(directory):
        if file.startswith("ckpt"):
            os.rename(f"{directory}/{file}", moved / file)
    num_open = len(os.listdir("/proc/self/fd"))
    prefix, found = load_restored([str(moved)], restore="auto", specs=SPECS)
    assert (prefix, found["step"]) == (f"{moved}/ckpt-3", 3)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array if name != "step" else 3)
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_name_that_is_a_pattern_is_refused_where_there_is_no_way_around(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(local, "_DESCRIPTORS", "/nowhere")
    check_directory(str(tmp_path / "run"), flag="--model_dir")
    with pytest.raises(InputError, match=r"run\[1\]': found one of the characters"):
        check_directory(str(tmp_path / "run[1]"), flag="--model_dir")


@pytest.mark.parametrize("part", [DATA, INDEX])
def test_pipe_in_place_of_a_checkpoint_s_file_is_damage(directory, part, caplog):
    os.remove(f"{directory}/ckpt-3.{part}")
    os.mkfifo(f"{directory}/ckpt-3.{part}")
    _, found = load_restored([directory], restore="auto", specs=SPECS)
    assert found["step"] == 2
    assert f"ckpt-3.{part} is a named pipe" in caplog.text


def test_newest_whose_weights_are_not_finite_is_named_with_the_way_back(tmp_path):
    directory = str(tmp_path / "checkpoints")
    for step, value in ((1, 1.0), (2, 2.0), (3, np.nan), (4, np.inf)):
        kernel = np.array([[value, 1, value], [0, 0, 0]], np.float32)
        arrays = ARRAYS | {"step": np.array(step), "model/dense/kernel": kernel}
        checkpoints.save_checkpoint(arrays, directory=directory, step=step)
    for restore in ("auto", "4"):
        with pytest.raises(InputError) as error:
            load_restored([directory], restore=restore, specs=SPECS)
        assert str(error.value) == (
            f"{directory}/ckpt-4: 2 of 6 values of model/dense/kernel are not finite, so "
            f"no step from it would be; `mnist-dist weights revert "
            f"--model_dir={tmp_path} --step=2` goes back to the newest checkpoint that "
            "is good"
        )
    checkpoints.delete_checkpoint(directory, 2)
    checkpoints.delete_checkpoint(directory, 1)
    with pytest.raises(InputError, match=r"ckpt-4: .* no other checkpoint is good"):
        load_restored([directory], restore="auto", specs=SPECS)
