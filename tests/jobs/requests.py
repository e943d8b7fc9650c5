"""Requests that the child in fake_session.py understands."""

from typing import ClassVar

from lora_studio.jobs.protocol import Done, Request, Result


class Echoed(Result):
    """The fields of the request, and who answered."""

    pid: int
    word: str = ""
    tokenless: bool = False


class Counted(Result):
    """How far it counted."""

    done: int


class Echo(Request[Echoed]):
    method: ClassVar[str] = "echo"

    word: str = ""


class Count(Request[Counted]):
    method: ClassVar[str] = "count"

    to: int


class Fail(Request[Done]):
    method: ClassVar[str] = "fail"


class Die(Request[Done]):
    method: ClassVar[str] = "die"


class Babble(Request[Done]):
    method: ClassVar[str] = "babble"


class Hang(Request[Done]):
    method: ClassVar[str] = "hang"


class Half(Request[Counted]):
    """Answered without the field of its result."""

    method: ClassVar[str] = "half"
