"""What every program does around its `main`: flags in, an exit code out."""

import contextlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import Formatter, LogRecord
from typing import Any, NoReturn

from absl import app, flags, logging

from mnist_dist.cli.flag_files import check_flag_files
from mnist_dist.cli.module_path import search_working_directory
from mnist_dist.cli.standard_streams import (
    OutputError,
    flush_stdout,
    ignore_write_errors,
    report_write_errors,
)
from mnist_dist.cluster.stop_request import end_at_signals_as_process_1
from mnist_dist.device.quiet_imports import quiet_imports as quiet_imports
from mnist_dist.errors import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_STOPPED,
    InputError,
    OwnCodeError,
    PeerError,
    RunError,
)
from mnist_dist.files.untrusted import printable

# What flags are called elsewhere, where the difference is too large to be found.
_OTHER_NAMES = {
    "batch_size": "global_batch_size",
    "epochs": "train_epochs",
    "gpus": "num_gpus",
    "logdir": "model_dir",
    "lr": "learning_rate",
    "max_steps": "train_steps",
    "nproc_per_node": "num_workers",
    "num_epochs": "train_epochs",
    "num_steps": "train_steps",
    "output_dir": "model_dir",
    "precision": "dtype",
    "steps": "train_steps",
    "wd": "weight_decay",
    "workers": "num_workers",
}


def run(
    main: Callable[[Sequence[str]], int | None],
    *,
    takes_arguments: bool = False,
    leaves_at_once: bool = False,
) -> None:
    """Runs `main` on the parsed command line and exits with its code.

    Positional arguments are an error unless `takes_arguments`.

    Wrong flags and every `InputError` become one line on standard error, exit 2;
    every `RunError` one line, exit 1; every `PeerError` one line, exit 143. Standard
    output that takes no more, as on a full disk, is one line, exit 1; without the line
    if its reader has gone, as `head` does. Closed standard output is exit 2. A program
    that calls `ignore_write_errors` before outlives all of these.

    With `leaves_at_once` the process ends without tearing TensorFlow down: in a worker
    that takes seconds, and more if another worker is gone.
    """
    end_at_signals_as_process_1()
    # Before TensorFlow is imported, which reads them then.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_USE_LEGACY_KERAS"] = "0"

    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(_LineFormatter())
    ignore_write_errors("stderr")
    if _asks_help(sys.argv):
        ignore_write_errors("stdout")  # `--help | head`
    else:
        report_write_errors()

    def guarded(argv: list[str]) -> int | None:
        try:
            if sys.stdout is None:
                raise InputError(
                    "standard output: found it closed, expected it for results"
                )
            if len(argv) > 1 and not takes_arguments:
                raise InputError(
                    f"unexpected argument {argv[1]!r}: flags begin with --"
                )
            code = main(argv)
            flush_stdout()
            return code
        except OwnCodeError as error:
            traceback.print_exception(error.__cause__)
            _fail(error, EXIT_INPUT)
        except InputError as error:
            _fail(error, EXIT_INPUT)
        except RunError as error:
            _fail(error, EXIT_FAILED)
        except PeerError as error:
            _fail(error, EXIT_STOPPED)
        except OutputError as error:
            if isinstance(error.__cause__, BrokenPipeError):
                sys.exit(EXIT_FAILED)
            _fail(error, EXIT_FAILED)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            # What an error left unwritten: Python's own try, at exit, would end in 120.
            with contextlib.suppress(OutputError):
                flush_stdout()

    try:
        app.run(guarded, flags_parser=_parse)
    except SystemExit as end:
        if leaves_at_once and (end.code is None or isinstance(end.code, int)):
            _leave(end.code or 0)
        raise
    except BaseException:
        if leaves_at_once:
            traceback.print_exc()
            _leave(EXIT_FAILED)
        raise


def pick(names: str) -> dict[str, Any]:
    """Returns some flags' values, for a function whose keywords have their names."""
    return {name: flags.FLAGS[name].value for name in names.split()}


def check_one_of(first: str, second: str) -> None:
    """Checks that one of two flags is given.

    Raises:
      InputError: both are, or neither.
    """
    given = [bool(flags.FLAGS[name].value) for name in (first, second)]
    if sum(given) != 1:
        raise InputError(
            f"--{first} and --{second}: found {'both' if all(given) else 'neither'}, "
            "expected one of the two"
        )


def check_checkpoint(checkpoint: str) -> None:
    """Checks what --checkpoint names, as far as that can be told without the run.

    Raises:
      InputError: it is neither `latest` nor `best` nor a step.
    """
    is_step = checkpoint.isascii() and checkpoint.isdigit()
    if checkpoint not in ("latest", "best") and not is_step:
        raise InputError(
            f"--checkpoint: found {checkpoint!r}, expected latest, best or a step"
        )


def import_tensorflow_without_gpus() -> None:
    """Imports TensorFlow and leaves the GPUs alone.

    A training that goes on beside this program may need all of their memory.
    """
    with quiet_imports():
        import tensorflow as tf
    tf.config.set_visible_devices([], "GPU")


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _parse(argv: list[str]) -> list[str]:
    try:
        check_flag_files(argv)
        if _asks_help(argv):
            _print_help(argv)
        rest = parse(argv)
        if _names_own_model():
            search_working_directory()
        return rest
    except InputError as error:
        _fail(error, EXIT_INPUT)


def _print_help(argv: list[str]) -> NoReturn:
    """Prints what the help flag in a command line asks for."""
    try:
        flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(str(error)) from None
    except SystemExit:  # absl ends its help with 1
        sys.stdout.flush()
    sys.exit(0)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags in a command line; returns the rest of it.

    A `~` that begins the value of a flag is the home directory, as a shell has it only
    where the value is an argument of its own.

    Raises:
      InputError: one is unknown or wrong; or empty, as when a script's variable is
        not set, or not finite, which absl's bounds let pass; or not UTF-8, which
        TensorFlow, JSON and protocol buffers cannot take.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        meant = _OTHER_NAMES.get(error.flagname, "")
        if meant not in flags.FLAGS:
            raise InputError(str(error)) from None
        raise InputError(
            f"--{error.flagname}: found an unknown flag, expected --{meant}"
        ) from None
    except (flags.Error, ValueError) as error:  # ValueError: --noexport=1
        raise InputError(str(error)) from None
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present:
            flag.value = _expand_home(flag.value)
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        if flag.present and (not values or "" in values or [] in values):
            raise InputError(f"--{name}: found nothing, expected a value")
        for value in values:  # of a flag given several times, lists
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not _is_unicode(text):
                    raise InputError(f"--{name}: found {text!r}, expected UTF-8")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise InputError(f"--{name}: found {flag.value}, expected a finite number")
    return rest


def _expand_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _names_own_model() -> bool:
    """Whether the command line, and no file of others, names a module to import."""
    if "model" not in flags.FLAGS:
        return False
    return bool(flags.FLAGS["model"].present) and ":" in str(flags.FLAGS.model)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _asks_help(argv: list[str]) -> bool:
    names = ("help", "helpshort", "helpfull", "helpxml")
    return any(arg in (f"-{name}", f"--{name}") for arg in argv[1:] for name in names)


class _LineFormatter(Formatter):
    """Shows a log message as an error is shown: `train: warning: ...`.

    Names of others in it are escaped where they are not printable.
    """

    def format(self, record: LogRecord) -> str:
        record.msg, record.args = printable(record.getMessage()), ()
        return f"{_name()}: {record.levelname.lower()}: {super().format(record)}"


def print_error(error: Exception) -> None:
    """Says on standard error, in one line, what is wrong."""
    line = printable(" ".join(str(error).split()))
    print(f"{_name()}: error: {line}", file=sys.stderr)


def _name() -> str:
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def _fail(error: Exception, code: int) -> NoReturn:
    print_error(error)
    sys.exit(code)
