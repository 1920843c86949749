"""The one exception for a user's mistake."""


class UserError(ValueError):
    """One line that names the file, key or value, what was expected, and the way out.

    Command lines print it without a traceback and exit with code 2; any other exception is a bug and keeps its
    traceback.
    """
