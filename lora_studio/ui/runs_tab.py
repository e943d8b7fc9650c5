"""The runs: a list, and all about the one that is looked at, painted from its folder and from nothing else.

A timer looks for news once a second; what did not change is not sent. The list is in runs_list.py, a run's sections in
run_detail.py; how a section is added stands in run_section.py. Acting on a run is the supervisor's matter.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lora_studio.ui import run_detail, runs_list
from lora_studio.ui.run_section import QUIET, Look, Seen, updates
from lora_studio.ui.studio import Shared, Studio


@dataclass(frozen=True)
class Shown:
    """What the page shows: the parts of the list by name, the sections of the run that is looked at."""

    run: str = ""
    board: dict[str, Any] = field(default_factory=dict)
    detail: Seen = field(default_factory=dict)


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    with gr.Row(elem_classes="runs"):
        with gr.Column(scale=1, min_width=260):
            board = runs_list.build(studio, shared)
        with gr.Column(scale=3, min_width=320, visible=False) as whole:
            parts = run_detail.build(studio, shared)
    seen = gr.State(Shown())

    def paint(run_id: str, before: Shown) -> list[Any]:
        now = look(studio, run_id, before)
        if now == before:
            return [gr.skip()] * (len(board) + len(parts) + 2)
        top = updates([("list", name) for name in board], {"list": (0, now.board)}, {"list": (0, before.board)})
        there = gr.Column(visible=bool(now.run)) if bool(now.run) != bool(before.run) else gr.skip()
        return [*top, *updates(list(parts), now.detail, before.detail), there, now]

    def repaint(run_id: str) -> list[Any]:
        return paint(run_id, Shown())

    def follow(run_id: str) -> Any:
        """The run that is looked at is gone: another takes its place."""
        return gr.skip() if run_id else runs_list.opening_run(studio)

    outputs = [*board.values(), *parts.values(), whole, seen]
    gr.on(None, lambda: runs_list.opening_run(studio), None, shared.run, **QUIET).then(
        repaint, shared.run, outputs, **QUIET
    )
    shared.run.change(follow, shared.run, shared.run, **QUIET).then(repaint, shared.run, outputs, **QUIET)
    gr.Timer(1).tick(paint, [shared.run, seen], outputs, trigger_mode="once", **QUIET)


def look(studio: Studio, run_id: str, before: Shown) -> Shown:
    """What every part of the tab shows now. Costly parts are taken from `before` where nothing happened."""
    now = time.time()
    runs = studio.supervisor.runs()
    board = runs_list.view(runs, run_id, now)
    run = next((item for item in runs if item.id == run_id), None)
    if run is None:
        return Shown("", board)
    chosen = Look(studio, run, studio.workspace.run(run.id), now)
    return Shown(run.id, board, run_detail.view(chosen, before.detail if before.run == run.id else {}))
