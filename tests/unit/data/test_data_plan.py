"""The example order: each once an epoch, a pure function of (seed, position)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_dist.data import ExampleStream
from mnist_dist.errors import InputError

SEEDS = st.integers(0, 2**64 - 1)


def philox_words(key: tuple[int, int], count: int) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, with NumPy's counter: from 1 up."""
    mask = 2**64 - 1
    words: list[int] = []
    for counter in range(1, -(-count // 4) + 1):
        c0, c1, c2, c3 = counter, 0, 0, 0
        k0, k1 = key
        for _ in range(10):
            product0, product1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = (
                (product1 >> 64) ^ c1 ^ k0,
                product1 & mask,
                (product0 >> 64) ^ c3 ^ k1,
                product0 & mask,
            )
            k0 = (k0 + 0x9E3779B97F4A7C15) & mask
            k1 = (k1 + 0xBB67AE8584CAA73B) & mask
        words += [c0, c1, c2, c3]
    return words[:count]


@given(
    seed=SEEDS,
    num_examples=st.integers(1, 40),
    epoch=st.integers(0, 3) | st.integers(0, 2**50),
)
@settings(deadline=None)
def test_an_epoch_is_the_argsort_of_the_published_generator(seed, num_examples, epoch):
    words = philox_words((seed, epoch), num_examples)
    stream = ExampleStream(num_examples=num_examples, seed=seed)
    np.testing.assert_array_equal(
        stream.indices(epoch * num_examples, num_examples),
        sorted(range(num_examples), key=words.__getitem__),
    )


def test_golden_order():
    """Two epochs of ten, frozen: a change would break the resuming of every run."""
    indices = ExampleStream(num_examples=10, seed=1).indices(0, 20)
    assert indices.dtype == np.int32
    assert indices.tolist() == [
        *(3, 5, 2, 9, 7, 0, 8, 6, 1, 4),
        *(0, 6, 5, 3, 4, 9, 7, 8, 2, 1),
    ]


@given(seed=SEEDS, num_examples=st.integers(1, 50), first_epoch=st.integers(0, 2**40))
@settings(deadline=None)
def test_every_epoch_has_each_example_once(seed, num_examples, first_epoch):
    stream = ExampleStream(num_examples=num_examples, seed=seed)
    epochs = stream.indices(first_epoch * num_examples, 3 * num_examples)
    for epoch in epochs.reshape(3, num_examples):
        assert sorted(epoch) == list(range(num_examples))


@given(
    num_examples=st.integers(1, 9),
    slices=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=8),
)
@settings(deadline=None)
def test_any_slice_in_any_order_gives_the_same_stream(num_examples, slices):
    whole = ExampleStream(num_examples=num_examples, seed=7).indices(0, 90)
    used = ExampleStream(num_examples=num_examples, seed=7)
    for first, count in slices:
        np.testing.assert_array_equal(
            used.indices(first, count), whole[first : first + count], strict=True
        )


def test_epochs_and_seeds_differ():
    n = 1000
    orders = {
        ExampleStream(num_examples=n, seed=seed).indices(epoch * n, n).tobytes()
        for seed in (0, 1, 2**63, 2**64 - 1)
        for epoch in range(5)
    }
    assert len(orders) == 20


def test_seed_and_epoch_are_not_interchangeable():
    a = ExampleStream(num_examples=1000, seed=1).indices(0, 1000)
    b = ExampleStream(num_examples=1000, seed=0).indices(1000, 1000)
    assert a.tolist() != b.tolist()


def test_changing_the_result_does_not_change_the_stream():
    stream = ExampleStream(num_examples=10, seed=1)
    expected = stream.indices(0, 10).tolist()
    stream.indices(0, 10)[:] = 0
    assert stream.indices(0, 10).tolist() == expected


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=f"seed is {seed}, expected 0 to"):
        ExampleStream(num_examples=10, seed=seed)


@pytest.mark.parametrize("num_examples", [0, -1, 2**31])
def test_number_of_examples_out_of_range_is_refused(num_examples):
    with pytest.raises(ValueError, match=f"num_examples is {num_examples}"):
        ExampleStream(num_examples=num_examples, seed=1)


def test_negative_position_is_refused():
    with pytest.raises(ValueError, match="first is -1"):
        ExampleStream(num_examples=10, seed=1).indices(-1, 2)
