import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.modeling.augmentation import augment, transform
from mnist_dist.modeling.randomness import uniform_by_position


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_transform_equals_tensorflows_own_kernel(monkeypatch, num_gpus):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: [None] * num_gpus)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(5, 9, 12, 3)).astype(np.float32)
    matrix = np.eye(2) + rng.uniform(-0.3, 0.3, size=(5, 2, 2))
    shift = rng.uniform(-2, 2, size=(5, 2))
    centre = np.array([4.0, 5.5])
    # The kernel takes x before y, and the whole offset rather than one about a centre.
    offset = centre + shift - matrix @ centre
    rows = [
        [m[1, 1], m[1, 0], o[1], m[0, 1], m[0, 0], o[0], 0.0, 0.0]
        for m, o in zip(matrix, offset, strict=True)
    ]
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=np.array(rows, np.float32),
        output_shape=[9, 12],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    found = transform(
        tf.constant(images),
        tf.constant(matrix, tf.float32),
        tf.constant(shift, tf.float32),
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_on_a_gpu_no_product_is_left_that_would_be_rounded_to_tf32(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: [None])
    traced = tf.function(augment).get_concrete_function(
        tf.TensorSpec([4, 28, 28, 1]), tf.TensorSpec([], tf.int64), seed=3
    )
    kinds = {operation.type for operation in traced.graph.get_operations()}
    assert "Mul" in kinds
    assert not [kind for kind in kinds if "MatMul" in kind or "Einsum" in kind]


def test_augmentation_depends_on_the_position_alone():
    images = tf.random.stateless_uniform([8, 28, 28, 1], seed=[1, 2])
    whole = augment(images, tf.constant(40, tf.int64), seed=3)
    half = augment(images[4:], tf.constant(44, tf.int64), seed=3)
    # The draws are equal to the bit (below); vectorised sines are not.
    np.testing.assert_allclose(whole[4:], half, atol=2e-5)
    other = augment(images, tf.constant(40, tf.int64), seed=4)
    assert np.all(np.any(whole != other, axis=(1, 2, 3)))


def test_draws_are_slices_of_one_sequence_with_and_without_xla():
    def draw(first, num_examples, compile_it):
        function = tf.function(uniform_by_position, jit_compile=compile_it)
        return function(
            tf.constant(first, tf.int64),
            num_examples=num_examples,
            values_per_example=7,
            seed=5,
            purpose=1,
        ).numpy()

    whole = draw(2**40, 1000, False)
    np.testing.assert_array_equal(whole, draw(2**40, 1000, True))
    np.testing.assert_array_equal(whole[600:], draw(2**40 + 600, 400, False))
    # Uniform: every tenth of [0, 1) gets its share, within five standard deviations.
    counts = np.histogram(whole, bins=10, range=(0, 1))[0]
    assert np.all(np.abs(counts - 700) < 5 * np.sqrt(700 * 0.9))
    assert len(np.unique(whole)) > 0.99 * whole.size
