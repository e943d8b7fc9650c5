"""The conversations of an inspected file one by one, and the parts of long ones: buttons, and what they show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.ui import browser, data_view, text

Updates = dict[Any, Any]
Preview = Callable[[int, int | None], dict[str, Any]]


@dataclass(frozen=True)
class Pager:
    """`index` is the conversation looked at, `window` which part of it, both from 0."""

    position: gr.HTML
    previous: gr.Button
    row: gr.Number
    next: gr.Button
    windows: gr.Row
    earlier: gr.Button
    later: gr.Button
    conversation: gr.HTML
    tokens: gr.HTML
    index: gr.State
    window: gr.State

    def all(self) -> list[Any]:
        return list(vars(self).values())


def draw() -> Pager:
    with gr.Row(elem_classes="ls-turn"):
        previous = gr.Button("Previous", size="md", scale=0, min_width=90)
        row = gr.Number(1, label="Conversation", precision=0, minimum=1, scale=0, min_width=90)
        following = gr.Button("Next", size="md", scale=0, min_width=90)
    position = gr.HTML()
    with gr.Row(visible=False, elem_classes="ls-pager") as windows:
        earlier = gr.Button("Previous part", size="sm", scale=0, min_width=160)
        later = gr.Button("Next part", size="sm", scale=0, min_width=160)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            conversation = gr.HTML()
        with gr.Column(scale=3, min_width=300, elem_classes="ls-marked"):
            gr.HTML(data_view.LEGEND)
            tokens = gr.HTML(js_on_load=browser.on_load("tokens"))
    shown = (position, previous, row, following, windows, earlier, later, conversation, tokens)
    return Pager(*shown, gr.State(0), gr.State(0))


class Pages:
    """What the pager's buttons do. `preview(index, window)` asks the reader for one conversation.

    A window of None is the one in which training begins.
    """

    def __init__(self, view: Pager, preview: Preview) -> None:
        self.view, self._preview = view, preview

    def back(self, result: dict[str, Any] | None, index: int) -> Updates:
        return self.go(result, index)

    def forward(self, result: dict[str, Any] | None, index: int) -> Updates:
        return self.go(result, index + 2)

    def go(self, result: dict[str, Any] | None, number: float | None) -> Updates:
        """Shows one conversation, counted from 1; beyond an end stands the end."""
        return self._open(result, int(number) - 1, None) if number is not None else {}

    def earlier(self, result: dict[str, Any] | None, index: int, window: int) -> Updates:
        return self._open(result, index, max(window - 1, 0))

    def later(self, result: dict[str, Any] | None, index: int, window: int) -> Updates:
        return self._open(result, index, window + 1)

    def _open(self, result: dict[str, Any] | None, index: int, window: int | None) -> Updates:
        if not result or result["sampled"] is not None:
            return {}
        index = min(max(index, 0), result["usable_rows"] - 1)
        try:
            return self.paint(self._preview(index, window), index, result)
        except StudioError as error:
            return {self.view.conversation: text.problem(error), self.view.tokens: ""}

    def paint(self, preview: dict[str, Any] | None, index: int, result: dict[str, Any]) -> Updates:
        v, rows = self.view, result["usable_rows"]
        idle = result["sampled"] is None  # at a first look the reader is busy with the whole file
        if preview is None:
            return {
                v.conversation: text.empty("No conversation to show", "Every row is bad or left out."),
                v.tokens: "",
                v.windows: gr.Row(visible=False),
            }
        window, windows = preview["window"], preview["windows"]
        return {
            v.position: data_view.position(preview, index, rows),
            v.row: gr.Number(value=index + 1, maximum=rows),
            v.index: index,
            v.window: window,
            v.windows: gr.Row(visible=windows > 1),
            v.earlier: gr.Button(interactive=idle and window > 0),
            v.later: gr.Button(interactive=idle and window < windows - 1),
            v.conversation: data_view.conversation(preview),
            v.tokens: data_view.tokens(preview),
            v.previous: gr.Button(interactive=idle and index > 0),
            v.next: gr.Button(interactive=idle and index < rows - 1),
        }
