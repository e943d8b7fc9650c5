"""The Runs tab: the list of runs at the left, and beside it the selected run, or several runs compared.

A timer looks for news once a second; what did not change is not sent.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.ui import html, job_views, theme
from lora_studio.ui.components import QUIET, Shared
from lora_studio.ui.runs import charts, details, groups, header, queue, results, table
from lora_studio.ui.runs.table import RunBoard, TableChoice
from lora_studio.ui.studio import PageSection, RunView, Studio, ViewState, ViewValues, refresh_view, updates

TOP: dict[str, PageSection] = {
    "head": PageSection(header.build_head, header.stamp_head, header.view_head),
    "verdict": PageSection(details.build_verdict, details.stamp_health, details.view_verdict),
    "numbers": PageSection(header.build_numbers, header.stamp_numbers, header.view_numbers),
    "chart": PageSection(charts.build_chart, charts.stamp_chart, charts.view_chart),
}
DETAILS: dict[str, PageSection] = {
    "details": PageSection(header.build_details, details.stamp_health, header.view_details),
    "health": PageSection(details.build_health, details.stamp_health, details.view_health),
    "labels": PageSection(details.build_labels, details.stamp_labels, details.view_labels),
}
TABS: dict[str, PageSection] = {
    "Samples": PageSection(results.build_answers, results.stamp_answers, results.view_answers),
    "Checkpoints": PageSection(results.build_checkpoints, results.stamp_checkpoints, results.view_checkpoints),
    "Evaluations": PageSection(results.build_evaluations, results.stamp_evaluations, results.view_evaluations),
    "Settings": PageSection(details.build_settings, details.stamp_settings, details.view_settings),
    "Log": PageSection(details.build_log, details.stamp_log, details.view_log),
    "Report": PageSection(results.build_report, results.stamp_report, results.view_report),
}
SECTIONS = {**TOP, **DETAILS, **TABS}
routes = queue.routes
"""What the page's script asks of this tab."""
Parts = dict[tuple[str, str], Any]
"""Components by (section, name)."""


def build_sections(studio: Studio, shared: Shared) -> Parts:
    """Draws the page of a run: what is seen first, a fold with the rest, and tabs."""
    parts = _drawn(TOP, studio, shared)
    with gr.Accordion("Details", open=False, elem_id="run-details") as fold:
        parts |= _drawn(DETAILS, studio, shared) | {("details", "fold"): fold}
    with gr.Tabs(elem_id="run-tabs", overflow_behavior="wrap"):
        for label, section in TABS.items():
            with gr.Tab(label, id=f"run-{label.lower()}", elem_id=f"run-tab-{label.lower()}"):
                parts |= _drawn({label: section}, studio, shared)
    return parts


def _drawn(sections: Mapping[str, PageSection], studio: Studio, shared: Shared) -> Parts:
    return {
        (name, part): component
        for name, section in sections.items()
        for part, component in section.build(studio, shared).items()
    }


def view_sections(view: RunView, before: ViewState) -> ViewState:
    """What every section shows."""
    return refresh_view(SECTIONS, view, before)


@dataclass(frozen=True)
class Shown:
    """What the page shows: the list's parts by name, the selected run with its sections, or several runs; and the line
    at the top of the page, which must agree with them. `whole` shows the table of all runs alone."""

    run: str = ""
    status: str = ""
    listed: ViewValues = field(default_factory=dict)
    detail: ViewState = field(default_factory=dict)
    compare: ViewState = field(default_factory=dict)
    group: ViewState = field(default_factory=dict)
    whole: bool = False
    empty: bool = False

    @property
    def places(self) -> tuple[bool, ...]:
        """Whether the page beside the list is in sight, on it a run, several or a group, and the way to a first run."""
        looked_at = (bool(self.run), bool(self.compare), bool(self.group))
        return any(looked_at) and not self.whole, *looked_at, self.empty


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    board = RunBoard(studio.workspace)
    with gr.Row(elem_classes="runs-layout"):
        with gr.Column(elem_classes="runs-rail", scale=0, min_width=0):
            listed, choice = table.build(studio, shared)
            first = _first_run(shared)
            queue.build_notify(studio)
        with gr.Column(visible=False, elem_classes="run-page", min_width=0) as page:
            gr.HTML(html.render("runs.back"), js_on_load=theme.on_load("runBack"), elem_id="runs-back")
            with gr.Column(visible=False, elem_classes="runs-compared") as several:
                compared = charts.build_compare(studio, shared, choice)
            with gr.Column(visible=False, elem_classes="runs-compared run-group") as together:
                grouped = groups.build_group(studio, shared, choice)
            with gr.Column(visible=False, elem_classes="run-looked-at") as single:
                parts = build_sections(studio, shared)
    linked, state = gr.Textbox(visible=False), gr.State(Shown())
    outputs = [
        *listed.values(),
        *parts.values(),
        *compared.values(),
        *grouped.values(),
        page,
        single,
        several,
        together,
        first,
        shared.status,
        state,
    ]

    def paint(run_id: str, choice: TableChoice, before: Shown) -> list[Any]:
        now = look(studio, board, run_id, choice, before)
        if now == before:
            return [gr.skip()] * len(outputs)
        top = updates([("list", name) for name in listed], {"list": (0, now.listed)}, {"list": (0, before.listed)})
        comparison = updates([("compare", name) for name in compared], now.compare, before.compare)
        group = updates([("group", name) for name in grouped], now.group, before.group)
        pairs = zip(now.places, before.places, strict=True)
        places = [gr.update(visible=place) if place != visible else gr.skip() for place, visible in pairs]
        detail = before.detail if before.run == now.run else {}  # another run: what was typed for this one goes, too
        status = now.status if now.status != before.status else gr.skip()
        return [*top, *updates(list(parts), now.detail, detail), *comparison, *group, *places, status, now]

    def open_run(run_id: str, choice: TableChoice, before: Shown) -> list[Any]:
        """Another run is selected, and shown at once; in the place of one that is gone, the newest."""
        other = run_id or table.opening_run(studio)
        if run_id and run_id != before.run and (choice.comparing or choice.whole or choice.group):
            choice = replace(choice, comparing=False, whole=False, group="")
        return [gr.skip() if other == run_id else other, choice, *paint(other, choice, before)]

    anew = [shared.run, choice]
    first_look = gr.on(None, partial(_opening, studio), linked, anew, js="() => studio.askedRun", **QUIET)
    first_look.then(lambda run_id, choice: paint(run_id, choice, Shown()), anew, outputs, **QUIET)
    shared.run.change(None, js=theme.call("hideRun"), api_visibility="private")
    opened = shared.run.change(open_run, [*anew, state], [*anew, *outputs], **QUIET)
    opened.then(None, js=theme.call("showRun"), api_visibility="private")
    choice.change(paint, [*anew, state], outputs, **QUIET)
    shared.wish.change(groups.wished, [shared.wish, choice], choice, **QUIET)
    # Not oftener: for each answer Gradio's page looks at every component, which takes a slow browser half a second.
    gr.Timer(1).tick(paint, [*anew, state], outputs, trigger_mode="once", **QUIET)


def _opening(studio: Studio, address: str) -> tuple[str, TableChoice]:
    """The run and the choice that the page opens with; `address` names a run that a link led to."""
    return table.opening_run(studio, address), table.opening_choice(studio)


def _first_run(shared: Shared) -> gr.Button:
    """The way to a first run, in sight while there is none."""
    button = gr.Button("Train the demo", variant="primary", visible=False, scale=0, elem_id="runs-train-demo")
    job_views.wire_train_demo(button, shared)
    return button


def look(studio: Studio, board: RunBoard, run_id: str, choice: TableChoice, before: Shown) -> Shown:
    """What every part of the tab shows now. Costly parts are taken from `before` if nothing happened."""
    now, status = time.time(), studio.status_line()
    runs = studio.supervisor.runs()
    several = charts.chosen(runs, choice.ticked) if choice.comparing else []
    group = groups.members(board.rows(runs), choice.group) if choice.group and not choice.comparing else []
    owner = studio.audience.owner if studio.workspace.policy.is_admin else ""
    listed = table.view(board, runs, choice, "" if len(several) > 1 else run_id, now, owner) | queue.view_queue(studio)
    if unread := studio.supervisor.unread:
        reading = html.progress(f"Reading {html.count(unread, 'older run')}")
        listed["list"] = f"{listed['list']}{reading}" if runs else reading
    empty = not runs and not studio.supervisor.unread
    result = Shown("", status, listed, whole=choice.whole, empty=empty)
    if group:
        return replace(result, group=groups.view_group(studio, group, choice, before.group))
    try:
        if len(several) > 1:
            whole = [studio.supervisor.state(run.id) for run in several]
            return replace(result, compare=_compared(studio, whole, choice, before))
        if not run_id:
            return result
        run = studio.supervisor.state(run_id)
    except StudioError:  # deleted meanwhile
        return result
    view = RunView(studio, run, studio.workspace.run(run.id), now)
    return replace(result, run=run.id, detail=view_sections(view, before.detail if before.run == run.id else {}))


def _compared(studio: Studio, runs: Sequence[RunState], choice: TableChoice, before: Shown) -> ViewState:
    style = charts.kept_style(studio.workspace)
    stamp = (style, *((run.id, run.events, run.state) for run in runs))
    cached = before.compare.get("compare")
    if cached is not None and cached[0] == stamp:
        return before.compare
    return {"compare": (stamp, charts.view_compare(studio, runs, len(choice.ticked), style))}
