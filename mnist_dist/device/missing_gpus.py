"""Why TensorFlow sees no GPU where NVIDIA's driver lists some.

TensorFlow itself only logs it, and then computes on the CPU.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from mnist_dist.cluster.membership import hides_all_gpus

# What TensorFlow opens before it takes any GPU, for CUDA 12 and cuDNN 9.
# Source: TryDlopenCUDALibraries in tsl/platform/default/dlopen_checker.cc.
LIBRARIES = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcufft.so.11",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libcudnn.so.9",
)
_INSTALL = "pip install 'tensorflow[and-cuda]'"
# CUresult and CUdevice_attribute of cuda.h.
_INIT_ERRORS = {
    100: "it finds no device",
    803: "the driver's library and its kernel module differ: restart the host",
    804: "the driver is too old for this card's forward compatibility",
    999: "unknown error: look at dmesg, and whether /dev/nvidia-uvm is there",
}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


def list_driver_gpus(root: str = "/") -> list[str]:
    """Returns the names of the GPUs that NVIDIA's driver lists on this host.

    Args:
      root: where /proc and /dev are looked for, for tests.
    """
    names = []
    for path in sorted(Path(root).glob("proc/driver/nvidia/gpus/*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text("utf-8", "replace"), re.M)
        names.append(model[1].strip() if model else path.parent.name)
    names = names or [f"/dev/{path.name}" for path in _device_files(root)]
    return names or _ask_nvidia_smi()


def explain_missing_gpus(
    *,
    root: str = "/",
    environ: Mapping[str, str] = os.environ,
    build_info: Mapping[str, Any] | None = None,
    load_library: Callable[[str], Any] = ctypes.CDLL,
) -> str | None:
    """Says in one line why none of the driver's GPUs can be used, and the cure.

    Args:
      root: where /proc and /dev are looked for.
      environ: where CUDA_VISIBLE_DEVICES is looked up.
      build_info: of TensorFlow's wheel, as `tf.sysconfig.get_build_info` gives it.
      load_library: opens a shared library by its name or path.

    Returns:
      The line; None if the driver lists no GPU, or CUDA_VISIBLE_DEVICES hides all of
      them, by which a person says that the CPU is meant.
    """
    if hides_all_gpus(environ) or not (names := list_driver_gpus(root)):
        return None
    build = tf.sysconfig.get_build_info() if build_info is None else build_info
    if build.get("is_cuda_build"):
        reasons = [
            *_device_file_reasons(root),
            *_driver_reasons(root, environ, build, load_library),
            *_library_reasons(load_library),
        ]
    elif platform.machine() == "aarch64":
        reasons = [
            "TensorFlow's wheel for aarch64 has no CUDA: take NVIDIA's container "
            "nvcr.io/nvidia/tensorflow, or build TensorFlow"
        ]
    else:
        reasons = [f"this TensorFlow was built without CUDA: {_INSTALL}"]
    reasons = reasons or ["unknown reason: TF_CPP_MIN_LOG_LEVEL=0 shows TensorFlow's"]
    gpus = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    return (
        f"--num_gpus: found GPUs on this host ({gpus}) of which TensorFlow can use "
        f"none: {'; '.join(reasons)}; expected that mended, or --num_gpus=0 for the CPU"
    )


def _device_files(root: str) -> list[Path]:
    paths = Path(root, "dev").glob("nvidia[0-9]*")
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def _ask_nvidia_smi() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    try:
        result = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", result.stdout, re.MULTILINE)


def _device_file_reasons(root: str) -> list[str]:
    if Path(root, "dev/dxg").exists():  # Windows Subsystem for Linux has no others
        return []
    paths = _device_files(root)
    if not paths:
        return [
            "no /dev/nvidia0 here: this container was given no GPU (docker run "
            "--gpus=all; in Kubernetes a limit of nvidia.com/gpu)"
        ]
    try:
        os.close(os.open(paths[0], os.O_RDWR))
    except OSError as error:
        return [
            f"/dev/{paths[0].name} does not open ({error.strerror}): ask the scheduler "
            "for GPUs (Slurm: --gpus-per-node), or for the right to use them"
        ]
    return []


def _driver_reasons(
    root: str,
    environ: Mapping[str, str],
    build: Mapping[str, Any],
    load_library: Callable[[str], Any],
) -> list[str]:
    version = _driver_version(root)
    try:
        cuda = load_library("libcuda.so.1")
    except OSError as error:
        return [
            f"the driver's libcuda.so.1 does not load ({error}): install the driver's "
            "libraries; in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        ]
    supported = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(supported))
    major, minor = supported.value // 1000, supported.value % 1000 // 10
    if major < int(str(build["cuda_version"]).split(".")[0]):
        return [
            f"the driver{version} knows CUDA up to {major}.{minor}, TensorFlow was "
            f"built for {build['cuda_version']}: install a newer driver"
        ]
    if code := cuda.cuInit(0):
        hidden = environ.get("CUDA_VISIBLE_DEVICES")
        if code == 100 and hidden:
            return [f"CUDA_VISIBLE_DEVICES is {hidden!r}, of which none is there"]
        reason = _INIT_ERRORS.get(code, "see cuda.h")
        return [f"cuInit of the driver{version} fails with {code}: {reason}"]
    return _capability_reasons(cuda, build["cuda_compute_capabilities"])


def _driver_version(root: str) -> str:
    try:
        text = Path(root, "proc/driver/nvidia/version").read_text("utf-8", "replace")
    except OSError:
        return ""
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text)
    return f" {match[1]}" if match else ""


def _capability_reasons(cuda: Any, built_for: list[str]) -> list[str]:
    """Names the cards that are older than all that the wheel has kernels for."""
    oldest = min(int(name.rpartition("_")[2]) for name in built_for)
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    reasons = []
    for number in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), number)
        for value, attribute in (
            (major, _CAPABILITY_MAJOR),
            (minor, _CAPABILITY_MINOR),
        ):
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        if 10 * major.value + minor.value < oldest:
            reasons.append(
                f"GPU {number} has compute capability {major.value}.{minor.value}, "
                f"this TensorFlow has kernels for {', '.join(built_for)}: another "
                "card, or a TensorFlow built for it"
            )
    return reasons


def _library_reasons(load_library: Callable[[str], Any]) -> list[str]:
    """Names the CUDA libraries that load neither from wheels nor from the system."""
    packages = Path(tf.__file__).parent.parent / "nvidia"
    failures = []
    for name in LIBRARIES:
        errors = []
        # TensorFlow looks in the wheels' folders first, by its run path.
        for path in [*map(str, packages.glob(f"*/lib/{name}")), name]:
            try:
                load_library(path)
                break
            except OSError as error:
                errors.append(str(error))
        else:
            failures.append(f"{name} ({errors[0]})")
    if not failures:
        return []
    verb = "does" if len(failures) == 1 else "do"
    return [f"{', '.join(failures)} {verb} not load: {_INSTALL}"]
