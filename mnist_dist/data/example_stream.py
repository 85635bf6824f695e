"""The data plan: which examples, in which order; a pure function of the seed."""

from __future__ import annotations

import functools

import numpy as np

from mnist_dist.errors import InputError


class ExampleStream:
    """The endless stream of training examples.

    For each epoch a permutation of all examples drawn from (seed, epoch), laid end
    to end. Step s of a run with global batch B takes the positions
    [s * B, (s + 1) * B): nothing is dropped at the end of an epoch and nothing is
    seen twice in one, whatever the batch size, the replica count, or where a run
    was stopped and resumed.

    The permutation is the stable argsort of the raw 64-bit words of a Philox4x64-10
    generator whose 128-bit key is (seed, epoch), so no two pairs share a key. NumPy
    freezes the raw stream of a bit generator for ever; that of
    `Generator.permutation` it may change (NEP 19). Philox: Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", 2011.
    """

    def __init__(self, *, num_examples: int, seed: int) -> None:
        """Creates the stream of `num_examples` (at least 1) examples.

        Raises:
          InputError: `seed` is not in 0 to 2**64 - 1.
        """
        if not 0 <= seed < 1 << 64:
            raise InputError(f"seed is {seed}, expected 0 to 2**64 - 1")
        if not 1 <= num_examples < 1 << 31:
            raise ValueError(f"num_examples is {num_examples}, expected int32 > 0")
        self._num_examples = num_examples
        # Two: a range of positions usually touches the end of one epoch and the
        # beginning of the next.
        self._permutation = functools.lru_cache(maxsize=2)(
            functools.partial(_create_permutation, num_examples, seed)
        )

    def indices(self, first: int, count: int) -> np.ndarray:
        """Returns the examples at stream positions [first, first + count).

        Args:
          first: a stream position, 0 or more.
          count: how many, 0 or more.

        Returns:
          int32 [count], each in 0 to num_examples - 1.
        """
        if first < 0:
            raise ValueError(f"first is {first}, expected 0 or more")
        result = np.empty(count, dtype=np.int32)
        filled = 0
        while filled < count:
            epoch, start = divmod(first + filled, self._num_examples)
            part = self._permutation(epoch)[start : start + count - filled]
            result[filled : filled + len(part)] = part
            filled += len(part)
        return result


def _create_permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    words = generator.random_raw(num_examples)
    return np.argsort(words, kind="stable").astype(np.int32)
