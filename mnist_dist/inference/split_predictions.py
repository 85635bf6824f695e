"""What models predict of every image of a split."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mnist_dist.data import Split
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.networks import normalize

_MAX_LOGITS = 1 << 22  # of one batch of `predict_split`

# uint8 [n, height, width, channels] -> float32 [n, num_classes].
LogitsFunction = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of each image of a split.

    Attributes:
      classes: int64 [n], the most probable class; of equal ones the first.
      confidences: float64 [n], its probability.
      losses: float64 [n], the cross-entropy of each image.
    """

    classes: np.ndarray
    confidences: np.ndarray
    losses: np.ndarray


def create_logits_function(
    strategy: tf.distribute.Strategy, state: TrainState
) -> LogitsFunction:
    """Builds the function that computes images' logits on all replicas.

    Args:
      strategy: the strategy in whose scope `state` was built.
      state: whose model and inference weights to take.
    """
    num_replicas = strategy.num_replicas_in_sync

    def replica_logits(images: tf.Tensor) -> tf.Tensor:
        forward = run_forward_pass(
            state.model,
            normalize(images),
            variables=state.keras_weights,
            values=[tf.identity(v) for v in state.inference_weights()],
            training=False,
        )
        return forward.logits

    @tf.function(autograph=False)
    def logits_of(images: tf.Tensor) -> tf.Tensor:
        return strategy.run(replica_logits, args=(images,))

    def logits(images: np.ndarray) -> np.ndarray:
        per_replica_batch = -(-len(images) // num_replicas)
        shape = (num_replicas, per_replica_batch, *images.shape[1:])
        padded = np.zeros(shape, np.uint8)
        padded.reshape(-1, *images.shape[1:])[: len(images)] = images
        value = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(padded[context.replica_id_in_sync_group])
        )
        shares = strategy.experimental_local_results(logits_of(value))
        return np.concatenate([s.numpy() for s in shares])[: len(images)]

    return logits


def predict_split(
    models: Sequence[LogitsFunction], split: Split, *, num_classes: int
) -> tuple[list[Predictions], Predictions]:
    """Predicts every image of a split once with each model, and with all together.

    Args:
      models: at least one, all of the same classes.
      split: what to predict.
      num_classes: of the models.

    Returns:
      Each model's predictions, and those of their averaged probabilities.
    """
    each: list[list[Predictions]] = [[] for _ in models]
    together: list[Predictions] = []
    batch = int(np.clip(_MAX_LOGITS // num_classes, 1, 1000))
    for start in range(0, len(split.labels), batch):
        images = split.images[start : start + batch]
        labels = split.labels[start : start + batch]
        mean = np.zeros((len(labels), num_classes))
        for model, results in zip(models, each, strict=True):
            logits = model(images)
            log_probabilities = _log_softmax(logits)
            results.append(_predictions(logits, log_probabilities, labels))
            mean += np.exp(log_probabilities) / len(models)
        with np.errstate(divide="ignore"):  # a probability of 0 has a loss of inf
            together.append(_predictions(mean, np.log(mean), labels))
    return [_concatenate(results) for results in each], _concatenate(together)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def _predictions(
    scores: np.ndarray, log_probabilities: np.ndarray, labels: np.ndarray
) -> Predictions:
    rows = np.arange(len(labels))
    classes = np.argmax(scores, axis=1)
    return Predictions(
        classes=classes,
        confidences=np.exp(log_probabilities[rows, classes]),
        losses=-log_probabilities[rows, labels],
    )


def _concatenate(parts: list[Predictions]) -> Predictions:
    return Predictions(
        classes=np.concatenate([p.classes for p in parts]),
        confidences=np.concatenate([p.confidences for p in parts]),
        losses=np.concatenate([p.losses for p in parts]),
    )
