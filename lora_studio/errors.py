"""The errors that a user can cause, and how long typed texts may be.

`StudioError` is shown as its message and hint, never as a traceback. Defects of the program are ordinary exceptions and
are logged whole.
"""


class StudioError(Exception):
    """Something the user can mend: `message` says what is wrong and what was found, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class EngineError(StudioError):
    """A session child failed or ended, through no fault of the request."""


class OtherRowsError(StudioError):
    """A run can't go on as it began: its rows are others now. A person may let it go on with them."""


class ApiError(Exception):
    """What a request is answered with instead: OpenAI's fields and the HTTP status."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def kind(self) -> str:
        """OpenAI's word for errors of this status."""
        if self.status == 401:
            return "authentication_error"
        return "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


QUESTION, SYSTEM_PROMPT, TEST_PROMPT, LINE = 100_000, 20_000, 10_000, 300
"""Characters of a question to a model, of its system prompt, of a prompt in a set, and of a name or a line of words."""


def check_length(what: str, text: str, most: int) -> None:
    """Raises `StudioError` for a text of more characters; `what` begins the sentence."""
    if len(text) > most:
        raise StudioError(f"{what} has {len(text):,} characters.", f"The limit is {most:,} characters.")
