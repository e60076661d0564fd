"""The one exception that the command line turns into one line and exit code 2."""


class UserError(ValueError):
    """Something that the user gave cannot be used; says what was wanted and what was given."""
