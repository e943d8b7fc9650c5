"""What the page changes in Gradio: true for one version, and still where it is looked for."""

import asyncio
import inspect
import os
from collections import deque
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio import blocks, component_meta
from gradio.routes import App
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_studio.ui import gradio_patches

GRADIOS = [  # read before a test of any file builds a page
    (blocks, "inspect", inspect),
    (component_meta, "inspect", inspect),
    (blocks.Blocks, "postprocess_data", vars(blocks.Blocks)["postprocess_data"]),
    (gr.Number, "raise_if_out_of_bounds", vars(gr.Number)["raise_if_out_of_bounds"]),
]


@pytest.fixture(autouse=True)
def gradio_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what a page of another test patched in this process, and afterwards what the test patches."""
    for owner, name, original in GRADIOS:
        monkeypatch.setattr(owner, name, original)


def test_what_is_read_as_gradios_is_gradios() -> None:
    assert blocks.Blocks.postprocess_data.__module__ == "gradio.blocks"
    assert gr.Number.raise_if_out_of_bounds.__module__ == "gradio.components.number"


def test_a_page_builds_its_web_app_once_when_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    create = App.create_app
    monkeypatch.setattr(App, "create_app", lambda *args, **options: built.append(1) or create(*args, **options))
    with gr.Blocks() as demo:
        gr.Button()
    demo.queue()
    assert len(built) == 3, "Gradio builds no app before it serves: without_app is not needed any more"
    with gradio_patches.without_app(), gr.Blocks() as demo:
        gr.Button()
    with gradio_patches.without_app():
        demo.queue()
    assert len(built) == 3
    assert demo.config == {}
    assert App.create_app(demo)
    assert [part["type"] for part in demo.config["components"]] == ["button"]


def test_the_patches_are_looked_through_for_the_installed_version() -> None:
    assert version("gradio") == gradio_patches.VERSION, (
        "Gradio's version changed: look whether each patch in gradio_patches.py is still needed and still true for it."
    )


def page() -> tuple[gr.Blocks, gr.HTML]:
    with gr.Blocks() as demo:
        told, box = gr.HTML(), gr.Textbox()
        box.change(lambda value: value, box, box, show_progress="hidden")
        box.submit(lambda value: value, box, box, show_progress="full")
    return demo, told


def test_events_that_show_no_progress_are_told_to_one_component_alone() -> None:
    demo, told = page()
    gradio_patches.show_silent_events_on(demo, told)
    silent, loud = (event.get_config() for event in demo.fns.values())
    assert silent["show_progress_on"] == [told._id]
    assert loud["show_progress_on"] is None


@pytest.mark.parametrize(
    ("script", "places"),
    [(gradio_patches.EVENTS, [1, 2]), (gradio_patches.TYPING, [1, 4]), (gradio_patches.OPENING, [1])],
    ids=["events", "typing", "opening"],
)
def test_the_page_gets_gradios_scripts_with_what_is_changed_alone(
    script: gradio_patches.Script, places: list[int]
) -> None:
    path = gradio_patches.path_of(script)
    original = path.read_text(encoding="utf-8")
    assert [original.count(theirs) for theirs in script.changes] == places
    with TestClient(Starlette(routes=gradio_patches.routes())) as browser:
        answer = browser.get(f"/assets/{path.name}")
        again = browser.get(f"/assets/{path.name}", headers={"If-None-Match": answer.headers["etag"]})
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.text != original
    pieces = len(original)
    for (theirs, ours), count in zip(script.changes.items(), places, strict=True):
        assert ours in answer.text
        pieces += count * (len(ours) - len(theirs))
    assert len(answer.text) == pieces
    assert again.status_code == 304


def test_every_handler_that_is_due_again_runs_alone() -> None:
    text = gradio_patches.path_of(gradio_patches.EVENTS).read_text(encoding="utf-8")
    assert text.count(f"{gradio_patches.RUN_AGAIN}e))") == text.count("this.queue.delete(")


def test_scripts_of_another_version_are_refused() -> None:
    with pytest.raises(RuntimeError, match="is needed"):
        gradio_patches.path_of(gradio_patches.Script("Blocks-", {"never written": ""}))


def test_the_queue_is_looked_into_less_often_and_tells_who_waits() -> None:
    demo, _ = page()
    demo.queue()
    assert demo._queue.sleep_when_free < gradio_patches.QUEUE_SECONDS, "Gradio looks rarely enough by itself"
    gradio_patches.look_less_often(demo)
    assert demo._queue.sleep_when_free == gradio_patches.QUEUE_SECONDS
    assert list(gradio_patches.waiting_users(demo)) == []
    waiting: Any = SimpleNamespace(queue=deque([SimpleNamespace(username="ann"), SimpleNamespace(username=None)]))
    demo._queue.event_queue_per_concurrency_id["fn"] = waiting
    assert list(gradio_patches.waiting_users(demo)) == ["ann", ""]


def test_a_wrapping_middleware_is_the_outermost() -> None:
    app = App()
    with pytest.raises(RuntimeError):
        gradio_patches.wrap(app, lambda stack: stack)
    app.middleware_stack = app.build_middleware_stack()
    inner = app.middleware_stack
    gradio_patches.wrap(app, lambda stack: ("outermost", stack))
    assert app.middleware_stack == ("outermost", inner)


def test_a_space_is_hidden_from_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM", "spaces")
    gradio_patches.wait_for_no_code()
    assert "SYSTEM" not in os.environ


def test_the_parameters_of_a_component_are_read_once() -> None:
    gradio_patches.read_signatures_once()
    read = blocks.inspect.signature
    assert read(gr.Dropdown.__init__) == inspect.signature(gr.Dropdown.__init__)
    before = read.cache_info()
    assert gr.Dropdown(["a"], label="Which").get_config()["label"] == "Which"
    after = read.cache_info()
    assert (after.misses, after.hits > before.hits) == (before.misses, True)
    described = component_meta.inspect.getfullargspec.cache_info()
    gr.Dropdown(["a"])
    assert component_meta.inspect.getfullargspec.cache_info().misses == described.misses
    assert component_meta.inspect.getfullargspec.cache_info().hits > described.hits


@pytest.mark.parametrize("answer", ["all", "some by component", "some in a list", "one", "skipped", "none"])
def test_an_event_answers_as_before_and_makes_no_component_that_it_skips(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = blocks.Blocks.postprocess_data
    with gr.Blocks() as demo:
        name, rows, choice, held = gr.Textbox(), gr.Number(), gr.Dropdown(["a"]), gr.State()
        parts = [name, rows, choice, held]
        answers: dict[str, Any] = {
            "all": ["Ada", 3, gr.Dropdown(["b"], value="b"), {"kept": 1}],
            "some by component": {rows: 4, choice: gr.Dropdown(visible=False)},
            "some in a list": ("Ada", gr.skip(), gr.skip(), gr.skip()),
            "one": {held: {"kept": 2}},
            "skipped": gr.skip(),
            "none": [gr.skip()] * 4,
        }
        demo.load(lambda: answers[answer], None, parts)
    event = demo.fns[0]

    def processed(process: Any) -> tuple[Any, set[int], Any]:
        state = blocks.SessionState(demo)
        output = asyncio.run(process(demo, event, answers[answer], state))
        return output, set(state.blocks_config.blocks) - set(demo.default_config.blocks), state.state_data

    gradio_patches.leave_alone_what_is_skipped()
    ours = blocks.Blocks.postprocess_data
    assert processed(ours) == processed(process)
    made = []
    monkeypatch.setattr(blocks.SessionState, "_update_config", lambda _state, key: made.append(key))
    asyncio.run(ours(demo, event, answers[answer], blocks.SessionState(demo)))
    assert made == ([choice._id] if answer in ("all", "some by component") else [])


@pytest.mark.parametrize("field", [gr.Number, gr.Slider])
def test_a_number_beyond_the_bounds_of_its_field_reaches_the_handler(
    field: type[gr.Number | gr.Slider],
) -> None:
    with pytest.raises(gr.Error):
        field(minimum=1, maximum=3).preprocess(9)
    gradio_patches.leave_bounds_to_handlers()
    assert field(minimum=1, maximum=3).preprocess(9) == 9


def test_the_only_output_of_an_event_is_skipped_as_gradio_does() -> None:
    gradio_patches.leave_alone_what_is_skipped()
    with gr.Blocks() as demo:
        demo.load(gr.skip, None, gr.Textbox())
    output = blocks.Blocks.postprocess_data(demo, demo.fns[0], gr.skip(), None)
    assert asyncio.run(output) == [gradio_patches.SKIPPED]
