"""The chat's way to the engine, for everybody who has the page open: one at a time, loaded when needed, asked before it
is loaded where memory is short.
"""

import contextlib
import threading
from collections.abc import Generator, Sequence
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.ui import chat_device, text
from lora_studio.ui.chat_choices import Choice, load_request
from lora_studio.ui.studio import Studio

LOADING = {"base": "Loading the base model", "adapters": "Loading the adapters"}
WAIT_SECONDS = 0.4

Answer = dict[str, Any]
Answers = Generator[Answer, None, None]


class ConsentError(StudioError):
    """The memory will hardly do: a person has to say whether to go on. `words` is the question as markup."""

    def __init__(self, words: str) -> None:
        super().__init__("The memory will hardly do.", "Load it anyway, or choose a smaller base.")
        self.words = words


class Engine:
    """Shared by all visitors. `loaded` is what the child said it holds."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._turn = threading.Lock()
        self._holder = ""
        self._waiting: set[str] = set()
        self._loaded: Answer | None = None
        self._loaded_for: tuple[Any, ...] = ()

    @property
    def loaded(self) -> Answer | None:
        """What is in memory; nothing once the child has ended."""
        return self._loaded if self._studio.chat.running else None

    def holds(self, chosen: Sequence[Choice]) -> bool:
        """Whether these columns can answer at once."""
        return self.loaded is not None and self._loaded_for == _key(chosen)

    @property
    def run(self) -> str | None:
        """Title of the run that trains now."""
        busy = [run for run in self._studio.supervisor.runs() if run.state in ("running", "stopping")]
        return (busy[0].title or busy[0].id) if busy else None

    def load(self, who: str, chosen: Sequence[Choice], *, insist: bool = False) -> Answers:
        """Brings base and adapters into memory; yields {"kind": "status", "words": markup} meanwhile."""
        yield from self._in_turn(who, self._ready(chosen, insist))

    def answer(self, who: str, chosen: Sequence[Choice], columns: Sequence[Answer], settings: Answer) -> Answers:
        """Pieces and the result of all columns, after whatever has to be waited for and loaded."""
        yield from self._in_turn(who, self._answered(chosen, "generate", columns=list(columns), settings=settings))

    def score(self, who: str, chosen: Sequence[Choice], messages: Sequence[Answer], said: str) -> Answers:
        """How likely base and adapters find each token of a text."""
        asked = {"adapters": [choice.value for choice in chosen], "messages": list(messages), "answer": said}
        yield from self._in_turn(who, self._answered(chosen, "score", **asked))

    def stop(self, who: str) -> None:
        """Ends this person's answer or waiting, nobody else's."""
        if self._holder == who:
            self._studio.chat.stop()
        else:
            self._waiting.discard(who)

    def unload(self) -> None:
        """Ends the engine's child: its memory is free for certain."""
        self._studio.chat.close()
        self._loaded, self._loaded_for = None, ()

    def _in_turn(self, who: str, work: Answers) -> Answers:
        self._waiting.add(who)
        with contextlib.closing(work):
            while not self._turn.acquire(timeout=WAIT_SECONDS):
                if who not in self._waiting:
                    raise StudioError("Stopped before it began.", "Somebody else was being answered. Ask again.")
                yield _status(text.progress("Somebody else is being answered; yours comes next"))
            try:
                self._waiting.discard(who)
                self._holder = who
                yield from work
            finally:
                self._holder = ""
                self._turn.release()

    def _answered(self, chosen: Sequence[Choice], method: str, **params: Any) -> Answers:
        yield from self._ready(chosen, insist=False)
        with contextlib.closing(self._studio.chat.stream(method, **params)) as answers:
            yield from answers

    def _ready(self, chosen: Sequence[Choice], insist: bool) -> Answers:
        """Loads the choice unless it is what is in memory."""
        if self.holds(chosen):
            return
        request = load_request(chosen)
        held = self.loaded
        same_base = held is not None and self._loaded_for[:3] == _key(chosen)[:3]
        if not insist and not same_base:
            found = chat_device.verdict(chosen, int(held["memory_bytes"]) if held else 0)
            if not found.fits:
                raise ConsentError(chat_device.question(found, self.run))
        yield _status(text.progress("Starting the engine" if held is None else "Loading"))
        self._loaded, self._loaded_for = None, ()
        with contextlib.closing(self._studio.chat.stream("load", **request)) as answers:
            for answer in answers:
                if answer["kind"] == "result":
                    self._loaded, self._loaded_for = answer, _key(chosen)
                    yield {"kind": "loaded"}
                else:
                    yield _status(text.progress(LOADING.get(answer["phase"], "Loading")))


def _key(chosen: Sequence[Choice]) -> tuple[Any, ...]:
    request = load_request(chosen)
    return request["base"], request["revision"], request["quantization"], *request["adapters"]


def _status(words: str) -> Answer:
    return {"kind": "status", "words": words}
