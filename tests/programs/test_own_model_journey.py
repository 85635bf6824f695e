"""An engineer brings a model and pictures of their own, as make_it_yours.md says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnist_dist.run.checkpoints import load_arrays

PAGE = (Path(__file__).parents[2] / "docs" / "make_it_yours.md").read_text()
COLOURS = {"apple": (200, 40, 40), "lime": (60, 200, 40), "plum": (90, 40, 160)}


class Person:
    """Types commands in a folder, and reads what they print."""

    def __init__(self, fork_server, folder):
        self._server, self.folder = fork_server, folder

    def types(self, command, *, code=0):
        verb, *flags = command.split()
        process = self._server.start(f"mnist_dist.{verb}", *flags, folder=self.folder)
        found = process.wait()
        assert found == code, process.stderr()
        return process.stderr() if code else process.stdout()


@pytest.fixture(scope="module")
def person(fork_server, tmp_path_factory):
    """One who has a folder of pictures for each class, sorted, and the page's model."""
    folder = tmp_path_factory.mktemp("engineer")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "fruit" / name).mkdir(parents=True)
        for number in range(80):
            noisy = np.array(colour) + rng.normal(0, 60, (16, 16, 3))
            picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            picture.save(folder / "fruit" / name / f"{number}.png")
    (folder / "mine.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1])
    return Person(fork_server, folder)


def typed_in(beginning, **values):
    """The page's line that begins so, with the values of a person."""
    (line,) = [x for x in PAGE.splitlines() if x.startswith(f"mnist-dist {beginning}")]
    for name, value in values.items():
        line = line.replace(name, str(value))
    return line.removeprefix("mnist-dist ")


TRAIN = (
    typed_in("train --model_dir=runs/fruit", DIR="fruit").replace("=500", "=30")
    + " --train_steps=400 --eval_interval=20 --checkpoint_interval=20 --max_to_keep=5 "
    "--global_batch_size=16 --enable_xla=off --lr_schedule=constant --noprogress"
)


@pytest.fixture(scope="module")
def trained(person):
    """What the training printed."""
    planned = person.types(f"{TRAIN} --dry_run")
    assert "186 training images 16x16x3, 3 classes" in planned
    assert not (person.folder / "runs").exists()
    return person.types(TRAIN)


def test_the_end_says_why_and_whose_weights_are_exported(person, trained):
    assert "augmentation  none" in trained
    best = re.search(r"best +(\d+\.\d\d%) at step (\d+)", trained)
    ended = re.search(
        r"ended early +at step (\d+) of 400: 3 evaluations in a row", trained
    )
    assert int(ended[1]) == int(best[2]) + 3 * 20
    assert f"runs/fruit/export/{best[2]}  (the best's weights)" in trained
    config = json.loads((person.folder / "runs/fruit/config.json").read_text())
    assert config["resolved"]["ended"]["step"] == int(ended[1])
    assert config["resolved"]["class_names"] == [*COLOURS]
    # Of a set that is sorted by class: a share of each, not the last class alone.
    card = json.loads(
        (person.folder / f"runs/fruit/export/{best[2]}/model_card.json").read_text()
    )
    assert card["evaluation"]["num_examples"] == 30
    assert float(best[1].rstrip("%")) > 90


def test_the_same_run_has_nothing_to_do_and_says_so(person, trained):
    again = person.types("train --model_dir=runs/fruit --model=mine:create")
    assert "nothing to do  the run is at step" in again


def test_figures_and_predictions_have_the_names_of_the_classes(person, trained):
    table = person.types(typed_in("evaluate --model_dir=runs/fruit"))
    assert re.search(r"^0 .* apple$", table, re.M)
    lines = person.types(
        "predict --model_dir=runs/fruit --format=json fruit/apple/7.png fruit/plum/7.png"
    )
    found = [json.loads(line) for line in lines.splitlines()]
    assert [row["name"] for row in found] == ["apple", "plum"]
    predict = typed_in("predict --model_dir=runs/fruit", picture="fruit/lime/7")
    assert re.search(r"^ +1  lime +\d", person.types(predict))


def test_a_checkpoint_that_was_chosen_is_exported(person, trained):
    listed = person.types("weights checkpoints --model_dir=runs/fruit --format=json")
    steps = [row["step"] for row in json.loads(listed)["rows"]]
    chosen = steps[1]
    said = person.types(
        typed_in("export --model_dir=runs/fruit").replace("2000", str(chosen))
    )
    assert f"runs/fruit/export/{chosen}" in said
    folder = person.folder / "runs/fruit"
    arrays = load_arrays(str(folder / f"checkpoints/ckpt-{chosen}"))
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    served = tf.saved_model.load(str(folder / f"export/{chosen}")).signatures
    logits = served["serving_default"](images=tf.constant(images))["logits"]
    x = images.reshape(4, -1) / np.float32(255)
    w = {k.removeprefix("ema/"): a for k, a in arrays.items() if k.startswith("ema/")}
    x = np.maximum(x @ w["features/kernel"] + w["features/bias"], 0)
    scale = w["norm/gamma"] / np.sqrt(w["norm/moving_variance"] + 1e-3)
    x = (x - w["norm/moving_mean"]) * scale + w["norm/beta"]
    expected = x @ w["head/kernel"] + w["head/bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_back_to_a_checkpoint_and_forward_again(person, trained):
    listed = person.types("weights checkpoints --model_dir=runs/fruit --format=json")
    newest, _, back = [row["step"] for row in json.loads(listed)["rows"]][:3]
    flags = "--model_dir=runs/fruit --model=mine:create --noexport"
    said = person.types(f"train {flags} --restore={back} --train_steps={back}")
    assert re.search(rf"set aside +the checkpoints of steps .*{newest}", said)
    aside = f"runs/fruit/checkpoints/later-than-{back}/ckpt-{newest}"
    listed = person.types("weights checkpoints --model_dir=runs/fruit")
    assert aside in listed
    forward = person.types(f"train {flags} --restore={aside} --train_steps={newest}")
    assert f"step {newest:,}" in forward
    assert (person.folder / f"runs/fruit/checkpoints/ckpt-{newest}.index").exists()
