"""The runs: a table, and all about the one that is looked at, painted from its folder and from nothing else.

A timer looks for news once a second; what did not change is not sent. The table is in runs_list.py, a run's sections in
run_detail.py, several runs beside each other in run_compare.py; how a section is added stands in run_section.py. Acting
on a run is the supervisor's matter.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.ui import browser, run_chart, run_compare, run_detail, runs_list, text
from lora_studio.ui.run_board import Board
from lora_studio.ui.run_section import QUIET, Look, Seen, updates
from lora_studio.ui.run_table import Choice
from lora_studio.ui.studio import Shared, Studio


@dataclass(frozen=True)
class Shown:
    """What the page shows: the table's parts by name, the run that is looked at with its sections, or several runs;
    and the line at the top of the page, which must not say otherwise."""

    run: str = ""
    status: str = ""
    listed: dict[str, Any] = field(default_factory=dict)
    detail: Seen = field(default_factory=dict)
    compare: Seen = field(default_factory=dict)

    @property
    def places(self) -> tuple[bool, bool]:
        """Whether one run, and whether several are in sight."""
        return bool(self.run), bool(self.compare)


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    board = Board(studio.workspace)
    listed, choice = runs_list.build(studio, shared)
    with gr.Column(visible=False, elem_classes="runs-compared") as several:
        compared = run_compare.build(studio)
    with gr.Column(visible=False, elem_classes="run-looked-at") as one:
        parts = run_detail.build(studio, shared)
    seen = gr.State(Shown())
    outputs = [*listed.values(), *parts.values(), *compared.values(), one, several, shared.status, seen]

    def paint(run_id: str, chosen: Choice, before: Shown) -> list[Any]:
        now = look(studio, board, run_id, chosen, before)
        if now == before:
            return [gr.skip()] * len(outputs)
        top = updates([("list", name) for name in listed], {"list": (0, now.listed)}, {"list": (0, before.listed)})
        beside = updates([("compare", name) for name in compared], now.compare, before.compare)
        places = [
            gr.Column(visible=place) if place != shown else gr.skip()
            for place, shown in zip(now.places, before.places, strict=True)
        ]
        detail = before.detail if before.run == now.run else {}  # another run: what was typed for this one goes, too
        status = now.status if now.status != before.status else gr.skip()
        return [*top, *updates(list(parts), now.detail, detail), *beside, *places, status, now]

    def begin() -> tuple[str, Choice]:
        return runs_list.opening_run(studio), runs_list.opening_choice(studio)

    def open_run(run_id: str, chosen: Choice, before: Shown) -> list[Any]:
        """Another run is looked at; in the place of one that is gone, the newest."""
        other = run_id or runs_list.opening_run(studio)
        return [gr.skip() if other == run_id else other, *paint(other, chosen, before)]

    def repaint(run_id: str, chosen: Choice) -> list[Any]:
        return paint(run_id, chosen, Shown())

    anew = [shared.run, choice]
    gr.on(None, begin, None, anew, **QUIET).then(repaint, anew, outputs, **QUIET)
    shared.run.change(None, js=browser.call("hideRun"), api_visibility="private")
    opened = shared.run.change(open_run, [*anew, seen], [shared.run, *outputs], **QUIET)
    opened.then(None, js=browser.call("showRun"), api_visibility="private")
    choice.change(paint, [*anew, seen], outputs, **QUIET)
    # Not oftener: for each answer Gradio's page looks at every component, which takes a slow browser half a second.
    gr.Timer(1).tick(paint, [*anew, seen], outputs, trigger_mode="once", **QUIET)


def look(studio: Studio, board: Board, run_id: str, choice: Choice, before: Shown) -> Shown:
    """What every part of the tab shows now. Costly parts are taken from `before` where nothing happened."""
    now, status = time.time(), studio.status_line()
    runs = studio.supervisor.runs()
    several = run_compare.chosen(runs, choice.ticked) if choice.comparing else []
    owner = studio.serving.owner if studio.serving.several and studio.workspace.owned else ""
    listed = runs_list.view(board, runs, choice, "" if len(several) > 1 else run_id, now, owner)
    if unread := studio.supervisor.unread:
        reading = text.progress(f"Reading {text.count(unread, 'older run')}")
        listed["list"] = listed["list"] + reading if runs else reading
    try:
        if len(several) > 1:
            whole = [studio.supervisor.state(run.id) for run in several]
            return Shown("", status, listed, {}, _compared(studio, whole, choice, before))
        if not run_id:
            return Shown("", status, listed)
        run = studio.supervisor.state(run_id)
    except StudioError:  # deleted meanwhile
        return Shown("", status, listed)
    chosen = Look(studio, run, studio.workspace.run(run.id), now)
    return Shown(run.id, status, listed, run_detail.view(chosen, before.detail if before.run == run.id else {}))


def _compared(studio: Studio, runs: list[RunState], choice: Choice, before: Shown) -> Seen:
    style = run_chart.kept_style(studio.workspace)
    stamp = (style, *((run.id, run.events, run.state) for run in runs))
    kept = before.compare.get("compare")
    if kept is not None and kept[0] == stamp:
        return before.compare
    return {"compare": (stamp, run_compare.view(studio, runs, len(choice.ticked), style))}
