"""The environment in which the benchmark starts Python."""

import os

_TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def environ_of_tools() -> dict[str, str]:
    """Returns this process's environment, in which `benchmarks` can be imported too."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([os.path.dirname(_TOOLS), _TOOLS]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
    }
