"""What in a user's environment keeps TensorFlow from being imported, or from starting."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Mapping

from mnist_dist.errors import InputError

MAX_THREADS = 4096
# Keras, and the older one inside TensorFlow.
_READERS_OF_KERAS_JSON = (
    "keras/src/backend/config.py",
    "tensorflow/python/keras/backend.py",
)


def check_threads(environ: Mapping[str, str] = os.environ) -> None:
    """Checks the variables by which TensorFlow starts its threads.

    It would start a hundred million without a word, and ignore what is no number.

    Raises:
      InputError: one is not within bounds.
    """
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        text = environ.get(name, "").strip()
        # OpenMP takes a number for each level of nesting.
        if not all(
            n.isdecimal() and int(n) <= MAX_THREADS for n in text.split(",") if n
        ):
            raise InputError(f"{name}: found {text!r}, expected 0 to {MAX_THREADS}")


def explain_import_error(
    error: Exception, environ: Mapping[str, str] = os.environ
) -> str | None:
    """Says in one line what of the environment an import failed for; None if nothing.

    That is a keras.json that Keras refuses, or a package of PYTHONPATH that hides one
    of this installation, as NumPy for another Python does on clusters with modules.
    """
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if any(file.endswith(_READERS_OF_KERAS_JSON) for file in files):
        home = environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
        path = os.path.join(home, "keras.json")
        return f"{path}: found what Keras refuses ({what}), expected its settings"
    entries = [
        os.path.realpath(e) for e in environ.get("PYTHONPATH", "").split(":") if e
    ]
    files += [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
    found = {}
    for file in map(os.path.realpath, filter(None, files)):
        for entry in entries:
            name, _, rest = file.removeprefix(entry + os.sep).partition(os.sep)
            if rest and file.startswith(entry + os.sep) and _is_installed(name):
                found[name] = entry
    if not found:
        return None
    names = " and ".join(f"{name} in {entry}" for name, entry in found.items())
    return (
        f"PYTHONPATH: found {names}, with which TensorFlow cannot be imported ({what}); "
        "expected the installation's own: unset PYTHONPATH, or take it out of there"
    )


def _is_installed(name: str) -> bool:
    """Whether this installation has such a package, which the other hides."""
    library = sysconfig.get_path("platlib")
    return name != "mnist_dist" and os.path.isdir(os.path.join(library, name))
