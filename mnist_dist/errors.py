"""The exceptions that a user reads as one line, and the exit codes of the programs."""

EXIT_FAILED = 1
EXIT_INPUT = 2  # wrong flags, configuration or data: never worth retrying
EXIT_STOPPED = 143  # stopped after saving: run it again and it goes on


class InputError(Exception):
    """A flag, file, data set or configuration is wrong.

    The message is one line naming what was given, what was found and what was
    expected. Programs print it and exit with `EXIT_INPUT`.
    """


class OwnCodeError(InputError):
    """Code that the user brought has failed; the cause is what it raised.

    Programs print the traceback of the cause above the message.
    """


class RunError(Exception):
    """The run cannot go on: the disk is full, the loss is not finite.

    The message is one line saying why and what is left. Programs exit with
    `EXIT_FAILED`.
    """


class PeerError(Exception):
    """Another worker of the run cannot be reached, or is gone.

    The message is one line naming it. Programs exit with `EXIT_STOPPED`: start all
    workers again, and the run goes on.
    """
