"""`import mnist_dist`: what the programs do, called from Python as in a notebook."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from array_checks import assert_same_bytes
from run_factory import save_data_set
from small_mnist import small_mnist

import mnist_dist
from mnist_dist.__main__ import VERBS
from mnist_dist.run.checkpoints import load_arrays

# Keyword arguments of trainings that need no more.
SHORT = {
    "model": "mlp",
    "data_dir": small_mnist(),
    "lr_schedule": "constant",
    "augment": False,
    "enable_xla": "off",
    "export": False,
    "messages": None,
    "progress": False,
}


@pytest.fixture
def run(fork_server, tmp_path):
    """Runs a program text in a folder of its own; returns what it prints as JSON."""

    def run(text, *, stderr=""):
        process = fork_server.start("-c", f"SHORT = {SHORT}\n{text}", folder=tmp_path)
        assert process.wait() == 0, process.stderr()
        assert stderr in process.stderr()
        return json.loads(process.stdout())

    return run


def test_import_takes_no_tensorflow_and_no_numpy():
    program = (
        "import sys, mnist_dist\n"
        "names = dir(mnist_dist)\n"
        "assert not {'numpy', 'tensorflow', 'absl'} & sys.modules.keys()\n"
        "print(len(names))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_are_there_and_none_is_a_programs():
    for name in mnist_dist.__all__:
        assert getattr(mnist_dist, name) is not None
        assert name not in VERBS
    with pytest.raises(AttributeError, match="no attribute 'train_models'"):
        mnist_dist.train_models  # noqa: B018


def test_two_models_train_one_after_the_other_in_one_process(run, tmp_path):
    found = run(
        "import json, mnist_dist\n"
        "first = mnist_dist.train_model(model_dir='a', train_steps=20, **SHORT | {'export': True})\n"
        "other = mnist_dist.train_model(model_dir='b', train_steps=20, seed=2, **SHORT)\n"
        "again = mnist_dist.train_model(model_dir='c', train_steps=20, **SHORT)\n"
        "print(json.dumps([vars(r) for r in (first, other, again)]))\n"
    )
    first, other, again = found
    assert first["accuracy"] == again["accuracy"] != other["accuracy"]
    assert first == again | {
        "model_dir": "a",
        "checkpoint": "a/checkpoints/ckpt-20",
        "saved_model": "a/export/20",
        "saved_model_step": 20,
    }
    assert (first["step"], first["stopped_by"]) == (20, None)
    assert first["ended"] == "all steps are done"
    assert (first["best_accuracy"], first["best_step"]) == (first["accuracy"], 20)
    assert Path(tmp_path, "a/checkpoints/ckpt-20.index").exists()
    assert Path(tmp_path, "a/export/20/saved_model.pb").exists()


def test_it_is_the_run_that_the_program_makes(run, fork_server, tmp_path):
    run(
        "import json, mnist_dist\n"
        "mnist_dist.train_model(model_dir='python', train_steps=20, **SHORT)\n"
        "print(json.dumps(None))\n"
    )
    process = fork_server.start(
        "mnist_dist.train",
        *("--model_dir=program", "--model=mlp", "--enable_xla=off", "--noexport"),
        *("--lr_schedule=constant", "--train_steps=20", "--noaugment"),
        f"--data_dir={small_mnist()}",
        folder=tmp_path,
    )
    assert process.wait() == 0, process.stderr()
    records = [
        [
            {k: v for k, v in json.loads(line).items() if k not in dropped}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("python", "program")
        for dropped in [("time", "images_per_second")]
    ]
    assert records[0] == records[1]


def test_a_function_is_a_model_and_hooks_hear_of_everything(run, tmp_path):
    found = run(
        "import json, keras, mnist_dist\n"
        "def create(*, image_shape, num_classes):\n"
        "    return keras.Sequential([keras.Input(image_shape),\n"
        "        keras.layers.Flatten(), keras.layers.Dense(num_classes)])\n"
        "told = {'records': [], 'evaluations': [], 'checkpoints': []}\n"
        "mnist_dist.train_model(\n"
        "    model_dir='run', train_steps=20, summary_interval=5, eval_interval=10,\n"
        "    checkpoint_interval=10, **SHORT | {'model': create},\n"
        "    on_record=lambda r: told['records'].append(r['step']),\n"
        "    on_evaluation=lambda r: told['evaluations'].append(\n"
        "        [r['step'], r['split'], r['num_examples']]),\n"
        "    on_checkpoint=told['checkpoints'].append)\n"
        "print(json.dumps(told))\n"
    )
    assert found["records"] == [5, 10, 15, 20]
    assert found["evaluations"] == [[10, "test", 1_000], [20, "test", 1_000]]
    assert {"run/checkpoints/ckpt-10", "run/checkpoints/ckpt-20"} <= set(
        found["checkpoints"]
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["model"] == "__main__:create"


def test_a_thread_trains_and_signal_handlers_are_put_back(run):
    found = run(
        "import json, signal, threading, mnist_dist\n"
        "before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]\n"
        "results = []\n"
        "def work():\n"
        "    results.append(mnist_dist.train_model(model_dir='a', train_steps=3, **SHORT))\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "results.append(mnist_dist.train_model(model_dir='b', train_steps=3, **SHORT))\n"
        "after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]\n"
        "print(json.dumps([before == after, [r.step for r in results]]))\n"
    )
    assert found == [True, [3, 3]]


def test_a_signal_stops_it_and_the_next_call_goes_on(run, tmp_path):
    found = run(
        "import json, os, signal, mnist_dist\n"
        "def stop(record):\n"
        "    if record['step'] == 10: os.kill(os.getpid(), signal.SIGINT)\n"
        "options = dict(model_dir='run', train_steps=30, summary_interval=5)\n"
        "stopped = mnist_dist.train_model(on_record=stop, **options, **SHORT)\n"
        "ended = mnist_dist.train_model(**options, **SHORT)\n"
        "print(json.dumps([vars(stopped), vars(ended)]))\n"
    )
    stopped, ended = found
    assert (stopped["ended"], stopped["stopped_by"]) == (None, "SIGINT")
    assert 10 <= stopped["step"] < 30
    assert stopped["checkpoint"] == f"run/checkpoints/ckpt-{stopped['step']}"
    assert (ended["ended"], ended["step"]) == ("all steps are done", 30)


def test_lock_is_free_after_an_error(run):
    run(
        "import json, mnist_dist\n"
        "def fail(record): raise KeyError('mine')\n"
        "options = dict(model_dir='run', train_steps=6, summary_interval=3)\n"
        "try: mnist_dist.train_model(on_record=fail, **options, **SHORT)\n"
        "except KeyError: pass\n"
        "assert mnist_dist.train_model(**options, **SHORT).step == 6\n"
        "try: mnist_dist.train_model(restore='4', **options, **SHORT)\n"
        "except mnist_dist.InputError as error: assert '--restore' in str(error)\n"
        "assert mnist_dist.train_model(**options, **SHORT).step == 6\n"
        "print(json.dumps(None))\n"
    )


WRONG = [
    ({"global_batch_size": 0}, "flag --global_batch_size=0: 0 is not an integer in the range [1, 1048576]"),
    ({"seed": "x"}, "flag --seed=x: invalid literal for int() with base 10: 'x'"),
    ({"optimizer": "lion"}, "flag --optimizer=lion: value should be one of <sgd|adam|adamw>"),
    ({"learning_rate": float("nan")}, "--learning_rate: found nan, expected a finite number"),
    ({"train_epochs": 1, "train_steps": 1}, "--train_epochs and --train_steps: found both, expected one of the two"),
    ({"model_dir": ""}, "--model_dir: found nothing, expected a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_value_errors_with_the_text_of_the_flags(
    options, message, tmp_path
):
    with pytest.raises(mnist_dist.OptionError) as caught:
        mnist_dist.train_model(**{"model_dir": str(tmp_path / "run")} | options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, mnist_dist.InputError)
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_options_are_listed_by_help_and_unknown_ones_are_type_errors():
    with pytest.raises(TypeError, match="learning_rates"):
        mnist_dist.train_model(model_dir="x", learning_rates=1)
    assert "global_batch_size" in str(
        __import__("inspect").signature(mnist_dist.train_model)
    )


def test_options_not_given_are_the_runs_own_and_given_ones_are_named(run):
    found = run(
        "import json, mnist_dist\n"
        "said = []\n"
        "options = dict(model_dir='run', messages=said.append, progress=False)\n"
        "mnist_dist.train_model(train_steps=10, seed=5, **SHORT | options)\n"
        "mnist_dist.train_model(dry_run=True, **options)\n"
        "dry = said[-2:]\n"
        "said.clear()\n"
        "result = mnist_dist.train_model(train_steps=20, **options)\n"
        "config = json.load(open('run/config.json'))\n"
        "refused = None\n"
        "try: mnist_dist.train_model(seed=6, train_steps=30, **options)\n"
        "except mnist_dist.InputError as error: refused = str(error)\n"
        "print(json.dumps([result.step, config['flags'], said, refused, dry]))\n"
    )
    step, flags, said, refused, dry = found
    assert step == 20
    assert dry == [
        "would go on    from run/checkpoints/ckpt-10 (step 10)",
        "dry run        a step and an evaluation were tried, and no file was changed",
    ]
    own = {"model": "mlp", "seed": 5, "lr_schedule": "constant", "enable_xla": "off"}
    assert flags.items() >= own.items()
    assert said[0] == "--train_steps: 20; the run had 10"
    assert said[2].startswith("goes on from   run/checkpoints/ckpt-10 (step 10, epoch ")
    assert "--seed: found 6, the run has 5" in refused
    assert "--model" not in refused.replace("--model_dir", "")


def test_layers_that_were_frozen_are_trained_in_the_same_run(run, tmp_path):
    found = run(
        "import json, mnist_dist, tensorflow as tf\n"
        "def kernel(step):\n"
        "    path = f'run/checkpoints/ckpt-{step}'\n"
        "    name = 'model/dense_layer_1/kernel/.ATTRIBUTES/VARIABLE_VALUE'\n"
        "    return tf.train.load_checkpoint(path).get_tensor(name)\n"
        "options = dict(model_dir='run', **SHORT)\n"
        "mnist_dist.train_model(train_steps=3, freeze=['dense_layer_1'], **options)\n"
        "try: mnist_dist.train_model(train_steps=6, freeze=[], **options)\n"
        "except mnist_dist.InputError as error: refused = str(error)\n"
        "mnist_dist.train_model(train_steps=6, freeze=[], override_config=True, **options)\n"
        "print(json.dumps([refused, bool((kernel(3) != kernel(6)).any())]))\n",
        stderr="optimizer slots: 4 start at zero (optimizer/mean/dense_layer_1/bias, ",
    )
    refused, is_trained = found
    assert "--freeze: found [], the run has ['dense_layer_1']" in refused
    assert "--override_config" in refused
    assert is_trained


def test_early_end_is_told_recorded_and_counted_anew(run, tmp_path):
    found = run(
        "import json, mnist_dist\n"
        "said = []\n"
        "options = SHORT | dict(model_dir='run', learning_rate=0, train_steps=60,\n"
        "    eval_interval=10, validation_examples=500, messages=said.append,\n"
        "    export=True)\n"
        "first = mnist_dist.train_model(early_stopping_patience=2, **options)\n"
        "ended = json.load(open('run/config.json'))['resolved']['ended']\n"
        "same = mnist_dist.train_model(early_stopping_patience=2, **options)\n"
        "more = mnist_dist.train_model(early_stopping_patience=3, **options)\n"
        "accuracies = [\n"
        "    mnist_dist.evaluate_model(split='validation', **where).accuracy\n"
        "    for where in (dict(model_dir='run', checkpoint='best'),\n"
        "                  dict(export_dir='run/export/10'))]\n"
        "print(json.dumps(\n"
        "    [vars(first), ended, vars(same), vars(more), said, accuracies]))\n"
    )
    first, ended, same, more, said, accuracies = found
    assert (first["step"], first["best_step"]) == (30, 10)
    assert "2 evaluations in a row brought no new best" in first["ended"]
    assert ended == {"step": 30, "reason": first["ended"]}
    assert f"ended early          at step 30 of 60: {first['ended']}" in said[1]
    assert "resumed" not in said[1]
    assert "resumed              1 time\n" in said[-1]
    # Validation examples choose: the best is exported, and named.
    assert first["saved_model"] == "run/export/10"
    assert "\nbest                 " in said[1]
    assert "\nbest weights         run/best/ckpt-10\n" in said[1]
    assert "(the best's weights)" in said[1]
    assert (same["step"], same["ended"]) == (30, first["ended"])
    assert any(text.startswith("nothing to do  the run is at step 30") for text in said)
    assert more["step"] == 60
    # Later evaluations are of the same examples, which the seed has drawn.
    assert accuracies == [first["best_accuracy"]] * 2


def test_dry_run_tries_training_evaluation_and_export_and_leaves_nothing(run, tmp_path):
    found = run(
        "import json, keras, mnist_dist\n"
        "calls = []\n"
        "class Spy(keras.layers.Layer):\n"
        "    def call(self, x, training=None):\n"
        "        calls.append(bool(training)); return x\n"
        "def create(*, image_shape, num_classes):\n"
        "    return keras.Sequential([keras.Input(image_shape), Spy(),\n"
        "        keras.layers.Flatten(), keras.layers.Dense(num_classes)])\n"
        "result = mnist_dist.train_model(model_dir='run', dry_run=True,\n"
        "    **SHORT | {'model': create, 'export': True})\n"
        "print(json.dumps([vars(result), calls]))\n"
    )
    result, calls = found
    assert (result["step"], result["ended"]) == (0, "it was a dry run")
    # Built and traced, then the train step, the evaluation, and three signatures.
    assert calls.count(True) >= 1
    assert calls.count(False) >= 5
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_a_data_set_and_every_call_takes_them(run):
    found = run(
        "import json, numpy as np, mnist_dist\n"
        "rng = np.random.default_rng(0)\n"
        "def draw(n):\n"
        "    labels = np.arange(n) % 3\n"
        "    images = rng.integers(0, 60, (n, 8, 8), np.uint8)\n"
        "    images[np.arange(n), labels] += 180\n"  # the bright row is the class
        "    return images, labels\n"
        "train, test = draw(600), draw(90)\n"
        "result = mnist_dist.train_model(model_dir='run', data=(train, test),\n"
        "    train_steps=90, global_batch_size=20,\n"
        "    **SHORT | {'data_dir': None, 'export': True})\n"
        "evaluated = mnist_dist.evaluate_model('run', data=test)\n"
        "predicted = mnist_dist.predict_images(test[0][..., None], model_dir='run')\n"
        "share = float(np.mean(predicted.classes[:, 0] == test[1])\n"
        "    if predicted.classes.ndim == 2 else np.mean(predicted.classes == test[1]))\n"
        "exported = mnist_dist.export_model('run', format='keras')\n"
        "print(json.dumps([result.accuracy, evaluated.accuracy, share, exported.path]))\n"
    )
    accuracy, evaluated, share, path = found
    assert accuracy == evaluated == share == 1.0
    assert path == "run/export/model-90.keras"


OWN_MODEL = """
import keras

def create(*, image_shape, num_classes):
    return keras.Sequential([
        keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dropout(0.5),
        keras.layers.Dense(num_classes)])
"""


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.2, "validation_examples": 1000, "freeze": ["dense_layer_2"]},
        {"model": "cnn", "augment": True, "clip_global_norm": 0.5, "ema_decay": 0.9},
        {"model": "mine:create", "data_dir": "own", "optimizer": "sgd"},
    ],
    ids=["mlp", "cnn", "own model, own data"],
)
def test_flag_file_of_a_run_redoes_it_bit_for_bit(options, run, fork_server, tmp_path):
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    save_data_set(tmp_path / "own")
    options = {"global_batch_size": 16, "seed": 3, "summary_interval": 2, **options}
    run(
        "import json, mnist_dist\n"
        f"options = SHORT | {options}\n"
        "mnist_dist.train_model(model_dir='run', train_steps=6, **options)\n"
        "print(json.dumps(None))\n"
    )
    process = fork_server.start(
        "mnist_dist.train",
        *("--flagfile=run/config.flags", "--model_dir=again", "--noprogress"),
        folder=tmp_path,
    )
    assert process.wait() == 0, process.stderr()
    first, again = (tmp_path / name for name in ("run", "again"))
    assert (first / "config.flags").read_text() == (again / "config.flags").read_text()
    found, expected = (
        load_arrays(f"{path}/checkpoints/ckpt-6") for path in (again, first)
    )
    assert_same_bytes(found, expected)
    configs = [json.loads((p / "config.json").read_text()) for p in (first, again)]
    assert configs[0]["settings"] == configs[1]["settings"]
