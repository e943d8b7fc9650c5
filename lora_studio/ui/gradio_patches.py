"""Where the page reaches past what Gradio offers, all in one place. Each patch is true for the version named here.

Imported before Gradio is, so it imports nothing of it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.components import Component
    from gradio.routes import App

VERSION = "6.31.0"
"""Another version of Gradio asks for a look at each patch: whether it is still needed, and still does what it says."""
QUEUE_SECONDS = 0.02
ON_A_SPACE = "SYSTEM"
STUB_MODULE, STUB_WRITER = "gradio.component_meta", "create_or_modify_pyi"


def leave_stubs_alone() -> None:
    """Keeps Gradio's stub writer away; to be called before Gradio is imported, afterwards it changes nothing.

    Wherever Gradio is imported it makes the `.pyi` file of each of its components anew: it reads and parses source and
    stub and fills a template, two of the five seconds in which the page starts, for files that its wheel brings along.
    """
    if STUB_MODULE not in sys.modules:
        sys.meta_path.insert(0, _StubFinder)


class _StubFinder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == STUB_MODULE else None
        if spec is not None and spec.origin is not None:
            spec.loader = _StubLoader(name, spec.origin)
        return spec


class _StubLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        vars(module)[STUB_WRITER] = write_no_stub


def write_no_stub(_component: type, _name: str, _events: object) -> None:
    """In the place of the writer."""


def wait_for_no_code() -> None:
    """Hides that this is a Space: there Gradio waits for new code to run instead of the program that launches it."""
    os.environ.pop(ON_A_SPACE, None)


def look_less_often(demo: "Blocks") -> None:
    """Gradio looks into its queue every millisecond, which takes a twelfth of a core day and night."""
    demo._queue.sleep_when_free = QUEUE_SECONDS


def waiting_users(demo: "Blocks") -> Iterator[str]:
    """Who asked for each event that waits in the queue, which has no list of them; empty for who has no name."""
    for events in list(demo._queue.event_queue_per_concurrency_id.values()):
        for event in list(events.queue):
            yield event.username or ""


def show_silent_events_on(demo: "Blocks", component: "Component") -> None:
    """Spares the browser the news of an event that shows no progress anyway.

    Gradio's page sets a loading status on every component that any event ever wrote to, whenever any event moves, and
    searches the whole page for each: with the form's outputs half a second of a core. One component is told instead.
    """
    for event in demo.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [component]


def wrap(app: "App", outermost: Callable[[Any], Any]) -> None:
    """Puts a middleware around what Gradio puts around those it is given; before the first request."""
    if app.middleware_stack is None:
        raise RuntimeError("Gradio's app has no middleware yet.")
    app.middleware_stack = outermost(app.middleware_stack)
