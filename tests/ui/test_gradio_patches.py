"""What the page changes in Gradio: true for one version, and still where it is looked for."""

import os
from collections import deque
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.routes import App
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_studio.ui import gradio_patches


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


def test_the_page_gets_gradios_script_with_changed_statuses_alone_and_handlers_run_again_alone() -> None:
    original = gradio_patches.events_script()
    text = original.read_text(encoding="utf-8")
    assert text.count(gradio_patches.ALL_STATUSES) == 1
    assert text.count(gradio_patches.ALL_HANDLERS) == text.count("this.queue.delete(") == 2
    with TestClient(Starlette(routes=gradio_patches.routes())) as browser:
        answer = browser.get(f"/assets/{original.name}")
        again = browser.get(f"/assets/{original.name}", headers={"If-None-Match": answer.headers["etag"]})
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.text.count(gradio_patches.CHANGED_STATUSES) == 1
    assert answer.text.count(gradio_patches.THIS_HANDLER) == 2
    assert gradio_patches.ALL_HANDLERS not in answer.text
    back = answer.text.replace(gradio_patches.CHANGED_STATUSES, gradio_patches.ALL_STATUSES)
    assert back.replace(gradio_patches.THIS_HANDLER, gradio_patches.ALL_HANDLERS) == text
    assert again.status_code == 304


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
