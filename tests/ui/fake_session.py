"""A session for tests of the tabs: answers that were written down before, and what it was asked."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import JoinBatch, Request

Script = Callable[..., list[dict[str, Any] | StudioError]]


class FakeSession:
    """Stands in for jobs.session.Session. `script(method, **params)` gives the lines of the answers, an error is
    raised. `asked` holds the requests as they would be on their lines."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.running = False
        self.busy = False
        self.left_early = 0
        self.stops = 0
        self.stopped_columns: list[tuple[str, int]] = []
        self.joined: list[JoinBatch] = []

    def stream(self, request: Request[Any], *, beat: bool = False) -> Iterator[Any]:
        self.running = True
        method, params = request.method, request.to_fields()
        self.asked.append((method, params))
        done = False
        try:
            for answer in self.script(method, **params):
                done = isinstance(answer, StudioError) or answer["kind"] == "result"
                if isinstance(answer, StudioError):
                    raise answer
                yield request.parse_answer(answer)
        finally:
            self.left_early += not done

    def call(self, request: Request[Any]) -> Any:
        return list(self.stream(request))[-1]

    def move_to(self, env: Mapping[str, str]) -> None:
        self.env = env

    def stop(self) -> None:
        self.stops += 1

    def stop_column(self, batch: str, position: int) -> None:
        self.stopped_columns.append((batch, position))

    def join(self, request: JoinBatch) -> None:
        self.joined.append(request)

    def end(self) -> None:
        self.running = False

    def close(self) -> None:
        self.running = False
