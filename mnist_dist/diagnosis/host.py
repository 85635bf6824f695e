"""The host: versions, processor, memory, environment."""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port  # no public way to ask for oneDNN

import mnist_dist
from mnist_dist.diagnosis.diagnosis import Diagnosis

_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
_VARIABLES = re.compile(
    r"TF_(CPP|CUDNN|DETERMINISTIC|ENABLE|FORCE|GPU|NUM|XLA)_\w+|XLA_FLAGS|NCCL_\w+"
    r"|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER)|(OMP|KMP|ONEDNN|KERAS)_\w+|\w+_proxy"
    r"|LD_(LIBRARY_PATH|PRELOAD)|PYTHONPATH"
)
# What every program sets itself, for TensorFlow.
_OWN = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
_MIN_MEMORY = 1 << 30  # bytes; TensorFlow and the bundled data take about as much
_GIB = 1 << 30


def check_host(
    diagnosis: Diagnosis,
    *,
    has_gpus: bool,
    root: str = "/",
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Adds what is known of the host.

    Args:
      diagnosis: to add to.
      has_gpus: whether the replicas run on GPUs.
      root: where /proc and /sys are looked for, for tests.
      environ: where variables are looked up.
    """
    diagnosis.facts["versions"] = (
        f"mnist_dist {mnist_dist.__version__}, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"NumPy {np.__version__}, {platform.platform()}"
    )
    variables = [
        # A proxy's address may hold a password.
        f"{name}={re.sub('//[^/@]*@', '//...@', value)}"
        for name, value in sorted(environ.items())
        if _VARIABLES.fullmatch(name) and _OWN.get(name) != value
    ]
    diagnosis.facts["environment"] = ", ".join(variables) or "nothing that matters"
    _check_processor(diagnosis, has_gpus=has_gpus, root=root, environ=environ)
    _check_memory(diagnosis, root=root)


def _check_processor(
    diagnosis: Diagnosis, *, has_gpus: bool, root: str, environ: Mapping[str, str]
) -> None:
    text = _read(root, "proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    known = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    features = [f for f in _FEATURES if known and f in known[1].split()]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    has_onednn = _pywrap_util_port.IsMklEnabled()
    threads = environ.get("TF_NUM_INTRAOP_THREADS", "")
    diagnosis.facts["processor"] = (
        f"{model[1] if model else platform.machine()}, {cores} of {os.cpu_count()} "
        f"processors, load {load:.1f}, {' '.join(features) or 'no features known'}; "
        f"oneDNN's kernels {'on' if has_onednn else 'off'}; "
        f"threads of an operation: {threads or cores}"
    )
    diagnosis.numbers |= {"processors": cores, "load": load}
    if not has_onednn and "avx2" in features and not has_gpus:
        diagnosis.slows.append(
            "oneDNN's kernels are off, as TensorFlow has it on this processor: with "
            "TF_ENABLE_ONEDNN_OPTS=1 the cnn was 1.3 times as fast on such a one (and "
            "its last bits are others)"
        )
    quota = _processor_quota(root)
    if quota and quota < (int(threads) if threads.isdecimal() else cores):
        diagnosis.slows.append(
            f"this container may use {quota:g} processors, and TensorFlow starts "
            f"{threads or cores} threads: TF_NUM_INTRAOP_THREADS={max(int(quota), 1)}"
        )
    if load > 1.5 * cores:
        diagnosis.slows.append(
            f"the load is {load:.1f} on {cores} processors: others are at work here"
        )


def _check_memory(diagnosis: Diagnosis, *, root: str) -> None:
    text = _read(root, "proc/meminfo")
    sizes = {
        name: int(kilobytes) << 10
        for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
    }
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit = _read(root, "sys/fs/cgroup/memory.max").strip()
    used = _read(root, "sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and int(limit) < total:
        total = int(limit)
        free = min(free, total - int(used or 0))
    diagnosis.facts["memory"] = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f}"
    diagnosis.numbers["free_memory_bytes"] = free
    if free < _MIN_MEMORY:
        diagnosis.stops.append(f"memory: {free / _GIB:.1f} GiB are free, expected 1")


def _processor_quota(root: str) -> float | None:
    """Returns how many processors a control group may use; None for all."""
    quota, _, period = _read(root, "sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() else None


def _read(root: str, path: str) -> str:
    try:
        return Path(root, path).read_text("utf-8", "replace")
    except OSError:
        return ""
