"""A run that goes on computes with the kernels that it began with.

Imported before TensorFlow, which chooses its kernels when it is imported.
"""

import contextlib
import os
import sys
from collections.abc import Container, MutableMapping

from mnist_dist.errors import InputError
from mnist_dist.run.config_file import load_config

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


def use_recorded_kernels(
    model_dir: str,
    *,
    environ: MutableMapping[str, str] = os.environ,
    imported: Container[str] = sys.modules,
) -> None:
    """Has TensorFlow use oneDNN's kernels where the run in a directory did, and only there.

    Unless told, TensorFlow decides by the processor: on another one the run would go on
    with other bits. What the caller has set in the environment stays.

    Args:
      model_dir: of the run; one that is not there, or cannot be read, changes nothing.
      environ: the environment, in which TensorFlow looks.
      imported: the modules that are; once TensorFlow is, it has decided.
    """
    if ONEDNN in environ or "tensorflow" in imported:
        return
    with contextlib.suppress(InputError, OSError):  # reported when the run is restored
        config = load_config(model_dir) or {}
        recorded = config.get("resolved", {}).get("onednn")
        if isinstance(recorded, bool):
            environ[ONEDNN] = str(int(recorded))
