"""A whole run on a path with a scheme, in the file system that TensorFlow keeps in memory.

Such a file system dies with its process, so one process trains, goes on and looks.
"""

import json
import os

PROGRAM = """
import json
from mnist_dist import train_model

run = "ram://runs/a"
for train_steps in (20, 40):
    result = train_model(
        model_dir=run, model="mlp", enable_xla="off", lr_schedule="constant",
        progress=False, override_config=True, summary_interval=10, eval_interval=20,
        train_steps=train_steps,
    )
    assert result.step == train_steps

import tensorflow as tf
from mnist_dist.inference.model_card import load_model_card
from mnist_dist.run.history import list_run_checkpoints
from mnist_dist.run.config import load_config

with tf.io.gfile.GFile(f"{run}/metrics.jsonl") as file:
    records = [json.loads(line) for line in file.read().splitlines()]
saved_model = tf.saved_model.load(f"{run}/export/40")
outputs = saved_model.signatures["serving_default"](images=tf.zeros([1, 28, 28, 1], tf.uint8))
print(json.dumps({
    "train": [r["step"] for r in records if r["kind"] == "train"],
    "eval": [r["step"] for r in records if r["kind"] == "eval"],
    "checkpoints": sorted({(r.step, r.damage) for r in list_run_checkpoints(run)}),
    "settings": load_config(run)["settings"]["model"],
    "card": load_model_card(f"{run}/export/40")["step"],
    "classes": outputs["classes"].shape.as_list(),
    "names": sorted(tf.io.gfile.listdir(run)),
    "versions": tf.io.gfile.listdir(f"{run}/export"),
}))
"""


def test_run_trains_goes_on_and_exports_on_a_path_with_a_scheme(fork_server, tmp_path):
    process = fork_server.start(
        *("-c", PROGRAM),
        folder=tmp_path,
    )
    assert process.wait() == 0, process.stderr()
    assert json.loads(process.stdout().splitlines()[-1]) == {
        "train": [10, 20, 30, 40],
        "eval": [20, 40],
        "checkpoints": [[20, ""], [40, ""]],
        "settings": "mlp",
        "card": 40,
        "classes": [1],
        "names": [
            "best",
            "checkpoints",
            "config.flags",
            "config.json",
            "eval",
            "export",
            "metrics.jsonl",
            "train",
        ],
        "versions": ["20", "40"],
    }
    assert process.stderr().count("ram://runs/a cannot be locked") == 2  # once a start
    assert os.listdir(tmp_path) == []  # nothing in a folder named `ram:`
