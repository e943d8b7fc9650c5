"""Where the page reaches past what Gradio offers, all in one place. Each patch is true for the version named here.

Imported before Gradio is, so it imports nothing of it.
"""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.components import Component
    from gradio.routes import App

VERSION = "6.31.0"
"""Another version of Gradio asks for a look at each patch: whether it is still needed, and still does what it says."""
QUEUE_SECONDS = 0.02
ON_A_SPACE = "SYSTEM"
STUB_MODULE, STUB_WRITER = "gradio.component_meta", "create_or_modify_pyi"
ASSETS = "templates/frontend/assets"
VALUE = "d.oninput?.(m())"
SKIPPED = {"__type__": "update"}
"""What `gr.skip()` gives, and what Gradio puts where a handler says nothing of an output."""
KEYPRESS = "w(`keypress`,t,Z)"


class Script(NamedTuple):
    """One of Gradio's scripts, by how its name begins and by what it holds, and texts to take the place of others."""

    begins: str
    changes: Mapping[str, str]


RUN_AGAIN = "this.queue.has(r.id)&&(this.queue.delete(r.id),this.dispatch("
EVENTS = Script(
    "Blocks-",
    {
        "await Promise.all(Object.entries(this.loading_stati.current).map(": (
            "const sent = this.sent_stati ??= new Map();"
            "await Promise.all(Object.entries(this.loading_stati.current).filter(([id, status]) => {"
            "const text = JSON.stringify(status); return sent.get(id) !== text && sent.set(id, text);}).map("
        ),
        f"{RUN_AGAIN}e))": f"{RUN_AGAIN}{{...e,type:`fn`,fn_index:r.id}}))",
    },
)
"""Sends the loading statuses that changed instead of all, and runs a handler that is due again alone.

Gradio's page sets the status of every component that any event ever wrote to or, once the event is over, read from, and
searches the whole page for each: a tenth of a second of a core for every event, ticks among them.

A handler with trigger mode `always_last` runs again if its event came while it ran. Gradio's page dispatches the event
to every handler of it; two that are due again set each other off without end, as fast as the server answers.
"""
TYPING = Script("Index-", {f",await E(),{VALUE}}}": "}", KEYPRESS: f"{KEYPRESS},w(`input`,t,()=>d.oninput?.(t.value))"})
"""Lets the `input` event of a `Textbox` follow what its field holds.

Gradio's follows the keys that write a character: of what is pasted, cut or deleted no handler would hear.
"""
PUSH = "for(let e of n)this.#p(e)"
OPENING = Script("core-", {PUSH: "for(let e of n){await this.#m(e.id,e);this.#p(e)}"})
"""Lets a field keep what is typed into it as soon as its tab is opened for the first time.

Gradio's page draws the fields then, and one frame later fills them with what they were drawn with.
"""
SCRIPTS = (EVENTS, TYPING, OPENING)


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


@contextmanager
def without_app() -> Iterator[None]:
    """Keeps Gradio from building its web app, and the description of the page that it sends to browsers.

    It does so when a page begins and ends, when its queue is set and when it is served, and only the last one serves:
    the others take a seventh of the CPU time of the page's start.
    """
    app, blocks = sys.modules["gradio.routes"].App, sys.modules["gradio.blocks"].Blocks
    create, describe = app.create_app, blocks.get_config_file
    app.create_app, blocks.get_config_file = staticmethod(lambda *_args, **_options: None), lambda _blocks: {}
    try:
        yield
    finally:
        app.create_app, blocks.get_config_file = create, describe


def read_signatures_once() -> None:
    """Lets Gradio remember the parameters of its components, which it inspects anew for every change of one.

    An event that changes a form makes each of its components again and describes it twice: a third of the CPU time of
    an upload, which changes the whole form for the data.
    """
    remembered = SimpleNamespace(**vars(inspect))
    remembered.signature = lru_cache(maxsize=1024)(inspect.signature)
    remembered.getfullargspec = lru_cache(maxsize=1024)(inspect.getfullargspec)
    for name in ("gradio.blocks", "gradio.component_meta"):
        sys.modules[name].inspect = remembered  # type: ignore[attr-defined]


def leave_alone_what_is_skipped() -> None:
    """Lets an event cost what it changes.

    Gradio makes a component anew and describes it twice for every output of an event, those that the handler skips or
    leaves out of its answer among them: of the ninety that an upload may change it changes twelve.
    """
    blocks = sys.modules["gradio.blocks"]
    process = blocks.Blocks.postprocess_data
    if process.__module__ == __name__:
        return

    async def postprocess_data(page: "Blocks", event: Any, answer: Any, state: Any) -> list[Any]:
        if len(event.outputs) < 2 or event.is_validator_function:
            return await process(page, event, answer, state)
        if isinstance(answer, dict) and answer == SKIPPED:
            answer = [SKIPPED] * len(event.outputs)
        elif isinstance(answer, dict) and answer:
            answer = blocks.convert_component_dict_to_list(list(event.outputs), answer)
        if not isinstance(answer, list | tuple) or len(answer) != len(event.outputs):
            return await process(page, event, answer, state)  # which says what is wrong with it
        changed = [at for at, value in enumerate(answer) if not (isinstance(value, dict) and value == SKIPPED)]
        output = [None if block.stateful else dict(SKIPPED) for block in event.outputs]
        if changed:
            part = copy(event)
            part.outputs = [event.outputs[at] for at in changed]
            values = [answer[at] for at in changed]
            processed = await process(page, part, values if len(values) > 1 else values[0], state)
            for at, value in zip(changed, processed, strict=True):
                output[at] = value
        return output

    blocks.Blocks.postprocess_data = postprocess_data


def leave_bounds_to_handlers() -> None:
    """Lets a number beyond the bounds of its field or slider reach its handler, which takes the nearest one that can be
    or says what is wrong with it, by the field's name.

    Gradio answers each key pressed on the way with an error in a corner of the page, and with a traceback in the log.
    """
    number = sys.modules["gradio.components.number"].Number
    number.raise_if_out_of_bounds = staticmethod(lambda _number, _minimum, _maximum: None)


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


def routes() -> list[Route]:
    """Gradio's scripts that are changed, under their own addresses."""
    return [_route(script) for script in SCRIPTS]


def _route(script: Script) -> Route:
    path = path_of(script)
    text = path.read_text(encoding="utf-8")
    for theirs, ours in script.changes.items():
        text = text.replace(theirs, ours)
    tag = hashlib.sha256(text.encode()).hexdigest()[:16]
    headers = {"Cache-Control": "max-age=0, must-revalidate", "ETag": f'"{tag}"'}

    def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(text, media_type="text/javascript", headers=headers)

    return Route(f"/assets/{path.name}", send, methods=["GET"])


def path_of(script: Script) -> Path:
    """The file of one of Gradio's scripts. Raises `RuntimeError` where none, or several, hold what is to be changed."""
    gradio = find_spec("gradio")
    folders = gradio.submodule_search_locations if gradio else None
    if not folders:
        raise RuntimeError("Gradio is not installed.")
    candidates = (Path(folders[0]) / ASSETS).glob(f"{script.begins}*.js")
    texts = {path: path.read_text(encoding="utf-8") for path in candidates}
    paths = [path for path, text in texts.items() if all(theirs in text for theirs in script.changes)]
    if len(paths) != 1:
        raise RuntimeError(f"Gradio {VERSION} is needed: the scripts of another version are written in another way.")
    return paths[0]


def wrap(app: "App", outermost: Callable[[Any], Any]) -> None:
    """Puts a middleware around what Gradio puts around those it is given; before the first request."""
    if app.middleware_stack is None:
        raise RuntimeError("Gradio's app has no middleware yet.")
    app.middleware_stack = outermost(app.middleware_stack)
