"""The one error that a user can cause.

Everything that a person can mend is raised as `StudioError` and shown as its message and hint, never as a traceback.
Defects of the program are ordinary exceptions and are logged whole.
"""


class StudioError(Exception):
    """Something the user can mend: `message` says what is wrong and what was found, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class OtherRowsError(StudioError):
    """A run can't go on as it began: its rows are others now. A person may let it go on with them."""
