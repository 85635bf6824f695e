import functools
import os

import numpy as np
import pytest
from run_factory import create_run, save_data_set

from mnist_dist.artifacts.model_export import export_model
from mnist_dist.cluster import worker_group
from mnist_dist.errors import InputError
from mnist_dist.evaluation.watch import watch_run
from mnist_dist.run import history
from mnist_dist.run.checkpoint_writer import CheckpointWriter
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.config import check_settings, save_config
from mnist_dist.run.config_file import load_config
from mnist_dist.run.directory import check_contents, delete_run
from mnist_dist.run.history import list_run_checkpoints
from mnist_dist.run.paths import checkpoint_dir


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1 to 3."""
    writer = CheckpointWriter()
    for step in (1, 2, 3):
        writer.save(
            {"step": np.array(step)},
            directory=checkpoint_dir(str(tmp_path)),
            step=step,
            max_to_keep=3,
        )
    writer.close()
    return str(tmp_path)


def test_run_is_deleted_but_nothing_that_it_links_to(run, tmp_path_factory):
    precious = tmp_path_factory.mktemp("precious")
    (precious / "file").touch()
    os.makedirs(f"{run}/export")
    for link in ("export/latest", "best"):
        os.symlink(precious, f"{run}/{link}")
    with open(f"{run}/notes", "w"):
        pass
    delete_run(run)
    assert os.listdir(run) == ["notes"]
    assert os.listdir(precious) == ["file"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\xff", b"[]", b"1", b"{}", b'{"settings": 1}', b"[" * 10**5],
)
def test_config_that_is_none_is_an_input_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json: expected the settings"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "found"), [(os.mkdir, "a folder"), (os.mkfifo, "a named pipe")]
)
def test_config_that_is_no_file_is_an_input_error(tmp_path, make, found):
    assert load_config(str(tmp_path)) is None
    make(tmp_path / "config.json")
    with pytest.raises(InputError, match=f"config.json: found {found}, expected a reg"):
        load_config(str(tmp_path))


def test_config_is_read_as_it_was_written(tmp_path):
    save_config(str(tmp_path), settings={"model": "mlp"}, flags={}, resolved={})
    assert load_config(str(tmp_path))["settings"] == {"model": "mlp"}
    assert os.listdir(tmp_path) == ["config.json"]


def test_run_of_a_version_without_microbatches_goes_on_without(run):
    save_config(run, settings={"model": "mlp"}, flags={}, resolved={})
    check_settings(run, {"model": "mlp", "num_microbatches": 0})
    with pytest.raises(InputError, match="--num_microbatches: found 4, the run has 0"):
        check_settings(run, {"model": "mlp", "num_microbatches": 4})


def test_checkpoint_that_a_training_removes_meanwhile_is_not_listed(run, monkeypatch):
    directory, read = checkpoint_dir(run), history.checkpoints.read_step

    def remove_and_read(directory, step):
        if step == 1:
            for part in ("index", "data-00000-of-00001"):
                os.remove(f"{directory}/ckpt-1.{part}")
        return read(directory, step)

    monkeypatch.setattr(history.checkpoints, "read_step", remove_and_read)
    assert [(row.step, row.damage) for row in list_run_checkpoints(run)] == [
        (3, ""),
        (2, ""),
    ]
    assert list_checkpoints(directory) == [3, 2]


def test_checkpoint_that_links_to_nothing_is_damaged(run):
    index = f"{checkpoint_dir(run)}/ckpt-2.index"
    os.remove(index)
    os.symlink("nothing", index)
    rows = list_run_checkpoints(run)
    assert [row.step for row in rows if row.damage] == [2]
    assert all(row.num_bytes > 0 and row.time > 1e9 for row in rows)


def test_metrics_that_are_damaged_tell_no_accuracy(run):
    good = b'{"kind": "eval", "step": 2, "accuracy": 0.5}'
    bad = b'{"kind": "eval", "step": Infinity, "accuracy": 1}'
    with open(f"{run}/metrics.jsonl", "wb") as file:
        file.write(b"\n".join([bad, b"[" * 10**5, b"\xff", good, b"{"]))
    assert [row.accuracy for row in list_run_checkpoints(run)] == [None, 0.5, None]


def test_folders_that_are_no_run_of_ours_are_refused(tmp_path):
    check_contents(str(tmp_path / "new"))
    (tmp_path / "train").mkdir()
    check_contents(str(tmp_path))
    (tmp_path / "train" / "events.out.tfevents.1.keras").write_bytes(b"points")
    with pytest.raises(InputError, match=r"found \S+/train, but no metrics"):
        check_contents(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    check_contents(str(tmp_path))


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_file_for_a_folder_and_the_reverse_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_text("") if name == "checkpoints" else path.mkdir()
    with pytest.raises(
        InputError, match=rf"found a f\S+ at \S+/{name}, expected a f\S+ or nothing"
    ):
        check_contents(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["checkpoints", "best", "train", "export", "config.json", "metrics.jsonl"]
)
def test_link_in_place_of_a_part_of_the_run_is_refused(name, tmp_path):
    (tmp_path / name).symlink_to("/tmp")
    with pytest.raises(InputError, match=rf"found a link at \S+/{name}, expected a f"):
        check_contents(str(tmp_path))


def test_what_only_adds_to_a_run_follows_no_link_either(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    create_run(run, data_dir=save_data_set(tmp_path / "data"))
    for name in ("export", "eval_watch"):
        (run / name).symlink_to(outside)
    for add in (export_model, functools.partial(watch_run, on_evaluation=print)):
        with pytest.raises(InputError, match=r"found a link at \S+, expected a folder"):
            add(str(run))
    assert os.listdir(outside) == []


def test_log_of_a_worker_is_no_link_and_no_pipe(tmp_path):
    for name in ("pipe", "link"):
        (tmp_path / name / "logs").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe" / "logs" / "worker-0.log")
    (tmp_path / "link" / "logs" / "worker-0.log").symlink_to(tmp_path / "outside")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "logs").symlink_to(tmp_path)
    for name, found in (("pipe", "a named pipe"), ("link", "a link")):
        with pytest.raises(InputError, match=f"worker-0.log: found {found}, expected"):
            worker_group._open_log(str(tmp_path / name), 0)
    with pytest.raises(OSError, match="logs is a link"):
        worker_group._open_log(str(tmp_path / "folder"), 0)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]
