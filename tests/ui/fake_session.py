"""A session for tests of the tabs: answers that were written down before, and what it was asked."""

from collections.abc import Callable, Iterator
from typing import Any

from lora_studio.errors import StudioError

Script = Callable[..., list[dict[str, Any] | StudioError]]


class FakeSession:
    """Stands in for jobs.client.Session. `script(method, **params)` gives the answers, an error is raised."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.running = False
        self.busy = False
        self.left_early = 0
        self.stops = 0

    def stream(self, method: str, *, beat: bool = False, **params: Any) -> Iterator[dict[str, Any]]:
        self.running = True
        self.asked.append((method, params))
        done = False
        try:
            for answer in self.script(method, **params):
                done = isinstance(answer, StudioError) or answer["kind"] == "result"
                if isinstance(answer, StudioError):
                    raise answer
                yield answer
        finally:
            self.left_early += not done

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return list(self.stream(method, **params))[-1]

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None:
        self.running = False
