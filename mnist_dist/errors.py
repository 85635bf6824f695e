"""The exceptions that say what to do: correct the input, or start again."""


class InputError(ValueError):
    """A flag, file, data set or configuration is wrong.

    The message is one line naming what was given, what was found and what was
    expected. Programs print it and exit with code 2: retrying never helps.
    """


class PeerError(RuntimeError):
    """Another worker of the run cannot be reached, or is gone.

    Programs print the message and exit with code 143: start again, and all goes on.
    """
