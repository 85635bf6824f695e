"""`mnist_dist.train_model`: a training called from Python, or by the program `train`."""

from collections.abc import Set

from mnist_dist.cluster.membership import find_cluster
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.device.quiet_imports import quiet_imports
from mnist_dist.errors import InputError
from mnist_dist.training.keywords import takes_keywords_of
from mnist_dist.training.options import TrainingOptions, say
from mnist_dist.training.recorded_kernels import use_recorded_kernels
from mnist_dist.training.result import TrainingResult


@takes_keywords_of(TrainingOptions)
def train_model(options: TrainingOptions, given: Set[str]) -> TrainingResult:
    """Trains a model, or goes on with a run, and returns how it ended.

    Takes what `mnist-dist train --help` lists as keyword arguments; only `model_dir` is
    needed. Besides, `model` may be a function, as `create(image_shape=...,
    num_classes=...)` that returns a Keras model; `data` arrays in memory; and `on_record`,
    `on_evaluation` and `on_checkpoint` functions that are called on the chief while it
    trains.

    It may be called several times in a process, and in any thread. Signals stop it only
    in the main thread, and their handlers are put back at the end.

    Raises:
      OptionError: an option is wrong; it is a `ValueError` too.
      InputError: the data, the model or the directory is wrong, or TensorFlow was
        started in this process with other devices.
      RunError: the run cannot go on, as the disk is full.
      PeerError: another worker is gone.
    """
    cluster = find_cluster(**options.pick("worker_hosts task_index"))
    if cluster.is_evaluator:
        raise InputError(
            "TF_CONFIG: found this process to be the evaluator, expected a worker: "
            "`mnist-dist evaluate --watch` evaluates"
        )
    if cluster.num_workers > 1 or cluster.num_allocated_nodes > 1:
        say(options, cluster.describe())
    with StopRequest() as stop:  # before the imports start threads
        # TensorFlow takes seconds to import: not before the options are known to be good.
        if options.restore != "none":
            use_recorded_kernels(options.model_dir)
        with quiet_imports():
            from mnist_dist.training.run_training import run_training
        return run_training(options, given, cluster, stop)
