"""The options of a training run: type, default, bounds and help of each, in one table.

The flags of `train` are made from these fields, and `mnist_dist.train_model` takes them
as keyword arguments. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnist_dist.device.environment import MAX_THREADS
from mnist_dist.device.microbatches import check_batch
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import printable
from mnist_dist.run.plan import RunPlan, StoppingRule
from mnist_dist.training import option_rules
from mnist_dist.training.option import (
    OWN,
    SETTING,
    START,
    OptionError,
    check_value,
    option,
)

if TYPE_CHECKING:
    import keras
    import numpy as np

    from mnist_dist.data import Dataset
    from mnist_dist.run.metric_writer import MetricWriter


def print_message(text: str) -> None:
    """Prints a message at once, also where standard output is no terminal.

    Names in it may come from files of others: what would control the terminal is shown
    escaped.
    """
    print("\n".join(map(printable, text.split("\n"))), flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a training run is told. The metadata of each field holds its help.

    Raises:
      OptionError: a value is of another type or out of bounds, or two exclude each
        other. It names the option as a flag, what was found and what was expected.
    """

    # Where the run lies and what it reads.
    model_dir: str = option(
        help="Directory of the run: checkpoints, metrics, events.", role=OWN
    )
    data_dir: str | None = option(
        None,
        "Data set as files: a directory with IDX, CSV, Parquet or a folder of pictures "
        "for each class; or an .npz, .csv or .parquet file. Default: the bundled MNIST.",
        role=OWN,
    )
    data: Dataset | Sequence[tuple[np.ndarray, np.ndarray]] | None = option(
        None,
        "Data set in memory, in place of data_dir: a Dataset; or images and labels to "
        "train on, and those to test on, as ((x_train, y_train), (x_test, y_test)).",
        is_flag=False,
    )
    validation_examples: int = option(
        0,
        "Training examples to set apart and evaluate on, drawn by the seed; 0: none, the "
        "run evaluates on the test set.",
        role=SETTING,
    )
    validation_split: str = option(
        "stratified",
        "How validation examples are drawn: stratified (each class in its share), or last "
        "(the last of the training set).",
        choices=("stratified", "last"),
        role=SETTING,
    )
    data_on_device: str = option(
        "auto",
        "Keep the data set in device memory; off streams it; auto streams what takes more "
        "than half of a GPU's memory.",
        choices=("auto", "on", "off"),
    )

    # What is trained, and for how long.
    model: str | Callable[..., keras.Model] = option(
        "cnn",
        "mlp, cnn, cnn_bn, or module:function returning a Keras model.",
        role=SETTING,
    )
    global_batch_size: int = option(
        128,
        "Examples in a step, over all replicas.",
        lower=1,
        upper=1 << 20,
        role=SETTING,
    )
    num_microbatches: int = option(
        0,
        "Equal parts of the batch, which a replica computes one after another; the "
        "results are then the same bits on any number of replicas that divides it. 0: "
        "one part a replica.",
        lower=0,
        upper=1 << 20,
        role=SETTING,
    )
    train_epochs: float | None = option(
        None, "Length of the run in epochs. Default 4.", lower=0, upper=1e6
    )
    train_steps: int | None = option(
        None, "Length of the run in steps, instead of epochs.", lower=1, upper=1 << 40
    )
    steps_per_loop: int = option(
        0, "Most steps in one call of the device; 0: about half a second.", lower=0
    )
    seed: int = option(
        1,
        "Seed of weights, example order, augmentation and dropout.",
        lower=0,
        upper=(1 << 32) - 1,  # NumPy's and Keras's
        role=SETTING,
    )
    deterministic: bool = option(
        False, "Use only deterministic kernels (slower on GPUs).", role=START
    )

    # How.
    optimizer: str = option(
        "adam", "Update rule.", choices=("sgd", "adam", "adamw"), role=SETTING
    )
    learning_rate: float = option(2e-3, "Peak learning rate.", lower=0, role=SETTING)
    lr_schedule: str = option(
        "one_cycle",
        "How the learning rate changes over the run.",
        choices=("constant", "cosine", "one_cycle"),
        role=SETTING,
    )
    warmup_steps: int = option(
        0, "Steps of linear warm-up, or of one_cycle's rise.", lower=0, role=SETTING
    )
    weight_decay: float = option(
        0.0, "Decoupled weight decay of sgd and adamw.", lower=0, role=SETTING
    )
    momentum: float = option(0.9, "Momentum of sgd.", lower=0, upper=1, role=SETTING)
    nesterov: bool = option(
        False, "Use Nesterov's form of sgd's momentum.", role=SETTING
    )
    clip_global_norm: float = option(
        0.0,
        "Largest norm of all gradients together; 0: no limit.",
        lower=0,
        role=SETTING,
    )
    label_smoothing: float = option(
        0.0,
        "Weight of the uniform distribution in the targets.",
        lower=0,
        upper=1,
        role=SETTING,
    )
    ema_decay: float = option(
        0.995,
        "Decay of the weights' moving average; 0: none is kept.",
        lower=0,
        upper=1,
        role=SETTING,
    )
    statistics_batches: int = option(
        0,
        "Training batches over which BatchNormalization's moving statistics are computed "
        "anew before each evaluation; 0: those that the training has accumulated.",
        lower=0,
        upper=1 << 16,
    )
    augment: bool | None = option(
        None,
        "Random affine change of each training image. Default: for bundled models.",
        role=SETTING,
    )
    dropout: float = option(
        0.0,
        "Dropout rate before the last layer of bundled models.",
        lower=0,
        upper=0.99,
        role=SETTING,
    )
    dtype: str = option(
        "float32",
        "Compute dtype; weights stay float32.",
        choices=("float32", "bfloat16", "float16"),
        role=SETTING,
    )
    enable_xla: str = option(
        "auto",
        "Compile the device loop with XLA; auto: where faster.",
        choices=("auto", "on", "off"),
    )

    # On what.
    distribution_strategy: str = option(
        "auto",
        "auto chooses by the number of devices and workers.",
        choices=("auto", "one_device", "mirrored", "multi_worker_mirrored"),
        role=START,
    )
    num_gpus: int = option(-1, "GPUs to use; -1: all.", lower=-1, role=START)
    logical_cpus: int = option(
        1, "Devices to split the CPU into.", lower=1, upper=64, role=START
    )
    logical_gpus: int = option(
        1,
        "Devices to split each GPU into, for several replicas on one card; needs "
        "--gpu_memory_limit.",
        lower=1,
        upper=64,
        role=START,
    )
    gpu_memory_limit: int = option(
        0,
        "MiB that each GPU, or each device on it, may take; 0: as much as it needs.",
        lower=0,
        upper=1 << 30,
        role=START,
    )
    tensor_float_32: bool = option(
        True,
        "Let GPUs round the factors of float32 products to TF32's 10 bits: faster.",
    )
    intra_op_threads: int = option(
        0,
        "Threads of a process for one operation, on which the last bits depend; 0: "
        "TF_NUM_INTRAOP_THREADS, or all processors.",
        lower=0,
        upper=MAX_THREADS,
        role=START,
    )
    all_reduce_alg: str = option(
        "auto",
        "How GPUs add gradients up: nccl or hierarchical_copy in one worker, nccl or "
        "ring in several.",
        choices=("auto", "nccl", "hierarchical_copy", "ring"),
        role=START,
    )

    # With whom. Without these TF_CONFIG or Slurm may tell.
    worker_hosts: str | None = option(
        None, "host:port of every worker, by rank, with commas.", role=OWN
    )
    task_index: int | None = option(
        None, "This worker's place in --worker_hosts.", lower=0, role=OWN
    )
    cluster_timeout: float = option(
        300.0, "Seconds to wait for all workers at the start.", lower=1, role=START
    )
    peer_timeout: float = option(
        10.0,
        "Seconds of silence after which a worker counts as lost.",
        lower=1,
        role=START,
    )

    step_timeout: float | None = option(
        None,
        "Seconds without progress after which a worker writes the stacks of its threads "
        "and ends; 0: never. Default: with several workers 20 times the longest so far, "
        "at least 300.",
        lower=0,
        role=START,
    )

    # What happens at which steps.
    eval_interval: int | None = option(
        None, "Steps between evaluations; default one epoch.", lower=1
    )
    checkpoint_interval: int | None = option(
        None, "Steps between checkpoints; default one epoch.", lower=1
    )
    summary_interval: int | None = option(
        None,
        "Steps between training metrics; default a tenth of an epoch.",
        lower=1,
    )
    summary_detail: str = option(
        "standard",
        "What TensorBoard shows: minimal (loss, accuracy, speed, learning rate), "
        "standard (also time, memory, settings, pictures), or full (also the weights' "
        "histograms, gradients, updates, the slowest worker, and, evaluated once more, "
        "each class, confusion and mistakes).",
        choices=("minimal", "standard", "full"),
    )
    max_to_keep: int = option(3, "Checkpoints to keep.", lower=1)
    restore: str = option(
        "auto",
        "Start from: auto (the newest checkpoint), none (anew), a step, or a path.",
        role=OWN,
    )
    overwrite: bool = option(
        False, "With --restore=none: delete the run that is there.", role=OWN
    )
    override_config: bool = option(
        False, "Go on although settings of the run have changed.", role=OWN
    )
    init_from: str | None = option(
        None,
        "Run, checkpoint, SavedModel, .keras or layer file to take initial weights from; "
        "not read when the run goes on.",
        role=OWN,
    )
    freeze: Sequence[str] = option(
        (), "Layers that keep their initial weights.", role=SETTING
    )
    target_accuracy: float | None = option(
        None, "Stop early at this evaluation accuracy.", lower=0, upper=1
    )
    early_stopping_patience: int = option(
        0, "Stop early after so many evaluations without a new best; 0: off.", lower=0
    )
    max_nonfinite_steps: int = option(
        50,
        "End the run after so many steps in a row that were skipped, as their loss or "
        "gradients were not finite.",
        lower=1,
    )
    export: bool = option(True, "Write a SavedModel at the end.")
    export_checkpoint: str = option(
        "auto",
        "Whose weights the SavedModel has; auto: the best's where a validation split or "
        "early stopping chooses, the last's elsewhere.",
        choices=("auto", "best", "last"),
    )
    export_dir: str | None = option(
        None, "Where to write the SavedModel; default MODEL_DIR/export.", role=OWN
    )
    profile_steps: str | None = option(
        None, "FIRST,LAST step of a TensorBoard profile.", role=START
    )
    dry_run: bool = option(
        False, "Check and print everything, train nothing.", role=START
    )

    # Whom it tells. Hooks are called on the chief alone, in the thread that trains.
    progress: bool = option(True, "Print progress.", role=OWN)
    messages: Callable[[str], None] | None = option(
        print_message, "Takes the plan, the result and other messages.", is_flag=False
    )
    on_record: Callable[[Mapping[str, Any]], None] | None = option(
        None,
        "Called with each training record: step, epoch and the metrics.",
        is_flag=False,
    )
    on_evaluation: Callable[[Mapping[str, Any]], None] | None = option(
        None, "Called with each evaluation, likewise.", is_flag=False
    )
    on_checkpoint: Callable[[str], None] | None = option(
        None, "Called with the path of each checkpoint that is on disk.", is_flag=False
    )
    writers: Sequence[MetricWriter] = option(
        (), "More writers of metrics, beside the files of the run.", is_flag=False
    )

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            if field.metadata["is_flag"]:
                checked = check_value(field, getattr(self, name))
                object.__setattr__(self, name, checked)
        self._check_together()

    def _check_together(self) -> None:
        option_rules.check_places(**self.pick("model_dir data data_dir"))
        option_rules.check_length(**self.pick("train_epochs train_steps"))
        option_rules.check_restore(**self.pick("restore overwrite"))
        option_rules.check_weight_decay(**self.pick("optimizer weight_decay"))
        option_rules.check_logical_gpus(
            **self.pick("logical_gpus gpu_memory_limit num_gpus logical_cpus")
        )
        option_rules.parse_profile_steps(self.profile_steps)
        try:
            check_batch(**self.pick("global_batch_size num_microbatches"))
        except InputError as error:
            raise OptionError(str(error)) from None

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

    def repeating_values(self) -> dict[str, Any]:
        """Returns those values with which another start repeats this run elsewhere."""
        places = {"model_dir", "export_dir", "worker_hosts", "task_index"}
        momentary = {"restore", "overwrite", "override_config", "dry_run", "progress"}
        left_out = places | momentary | {"profile_steps"}
        return {name: v for name, v in self.values().items() if name not in left_out}

    def settings(self) -> dict[str, Any]:
        """Returns those values that must not change when a run goes on."""
        values = self.values()
        return {
            name: v
            for name, v in values.items()
            if FIELDS[name].metadata["role"] == SETTING
        }

    def shared(self) -> dict[str, Any]:
        """Returns those values that must be the same on all workers."""
        return {
            name: v
            for name, v in self.values().items()
            if FIELDS[name].metadata["role"] != OWN
        }

    @property
    def has_augmentation(self) -> bool:
        """Whether images are augmented: unless said, those of the bundled models.

        An own model may have augmentation layers of its own, and its data may be no
        digits.
        """
        if self.augment is not None:
            return self.augment
        return self.model in ("mlp", "cnn", "cnn_bn")

    @property
    def model_name(self) -> str:
        """`mlp`, `cnn`, `cnn_bn`, or `module:function`, of a function that was given too."""
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
            profile_steps=option_rules.parse_profile_steps(self.profile_steps),
            **self.pick("steps_per_loop max_to_keep max_nonfinite_steps"),
        )


FIELDS = {field.name: field for field in dataclasses.fields(TrainingOptions)}
FLAG_FIELDS = {name: f for name, f in FIELDS.items() if f.metadata["is_flag"]}


def say(options: TrainingOptions, text: str) -> None:
    """Gives a message to whoever takes the messages of a run."""
    if text and options.messages:
        options.messages(text)
