"""The options of a training run: type, default, bounds and help of each, in one place.

The flags of `train` are made from these fields, and `mnist_dist.train_model` takes them
as keyword arguments. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from absl import flags

from mnist_dist.errors import InputError
from mnist_dist.run.plan import RunPlan, StoppingRule

if TYPE_CHECKING:
    import keras

    from mnist_dist.data import Dataset
    from mnist_dist.run.metric_writer import MetricWriter


# Roles. A setting cannot change in a run that goes on: the results would be another
# run's. What is of a worker's own may be otherwise than the chief's: places on its disk,
# and itself. What is of a start is not taken over when the run goes on.
SETTING, OWN, START = "setting", "own", "start"


def print_message(text: str) -> None:
    """Prints a message at once, also where standard output is no terminal."""
    print(text, flush=True)


class OptionError(InputError, ValueError):
    """An option has a value that it cannot have; a `ValueError` to callers in Python."""


def _option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    lower: float | None = None,
    upper: float | None = None,
    choices: Sequence[str] = (),
    role: str = "",
    is_flag: bool = True,
) -> Any:
    metadata = {"help": help, "lower": lower, "upper": upper, "choices": choices}
    metadata |= {"role": role, "is_flag": is_flag}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a training run is told. The metadata of each field holds its help.

    Raises:
      OptionError: a value is of another type or out of bounds, or two exclude each
        other. It names the option as a flag, what was found and what was expected.
    """

    # Where the run lies and what it reads.
    model_dir: str = _option(
        help="Directory of the run: checkpoints, metrics, events.", role=OWN
    )
    data_dir: str | None = _option(
        None, "Data set as files. Default: the bundled MNIST.", role=OWN
    )
    data: Dataset | None = _option(
        None, "Data set in memory, in place of data_dir.", is_flag=False
    )
    validation_examples: int = _option(
        0,
        "Training examples to evaluate on, drawn by the seed; 0: the test set.",
        role=SETTING,
    )
    validation_split: str = _option(
        "stratified",
        "How they are drawn: each class in its share, or the last of the set.",
        choices=("stratified", "last"),
        role=SETTING,
    )
    data_on_device: str = _option(
        "auto",
        "Keep the data set in device memory; off streams it.",
        choices=("auto", "on", "off"),
    )

    # What is trained, and for how long.
    model: str | Callable[..., keras.Model] = _option(
        "cnn", "mlp, cnn, or module:function returning a Keras model.", role=SETTING
    )
    global_batch_size: int = _option(
        128,
        "Examples in a step, over all replicas.",
        lower=1,
        upper=1 << 20,
        role=SETTING,
    )
    train_epochs: float | None = _option(
        None, "Length of the run in epochs. Default 4.", lower=0, upper=1e6
    )
    train_steps: int | None = _option(
        None, "Length of the run in steps, instead of epochs.", lower=1, upper=1 << 40
    )
    steps_per_loop: int = _option(
        0, "Most steps in one call of the device; 0: about half a second.", lower=0
    )
    seed: int = _option(
        1,
        "Seed of weights, example order, augmentation and dropout.",
        lower=0,
        upper=(1 << 32) - 1,  # NumPy's and Keras's
        role=SETTING,
    )
    deterministic: bool = _option(
        False, "Use only deterministic kernels (slower on GPUs).", role=START
    )

    # How.
    optimizer: str = _option(
        "adam", "Update rule.", choices=("sgd", "adam", "adamw"), role=SETTING
    )
    learning_rate: float = _option(2e-3, "Peak learning rate.", lower=0, role=SETTING)
    lr_schedule: str = _option(
        "one_cycle",
        "How the learning rate changes over the run.",
        choices=("constant", "cosine", "one_cycle"),
        role=SETTING,
    )
    warmup_steps: int = _option(
        0, "Steps of linear warm-up, or of one_cycle's rise.", lower=0, role=SETTING
    )
    weight_decay: float = _option(
        0.0, "Decoupled weight decay of sgd and adamw.", lower=0, role=SETTING
    )
    momentum: float = _option(0.9, "Momentum of sgd.", lower=0, upper=1, role=SETTING)
    nesterov: bool = _option(
        False, "Use Nesterov's form of sgd's momentum.", role=SETTING
    )
    clip_global_norm: float = _option(
        0.0,
        "Largest norm of all gradients together; 0: no limit.",
        lower=0,
        role=SETTING,
    )
    label_smoothing: float = _option(
        0.0,
        "Weight of the uniform distribution in the targets.",
        lower=0,
        upper=1,
        role=SETTING,
    )
    ema_decay: float = _option(
        0.995,
        "Decay of the weights' moving average; 0: none is kept.",
        lower=0,
        upper=1,
        role=SETTING,
    )
    augment: bool | None = _option(
        None,
        "Random affine change of each training image. Default: for mlp and cnn.",
        role=SETTING,
    )
    dropout: float = _option(
        0.0,
        "Dropout rate before the last layer of mlp and cnn.",
        lower=0,
        upper=0.99,
        role=SETTING,
    )
    dtype: str = _option(
        "float32",
        "Compute dtype; weights stay float32.",
        choices=("float32", "bfloat16", "float16"),
        role=SETTING,
    )
    enable_xla: str = _option(
        "auto",
        "Compile the device loop with XLA; auto: where faster.",
        choices=("auto", "on", "off"),
    )

    # On what.
    distribution_strategy: str = _option(
        "auto",
        "auto chooses by the number of devices and workers.",
        choices=("auto", "one_device", "mirrored", "multi_worker_mirrored"),
        role=START,
    )
    num_gpus: int = _option(-1, "GPUs to use; -1: all.", lower=-1, role=START)
    logical_cpus: int = _option(
        1, "Devices to split the CPU into.", lower=1, upper=64, role=START
    )
    all_reduce_alg: str = _option(
        "auto",
        "How GPUs add gradients up: nccl or hierarchical_copy in one worker, nccl or "
        "ring in several.",
        choices=("auto", "nccl", "hierarchical_copy", "ring"),
        role=START,
    )

    # With whom. Without these TF_CONFIG or Slurm may tell.
    worker_hosts: str | None = _option(
        None, "host:port of every worker, by rank, with commas.", role=OWN
    )
    task_index: int | None = _option(
        None, "This worker's place in --worker_hosts.", lower=0, role=OWN
    )
    cluster_timeout: float = _option(
        300.0, "Seconds to wait for all workers at the start.", lower=1, role=START
    )
    peer_timeout: float = _option(
        10.0,
        "Seconds of silence after which a worker counts as lost.",
        lower=1,
        role=START,
    )

    # What happens at which steps.
    eval_interval: int | None = _option(
        None, "Steps between evaluations; default one epoch.", lower=1
    )
    checkpoint_interval: int | None = _option(
        None, "Steps between checkpoints; default one epoch.", lower=1
    )
    summary_interval: int | None = _option(
        None,
        "Steps between training metrics; default a tenth of an epoch.",
        lower=1,
    )
    max_to_keep: int = _option(3, "Checkpoints to keep.", lower=1)
    restore: str = _option(
        "auto",
        "Start from: auto (the newest checkpoint), none (anew), a step, or a path.",
        role=OWN,
    )
    overwrite: bool = _option(
        False, "With --restore=none: delete the run that is there.", role=OWN
    )
    override_config: bool = _option(
        False, "Go on although settings of the run have changed.", role=OWN
    )
    init_from: str | None = _option(
        None, "Checkpoint, layer file, ... to take initial weights from.", role=OWN
    )
    freeze: Sequence[str] = _option(
        (), "Layers that keep their initial weights.", role=SETTING
    )
    target_accuracy: float | None = _option(
        None, "Stop early at this evaluation accuracy.", lower=0, upper=1
    )
    early_stopping_patience: int = _option(
        0, "Stop early after so many evaluations without a new best; 0: off.", lower=0
    )
    max_nonfinite_steps: int = _option(
        50, "End the run after so many skipped steps in a row.", lower=1
    )
    export: bool = _option(True, "Write a SavedModel at the end.")
    export_checkpoint: str = _option(
        "auto",
        "Whose weights the SavedModel has; auto: the best's where a validation split or "
        "early stopping chooses, the last's elsewhere.",
        choices=("auto", "best", "last"),
    )
    export_dir: str | None = _option(
        None, "Where to write the SavedModel; default MODEL_DIR/export.", role=OWN
    )
    profile_steps: str | None = _option(
        None, "FIRST,LAST step of a TensorBoard profile.", role=START
    )
    dry_run: bool = _option(
        False, "Check and print everything, train nothing.", role=START
    )

    # Whom it tells. Hooks are called on the chief alone, in the thread that trains.
    progress: bool = _option(True, "Print progress.", role=OWN)
    messages: Callable[[str], None] | None = _option(
        print_message, "Takes the plan, the result and other messages.", is_flag=False
    )
    on_record: Callable[[Mapping[str, Any]], None] | None = _option(
        None,
        "Called with each training record: step, epoch and the metrics.",
        is_flag=False,
    )
    on_evaluation: Callable[[Mapping[str, Any]], None] | None = _option(
        None, "Called with each evaluation, likewise.", is_flag=False
    )
    on_checkpoint: Callable[[str], None] | None = _option(
        None, "Called with the path of each checkpoint that is on disk.", is_flag=False
    )
    writers: Sequence[MetricWriter] = _option(
        (), "More writers of metrics, beside the files of the run.", is_flag=False
    )

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            if field.metadata["is_flag"]:
                checked = _checked(field, getattr(self, name))
                object.__setattr__(self, name, checked)
        _check_together(self)

    def pick(self, names: str) -> dict[str, Any]:
        """Returns some options, for a function whose keywords have their names."""
        return {name: getattr(self, name) for name in names.split()}

    def values(self) -> dict[str, Any]:
        """Returns every option that a flag can give, by name, as JSON holds it."""
        values = {name: getattr(self, name) for name in FLAG_FIELDS}
        return values | {
            "model": self.model_name,
            "freeze": list(self.freeze),
            "augment": self.has_augmentation,
        }

    def settings(self) -> dict[str, Any]:
        """Returns those values that must not change when a run goes on."""
        values = self.values()
        return {name: v for name, v in values.items() if _role(name) == SETTING}

    def shared(self) -> dict[str, Any]:
        """Returns those values that must be the same on all workers."""
        return {name: v for name, v in self.values().items() if _role(name) != OWN}

    def with_recorded(
        self, recorded: Mapping[str, Any], given: Set[str]
    ) -> tuple[TrainingOptions, dict[str, tuple[Any, Any]]]:
        """Puts a run's own options in the place of those that were not given.

        Args:
          recorded: values of options by name, as `values` returned them.
          given: names of the options that were given.

        Returns:
          The options; and of those that were given, no settings, and differ: what was
          recorded, and what was given.

        Raises:
          OptionError: what was recorded is no value for an option.
        """
        # The length is one thing, said in two ways.
        lengths = {"train_epochs", "train_steps"}
        given = set(given) | (lengths if lengths & set(given) else set())
        if self.data is not None:
            given.add("data_dir")
        taken, changed = {}, {}
        for name in FLAG_FIELDS.keys() & recorded.keys():
            role, value = _role(name), getattr(self, name)
            if role == START or (role == OWN and name != "data_dir"):
                continue
            if name not in given:
                taken[name] = recorded[name]
            elif role != SETTING and name != "data_dir" and recorded[name] != value:
                changed[name] = (recorded[name], value)
        return dataclasses.replace(self, **taken), changed

    @property
    def has_augmentation(self) -> bool:
        """Whether images are augmented: unless said, those of the bundled models.

        An own model may have augmentation layers of its own, and its data may be no
        digits.
        """
        return self.model in ("mlp", "cnn") if self.augment is None else self.augment

    @property
    def model_name(self) -> str:
        """`mlp`, `cnn`, or `module:function`, of a function that was given too."""
        if isinstance(self.model, str):
            return self.model
        return f"{self.model.__module__}:{self.model.__qualname__}"

    def plan(self, num_examples: int) -> RunPlan:
        """Works the plan of a run on so many training examples out, in steps."""
        batch = self.global_batch_size
        epochs = 4.0 if self.train_epochs is None else self.train_epochs
        steps_per_epoch = max(round(num_examples / batch), 1)
        return RunPlan(
            stopping=StoppingRule(
                total_steps=self.train_steps
                or max(round(epochs * num_examples / batch), 1),
                **self.pick("target_accuracy early_stopping_patience"),
            ),
            steps_per_epoch=steps_per_epoch,
            eval_interval=self.eval_interval or steps_per_epoch,
            checkpoint_interval=self.checkpoint_interval or steps_per_epoch,
            summary_interval=self.summary_interval or max(steps_per_epoch // 10, 1),
            profile_steps=_parse_profile_steps(self.profile_steps),
            **self.pick("steps_per_loop max_to_keep max_nonfinite_steps"),
        )


FIELDS = {field.name: field for field in dataclasses.fields(TrainingOptions)}
FLAG_FIELDS = {name: f for name, f in FIELDS.items() if f.metadata["is_flag"]}


def _role(name: str) -> str:
    return FIELDS[name].metadata["role"]


def parser_of(field: dataclasses.Field[Any]) -> flags.ArgumentParser:
    """Returns what reads and checks an option, as a flag and as a keyword alike."""
    annotation = str(field.type)
    bounds = {
        "lower_bound": field.metadata["lower"],
        "upper_bound": field.metadata["upper"],
    }
    if field.metadata["choices"]:
        return flags.EnumParser(list(field.metadata["choices"]))
    if annotation.startswith("bool"):
        return flags.BooleanParser()
    if annotation.startswith("int"):
        return flags.IntegerParser(**bounds)
    if annotation.startswith("float"):
        return flags.FloatParser(**bounds)
    if annotation.startswith("Sequence"):
        return flags.ListParser()
    return flags.ArgumentParser()


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Returns an option's value as its parser gives it."""
    if (value is None and field.default is None) or callable(value):
        return value
    if field.name == "model_dir" and not value:
        raise OptionError("--model_dir: found nothing, expected a directory")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if field.name == "freeze" and not isinstance(value, str):
        value = list(value)
    try:
        # NumPy's numbers too, which the parsers do not know.
        parsed = parser_of(field).parse(
            value.item() if hasattr(value, "item") else value
        )
    except (TypeError, ValueError) as error:
        raise OptionError(f"flag --{field.name}={value}: {error}") from None
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise OptionError(f"--{field.name}: found {parsed}, expected a finite number")
    return tuple(parsed) if isinstance(parsed, list) else parsed


def _check_together(options: TrainingOptions) -> None:
    """Checks what the bounds of one option cannot say."""
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
    _parse_profile_steps(options.profile_steps)


def _parse_profile_steps(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    steps = re.fullmatch(r"([0-9]+),([0-9]+)", text)
    if not steps or int(steps[1]) >= int(steps[2]):
        raise OptionError(
            f"--profile_steps: found {text!r}, expected two rising steps as in 10,20"
        )
    return int(steps[1]), int(steps[2])
