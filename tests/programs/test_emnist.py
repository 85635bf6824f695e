"""EMNIST's files hold their images transposed: what is trained on them reads upright."""

import json

import data_sets
import numpy as np


def test_model_trained_on_emnists_files_reads_upright_digits(
    fork_server, mnist, tmp_path
):
    images, labels = mnist.test.images[..., 0], mnist.test.labels
    arrays = {
        "train_images": images[:4000],
        "train_labels": labels[:4000],
        "test_images": images[4000:4500],
        "test_labels": labels[4000:4500],
    }
    (tmp_path / "emnist").mkdir()
    data_sets.write_emnist(tmp_path / "emnist", arrays, subset="digits")
    (tmp_path / "emnist" / "emnist-digits-mapping.txt").unlink()
    training = fork_server.start(
        "mnist_dist.train",
        *("--model_dir=run", "--data_dir=emnist", "--model=mlp", "--noaugment"),
        *("--train_steps=300", "--global_batch_size=32", "--num_gpus=0"),
        folder=tmp_path,
    )
    assert training.wait() == 0, training.stderr()
    assert "turned upright" in training.stdout()

    np.save(tmp_path / "upright.npy", images[5000:5200])
    prediction = fork_server.start(
        *("mnist_dist.predict", "--model_dir=run", "--format=json", "upright.npy"),
        folder=tmp_path,
    )
    assert prediction.wait() == 0, prediction.stderr()
    found = [json.loads(line)["class"] for line in prediction.stdout().splitlines()]
    accuracy = np.mean(np.array(found) == labels[5000:5200])
    assert accuracy > 0.8  # of transposed digits a fifth is read right
