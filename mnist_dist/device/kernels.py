"""What the last bits of a result depend on beside the settings of its run."""

import os
import re

import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port  # no public way to ask for oneDNN

from mnist_dist.device.strategy import device_type


def kernel_conditions(strategy: tf.distribute.Strategy) -> dict[str, object]:
    """Returns on what this worker's kernels run.

    Returns:
      `device_kind`: the model of its processor or of its first GPU; `intra_op_threads`:
      among how many threads a process shares one operation out; `onednn`: whether
      TensorFlow's operations on CPUs use oneDNN's kernels.
    """
    return {
        "device_kind": _device_kind(strategy),
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads()
        or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
        or len(os.sched_getaffinity(0)),
        "onednn": _pywrap_util_port.IsMklEnabled(),
    }


def _device_kind(strategy: tf.distribute.Strategy) -> str:
    if device_type(strategy) == "GPU":
        (gpu, *_) = tf.config.get_visible_devices("GPU")
        details = tf.config.experimental.get_device_details(gpu)
        return details.get("device_name", "GPU")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            model = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        model = None
    return model[1] if model else "CPU"
