"""The devices: which they are, and how much they compute."""

import shutil
import subprocess
import time

import tensorflow as tf

from mnist_dist.device.missing_gpus import list_driver_gpus
from mnist_dist.diagnosis.diagnosis import Diagnosis

_SECONDS = 0.3  # that a product is repeated
_SIZES = {"CPU": 2048, "GPU": 8192}
_QUERY = "name,memory.total,memory.free,driver_version"


def check_gpus(diagnosis: Diagnosis) -> None:
    """Adds what the driver and TensorFlow's wheel say of GPUs."""
    build = tf.sysconfig.get_build_info()
    listed = list_driver_gpus()
    built_for = build.get("cuda_compute_capabilities", [])
    wheel = "no CUDA"
    if build.get("is_cuda_build"):
        wheel = (
            f"CUDA {build['cuda_version']}, cuDNN {build['cudnn_version']}, kernels for "
            f"{' '.join(built_for)}"
        )
    diagnosis.facts["GPUs"] = (
        f"{_describe_memory() or ', '.join(listed) or 'none listed by a driver'}; "
        f"TensorFlow was built for {wheel}"
    )
    seen = tf.config.list_physical_devices("GPU")
    if seen and len(seen) < len(listed):
        diagnosis.slows.append(
            f"the driver lists {len(listed)} GPUs, TensorFlow sees {len(seen)}"
        )
    for gpu in seen:
        capability = tf.config.experimental.get_device_details(gpu).get(
            "compute_capability", (0, 0)
        )
        # A kernel for 8.0 serves 8.6, too; the last of the list is PTX.
        majors = {name.rpartition("_")[2][:-1] for name in built_for}
        if str(capability[0]) not in majors:
            diagnosis.slows.append(
                f"{gpu.name} has compute capability {capability[0]}.{capability[1]}, "
                f"for which the wheel has no kernels ({' '.join(built_for)}): the driver "
                "compiles them at the first start, or they fail"
            )


def check_products(
    diagnosis: Diagnosis, strategy: tf.distribute.Strategy, dtypes: set[str]
) -> None:
    """Measures the largest matrix products of this worker's devices, one by one."""
    names = strategy.extended.worker_devices
    places = ", ".join(f"/{name.rpartition('/')[2]}" for name in names)
    # What TensorFlow calls it inside.
    kind = type(strategy).__name__.replace("CollectiveAllReduce", "MultiWorkerMirrored")
    diagnosis.facts["devices"] = f"{kind} on {places}"
    for dtype in sorted(dtypes):
        speeds = [_measure_product(name, dtype) for name in names]
        diagnosis.facts[f"product {dtype}"] = (
            f"{', '.join(f'{speed:,.0f}' for speed in speeds)} GFLOP/s"
        )
        diagnosis.numbers[f"{dtype}_gflop_per_second"] = min(speeds)


def _measure_product(device: str, dtype: str) -> float:
    """Returns how many billion operations a second a device does in a product."""
    size = _SIZES[tf.DeviceSpec.from_string(device).device_type]
    with tf.device(device):
        matrix = tf.random.stateless_normal([size, size], [1, 2], dtype=dtype)
        tf.matmul(matrix, matrix)[0, 0].numpy()  # waits for the device
        began, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - began) < _SECONDS:
            tf.matmul(matrix, matrix)[0, 0].numpy()
            count += 1
    return 2 * size**3 * count / seconds / 1e9


def _describe_memory() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    if result.returncode:
        return ""
    rows = [line.split(", ") for line in result.stdout.splitlines()]
    return "; ".join(
        f"{name}, {free} free of {total}, driver {driver}"
        for name, total, free, driver in (row for row in rows if len(row) == 4)
    )
