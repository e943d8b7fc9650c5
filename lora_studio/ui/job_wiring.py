"""How a tab shows jobs with folders of their own (evaluations, exports): painted once a second, acted on by clicks."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.ui import text
from lora_studio.ui.run_section import QUIET
from lora_studio.ui.studio import Wish


def wire(
    parts: Mapping[str, gr.HTML],
    view: gr.State,
    look: Callable[[Any, float], dict[str, str]],
    *,
    wish: gr.State,
    opening: Callable[[Wish], list[Any]],
    opened: Sequence[Any],
    act: Callable[[gr.EventData, Any], tuple[Any, Any, Any]],
    told: Sequence[Any],
    busy: Callable[[], str | None],
    trigger_mode: Literal["once", "multiple"] = "once",
) -> None:
    """Wires a tab whose parts show what `look` says of a view; a part that shows the same as before is not sent.

    `opening` gives what `opened`, the view among them, shows when the page or the tab opens; the `wish` with which
    another tab opened this one is taken up by it. `act` turns a click into view, message and download link; a
    `StudioError` of it becomes the message. The last two are `told`. A message goes when the job that is `busy` ends:
    that another can't begin beside it is true no more.
    """
    shown = gr.State({})
    painted = [*parts.values(), shown, told[0]]

    def paint(now: Any, before: dict[str, str]) -> list[Any]:
        seen = look(now, time.time()) | {"busy": busy() or ""}
        if seen == before:
            return [gr.skip()] * len(painted)
        ended = before.get("busy", "") not in ("", seen["busy"])
        changed = [gr.skip() if seen[name] == before.get(name) else seen[name] for name in parts]
        return [*changed, seen, "" if ended else gr.skip()]

    def repaint(now: Any) -> list[Any]:
        return paint(now, {})

    def click(event: gr.EventData, now: Any) -> tuple[Any, Any, Any]:
        try:
            return act(event, now)
        except StudioError as error:
            return now, text.problem(error), gr.skip()

    def take_up(asked: Wish) -> list[Any]:
        return [*opening(asked), Wish()]

    tab = _tab_of(opened[0])
    gr.on(None, lambda: opening(Wish()), None, [*opened], **QUIET).then(repaint, view, painted, **QUIET)
    for part in parts.values():
        part.click(click, view, [view, *told], trigger_mode=trigger_mode, **QUIET)
    view.change(paint, [view, shown], painted, **QUIET)
    gr.Timer(1).tick(paint, [view, shown], painted, trigger_mode="once", **QUIET)
    tab.select(take_up, wish, [*opened, wish], **QUIET)  # new runs, and what another tab asks for


def _tab_of(component: Any) -> gr.Tab:
    """The tab in which a component stands."""
    place = component.parent
    while not isinstance(place, gr.Tab):
        place = place.parent
    return place
