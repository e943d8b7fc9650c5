"""Notes when jobs end, below the list of runs: the owner's webhook, and notifications of this browser.

While the page is hidden, its script asks a route what ended since; the browser shows it.
"""

import asyncio
import time
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.kinds import KINDS
from lora_studio.jobs.notes import (
    FORMATS,
    Webhook,
    note_of,
    read_webhook,
    remove_webhook,
    save_webhook,
    send_test,
)
from lora_studio.ui import html, theme
from lora_studio.ui.components import QUIET
from lora_studio.ui.studio import Studio

MOST = 20
"""Ends that one answer tells of."""


def build_notify(studio: Studio) -> None:
    """Draws the fold and wires it. Only the owner sees the webhook."""
    with gr.Accordion("Notifications", open=False, elem_id="notify"):
        with gr.Row(elem_classes="actions"):
            gr.Button("Notify me", size="sm", scale=0, elem_id="notify-me").click(
                None, js=theme.call("notifyMe"), api_visibility="private"
            )
        gr.HTML(html.quiet("This browser tells you when a job ends and the page is hidden."), elem_id="notify-state")
        with gr.Column(visible=False, elem_id="webhook") as place:
            gr.HTML(html.quiet("A webhook tells Slack, Discord or your own server."))
            url = gr.Textbox(
                label="Webhook URL",
                type="password",
                placeholder="https://hooks.slack.com/…",
                max_lines=1,
                elem_id="webhook-url",
            )
            choices = [(label, name) for name, label in FORMATS.items()]
            shape = gr.Dropdown(choices, value="auto", label="Format", filterable=False, elem_id="webhook-format")
            with gr.Row(elem_classes="actions"):
                save = gr.Button("Save webhook", size="sm", elem_id="webhook-save")
                test = gr.Button("Send a test", size="sm", visible=False, elem_id="webhook-test")
                remove = gr.Button("Remove webhook", size="sm", visible=False, elem_id="webhook-remove")
            state_box = gr.HTML(elem_id="webhook-state")
    parts = [place, url, shape, test, remove, state_box]
    act = WebhookForm(studio)
    gr.on(None, act.look, None, parts, **QUIET)
    save.click(act.save, [url, shape], parts, **QUIET)
    remove.click(act.remove, None, parts, **QUIET)
    test.click(
        act.test,
        None,
        parts,
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=test,
        api_visibility="private",
    )


class WebhookForm:
    """What the buttons of the webhook do; the address never goes back to a browser."""

    def __init__(self, studio: Studio) -> None:
        self.workspace = studio.workspace

    def look(self, message: str = "") -> list[Any]:
        """What is shown of the webhook that is set, to the owner alone."""
        if not self.workspace.policy.is_admin:
            return [gr.Column(visible=False), "", gr.skip(), gr.Button(visible=False), gr.Button(visible=False), ""]
        webhook = read_webhook(self.workspace)
        there = webhook is not None
        shape = webhook.format if webhook else "auto"
        words = message + webhook_words(webhook, quiet=bool(message))
        return [gr.Column(visible=True), "", shape, gr.Button(visible=there), gr.Button(visible=there), words]

    def save(self, url: str, shape: str) -> list[Any]:
        try:
            save_webhook(self.workspace, url, shape)
        except StudioError as error:
            return [gr.skip()] * 5 + [html.problem(error)]
        return self.look()

    def test(self) -> list[Any]:
        try:
            return self.look(html.notice(send_test(self.workspace), "", "good"))
        except StudioError as error:
            return self.look(html.problem(error))

    def remove(self) -> list[Any]:
        try:
            remove_webhook(self.workspace)
        except StudioError as error:
            return [gr.skip()] * 5 + [html.problem(error)]
        return self.look()


def webhook_words(webhook: Webhook | None, *, quiet: bool = False) -> str:
    """Where notes go, and what went wrong the last time."""
    if webhook is None:
        return ""
    if webhook.error and not quiet:
        return html.notice(f"The last note did not arrive at {webhook.host}: {webhook.error}", "", "warning")
    return html.quiet(f"Notes are sent to {webhook.host} ({FORMATS.get(webhook.shape, webhook.shape)}).")


def routes(studio: Studio) -> list[Route]:
    """What ended since a time, for whoever asks: only jobs that they may see."""

    async def ended(request: Request) -> Response:
        try:
            since = float(request.query_params.get("since", ""))
        except ValueError:
            since = time.time()
        return JSONResponse(await asyncio.to_thread(ended_since, studio, since))

    return [Route("/studio/ended", ended, methods=["GET"])]


def ended_since(studio: Studio, since: float) -> JsonObject:
    """The ends after a time (seconds since 1970), oldest first, and the time now."""
    now = time.time()
    states = [state for kind in KINDS.values() for state in studio.supervisor.jobs(kind)]
    last = [state for state in states if state.final and (state.finished or 0.0) > since]
    last.sort(key=lambda state: state.finished or 0.0)
    notes = [note_of(state) for state in last[-MOST:]]
    return {"now": now, "ended": [{"title": note.title, "text": note.text} for note in notes]}
