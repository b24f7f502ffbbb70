"""Errors the user can fix. Their message is one line: what is wrong, with which value, and what to do."""


class UserError(ValueError):
    """A wrong argument, a missing file, a folder of another run: `main.py` prints it and exits with 2."""


class RunError(RuntimeError):
    """A run that cannot go on (a loss that is not finite, a full disk): `main.py` prints it and exits with 1."""
