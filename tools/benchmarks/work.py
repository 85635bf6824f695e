"""The work that every side does: a model's first weights, its batches, its loss.

NumPy alone, so that no side's framework has a part in what all sides are given.
"""

import dataclasses
import functools

import numpy as np

from mnist_dist.data import Dataset, ExampleStream, load_dataset

LEARNING_RATE = 1e-3
EPSILON = 1e-7  # of Adam, as Keras has it
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
NUM_TEST_IMAGES = 1000
SEED = 1
# Shapes of the kernels, and how many positions of the image each is applied to.
_KERNELS: dict[str, list[tuple[tuple[int, ...], int]]] = {
    "mlp": [((784, 128), 1), ((128, 10), 1)],
    "cnn": [
        ((5, 5, 1, 32), 14 * 14),
        ((3, 3, 32, 64), 7 * 7),
        ((3, 3, 64, 128), 4 * 4),
        ((4 * 4 * 128, 10), 1),
    ],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A training to be timed: Adam, no augmentation.

    Attributes:
      model: `mlp` or `cnn`, as `train` knows them.
      batch: examples a step.
      steps: of one pass, the unit of which a turn takes one or more.
      dtype: of the computation, `float32` or `bfloat16`.
    """

    model: str
    batch: int
    steps: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.dtype}"

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained, biases included."""
        return sum(weights.size for weights in first_weights(self.model))

    @property
    def operations(self) -> int:
        """Floating-point operations of one image in all matrix products of a step.

        A layer has three, its output and the gradients of its kernel and its input, of
        two operations a multiplication. The first layer's input needs no gradient.
        """
        products = [
            int(np.prod(shape)) * positions for shape, positions in _KERNELS[self.model]
        ]
        return 6 * sum(products) - 2 * products[0]

    @property
    def update_bytes(self) -> int:
        """Bytes that the update of a step reads and writes.

        Adam reads parameter, gradient and two averages, and writes all but the gradient.
        """
        return 7 * 4 * self.num_parameters


def first_weights(model: str) -> list[np.ndarray]:
    """Draws the weights that all sides begin with: Glorot's uniform kernels, no bias.

    Returns:
      float32 kernel and bias of each layer; kernels are [in, out] or, of a convolution,
      [height, width, in, out].
    """
    random = np.random.default_rng(SEED)
    weights = []
    for shape, _ in _KERNELS[model]:
        fan_in, fan_out = (
            int(np.prod(shape[:-1])),
            int(np.prod([*shape[:-2], shape[-1]])),
        )
        limit = np.sqrt(6 / (fan_in + fan_out))
        weights.append(random.uniform(-limit, limit, shape).astype(np.float32))
        weights.append(np.zeros(shape[-1], np.float32))
    return weights


@functools.cache
def _dataset() -> Dataset:
    return load_dataset()


@functools.lru_cache(maxsize=1)
def training_batches(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a pass, in the order in which all sides take them.

    Returns:
      uint8 [steps * batch, 28, 28, 1] and int64 [steps * batch].
    """
    train = _dataset().train
    stream = ExampleStream(num_examples=len(train.labels), seed=SEED)
    order = stream.indices(0, case.steps * case.batch)
    return train.images[order], train.labels[order].astype(np.int64)


def comparison_images() -> np.ndarray:
    """Returns the images on which sides are compared, float32 [n, 28, 28, 1] in [0, 1]."""
    return _dataset().test.images[:NUM_TEST_IMAGES].astype(np.float32) / 255.0


def comparison_loss(logits: np.ndarray) -> float:
    """Returns the mean cross-entropy of logits of `comparison_images`, in nats."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    labels = _dataset().test.labels[:NUM_TEST_IMAGES]
    return float(np.mean(log_sums - logits[np.arange(len(labels)), labels]))
