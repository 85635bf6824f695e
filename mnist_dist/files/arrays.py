"""Arrays by name, as a checkpoint or a layer file holds them, and what they should be."""

from collections.abc import Mapping

import numpy as np

from mnist_dist.errors import InputError

Arrays = dict[str, np.ndarray]
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def check_specs(arrays: Arrays, *, specs: Specs, name: str) -> None:
    """Compares names, shapes and dtypes with what is needed.

    Raises:
      InputError: names each that is missing, extra or of another shape or dtype.
    """
    if misfit := describe_misfit(arrays, specs):
        raise InputError(f"{name} is of another model or optimizer: {misfit}")


def specs_of(arrays: Arrays) -> Specs:
    """Returns the shape and dtype of each array."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def describe_misfit(arrays: Arrays, specs: Specs) -> str:
    """Says how arrays differ from what is expected; empty if they do not."""
    reasons = [
        f"{name}: found nothing, expected {describe_spec(*specs[name])}"
        for name in sorted(specs.keys() - arrays.keys())
    ]
    reasons += [
        f"{name}: found {describe_spec(arrays[name].shape, arrays[name].dtype)}, "
        f"expected {describe_spec(*specs[name]) if name in specs else 'no such array'}"
        for name in sorted(arrays)
        if (arrays[name].shape, arrays[name].dtype) != specs.get(name)
    ]
    return "; ".join(reasons)


def describe_nonfinite(arrays: Mapping[str, np.ndarray]) -> str:
    """Says which arrays hold NaN or infinite values; empty if none does."""
    reasons = []
    for name, array in arrays.items():
        # Not of numbers alone: a checkpoint may hold texts too. "V": bfloat16.
        if array.dtype.kind in "fcV" and not (is_finite := np.isfinite(array)).all():
            count = array.size - int(np.count_nonzero(is_finite))
            reasons.append(f"{count} of {array.size} values of {name} are not finite")
    return "; ".join(reasons)


def describe_spec(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Returns what an array is, for a person: `float32 [784, 128]`."""
    return f"{dtype} {list(shape)}"
