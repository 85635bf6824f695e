"""The devices and workers that are there -> a tf.distribute strategy."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import numpy as np
import tensorflow as tf
from absl import logging

from mnist_dist.cluster.exit_timer import exits_unless_done_within
from mnist_dist.cluster.meeting import meet_peers
from mnist_dist.cluster.membership import Cluster, split_address
from mnist_dist.device import devices
from mnist_dist.errors import EXIT_STOPPED, InputError, PeerError

# TensorFlow listens on all interfaces, whatever address it is given.
PORT_WARNING = (
    "the cluster port is unauthenticated and open on all interfaces: whoever reaches "
    "it controls this process; keep it inside a private network"
)

_ONE_WORKER = Cluster("one worker")
_LEAVING_SECONDS = 5.0  # that the others may take to end with this worker
# What a worker's calls raise when another is gone, depending on what was under way.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)


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
    all_reduce_alg: str = "auto",
    deterministic: bool = False,
) -> tf.distribute.Strategy:
    """Chooses devices and builds the strategy over them.

    Once TensorFlow's runtime has started, the devices are those that it started with,
    and several workers are out of reach. With several workers TensorFlow puts a handler of its own in the place of SIGTERM's: a
    `StopRequest` listens only after this.

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
      all_reduce_alg: `auto`, `nccl` (GPUs), `hierarchical_copy` (one worker) or
        `ring` (several).
      deterministic: use only kernels that always give the same bits.

    Raises:
      InputError: devices asked for are not there, or the driver's GPUs cannot be used;
        a worker was started otherwise; or TensorFlow has started in this process with
        other devices, or as a worker.
      PeerError: a worker did not come in time.
    """
    devices.check_can_start(num_workers=cluster.num_workers)
    gpus = devices.choose_gpus(cluster, num_gpus=num_gpus, logical_cpus=logical_cpus)
    check_all_reduce(
        all_reduce_alg, num_workers=cluster.num_workers, num_gpus=len(gpus)
    )
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if cluster.num_workers == 1:
        return _one_worker_strategy(
            name,
            num_gpus=len(gpus),
            logical_cpus=logical_cpus,
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


def check_all_reduce(name: str, *, num_workers: int, num_gpus: int) -> None:
    """Checks that these workers have this way to add up.

    Raises:
      InputError: they have not.
    """
    ways = ["auto", "ring" if num_workers > 1 else "hierarchical_copy"]
    ways += ["nccl"] if num_gpus else []
    if name not in ways:
        raise InputError(
            f"--all_reduce_alg: found {name!r} for {num_workers} "
            f"{'workers' if num_workers > 1 else 'worker'} with {num_gpus} GPUs, "
            f"expected {', '.join(ways[:-1])} or {ways[-1]}"
        )


def broadcast_from_chief(
    strategy: tf.distribute.Strategy, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the chief's arrays on every worker, bit for bit.

    All workers must call it, with arrays of the same names, shapes and dtypes.
    """
    if not _has_peers(strategy):
        return arrays
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), np.int64)
    data = _from_chief(strategy, words).tobytes()
    received, start = {}, 0
    for name, array in arrays.items():
        flat = np.frombuffer(data, array.dtype, array.size, start)
        received[name] = flat.reshape(array.shape)
        start += array.nbytes
    return received


@contextlib.contextmanager
def names_lost_peers(cluster: Cluster) -> Iterator[None]:
    """Turns what TensorFlow raises when another worker is gone into a PeerError."""
    try:
        yield
    except _LOST as error:
        if cluster.num_workers == 1 or (
            isinstance(error, tf.errors.InternalError) and "ollective" not in str(error)
        ):
            raise
        reason = next(
            (line for line in str(error).splitlines() if "aborted by:" in line),
            str(error).partition("\n")[0],
        )
        tasks = sorted(set(re.findall(r"/job:worker/replica:0/task:(\d+)", str(error))))
        who = f"worker {' or '.join(tasks)}" if tasks else "another worker"
        raise PeerError(
            f"{who} is gone; unless its own output names an error, start all workers "
            f"again and the run goes on from its newest checkpoint ({reason.strip()})"
        ) from error


def leave_together(strategy: tf.distribute.Strategy, *, code: int) -> None:
    """Returns when every worker has come here and may end its process with `code`."""
    if not _has_peers(strategy):
        return
    _from_chief(strategy, np.zeros(1, np.int64))
    # Who has passed the first barrier may end as soon as all have: then this one
    # breaks, and that is as good as passing it.
    with (
        exits_unless_done_within(_LEAVING_SECONDS, code=code),
        contextlib.suppress(tf.errors.OpError),
    ):
        _from_chief(strategy, np.zeros(1, np.int64))


def device_type(strategy: tf.distribute.Strategy) -> str:
    """Returns `CPU` or `GPU`, what the replicas run on."""
    device = strategy.extended.worker_devices[0]
    return tf.DeviceSpec.from_string(device).device_type


def _bypass_proxies(cluster: Cluster, environ: MutableMapping[str, str]) -> None:
    """Has gRPC reach the workers without the proxy that `http_proxy` names.

    It reads `no_grpc_proxy`, or else `no_proxy`, when it connects.
    Source: grpc, doc/environment_variables.md.
    """
    hosts = [split_address(worker)[0] for worker in cluster.workers]
    before = environ.get("no_grpc_proxy") or environ.get("no_proxy")
    exempt = [*(before.split(",") if before else []), *hosts]
    environ["no_grpc_proxy"] = ",".join(dict.fromkeys(exempt))


def _one_worker_strategy(
    name: str, *, num_gpus: int, logical_cpus: int, all_reduce_alg: str
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
            cross_device_ops=_cross_device_ops(all_reduce_alg, is_cpu=not num_gpus),
        )
    raise InputError(
        f"--distribution_strategy: found {name!r} for one worker, expected auto, "
        "one_device or mirrored"
    )


def _multi_worker_strategy(
    cluster: Cluster, *, num_gpus: int, all_reduce_alg: str, peer_timeout: float
) -> tf.distribute.Strategy:
    _bypass_proxies(cluster, os.environ)
    # No public way to the time after which a silent worker is lost.
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


def _has_peers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _from_chief(strategy: tf.distribute.Strategy, words: np.ndarray) -> np.ndarray:
    """Returns the chief's int64 words on every worker, when all have called it."""

    @tf.function(autograph=False)
    def send(words: tf.Tensor) -> tf.Tensor:
        def share() -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            is_first = replica.replica_id_in_sync_group == 0
            sent = tf.where(is_first, words, tf.zeros_like(words))
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, sent)

        return strategy.experimental_local_results(strategy.run(share))[0]

    return send(tf.constant(words)).numpy()


def _cross_device_ops(
    name: str, *, is_cpu: bool
) -> tf.distribute.CrossDeviceOps | None:
    if is_cpu:
        # Same memory anyway; and TensorFlow's collectives abort when a process has
        # strategies of different sizes.
        return tf.distribute.ReductionToOneDevice()
    if name == "auto":
        return None
    if name == "nccl":
        return tf.distribute.NcclAllReduce()
    return tf.distribute.HierarchicalCopyAllReduce()
