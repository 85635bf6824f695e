"""The devices that are there -> a tf.distribute strategy."""

import tensorflow as tf

from mnist_dist.errors import InputError


def create_strategy(
    name: str = "auto",
    *,
    num_gpus: int = -1,
    logical_cpus: int = 1,
    all_reduce_alg: str = "auto",
) -> tf.distribute.Strategy:
    """Chooses devices and builds the strategy over them.

    Must come before anything else that starts TensorFlow's runtime.

    Args:
      name: `auto` (several devices: mirrored; one: one_device), `one_device` or
        `mirrored`.
      num_gpus: GPUs to use; -1 is all, 0 is the CPU.
      logical_cpus: splits the CPU into so many devices, which tests use to run
        several replicas without a GPU.
      all_reduce_alg: `auto`, `nccl` or `hierarchical_copy`.

    Raises:
      InputError: devices asked for are not there.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if num_gpus > len(gpus):
        raise InputError(f"--num_gpus: found {num_gpus}, expected at most {len(gpus)}")
    gpus = gpus if num_gpus < 0 else gpus[:num_gpus]
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if logical_cpus > 1:
        split_cpu(logical_cpus)

    if gpus and logical_cpus == 1:
        devices = [device.name for device in tf.config.list_logical_devices("GPU")]
    else:
        devices = [f"/device:CPU:{i}" for i in range(logical_cpus)]
    if name == "auto":
        name = "mirrored" if len(devices) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(
            devices,
            cross_device_ops=_cross_device_ops(
                all_reduce_alg, is_cpu="CPU" in devices[0]
            ),
        )
    raise InputError(
        f"--distribution_strategy: found {name!r}, expected auto, one_device or mirrored"
    )


def split_cpu(num_devices: int) -> None:
    """Makes the CPU `num_devices` logical devices; raises if TensorFlow has started."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
    )


def device_type(strategy: tf.distribute.Strategy) -> str:
    """Returns `CPU` or `GPU`, what the replicas run on."""
    device = strategy.extended.worker_devices[0]
    return tf.DeviceSpec.from_string(device).device_type


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
