"""What the options of a training run must be together: a check for each group of them.

Each raises `OptionError` where two options exclude each other, or one has no value of
its form.
"""

from __future__ import annotations

import os
import re

from mnist_dist.training.option import OptionError


def check_places(*, model_dir: str, data: object, data_dir: str | None) -> None:
    """Checks what a run reads and writes."""
    if os.path.exists(model_dir) and not os.path.isdir(model_dir):
        raise OptionError(f"--model_dir: found {model_dir!r}, which is no directory")
    if data is not None and data_dir is not None:
        raise OptionError("data and data_dir: found both, expected one of the two")


def check_length(*, train_epochs: float | None, train_steps: int | None) -> None:
    """Checks how long a run is."""
    if train_epochs is not None and train_steps is not None:
        raise OptionError(
            "--train_epochs and --train_steps: found both, expected one of the two"
        )
    if train_epochs == 0:
        raise OptionError("--train_epochs: found 0, expected more")


def check_restore(*, restore: str, overwrite: bool) -> None:
    """Checks what a run begins with."""
    is_step = restore.isascii() and restore.isdigit()
    if restore not in ("auto", "none") and not is_step:
        path = restore.removesuffix(".index")
        if not os.path.basename(path).startswith("ckpt-"):
            raise OptionError(
                f"--restore: found {restore!r}, expected auto, none, a step or the "
                "path of a checkpoint, as in RUN/checkpoints/ckpt-100"
            )
    if overwrite and restore != "none":
        raise OptionError(
            f"--overwrite: found it with --restore={restore}, expected --restore=none"
        )


def check_weight_decay(*, optimizer: str, weight_decay: float) -> None:
    """Checks that the update rule has weight decay, if there is to be some."""
    if optimizer == "adam" and weight_decay:
        raise OptionError(
            f"--weight_decay: found {weight_decay} with --optimizer=adam, "
            "expected 0; adamw is Adam with weight decay"
        )


def check_logical_gpus(
    *, logical_gpus: int, gpu_memory_limit: int, num_gpus: int, logical_cpus: int
) -> None:
    """Checks that GPUs which are split are used, and have a limit."""
    if logical_gpus == 1:
        return
    if not gpu_memory_limit:
        raise OptionError(
            f"--logical_gpus: found {logical_gpus} without --gpu_memory_limit, "
            "expected the MiB that each of them may take"
        )
    unused = None
    if num_gpus == 0:
        unused = f"--num_gpus={num_gpus}"
    elif logical_cpus > 1:
        unused = f"--logical_cpus={logical_cpus}"
    if unused:
        raise OptionError(
            f"--logical_gpus: found {logical_gpus} with {unused}, which uses no GPU, "
            "expected 1"
        )


def parse_profile_steps(text: str | None) -> tuple[int, int] | None:
    """Returns the first and the last step of a profile, from `FIRST,LAST`.

    Raises:
      OptionError: it is not of this form.
    """
    if not text:
        return None
    steps = re.fullmatch(r"([0-9]+),([0-9]+)", text)
    if not steps or int(steps[1]) >= int(steps[2]):
        raise OptionError(
            f"--profile_steps: found {text!r}, expected two rising steps as in 10,20"
        )
    return int(steps[1]), int(steps[2])
