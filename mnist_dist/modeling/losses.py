"""How wrong logits are."""

import tensorflow as tf


def cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, *, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Softmax cross-entropy of each example.

    Args:
      logits: float32 [batch, num_classes].
      labels: int64 or int32 [batch].
      label_smoothing: weight of the uniform distribution in the targets.

    Returns:
      float32 [batch].

    Source: Szegedy et al., "Rethinking the Inception Architecture" (2016).
    """
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    num_classes = logits.shape[1]
    targets = tf.one_hot(labels, num_classes) * (1.0 - label_smoothing)
    return tf.nn.softmax_cross_entropy_with_logits(
        targets + label_smoothing / num_classes, logits
    )


def is_correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Whether each example's logit is largest at its label, as bool [batch].

    Args:
      logits: float32 [batch, num_classes].
      labels: int64 or int32 [batch].
    """
    return tf.argmax(logits, axis=1, output_type=labels.dtype) == labels
