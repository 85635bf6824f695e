"""`mnist-dist VERB ...`: runs the program of that name."""

# ruff: noqa: E402
from mnist_dist.cluster.stop_request import end_at_signals_as_process_1

end_at_signals_as_process_1()  # before the other imports, which take longer

import ast
import runpy
import sys
from importlib import resources

from mnist_dist import __version__
from mnist_dist.device.environment import explain_import_error
from mnist_dist.errors import EXIT_INPUT

VERBS = {
    "train": "trains, evaluates, checkpoints, summarises and exports",
    "evaluate": "evaluates a checkpoint, SavedModels, or a training as it goes on",
    "export": "writes a SavedModel, .keras, .tflite or .onnx from a checkpoint",
    "weights": "lists, saves, loads, transplants and compares layers' weights",
    "predict": "classifies image files with a SavedModel",
    "report": "compares runs: settings, accuracy, loss, time, speed, how they ended",
    "doctor": "proves a set-up before a long run: devices, libraries, peers, disk, speed",
    "launch": "starts several workers of train on this host: launch FLAGS -- TRAIN FLAGS",
}


def main() -> None:
    """Hands the command line to a verb's module."""
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb == "--version":
        print(f"mnist-dist {__version__}")
    elif verb in ("--help", "-h", "help"):
        print(
            "usage: mnist-dist VERB [--FLAG=VALUE ...]   (VERB --help lists its flags)"
        )
        for name, text in VERBS.items():
            print(f"  {name:<10}{text}")
    elif verb in VERBS:
        # No space: the process is named so, and Slurm's proctrack/linuxproc does not
        # send signals to a process whose name has one.
        sys.argv = [f"mnist-dist-{verb}", *rest]
        # What --help begins with; importing it for that would define its flags twice.
        source = resources.files("mnist_dist").joinpath(f"{verb}.py").read_text("utf-8")
        sys.modules["__main__"].__doc__ = ast.get_docstring(ast.parse(source))
        try:
            runpy.run_module(f"mnist_dist.{verb}", run_name="__main__")
        except ImportError as error:  # of what a program needs for its flags
            if (explanation := explain_import_error(error)) is None:
                raise
            sys.exit(_fail(verb, explanation))
    else:
        expected = ", ".join(VERBS)
        sys.exit(_fail(None, f"found verb {verb!r}, expected {expected}"))


def _fail(verb: str | None, text: str) -> int:
    """Says in one line what is wrong; returns the exit code for that."""
    name = f"mnist-dist-{verb}" if verb else "mnist-dist"
    print(f"{name}: error: {text}", file=sys.stderr)
    return EXIT_INPUT


if __name__ == "__main__":
    main()
