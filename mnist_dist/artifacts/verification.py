"""What was exported, read again: does it compute what the model does?"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.data import Split
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import RunError
from mnist_dist.inference.split_predictions import LogitsFunction, predict_split
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.networks import normalize


def inference_logits(state: TrainState, images: np.ndarray) -> np.ndarray:
    """Returns the float32 logits of uint8 images, by the inference weights.

    Computed on the CPU, as an export's are when it is verified: a GPU may round products
    to TF32, and otherwise in one graph than in the other.
    """
    with tf.device("/CPU:0"):
        forward = run_forward_pass(
            state.model,
            normalize(tf.constant(images)),
            variables=state.keras_weights,
            values=[tf.constant(v.numpy()) for v in state.inference_weights()],
            training=False,
        )
        return forward.logits.numpy()


def check_logits(
    path: str, found: np.ndarray, *, expected: np.ndarray, dtype: str
) -> None:
    """Compares what an export computes with what the model does.

    Args:
      path: of the export.
      found: float32 [n, num_classes].
      expected: the same.
      dtype: that the model computes in.

    Raises:
      RunError: they differ by more than rounding does.
    """
    # bfloat16 rounds to 8 bits, and may do so in another order here.
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    if not np.allclose(found, expected, rtol=tolerance, atol=tolerance * 10):
        worst = np.max(np.abs(found - expected))
        raise RunError(
            f"{path}: its logits differ from the model's by up to {worst}; it was not "
            "published"
        )


def noise_images(image_shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Returns uint8 [count, height, width, channels], always the same."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *image_shape), np.uint8)


def evaluate_export(
    logits: LogitsFunction, split: Split | None, *, num_classes: int
) -> dict[str, Any] | None:
    """Returns what an export gets right, for its card; None without a split."""
    if split is None:
        return None
    (predictions,), _ = predict_split([logits], split, num_classes=num_classes)
    num_correct = int(np.sum(predictions.classes == split.labels))
    loss = float(np.mean(predictions.losses))
    return {
        "split": split.name,
        "num_examples": len(split.labels),
        "num_correct": num_correct,
        "accuracy": num_correct / len(split.labels),
        "loss": loss if math.isfinite(loss) else None,
    }
