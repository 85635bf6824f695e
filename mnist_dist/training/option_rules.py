"""What the options of a training run must be together."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from mnist_dist.device.microbatches import check_batch
from mnist_dist.errors import InputError
from mnist_dist.training.option import OptionError

if TYPE_CHECKING:
    from mnist_dist.training.options import TrainingOptions


def check_together(options: TrainingOptions) -> None:
    """Checks what the bounds of one option cannot say.

    Raises:
      OptionError: two options exclude each other, or one has no value of its form.
    """
    if os.path.exists(options.model_dir) and not os.path.isdir(options.model_dir):
        raise OptionError(
            f"--model_dir: found {options.model_dir!r}, which is no directory"
        )
    if options.train_epochs is not None and options.train_steps is not None:
        raise OptionError(
            "--train_epochs and --train_steps: found both, expected one of the two"
        )
    if options.train_epochs == 0:
        raise OptionError("--train_epochs: found 0, expected more")
    if options.data is not None and options.data_dir is not None:
        raise OptionError("data and data_dir: found both, expected one of the two")
    restore = options.restore
    is_step = restore.isascii() and restore.isdigit()
    if restore not in ("auto", "none") and not is_step:
        path = restore.removesuffix(".index")
        if not os.path.basename(path).startswith("ckpt-"):
            raise OptionError(
                f"--restore: found {restore!r}, expected auto, none, a step or the "
                "path of a checkpoint, as in RUN/checkpoints/ckpt-100"
            )
    if options.overwrite and restore != "none":
        raise OptionError(
            f"--overwrite: found it with --restore={restore}, expected --restore=none"
        )
    if options.optimizer == "adam" and options.weight_decay:
        raise OptionError(
            f"--weight_decay: found {options.weight_decay} with --optimizer=adam, "
            "expected 0; adamw is Adam with weight decay"
        )
    if options.logical_gpus > 1:
        _check_logical_gpus(options)
    try:
        check_batch(**options.pick("global_batch_size num_microbatches"))
    except InputError as error:
        raise OptionError(str(error)) from None
    parse_profile_steps(options.profile_steps)


def _check_logical_gpus(options: TrainingOptions) -> None:
    if not options.gpu_memory_limit:
        raise OptionError(
            f"--logical_gpus: found {options.logical_gpus} without --gpu_memory_limit, "
            "expected the MiB that each of them may take"
        )
    for name, fits in (
        ("num_gpus", options.num_gpus != 0),
        ("logical_cpus", options.logical_cpus == 1),
    ):
        if not fits:
            raise OptionError(
                f"--logical_gpus: found {options.logical_gpus} with "
                f"--{name}={getattr(options, name)}, which uses no GPU, expected 1"
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
