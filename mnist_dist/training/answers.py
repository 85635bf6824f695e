"""What the weights answer for the evaluated split: computed once more, for TensorBoard.

The sums of an evaluation do not tell them.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import tensorflow as tf

from mnist_dist.artifacts.verification import inference_logits
from mnist_dist.cluster.membership import Cluster
from mnist_dist.data import Dataset
from mnist_dist.device.peers import merge_shares
from mnist_dist.device.train_state import TrainState

_BATCH = 500  # images at a time


def compute_logits(
    state: TrainState,
    dataset: Dataset,
    *,
    strategy: tf.distribute.Strategy,
    cluster: Cluster,
    around_call: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> np.ndarray:
    """Returns the logits of the evaluated split by the inference weights.

    All workers must call it: each computes a share on its CPU, so that none waits longer
    for another than a share takes.

    Args:
      state: whose weights answer.
      dataset: whose evaluated split is answered.
      strategy: that of `state`.
      cluster: the workers, and which of them this is.
      around_call: is around each batch and around the exchange.

    Returns:
      float32 [n, num_classes].
    """
    images = dataset.evaluation.images
    logits = np.zeros([len(images), dataset.num_classes], np.float32)
    for first in range(0, len(images), _BATCH):
        if first // _BATCH % cluster.num_workers == cluster.rank:
            batch = slice(first, first + _BATCH)
            with around_call():
                logits[batch] = inference_logits(state, images[batch])
    with around_call():
        return merge_shares(strategy, logits, cluster=cluster)
