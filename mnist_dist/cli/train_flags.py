"""The flags of `train`, and what can be checked before TensorFlow is imported."""

import os
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from mnist_dist.cli import program
from mnist_dist.errors import InputError
from mnist_dist.run.plan import RunPlan

_string, _int, _float = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
_bool, _enum = flags.DEFINE_bool, flags.DEFINE_enum

# Where the run lies and what it reads.
_string("model_dir", None, "Directory of the run: checkpoints, metrics, events.")
_string("data_dir", None, "Data set as IDX or npz files. Default: the bundled MNIST.")
_int("validation_examples", 0, "Last training examples to evaluate on; 0: test set.")
_enum(
    "data_on_device",
    "auto",
    ["auto", "on", "off"],
    "Keep the data set in device memory; off streams it.",
)

# What is trained, and for how long.
_string("model", "cnn", "mlp, cnn, or module:function returning a Keras model.")
_int(
    "global_batch_size",
    128,
    "Examples in a step, over all replicas.",
    lower_bound=1,
    upper_bound=1 << 20,
)
_float(
    "train_epochs",
    None,
    "Length of the run in epochs. Default 4.",
    lower_bound=0,
    upper_bound=1e6,
)
_int(
    "train_steps",
    None,
    "Length of the run in steps, instead of epochs.",
    lower_bound=1,
    upper_bound=1 << 40,
)
_int(
    "steps_per_loop",
    0,
    "Most steps in one call of the device; 0: about half a second.",
    lower_bound=0,
)
_int(
    "seed",
    1,
    "Seed of weights, example order, augmentation and dropout.",
    lower_bound=0,
    upper_bound=(1 << 32) - 1,  # NumPy's and Keras's
)
_bool("deterministic", False, "Use only deterministic kernels (slower on GPUs).")

# How.
_enum("optimizer", "adam", ["sgd", "adam", "adamw"], "Update rule.")
_float("learning_rate", 2e-3, "Peak learning rate.", lower_bound=0)
_enum(
    "lr_schedule",
    "one_cycle",
    ["constant", "cosine", "one_cycle"],
    "How the learning rate changes over the run.",
)
_int(
    "warmup_steps", 0, "Steps of linear warm-up, or of one_cycle's rise.", lower_bound=0
)
_float("weight_decay", 0.0, "Decoupled weight decay of sgd and adamw.", lower_bound=0)
_float("momentum", 0.9, "Momentum of sgd.", lower_bound=0, upper_bound=1)
_bool("nesterov", False, "Use Nesterov's form of sgd's momentum.")
_float(
    "clip_global_norm",
    0.0,
    "Largest norm of all gradients together; 0: no limit.",
    lower_bound=0,
)
_float(
    "label_smoothing",
    0.0,
    "Weight of the uniform distribution in the targets.",
    lower_bound=0,
    upper_bound=1,
)
_float(
    "ema_decay",
    0.995,
    "Decay of the weights' moving average; 0: none is kept.",
    lower_bound=0,
    upper_bound=1,
)
_bool("augment", True, "Random affine change of each training image.")
_float(
    "dropout",
    0.0,
    "Dropout rate before the last layer of mlp and cnn.",
    lower_bound=0,
    upper_bound=0.99,
)
_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16", "float16"],
    "Compute dtype; weights stay float32.",
)
_enum(
    "enable_xla",
    "auto",
    ["auto", "on", "off"],
    "Compile the device loop with XLA; auto: where faster.",
)

# On what.
_enum(
    "distribution_strategy",
    "auto",
    ["auto", "one_device", "mirrored", "multi_worker_mirrored"],
    "auto chooses by the number of devices and workers.",
)
_int("num_gpus", -1, "GPUs to use; -1: all.", lower_bound=-1)
_int("logical_cpus", 1, "Devices to split the CPU into.", lower_bound=1, upper_bound=64)
_enum(
    "all_reduce_alg",
    "auto",
    ["auto", "nccl", "hierarchical_copy", "ring"],
    "How GPUs add gradients up: nccl or hierarchical_copy in one worker, nccl or ring "
    "in several.",
)

# With whom. Without these flags TF_CONFIG or Slurm may tell.
_string("worker_hosts", None, "host:port of every worker, by rank, with commas.")
_int("task_index", None, "This worker's place in --worker_hosts.", lower_bound=0)
_float(
    "cluster_timeout",
    300.0,
    "Seconds to wait for all workers at the start.",
    lower_bound=1,
)
_float(
    "peer_timeout",
    10.0,
    "Seconds of silence after which a worker counts as lost.",
    lower_bound=1,
)

# What happens at which steps.
_int(
    "eval_interval",
    None,
    "Steps between evaluations; default one epoch.",
    lower_bound=1,
)
_int(
    "checkpoint_interval",
    None,
    "Steps between checkpoints; default one epoch.",
    lower_bound=1,
)
_int(
    "summary_interval",
    None,
    "Steps between training metrics; default a tenth of an epoch.",
    lower_bound=1,
)
_int("max_to_keep", 3, "Checkpoints to keep.", lower_bound=1)
_string(
    "restore",
    "auto",
    "Start from: auto (the newest checkpoint), none (anew), a step, or a path.",
)
_bool("overwrite", False, "With --restore=none: delete the run that is there.")
_bool("override_config", False, "Go on although settings of the run have changed.")
_string("init_from", None, "Checkpoint, layer file, ... to take initial weights from.")
flags.DEFINE_list("freeze", [], "Layers that keep their initial weights.")
_float(
    "target_accuracy",
    None,
    "Stop early at this evaluation accuracy.",
    lower_bound=0,
    upper_bound=1,
)
_int(
    "early_stopping_patience",
    0,
    "Stop early after so many evaluations without a new best; 0: off.",
    lower_bound=0,
)
_int(
    "max_nonfinite_steps",
    50,
    "End the run after so many skipped steps in a row.",
    lower_bound=1,
)
_bool("export", True, "Write a SavedModel at the end.")
_string("export_dir", None, "Where to write the SavedModel; default MODEL_DIR/export.")
_string("profile_steps", None, "FIRST,LAST step of a TensorBoard profile.")
_bool("dry_run", False, "Check and print everything, train nothing.")
_bool("progress", True, "Print progress.")

FLAGS = flags.FLAGS


def check_flags() -> None:
    """Checks what one flag's own bounds cannot say.

    Raises:
      InputError: names the flag, what was found and what was expected.
    """
    if not FLAGS.model_dir:
        raise InputError("--model_dir: found nothing, expected a directory")
    if os.path.exists(FLAGS.model_dir) and not os.path.isdir(FLAGS.model_dir):
        raise InputError(
            f"--model_dir: found {FLAGS.model_dir!r}, which is no directory"
        )
    if FLAGS.train_epochs is not None and FLAGS.train_steps is not None:
        raise InputError(
            "--train_epochs and --train_steps: found both, expected one of the two"
        )
    if FLAGS.train_epochs == 0:
        raise InputError("--train_epochs: found 0, expected more")
    is_step = FLAGS.restore.isascii() and FLAGS.restore.isdigit()
    if FLAGS.restore not in ("auto", "none") and not is_step:
        path = FLAGS.restore.removesuffix(".index")
        if not os.path.basename(path).startswith("ckpt-"):
            raise InputError(
                f"--restore: found {FLAGS.restore!r}, expected auto, none, a step or "
                "the path of a checkpoint, as in RUN/checkpoints/ckpt-100"
            )
    if FLAGS.overwrite and FLAGS.restore != "none":
        raise InputError(
            f"--overwrite: found it with --restore={FLAGS.restore}, expected "
            "--restore=none"
        )
    if FLAGS.optimizer == "adam" and FLAGS.weight_decay:
        raise InputError(
            f"--weight_decay: found {FLAGS.weight_decay} with --optimizer=adam, "
            "expected 0; adamw is Adam with weight decay"
        )
    _profile_steps()


# Of a run that goes on: the results are another run's if one of these changes.
_SETTINGS = [
    "model",
    "global_batch_size",
    "seed",
    "validation_examples",
    "optimizer",
    "learning_rate",
    "lr_schedule",
    "warmup_steps",
    "weight_decay",
    "momentum",
    "nesterov",
    "clip_global_norm",
    "label_smoothing",
    "ema_decay",
    "augment",
    "dropout",
    "dtype",
    "freeze",
]


# What a worker may have otherwise than the chief: places on its disk, and itself.
_OWN = ["model_dir", "data_dir", "export_dir", "init_from", "restore", "overwrite"]
_OWN += ["override_config", "worker_hosts", "task_index", "progress"]


def parse(args: Sequence[str]) -> None:
    """Parses and checks a command line of flags alone.

    Raises:
      InputError: it is wrong.
    """
    if rest := program.parse(["train", *args])[1:]:
        raise InputError(f"unexpected argument {rest[0]!r}: flags begin with --")
    check_flags()


def values() -> dict[str, object]:
    """Returns the value of every flag of this file, by name."""
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(__name__)}


def settings() -> dict[str, object]:
    """Returns those values that must not change when a run goes on."""
    return {name: FLAGS[name].value for name in _SETTINGS}


def shared() -> dict[str, object]:
    """Returns those values that must be the same on all workers."""
    return {name: value for name, value in values().items() if name not in _OWN}


def pick(names: str) -> dict[str, Any]:
    """Returns some flags' values, for a function whose keywords have their names."""
    return {name: FLAGS[name].value for name in names.split()}


def run_plan(num_examples: int) -> RunPlan:
    """Works the plan of a run on so many training examples out, in steps."""
    batch = FLAGS.global_batch_size
    epochs = 4.0 if FLAGS.train_epochs is None else FLAGS.train_epochs
    steps_per_epoch = max(round(num_examples / batch), 1)
    return RunPlan(
        total_steps=FLAGS.train_steps or max(round(epochs * num_examples / batch), 1),
        steps_per_epoch=steps_per_epoch,
        eval_interval=FLAGS.eval_interval or steps_per_epoch,
        checkpoint_interval=FLAGS.checkpoint_interval or steps_per_epoch,
        summary_interval=FLAGS.summary_interval or max(steps_per_epoch // 10, 1),
        profile_steps=_profile_steps(),
        **pick("steps_per_loop max_to_keep max_nonfinite_steps"),
        **pick("target_accuracy early_stopping_patience"),
    )


def _profile_steps() -> tuple[int, int] | None:
    if not FLAGS.profile_steps:
        return None
    steps = re.fullmatch(r"([0-9]+),([0-9]+)", FLAGS.profile_steps)
    if not steps or int(steps[1]) >= int(steps[2]):
        raise InputError(
            f"--profile_steps: found {FLAGS.profile_steps!r}, expected two rising "
            "steps as in 10,20"
        )
    return int(steps[1]), int(steps[2])
