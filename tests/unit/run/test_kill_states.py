"""Whatever writes to a run may be killed at any moment: each state that this can leave.

A process of its own makes every change, watched by `kill_states`. Here each state is
read, gone on with, and given the same command again. `weights transplant` writes as
`load` and `save` do. KILL_STATES=all goes through all
of them also where that takes minutes.
"""

import json
import os
import shutil
import subprocess
import sys

import kill_states
import numpy as np
import pytest
from array_checks import assert_same_bytes
from run_factory import create_run, save_data_set
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)

from mnist_dist.artifacts.model_export import export_model
from mnist_dist.device.train_state import TrainState
from mnist_dist.evaluation import new_checkpoints
from mnist_dist.evaluation.watch import watch_run
from mnist_dist.inference.classifier import find_saved_model
from mnist_dist.inference.model_card import load_model_card
from mnist_dist.layer_weights.layer_files import load_folder, load_npz, save_layers
from mnist_dist.layer_weights.run_layers import transplant_layers
from mnist_dist.layer_weights.weight_sources import load_weights
from mnist_dist.modeling.networks import create_model
from mnist_dist.reporting.comparison import compare_runs
from mnist_dist.reporting.page import save_page
from mnist_dist.run.best import Best
from mnist_dist.run.checkpoint_choice import read_newest
from mnist_dist.run.checkpoints import list_checkpoints, load_arrays, save_checkpoint
from mnist_dist.run.history import list_run_checkpoints, revert_run
from mnist_dist.run.paths import checkpoint_dirs
from mnist_dist.run.plan import StoppingRule
from mnist_dist.run.run_log import RunLog
from mnist_dist.training.restore import restore_run
from mnist_dist.training.train_model import train_model

STEPS = (1, 2, 3, 4)
LAYER = {"dense_layer_1/kernel", "dense_layer_1/bias"}
SHOWN = 4  # states of a slow change that are gone through by default


def create_base(folder):
    """A run of four steps, the last of which is the best; and a layer file."""
    run, data = folder / "run", save_data_set(folder / "data")
    for step, arrays in create_run(run, data_dir=data, steps=STEPS).items():
        # As SGD with momentum has them.
        arrays = {k.replace("/mean/", "/velocity/"): v for k, v in arrays.items()}
        arrays |= Best(accuracy=step / 10, step=step).to_arrays()
        save_checkpoint(arrays, directory=str(run / "checkpoints"), step=step)
    save_checkpoint(arrays, directory=str(run / "best"), step=4)
    log = RunLog(str(run))
    for step in STEPS:
        log.write_train(step=step, epoch=step / 2, loss=1.0, accuracy=0.5)
        log.write_eval(
            step=step,
            epoch=step / 2,
            loss=1.0,
            accuracy=step / 10,
            split="test",
            num_examples=53,
        )
    log.close()
    layer = {k: v for k, v in load_weights(str(run)).arrays.items() if k in LAYER}
    save_layers({k: v + 1 for k, v in layer.items()}, str(folder / "layer.npz"))


def revert(run):
    revert_run(str(run), 2)


def load(run):
    layer = load_weights(str(run.parent.parent / "layer.npz"))
    transplant_layers(layer, str(run), must_fit=True)


def train(run):
    train_model(
        model_dir=str(run),
        data_dir=str(run.parent.parent / "data"),
        model="mlp",
        restore="2",
        override_config=True,
        optimizer="sgd",
        momentum=0.9,
        ema_decay=0.9,
        global_batch_size=20,
        train_steps=6,
        eval_interval=1,
        checkpoint_interval=1,
        summary_interval=1,
        max_to_keep=9,
        enable_xla="off",
        progress=False,
        export=False,
    )


def export(run):
    export_model(str(run), use_ema=True)


def export_over(run):
    export_model(str(run), use_ema=False, overwrite=True, version=4)


def export_keras(run):
    export_model(str(run), format="keras")


def watch(run):
    new_checkpoints._GRACE_SECONDS = 0.0
    watch_run(str(run), on_evaluation=lambda _: None)


def save_file(run):
    weights = load_weights(str(run)).arrays
    save_layers({k: weights[k] for k in LAYER}, str(run / "saved.npz"))


def save_into_folder(run):
    weights = load_weights(str(run)).arrays
    save_layers({k: weights[k] for k in LAYER}, str(run / "saved"))


def write_page(run):
    comparison = compare_runs([str(run)])
    save_page(comparison, ["not evaluated"], str(run / "page.html"))


CHANGES = (revert, load, train, export, export_over, export_keras, watch)
CHANGES += (save_file, save_into_folder, write_page)


def record_all(folder):
    """Makes each change on a copy of the run; is called in the process of its own."""
    for change in CHANGES:
        run = folder / change.__name__ / "run"
        shutil.copytree(folder / "run", run)
        if change is export_over:
            export(run)
        with kill_states.recording(run, run.parent / "states"):
            change(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill_states")
    library = kill_states.compile_library(folder)
    if library is None:
        pytest.skip("no C compiler: on Debian, apt-get install gcc libc6-dev")
    create_base(folder)
    program = "import pathlib, sys, test_kill_states as t; t.record_all(pathlib.Path(sys.argv[1]))"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=environment, check=True
    )
    return folder


def each_state(folder, change, *, is_slow=False):
    """Gives a fresh copy of each state, and whether it is the end."""
    states = kill_states.list_states(folder / change.__name__ / "states")
    assert len(states) > 5
    chosen = range(len(states))
    if is_slow and os.environ.get("KILL_STATES") != "all":
        chosen = np.linspace(0, len(states) - 1, SHOWN, dtype=int)
    for number in chosen:
        run = folder / change.__name__ / "state"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(states[number], run)
        yield run, number == len(states) - 1


@pytest.fixture(scope="module")
def model():
    return create_model("mlp", image_shape=(6, 5, 3), num_classes=4, seed=1)


@pytest.fixture(scope="module")
def start(model):
    """Starts a run as a plain `train` does, and returns what it goes on from."""
    state = TrainState(model, slot_names=("velocity",), with_ema=True)

    def start(run):
        found = restore_run(
            str(run),
            model=model,
            specs={**state.specs(), **Best.specs()},
            stopping=StoppingRule(total_steps=9),
            settings={},
            restore="auto",
            overwrite=False,
            override_config=False,
            init_from=None,
            dry_run=False,
            say=print,
        )
        found.log.close()
        found.lock.close()
        check_started(run, found)
        return found

    return start


def check_started(run, found):
    """Nothing is left half done, and all that is recorded belongs to the run."""
    left = [p for p in run.rglob(".*") if p.name != ".lock"]
    assert left == []
    rows = list_run_checkpoints(str(run))
    assert not any(row.damage for row in rows)
    assert rows[0].step == found.step
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [(r["kind"], r["step"]) for r in map(json.loads, lines)]
    assert len(set(records)) == len(records)
    trained = [step for kind, step in records if kind == "train"]
    assert trained == list(range(1, found.step + 1))
    evaluated = [step for kind, step in records if kind == "eval"]
    assert set(evaluated) in ({*trained}, {*trained[:-1]})
    for kind, steps in (("train", trained), ("eval", evaluated)):
        events = EventAccumulator(str(run / kind)).Reload()
        shown = events.Tensors("loss") if "loss" in events.Tags()["tensors"] else []
        assert [event.step for event in shown] == steps
    # Before the first evaluation of other weights there is no best, but its checkpoint.
    best = list_checkpoints(str(run / "best"))
    # The one before goes with the next.
    assert best[:1] == [found.best.step] or (found.best.step < 0 and found.step == 4)


def check_nothing_lost(run, originals):
    """Each checkpoint of the base still lies somewhere, whole."""
    found = {}
    for index in run.rglob("ckpt-*.index"):
        if not index.parent.name.startswith("."):
            arrays = load_arrays(str(index).removesuffix(".index"))
            found.setdefault(int(arrays["step"]), []).append(arrays)
    for step, expected in originals.items():
        same = [
            arrays
            for arrays in found[step]
            if all(np.array_equal(arrays.get(k), v) for k, v in expected.items())
        ]
        assert same, step


@pytest.fixture(scope="module")
def originals(folder):
    return {s: load_arrays(f"{folder}/run/checkpoints/ckpt-{s}") for s in STEPS}


def newest(run, caplog):
    """What a program that only reads takes, without a word of damage."""
    caplog.clear()
    _, arrays = read_newest(checkpoint_dirs(str(run)))
    assert "damaged" not in caplog.text
    return arrays


def test_revert(folder, start, originals, caplog):
    has_begun = False
    for run, is_end in each_state(folder, revert):
        step = int(newest(run, caplog)["step"])
        again = shutil.copytree(run, run.with_name("again"))
        reached = start(run).step
        # As before, or at the step that was asked for; never back.
        assert reached == 2 if has_begun or is_end else reached in (2, 4)
        assert step in (reached, 4)
        has_begun = reached == 2
        check_nothing_lost(run, originals)
        revert(again)
        assert start(again).step == 2
        check_nothing_lost(again, originals)
        later = [p for p in again.rglob("later-than-*") if p.is_dir()]
        assert sorted(p.parent.name for p in later) == ["best", "checkpoints"]
        shutil.rmtree(again)


def test_load(folder, start, originals, caplog):
    layer = load_npz(str(folder / "layer.npz"))
    new = originals[4] | {f"model/{name}": array for name, array in layer.items()}
    names = [name for name in new if name.startswith("model/")]

    def take(arrays):
        return {name: arrays[name] for name in names}

    is_changed = False
    for run, is_end in each_state(folder, load):
        again = shutil.copytree(run, run.with_name("again"))
        read, found = newest(run, caplog), start(run)
        is_new = not np.array_equal(found.arrays[names[0]], originals[4][names[0]])
        for arrays in (read, found.arrays):
            expected = new if arrays is found.arrays and is_new else originals[4]
            if arrays is read:
                expected = next(
                    e
                    for e in (new, originals[4])
                    if (arrays[names[0]] == e[names[0]]).all()
                )
            assert_same_bytes(take(arrays), take(expected))
        assert is_new or not (is_changed or is_end)
        is_changed = is_new
        # Never the accuracy of the weights before.
        assert not (is_new and found.log.has_eval(4))
        check_nothing_lost(run, originals)
        load(again)
        assert_same_bytes(take(start(again).arrays), take(new))
        check_nothing_lost(again, originals)
        shutil.rmtree(again)


def test_train_that_goes_back(folder, start, originals, caplog):
    reached = []
    for run, _ in each_state(folder, train, is_slow=True):
        newest(run, caplog)
        reached.append(start(run).step)
        check_nothing_lost(run, originals)
    assert reached[0] == 4
    assert reached[-1] == 6
    assert reached[1:] == sorted(reached[1:]) or os.environ.get("KILL_STATES")


@pytest.mark.parametrize("change", [export, export_over, export_keras])
def test_export(folder, change):
    for number, (run, is_end) in enumerate(each_state(folder, change)):
        directory = run / "export"
        names = (
            [n for n in os.listdir(directory) if n[0] != "."]
            if directory.exists()
            else []
        )
        if change is export_over:
            assert load_model_card(find_saved_model(str(directory)))
        elif change is export:
            assert names in ([], ["4"])
            assert not names or load_model_card(str(directory / "4"))
        elif "model-4.keras" in names:
            assert load_model_card(str(directory / "model-4.keras"))
        if is_end or number % 40 == 20 or os.environ.get("KILL_STATES") == "all":
            change(run)
            left = sorted(os.listdir(directory))
            assert left == (
                ["model-4.keras", "model-4.keras.json"]
                if change is export_keras
                else ["4"]
            )
            assert load_model_card(str(directory / left[0]))


def test_watch(folder):
    names = sorted(os.listdir(folder / "watch" / "run" / "eval_watch"))
    assert len(names) == 8
    for run, _ in each_state(folder, watch, is_slow=True):
        watch(run)
        assert sorted(os.listdir(run / "eval_watch")) == names
        for step in STEPS:
            record = json.loads((run / "eval_watch" / f"ckpt-{step}.json").read_text())
            assert record["step"] == step


@pytest.mark.parametrize("change", [save_file, save_into_folder])
def test_save(folder, change):
    name, read = {"save_file": ("saved.npz", load_npz)}.get(
        change.__name__, ("saved", load_folder)
    )
    expected = read(str(folder / change.__name__ / "run" / name))
    for run, _ in each_state(folder, change):
        if (run / name).exists():
            assert_same_bytes(read(str(run / name)), expected)
            continue
        change(run)
        assert_same_bytes(read(str(run / name)), expected)
        assert not [n for n in os.listdir(run) if n.startswith(".")]


def test_page_of_report(folder, start):
    shown = []
    for run, _ in each_state(folder, write_page):
        page = run / "page.html"
        shown.append(page.exists())
        assert not page.exists() or page.read_text().endswith("</html>")
        assert start(run).step == 4  # and nothing unfinished is left
    assert shown == sorted(shown)
    assert shown[-1]
