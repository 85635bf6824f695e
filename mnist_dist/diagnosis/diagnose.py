"""The whole examination, from one worker's point of view."""

import signal
import threading
import time

import tensorflow as tf

from mnist_dist.cluster.membership import Cluster
from mnist_dist.data import load_dataset
from mnist_dist.device.peers import names_lost_peers
from mnist_dist.device.strategy import create_strategy
from mnist_dist.diagnosis import devices, host, storage, workers
from mnist_dist.diagnosis.diagnosis import Diagnosis
from mnist_dist.errors import InputError, PeerError
from mnist_dist.training.options import TrainingOptions


def diagnose(
    options: TrainingOptions, cluster: Cluster, *, cluster_timeout: float
) -> tuple[list[Diagnosis], tf.distribute.Strategy | None]:
    """Examines this worker and, where all meet, all workers together.

    Args:
      options: of the run that is meant.
      cluster: the workers, and which of them this is.
      cluster_timeout: seconds to wait for the other workers.

    Returns:
      What was found, by rank, or of this worker alone where they did not meet; and
      the strategy, for the workers to leave together.
    """
    mine = Diagnosis(rank=cluster.rank)
    may_use_gpus = options.num_gpus != 0 and options.logical_cpus == 1
    has_gpus = may_use_gpus and bool(tf.config.list_physical_devices("GPU"))
    host.check_host(mine, has_gpus=has_gpus)
    devices.check_gpus(mine)
    if cluster.is_chief:
        storage.check_storage(mine, options.model_dir)
    _check_data(mine, options)
    began = time.perf_counter()
    strategy = None
    try:
        strategy = create_strategy(
            options.distribution_strategy,
            cluster=cluster,
            cluster_timeout=cluster_timeout,
            **options.pick("peer_timeout num_gpus logical_cpus all_reduce_alg"),
            **options.pick("logical_gpus gpu_memory_limit"),
        )
    except (InputError, PeerError) as error:
        mine.stops.append(str(error))
    if threading.current_thread() is threading.main_thread():
        # With several workers TensorFlow has put its own handler there.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if strategy is None:
        return [mine], None
    with names_lost_peers(cluster):
        workers.check_ports(mine, cluster, seconds=time.perf_counter() - began)
        devices.check_products(mine, strategy, {"float32", options.dtype})
        workers.check_all_reduce(mine, strategy, cluster)
        return workers.gather(mine, strategy, cluster), strategy


def _check_data(mine: Diagnosis, options: TrainingOptions) -> None:
    began = time.perf_counter()
    try:
        dataset = load_dataset(
            options.data_dir,
            validation_seed=options.seed,
            **options.pick("validation_examples validation_split"),
        )
    except InputError as error:
        mine.stops.append(str(error))
        return
    mine.facts["data"] = (
        f"{dataset.source}: {len(dataset.train.labels):,} training images, checksum "
        f"{dataset.checksum[:12]}"
    )
    mine.numbers["data_seconds"] = time.perf_counter() - began
