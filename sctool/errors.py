"""The only exceptions a user ever meets: one line of what is wrong, one line of what to do."""


class SctoolError(Exception):
    """A mistake the user can mend.

    Parameters
    ----------
    message
        What is wrong, with the value found.
    hint
        What to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.hint}" if self.hint else self.message


class InputError(SctoolError, ValueError):
    """Wrong input to a function of the Python interface; also a ``ValueError``."""


class Interrupted(SctoolError):
    """Stopped by Ctrl-C or SIGTERM after the state was saved."""

    exit_code = 130
