"""Flags that say which trained model is meant, alike in all programs that take one.

A program calls what it needs of these at its top; the flags then count as its own.
"""

from absl import flags

# So that --help of a program lists them among its own flags.
flags.disclaim_key_flags()


def define_run(text: str = "Directory of the run.") -> None:
    """Defines --model_dir, --checkpoint and --use_ema."""
    flags.DEFINE_string("model_dir", None, text)
    flags.DEFINE_string(
        "checkpoint", "latest", "Which checkpoint of the run: latest, best, or a step."
    )
    flags.DEFINE_bool(
        "use_ema",
        None,
        "Take the weights' moving average. Default: if the run kept one.",
    )


def define_model() -> None:
    """Defines --model, for a run of a model of one's own."""
    flags.DEFINE_string(
        "model",
        None,
        "module:function that builds the run's model; the module may lie in the working "
        "directory. Default: what the run names, which must be on PYTHONPATH.",
    )


def define_data_dir() -> None:
    """Defines --data_dir: what a model is evaluated on."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Data set to evaluate on. Default: what the model was trained on.",
    )


def define_devices() -> None:
    """Defines --distribution_strategy, --num_gpus and --logical_cpus for one worker."""
    flags.DEFINE_enum(
        "distribution_strategy",
        "auto",
        ["auto", "one_device", "mirrored"],
        "auto chooses by the number of devices.",
    )
    flags.DEFINE_integer("num_gpus", -1, "GPUs to use; -1: all.", lower_bound=-1)
    flags.DEFINE_integer(
        "logical_cpus",
        1,
        "Devices to split the CPU into.",
        lower_bound=1,
        upper_bound=64,
    )
