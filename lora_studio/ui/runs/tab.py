"""The runs tab: the table of runs, and the sections of the selected run or a comparison of several.

A timer looks for news once a second; what did not change is not sent.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.ui import charts, html, theme
from lora_studio.ui.runs import details, header, results, table
from lora_studio.ui.runs import results as queue
from lora_studio.ui.runs import table as run_compare
from lora_studio.ui.runs.table import RunBoard, TableChoice
from lora_studio.ui.studio import (
    QUIET,
    PageSection,
    RunView,
    Shared,
    Studio,
    ViewState,
    ViewValues,
    refresh_view,
    updates,
)

SECTIONS: dict[str, PageSection] = {
    "queue": PageSection(queue.build_queue, queue.stamp_queue, queue.view_queue),
    "head": PageSection(header.build_head, header.stamp_head, header.view_head),
    "outcome": PageSection(header.build_outcome, header.stamp_outcome, header.view_outcome),
    "life": PageSection(header.build_life, header.stamp_life, header.view_life),
    "progress": PageSection(header.build_progress, header.stamp_progress, header.view_progress),
    "memory": PageSection(details.build_memory, details.stamp_memory, details.view_memory),
    "health": PageSection(details.build_health, details.stamp_health, details.view_health),
    "chart": PageSection(charts.build_chart, charts.stamp_chart, charts.view_chart),
    "answers": PageSection(results.build_answers, results.stamp_answers, results.view_answers),
    "labels": PageSection(details.build_labels, details.stamp_labels, details.view_labels),
    "checkpoints": PageSection(results.build_checkpoints, results.stamp_checkpoints, results.view_checkpoints),
    "evaluations": PageSection(results.build_evaluations, results.stamp_evaluations, results.view_evaluations),
    "report": PageSection(details.build_report, details.stamp_report, details.view_report),
    "files": PageSection(details.build_files, details.stamp_files, details.view_files),
}


def build_sections(studio: Studio, shared: Shared) -> dict[tuple[str, str], Any]:
    """Draws every section; its components by (section, name)."""
    return {
        (name, part): component
        for name, section in SECTIONS.items()
        for part, component in section.build(studio, shared).items()
    }


def view_sections(view: RunView, before: ViewState) -> ViewState:
    """What every section shows."""
    return refresh_view(SECTIONS, view, before)


@dataclass(frozen=True)
class Shown:
    """What the page shows: the table's parts by name, the run that is looked at with its sections, or several runs;
    and the line at the top of the page, which must not say otherwise."""

    run: str = ""
    status: str = ""
    listed: ViewValues = field(default_factory=dict)
    detail: ViewState = field(default_factory=dict)
    compare: ViewState = field(default_factory=dict)

    @property
    def places(self) -> tuple[bool, bool]:
        """Whether one run, and whether several are in sight."""
        return bool(self.run), bool(self.compare)


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    board = RunBoard(studio.workspace)
    listed, choice = table.build(studio, shared)
    with gr.Column(visible=False, elem_classes="runs-compared") as several:
        compared = run_compare.build_compare(studio)
    with gr.Column(visible=False, elem_classes="run-looked-at") as single:
        parts = build_sections(studio, shared)
    state = gr.State(Shown())
    outputs = [*listed.values(), *parts.values(), *compared.values(), single, several, shared.status, state]

    def paint(run_id: str, choice: TableChoice, before: Shown) -> list[Any]:
        now = look(studio, board, run_id, choice, before)
        if now == before:
            return [gr.skip()] * len(outputs)
        top = updates([("list", name) for name in listed], {"list": (0, now.listed)}, {"list": (0, before.listed)})
        comparison = updates([("compare", name) for name in compared], now.compare, before.compare)
        places = [
            gr.Column(visible=place) if place != visible else gr.skip()
            for place, visible in zip(now.places, before.places, strict=True)
        ]
        detail = before.detail if before.run == now.run else {}  # another run: what was typed for this one goes, too
        status = now.status if now.status != before.status else gr.skip()
        return [*top, *updates(list(parts), now.detail, detail), *comparison, *places, status, now]

    def begin() -> tuple[str, TableChoice]:
        return table.opening_run(studio), table.opening_choice(studio)

    def open_run(run_id: str, choice: TableChoice, before: Shown) -> list[Any]:
        """Another run is looked at; in the place of one that is gone, the newest."""
        other = run_id or table.opening_run(studio)
        return [gr.skip() if other == run_id else other, *paint(other, choice, before)]

    def repaint(run_id: str, choice: TableChoice) -> list[Any]:
        return paint(run_id, choice, Shown())

    anew = [shared.run, choice]
    gr.on(None, begin, None, anew, **QUIET).then(repaint, anew, outputs, **QUIET)
    shared.run.change(None, js=theme.call("hideRun"), api_visibility="private")
    opened = shared.run.change(open_run, [*anew, state], [shared.run, *outputs], **QUIET)
    opened.then(None, js=theme.call("showRun"), api_visibility="private")
    choice.change(paint, [*anew, state], outputs, **QUIET)
    # Not oftener: for each answer Gradio's page looks at every component, which takes a slow browser half a second.
    gr.Timer(1).tick(paint, [*anew, state], outputs, trigger_mode="once", **QUIET)


def look(studio: Studio, board: RunBoard, run_id: str, choice: TableChoice, before: Shown) -> Shown:
    """What every part of the tab shows now. Costly parts are taken from `before` where nothing happened."""
    now, status = time.time(), studio.status_line()
    runs = studio.supervisor.runs()
    several = run_compare.chosen(runs, choice.ticked) if choice.comparing else []
    owner = studio.serving.owner if studio.serving.several and studio.workspace.policy.is_admin else ""
    listed = table.view(board, runs, choice, "" if len(several) > 1 else run_id, now, owner)
    if unread := studio.supervisor.unread:
        reading = html.progress(f"Reading {html.count(unread, 'older run')}")
        listed["list"] = f"{listed['list']}{reading}" if runs else reading
    try:
        if len(several) > 1:
            whole = [studio.supervisor.state(run.id) for run in several]
            return Shown("", status, listed, {}, _compared(studio, whole, choice, before))
        if not run_id:
            return Shown("", status, listed)
        run = studio.supervisor.state(run_id)
    except StudioError:  # deleted meanwhile
        return Shown("", status, listed)
    view = RunView(studio, run, studio.workspace.run(run.id), now)
    return Shown(run.id, status, listed, view_sections(view, before.detail if before.run == run.id else {}))


def _compared(studio: Studio, runs: list[RunState], choice: TableChoice, before: Shown) -> ViewState:
    style = charts.kept_style(studio.workspace)
    stamp = (style, *((run.id, run.events, run.state) for run in runs))
    cached = before.compare.get("compare")
    if cached is not None and cached[0] == stamp:
        return before.compare
    return {"compare": (stamp, run_compare.view_compare(studio, runs, len(choice.ticked), style))}
