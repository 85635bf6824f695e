"""Every state that a SIGKILL could leave of a directory, while something changes it.

`kill_states.c`, preloaded, copies the directory before each rename, unlink, mkdir, open
to write, truncate and fsync of the process, TensorFlow's C++ included.

In the process that is watched, started with LD_PRELOAD set to what `compile_library`
returns:

  with kill_states.recording(directory, out):
      change(directory)

Afterwards, in any process: `for state in kill_states.list_states(out): ...`
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("kill_states.c")


def compile_library(folder: Path) -> Path | None:
    """Compiles the library into a folder; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "kill_states.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl"], check=True)
    return library


@contextlib.contextmanager
def recording(directory: Path, out: Path):
    """Copies `directory` into numbered folders of `out`, before each change of it."""
    library = ctypes.CDLL(None)
    out.mkdir(parents=True)
    library.kill_states_start(os.fsencode(directory), os.fsencode(out))
    try:
        yield
    finally:
        library.kill_states_stop()


def list_states(out: Path) -> list[Path]:
    """Returns the copies that differ, in their order; the last is the undisturbed end."""
    states = {}
    for state in sorted(out.iterdir()):
        states[_digest(state)] = state
    return sorted(states.values())


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # What a lock says of its holder changes nothing.
        is_said = path.is_file() and path.name != ".lock"
        content = path.read_bytes() if is_said else b""
        digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
