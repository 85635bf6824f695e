"""Which devices this process computes on: TensorFlow fixes them when it starts."""

import contextlib
from collections.abc import Iterable

import tensorflow as tf

# No public way tells that TensorFlow has started, nor how much memory its devices have.
from tensorflow.python import pywrap_tfe
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.eager import context

from mnist_dist.cluster.membership import Cluster
from mnist_dist.device.missing_gpus import explain_missing_gpus
from mnist_dist.errors import InputError

_STAYS = "which stays so until the process ends; expected the same, or a new process"


def check_can_start(*, num_workers: int) -> None:
    """Checks that this process may begin a run with so many workers.

    Raises:
      InputError: it has been a worker of another run, or TensorFlow has started and
        now is to be one of several workers.
    """
    if context.context()._collective_ops_server_def is not None:
        raise InputError(
            "this process has been one of several workers, which TensorFlow cannot "
            "leave; expected a new process for another run"
        )
    if num_workers > 1 and _has_started():
        raise InputError(
            f"several workers: TensorFlow has started in this process as one worker, "
            f"{_STAYS}"
        )


def choose_gpus(
    cluster: Cluster,
    *,
    num_gpus: int,
    logical_cpus: int = 1,
    logical_gpus: int = 1,
    gpu_memory_limit: int = 0,
) -> list[tf.config.PhysicalDevice]:
    """Hides from TensorFlow all GPUs but those that this worker uses; splits devices.

    Args:
      cluster: the workers of the run, of which some may share this host's GPUs.
      num_gpus: how many to use; -1 is all, or this worker's share; 0 is the CPU.
      logical_cpus: devices to make of the CPU; more than 1 uses no GPU.
      logical_gpus: devices to make of each GPU; more than 1 needs a limit.
      gpu_memory_limit: MiB that each of these takes at the start and never exceeds; 0:
        as much as it needs, when it needs it.

    Returns:
      The GPUs, in the order of TensorFlow's numbers.

    Raises:
      InputError: they are not there, or TensorFlow has started with others.
    """
    gpus: list[tf.config.PhysicalDevice] = []
    if num_gpus and logical_cpus == 1:
        found = tf.config.list_physical_devices("GPU")
        if not found and (reason := explain_missing_gpus()):
            raise InputError(reason)
        gpus = share_of_host(found, cluster, num_gpus)
        if num_gpus > len(gpus):
            raise InputError(
                f"--num_gpus: found {num_gpus}, expected at most {len(gpus)}, the "
                "number of GPUs that this worker has"
            )
        gpus = gpus if num_gpus < 0 else gpus[:num_gpus]
    try:
        tf.config.set_visible_devices(gpus, "GPU")
    except RuntimeError:
        raise InputError(
            f"--num_gpus: found {num_gpus}, but TensorFlow has started in this process "
            f"with other GPUs, {_STAYS}"
        ) from None
    if logical_gpus > 1 and not gpus:
        raise InputError(
            f"--logical_gpus: found {logical_gpus} and no GPU that this run uses, expected "
            "one to split"
        )
    if gpu_memory_limit:
        _split_gpus(gpus, logical_gpus, gpu_memory_limit)
    for gpu in gpus if not gpu_memory_limit else []:
        # RuntimeError: it has started, and holds its memory. ValueError: the caller
        # has set a limit of its own.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if logical_cpus > num_logical_cpus():
        try:
            split_cpu(logical_cpus)
        except RuntimeError:
            raise InputError(
                f"--logical_cpus: found {logical_cpus}, but TensorFlow has started in "
                f"this process with {num_logical_cpus()}, {_STAYS}"
            ) from None
    return gpus


def set_intra_op_threads(number: int) -> None:
    """Sets among how many threads this process shares one operation out; 0: as it is.

    Raises:
      InputError: TensorFlow has started in this process with another number.
    """
    if not number:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(number)
    except RuntimeError:
        found = tf.config.threading.get_intra_op_parallelism_threads()
        raise InputError(
            f"--intra_op_threads: found {number}, but TensorFlow has started in this "
            f"process with {found or 'its own number'}, {_STAYS}"
        ) from None


def share_of_host(
    gpus: list[tf.config.PhysicalDevice], cluster: Cluster, num_gpus: int
) -> list[tf.config.PhysicalDevice]:
    """Returns this worker's share of the GPUs that several workers of its host see.

    Raises:
      InputError: there are fewer than workers.
    """
    peers = cluster.host_peers
    if cluster.has_own_gpus or len(peers) == 1 or not gpus or num_gpus == 0:
        return gpus
    share = len(gpus) // len(peers)
    if not share:
        raise InputError(
            f"--num_gpus: found {len(gpus)} GPUs for {len(peers)} workers of this "
            "host, expected one for each, or --num_gpus=0"
        )
    return gpus[peers.index(cluster.rank) * share :][:share]


def gpu_memory(device_names: Iterable[str]) -> int | None:
    """Returns the bytes that TensorFlow may take of the smallest of some GPUs.

    It asks the devices that this process has started with. `list_local_devices` would
    start all GPUs of the host a second time, with options of its own.
    Source: tensorflow#8021.

    Args:
      device_names: of this process's logical devices.

    Returns:
      None where there is no GPU among them.
    """
    wanted = [tf.DeviceSpec.from_string(name) for name in device_names]
    started = context.context()
    started.ensure_initialized()
    listed = pywrap_tfe.TFE_ContextListDevices(started._handle)
    sizes = []
    for i in range(pywrap_tf_session.TF_DeviceListCount(listed)):
        spec = tf.DeviceSpec.from_string(pywrap_tf_session.TF_DeviceListName(listed, i))
        is_wanted = any(spec.make_merged_spec(w) == spec for w in wanted)
        if spec.device_type == "GPU" and is_wanted:
            sizes.append(pywrap_tf_session.TF_DeviceListMemoryBytes(listed, i))
    return min(sizes, default=None)


def _split_gpus(
    gpus: list[tf.config.PhysicalDevice], logical_gpus: int, memory_limit: int
) -> None:
    parts = [tf.config.LogicalDeviceConfiguration(memory_limit)] * logical_gpus
    for gpu in gpus:
        try:
            tf.config.set_logical_device_configuration(gpu, parts)
        except RuntimeError:
            found = len(tf.config.get_logical_device_configuration(gpu) or [None])
            raise InputError(
                f"--logical_gpus, --gpu_memory_limit: found {logical_gpus} of "
                f"{memory_limit} MiB, but TensorFlow has started in this process with "
                f"{found} on {gpu.name} and another limit, {_STAYS}"
            ) from None


def split_cpu(num_devices: int) -> None:
    """Makes the CPU `num_devices` logical devices.

    Raises:
      RuntimeError: TensorFlow has started with another number.
    """
    tf.config.set_logical_device_configuration(
        _cpu(), [tf.config.LogicalDeviceConfiguration()] * num_devices
    )


def num_logical_cpus() -> int:
    """Returns how many logical devices the CPU is, or will be."""
    return len(tf.config.get_logical_device_configuration(_cpu()) or [None])


def _cpu() -> tf.config.PhysicalDevice:
    return tf.config.list_physical_devices("CPU")[0]


def _has_started() -> bool:
    return context.context()._context_handle is not None
