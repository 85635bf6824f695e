"""The one exception that means: what the user gave is wrong."""


class InputError(ValueError):
    """A flag, file, data set or configuration is wrong.

    The message is one line naming what was given, what was found and what was
    expected. Programs print it and exit with code 2: retrying never helps.
    """
