"""Where a run is set up and started: model, data, recipe, settings, what they come to, Start.

The form is kept as typed in the workspace, so that a reload or restart brings it back. What runs is what the form says
at the click, checked whole before anything starts.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lora_studio.config.parsing import ConfigError
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.preflight import ASK, FAILED, check_before_start
from lora_studio.ui import html, theme
from lora_studio.ui.components import EventOptions, Shared, Starter, Updates
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import card as plan_card
from lora_studio.ui.train import form_state, handlers, tries
from lora_studio.ui.train import view as views
from lora_studio.ui.train.form_state import ReportedProblems
from lora_studio.ui.train.view import FormState, TrainView


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    view = views.draw(studio.workspace, shared.start)
    handlers.wire(view, shared, studio)
    tries.wire(view.tries, shared, studio, view.form.widgets, lambda raws: form_state.checked(raws, studio.workspace))
    _start(view, shared, studio)


STARTING: EventOptions = {"trigger_mode": "once", "show_progress": "minimal", "api_visibility": "private"}


def _start(view: TrainView, shared: Shared, studio: Studio) -> None:
    """Start checks first what would make the run fail; a run whose memory will hardly do asks once more."""
    starter = Starter()

    def start(preset: str | None, reported: ReportedProblems, *raws: Any) -> Iterator[Updates]:
        yield {view.checks: gr.HTML(html.progress("Checking data, model, memory and disk"), visible=True)}
        form, state = form_state.read(raws, studio.workspace), (preset, raws)
        try:
            if isinstance(form, ConfigError):
                raise form
            busy = bool(studio.supervisor.busy(form))
            report = check_before_start(form, studio.workspace, studio.inspector, busy=busy)
        except StudioError as error:
            yield refused(error, reported, form, state)
            return
        if report.state in (FAILED, ASK):
            holders = (
                plan_card.beside(studio.supervisor.allocation(), form.compute.device) if report.state == ASK else ""
            )
            updates = {view.checks: gr.HTML(plan_card.checks(report) + holders, visible=True)}
            yield {**updates, view.anyway: gr.Button(visible=report.state == ASK)}
            return
        yield begin(reported, form, state, report.memory)

    def start_anyway(preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        return begin(reported, form_state.read(raws, studio.workspace), (preset, raws))

    def refused(
        error: StudioError, reported: ReportedProblems, form: Config | ConfigError, state: FormState
    ) -> Updates:
        if isinstance(error, ConfigError):
            reported.paths, reported.general = tuple(item.path for item in error.problems), ()
            return views.look(view, studio, state, form, reported)
        return {view.summary: gr.HTML(html.problem(error), visible=True), view.checks: gr.HTML(visible=False)}

    def begin(
        reported: ReportedProblems, form: Config | ConfigError, state: FormState, memory: int | None = None
    ) -> Updates:
        try:
            if isinstance(form, ConfigError):
                raise form
            config, visitor = form, studio.workspace.policy.owner_id
            run_id = starter.start((config, visitor), lambda: studio.supervisor.launch(config, memory=memory))
        except StudioError as error:
            return refused(error, reported, form, state)
        views.forget_changes(view, studio.workspace)
        reported.paths = reported.general = ()
        updates = {**views.look(view, studio, state, form, reported), view.changes.row: gr.Row(visible=False)}
        return {**updates, shared.run: run_id, shared.tabs: gr.Tabs(selected="runs")}

    for button, handler in ((view.start, start), (view.anyway, start_anyway)):
        clicked = button.click(
            handler,
            [view.preset, view.reported, *view.form.widgets],
            [*view.outputs, shared.run, shared.tabs],
            show_progress_on=button,
            **STARTING,
        )
        button.click(None, js=theme.call("hideRun"), api_visibility="private")
        clicked.then(None, js=theme.call("started"), api_visibility="private")
