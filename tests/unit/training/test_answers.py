"""The answers that TensorBoard shows, computed by several workers in turn."""

import contextlib

import numpy as np

from mnist_dist.artifacts.verification import inference_logits
from mnist_dist.cluster.membership import Cluster
from mnist_dist.data import dataset_from_arrays
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.networks import create_model
from mnist_dist.training.answers import compute_logits


def test_each_worker_computes_a_share_and_tells_of_each_batch(create_strategy):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1_200, 4, 4, 1), np.uint8)
    labels = np.arange(1_200) % 3
    dataset = dataset_from_arrays((images[:9], labels[:9]), (images, labels))
    state = TrainState(
        create_model("mlp", image_shape=(4, 4, 1), num_classes=3, seed=1),
        slot_names=[],
    )
    shares, num_calls = [], []
    for rank in range(2):
        calls = []

        @contextlib.contextmanager
        def around_call(calls=calls):
            calls.append(1)
            yield

        shares.append(
            compute_logits(
                state,
                dataset,
                strategy=create_strategy(1),  # which exchanges nothing
                cluster=Cluster("test", workers=("a:1", "b:1"), rank=rank),
                around_call=around_call,
            )
        )
        num_calls.append(len(calls))
    assert num_calls == [2 + 1, 1 + 1]  # batches of 500 by turns, and the exchange
    np.testing.assert_array_equal(shares[0] * shares[1], 0)
    expected = inference_logits(state, images)
    np.testing.assert_allclose(shares[0] + shares[1], expected, rtol=1e-5, atol=1e-6)
