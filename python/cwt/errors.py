"""The one exception that the command line turns into one line and exit code 2."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what was wanted and what came."""
