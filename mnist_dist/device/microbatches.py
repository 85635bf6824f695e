"""What fits microbatches: a batch, a number of replicas, a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnist_dist.errors import InputError

if TYPE_CHECKING:  # the options are checked before it is imported
    import keras


def check_batch(
    *, global_batch_size: int, num_microbatches: int, num_replicas: int = 1
) -> None:
    """Checks that replicas and microbatches can share a batch out equally.

    Raises:
      InputError: they cannot.
    """
    if global_batch_size % num_replicas:
        raise InputError(
            f"--global_batch_size: found {global_batch_size}, expected a multiple of "
            f"the {num_replicas} replicas"
        )
    if num_microbatches and (
        global_batch_size % num_microbatches or num_microbatches % num_replicas
    ):
        fitting = [
            str(n)
            for n in range(num_replicas, global_batch_size + 1, num_replicas)
            if global_batch_size % n == 0
        ]
        replicas = f" on {num_replicas} replicas" if num_replicas > 1 else ""
        raise InputError(
            f"--num_microbatches: found {num_microbatches} for a global batch of "
            f"{global_batch_size}{replicas}, expected 0 or one of {', '.join(fitting)}"
        )


def check_nothing_synchronizes(model: keras.Model) -> None:
    """Checks that the replicas of a model compute apart.

    Raises:
      InputError: a layer computes something over all replicas.
    """
    for layer in model._flatten_layers():
        if getattr(layer, "synchronized", False):
            raise InputError(
                f"--num_microbatches: the layer {layer.name!r} synchronizes replicas, "
                "so its results depend on their number; expected 0, or the layer with "
                "synchronized=False"
            )
