"""The exceptions that a user reads as one line, without a traceback."""


class InputError(ValueError):
    """A flag, file, data set or configuration is wrong.

    The message is one line naming what was given, what was found and what was
    expected. Programs print it and exit with code 2: retrying never helps.
    """


class RunError(RuntimeError):
    """The run cannot go on: the disk is full, the loss is not finite.

    The message is one line saying why and what is left. Programs exit with code 1.
    """


class PeerError(RuntimeError):
    """Another worker of the run cannot be reached, or is gone.

    The message is one line naming it. Programs exit with code 143: start all workers
    again, and the run goes on.
    """
