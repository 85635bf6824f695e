"""Builds the tf.distribute strategy over the devices and workers that are there."""

import os
from collections.abc import Callable, Mapping, MutableMapping

import tensorflow as tf
from absl import logging

from mnist_dist.cluster.exit_timer import exits_unless_done_within
from mnist_dist.cluster.meeting import meet_peers
from mnist_dist.cluster.membership import Cluster, split_address
from mnist_dist.device import devices
from mnist_dist.errors import EXIT_STOPPED, InputError

# TensorFlow listens on all interfaces, whatever address it is given.
PORT_WARNING = (
    "the cluster port is unauthenticated and open on all interfaces: whoever reaches "
    "it controls this process; keep it inside a private network"
)

_ONE_WORKER = Cluster("one worker")


def create_strategy(
    name: str = "auto",
    *,
    cluster: Cluster = _ONE_WORKER,
    greeting: Mapping[str, object] | None = None,
    cluster_timeout: float = 300.0,
    peer_timeout: float = 10.0,
    is_stopping: Callable[[], bool] = lambda: False,
    num_gpus: int = -1,
    logical_cpus: int = 1,
    logical_gpus: int = 1,
    gpu_memory_limit: int = 0,
    all_reduce_alg: str = "auto",
    deterministic: bool = False,
    intra_op_threads: int = 0,
) -> tf.distribute.Strategy:
    """Chooses devices and builds the strategy over them.

    Once TensorFlow's runtime has started, the devices are those that it started with,
    and several workers are out of reach. With several workers TensorFlow puts a handler
    of its own in the place of SIGTERM's: a `StopRequest` listens only after this.

    Args:
      name: `auto` (several workers: multi_worker_mirrored; several devices: mirrored;
        one: one_device), or one of these.
      cluster: the workers of the run.
      greeting: JSON values that must be the same on all workers.
      cluster_timeout: seconds to wait for all workers to come.
      peer_timeout: seconds without a sign of life after which a worker is lost.
      is_stopping: whether to wait for workers no longer.
      num_gpus: GPUs that this worker uses; -1 is all, or its share of those of the
        host where they are not this worker's alone; 0 is the CPU.
      logical_cpus: splits the CPU into so many devices, which tests use to run
        several replicas without a GPU; more than 1 hides all GPUs.
      logical_gpus: splits each GPU into so many devices, to run several replicas on one
        card; more than 1 needs `gpu_memory_limit`.
      gpu_memory_limit: MiB that each GPU, or each device on it, may take; 0: as much as
        it needs.
      all_reduce_alg: `auto`, `nccl` (GPUs), `hierarchical_copy` (one worker) or
        `ring` (several).
      deterministic: use only kernels that always give the same bits.
      intra_op_threads: of this process, for one operation; 0: TensorFlow's number.

    Raises:
      InputError: devices asked for are not there, or the driver's GPUs cannot be used;
        a worker was started otherwise; or TensorFlow has started in this process with
        other devices, or as a worker.
      PeerError: a worker did not come in time.
    """
    devices.check_can_start(num_workers=cluster.num_workers)
    gpus = devices.choose_gpus(
        cluster,
        num_gpus=num_gpus,
        logical_cpus=logical_cpus,
        logical_gpus=logical_gpus,
        gpu_memory_limit=gpu_memory_limit,
    )
    check_all_reduce(
        all_reduce_alg,
        num_workers=cluster.num_workers,
        num_gpus=len(gpus),
        logical_gpus=logical_gpus,
    )
    devices.set_intra_op_threads(intra_op_threads)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if cluster.num_workers == 1:
        return _one_worker_strategy(
            name,
            num_gpus=len(gpus),
            logical_cpus=logical_cpus,
            shares_memory=not gpus or logical_gpus > 1,
            all_reduce_alg=all_reduce_alg,
        )
    if name not in ("auto", "multi_worker_mirrored"):
        raise InputError(
            f"--distribution_strategy: found {name!r} for {cluster.num_workers} "
            "workers, expected auto or multi_worker_mirrored"
        )
    if logical_cpus > 1:
        raise InputError(
            f"--logical_cpus: found {logical_cpus} for {cluster.num_workers} "
            "workers, expected 1: each worker has one CPU"
        )
    if logical_gpus > 1:
        raise InputError(
            f"--logical_gpus: found {logical_gpus} for {cluster.num_workers} workers, "
            "expected 1: NCCL takes one device of a GPU"
        )
    meet_peers(
        cluster,
        greeting={**(greeting or {}), "number of GPUs": len(gpus)},
        timeout=cluster_timeout,
        is_stopping=is_stopping,
    )
    if cluster.is_chief:
        logging.warning(PORT_WARNING)
    with exits_unless_done_within(cluster_timeout, code=EXIT_STOPPED):
        return _multi_worker_strategy(
            cluster,
            num_gpus=len(gpus),
            all_reduce_alg=all_reduce_alg,
            peer_timeout=peer_timeout,
        )


def check_all_reduce(
    name: str, *, num_workers: int, num_gpus: int, logical_gpus: int = 1
) -> None:
    """Checks that an all-reduce algorithm fits the workers and devices.

    Raises:
      InputError: it does not.
    """
    if logical_gpus > 1 and name != "auto":
        raise InputError(
            f"--all_reduce_alg: found {name!r} with --logical_gpus={logical_gpus}, expected "
            "auto: devices of one GPU share its memory"
        )
    if name == "hierarchical_copy" and num_workers == 1 and num_gpus % 2:
        # It adds two halves of equal size up, and leaves the one over out in silence.
        raise InputError(
            f"--all_reduce_alg: found {name!r} with {num_gpus} GPUs, expected an even "
            "number of them, auto or nccl"
        )
    ways = ["auto", "ring" if num_workers > 1 else "hierarchical_copy"]
    ways += ["nccl"] if num_gpus else []
    if name not in ways:
        raise InputError(
            f"--all_reduce_alg: found {name!r} for {num_workers} "
            f"{'workers' if num_workers > 1 else 'worker'} with {num_gpus} GPUs, "
            f"expected {', '.join(ways[:-1])} or {ways[-1]}"
        )


def device_type(strategy: tf.distribute.Strategy) -> str:
    """Returns `CPU` or `GPU`, what the replicas run on."""
    device = strategy.extended.worker_devices[0]
    return tf.DeviceSpec.from_string(device).device_type


def _bypass_proxies(cluster: Cluster, environ: MutableMapping[str, str]) -> None:
    """Exempts the workers from the proxy that gRPC takes from `http_proxy`.

    It reads `no_grpc_proxy`, or else `no_proxy`, when it connects.
    Source: grpc, doc/environment_variables.md.
    """
    hosts = [split_address(worker)[0] for worker in cluster.workers]
    before = environ.get("no_grpc_proxy") or environ.get("no_proxy")
    exempt = [*(before.split(",") if before else []), *hosts]
    environ["no_grpc_proxy"] = ",".join(dict.fromkeys(exempt))


def _one_worker_strategy(
    name: str,
    *,
    num_gpus: int,
    logical_cpus: int,
    shares_memory: bool,
    all_reduce_alg: str,
) -> tf.distribute.Strategy:
    if num_gpus:
        names = [device.name for device in tf.config.list_logical_devices("GPU")]
    else:
        names = [f"/device:CPU:{i}" for i in range(logical_cpus)]
    if name == "auto":
        name = "mirrored" if len(names) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(names[0])
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(
            names,
            cross_device_ops=_cross_device_ops(
                all_reduce_alg, shares_memory=shares_memory
            ),
        )
    raise InputError(
        f"--distribution_strategy: found {name!r} for one worker, expected auto, "
        "one_device or mirrored"
    )


def _multi_worker_strategy(
    cluster: Cluster, *, num_gpus: int, all_reduce_alg: str, peer_timeout: float
) -> tf.distribute.Strategy:
    _bypass_proxies(cluster, os.environ)
    # The heartbeat timeout has no public setting.
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=int(peer_timeout * 1000),
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(
                name="worker", num_tasks=cluster.num_workers
            )
        ],
    )
    kind = tf.distribute.experimental.CommunicationImplementation
    if all_reduce_alg == "auto":
        all_reduce_alg = "nccl" if num_gpus else "ring"
    return tf.distribute.MultiWorkerMirroredStrategy(
        tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(cluster.workers)}),
            task_type="worker",
            task_id=cluster.rank,
            num_accelerators={"GPU": num_gpus},
            rpc_layer="grpc",
        ),
        tf.distribute.experimental.CommunicationOptions(
            implementation=kind.NCCL if all_reduce_alg == "nccl" else kind.RING
        ),
    )


def _cross_device_ops(
    name: str, *, shares_memory: bool
) -> tf.distribute.CrossDeviceOps | None:
    if shares_memory:
        # Same memory anyway; and TensorFlow's collectives abort when a process has
        # strategies of different sizes.
        return tf.distribute.ReductionToOneDevice()
    if name == "auto":
        return None
    if name == "nccl":
        return tf.distribute.NcclAllReduce()
    return tf.distribute.HierarchicalCopyAllReduce()
