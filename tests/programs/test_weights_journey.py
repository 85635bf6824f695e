"""How can I save MNIST training weights for later use? The answers of weights.md, typed."""

import json
import re
from pathlib import Path

import pytest
from small_mnist import small_mnist

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
STEPS = 60

# What a person does with each of the ways: the run's accuracy must come out of all.
MEASURE = """
import numpy as np, mnist_dist
test = mnist_dist.load_dataset({data!r}).test
def accuracy(model):
    logits = model(test.images / np.float32(255.0), training=False)
    return float(np.mean(np.argmax(logits, axis=-1) == test.labels))
"""
BY_HAND = """
{block}
found["checkpoint"] = accuracy(model)
def untrained():
    return keras.models.clone_model(model)

model = untrained()
model.load_weights("mlp.weights.h5")
found["weights.h5"] = accuracy(model)

model = untrained()
for layer, name in zip(model.layers[1::2], ["dense_layer_1", "dense_layer_2"]):
    mnist_dist.set_layer(layer, mnist_dist.load_layer("runs/mlp", name))
found["layers"] = accuracy(model)

model = untrained()
reader = tf.train.load_checkpoint("runs/mlp/checkpoints/ckpt-{steps}")
model.set_weights([
    reader.get_tensor(f"ema/{{name}}/.ATTRIBUTES/VARIABLE_VALUE")
    for name in ("dense_layer_1/kernel", "dense_layer_1/bias",
                 "dense_layer_2/kernel", "dense_layer_2/bias")
])
found["arrays"] = accuracy(model)

model = keras.saving.load_model("runs/mlp/export/model-{steps}.keras")
found["keras"] = accuracy(model)

found["trained model"] = accuracy(
    mnist_dist.load_trained_model("runs/mlp", checkpoint="latest").state.model)

loaded = tf.saved_model.load("runs/mlp/export/{steps}").signatures["serving_default"]
classes = loaded(images=tf.constant(test.images))["classes"]
found["SavedModel"] = float(np.mean(classes.numpy() == test.labels))
print(json.dumps(found))
"""


def page_block(heading):
    """The first block of Python below a heading, for this run's last step."""
    section = PAGE.split(f" {heading}\n")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    return block.replace("ckpt-9375", f"ckpt-{STEPS}")


@pytest.fixture(scope="module")
def folder(fork_server, tmp_path_factory):
    """Where a person has trained, and saved the weights in files."""
    folder = tmp_path_factory.mktemp("student")
    for command in (
        f"train --model_dir=runs/mlp --model=mlp --train_steps={STEPS} --lr_schedule=constant "
        f"--global_batch_size=32 --ema_decay=0.9 --data_dir={small_mnist()}",
        "weights save --from=runs/mlp --output=mlp.weights.h5",
        f"export --model_dir=runs/mlp --format=keras --data_dir={small_mnist()}",
    ):
        verb, *flags = command.split()
        process = fork_server.start(f"mnist_dist.{verb}", *flags, folder=folder)
        assert process.wait() == 0, process.stderr()
        if verb == "weights":  # named as everywhere else
            assert "\ndense_layer_1/kernel  784x128" in process.stdout()
    return folder


def test_every_way_gives_a_model_of_the_accuracy_of_the_run(fork_server, folder):
    program = (
        "import json; found = {}"
        + MEASURE.format(data=small_mnist())
        + BY_HAND.format(
            block=page_block("Into a Keras model of your own"), steps=STEPS
        )
    )
    process = fork_server.start("-c", program, folder=folder)
    assert process.wait() == 0, process.stderr()
    found = json.loads(process.stdout().splitlines()[-1])
    records = map(json.loads, (folder / "runs/mlp/metrics.jsonl").open())
    (recorded,) = [r["accuracy"] for r in records if r["kind"] == "eval"]
    assert recorded > 0.6  # nothing like the tenth of a model that is not trained
    assert len(found) == 7
    assert found == dict.fromkeys(found, recorded)


@pytest.mark.parametrize(
    "heading", ["Read a checkpoint with TensorFlow alone", "Get the Keras model back"]
)
def test_the_pages_blocks_run(fork_server, folder, heading):
    process = fork_server.start("-c", page_block(heading), folder=folder)
    assert process.wait() == 0, process.stderr()
