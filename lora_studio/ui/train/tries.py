"""Below Start on the Train tab: lists of values that make a group of runs, and the search for a learning rate.

What is typed is kept in the workspace; a search is a job, which a reload finds again.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.groups import (
    MAX_SETTINGS,
    NOT_LEARNED,
    NOT_TRIED,
    Tries,
    Variant,
    check_group,
    heaviest,
    split_values,
    start_group,
    variants,
)
from lora_studio.jobs.kinds import SEARCH, ending_words
from lora_studio.jobs.preflight import ASK, FAILED, OK, check_before_start
from lora_studio.runs.rate_search import RateCurve, as_searched, rate_curve
from lora_studio.ui import html, plots, words
from lora_studio.ui.components import QUIET, Handover, Shared, Updates, Wish
from lora_studio.ui.plots import Axis, Mark, Series
from lora_studio.ui.studio import Studio
from lora_studio.units import count, float_text

DRAFT, SEARCHED = "tries", "rate-search"
RATE = "training.learning_rate"
FIRST = (RATE, "lora.r")
NONE = "None"
NO_SETTING = "Choose the setting that these values are for."
Read = Callable[[Sequence[Any]], Config]
"""The checked config of the form's values."""


@dataclass(frozen=True)
class Looked:
    """The search that is in sight, and how much of it was shown."""

    job: str = ""
    stamp: Hashable = None


@dataclass(frozen=True)
class TriesView:
    """The components of both folds. `pairs` are the fields of a setting and its values, `notes` what each lacks."""

    pairs: Sequence[tuple[gr.Dropdown, gr.Textbox]]
    notes: Sequence[gr.HTML]
    name: gr.Textbox
    weak: gr.Checkbox
    count: gr.HTML
    start: gr.Button
    result_box: gr.HTML
    search: gr.Button
    stop: gr.Button
    progress: gr.HTML
    plot: gr.HTML
    use: gr.Button
    looked_at: gr.State

    @property
    def typed(self) -> list[Any]:
        """What a person fills in, in the order of the draft."""
        return [*(widget for pair in self.pairs for widget in pair), self.name, self.weak]

    @property
    def searched(self) -> list[Any]:
        """What a search changes."""
        return [self.search, self.stop, self.progress, self.plot, self.use, self.looked_at]


def draw() -> TriesView:
    """Draws both folds, closed."""
    choices = [(NONE, ""), *((setting.title, setting.path) for setting in settings() if _can_be_tried(setting.path))]
    with gr.Accordion("Try several values", open=False, elem_id="tries"):
        gr.HTML(html.quiet("Each combination of values becomes a run of one group. Separate values by commas."))
        pairs, notes = [], []
        for number in range(MAX_SETTINGS):
            with gr.Row(elem_classes="tried"):
                path = FIRST[number] if number < len(FIRST) else ""
                setting = gr.Dropdown(
                    choices, value=path, label="Setting", elem_id=f"try-setting-{number}", min_width=120
                )
                hint = {RATE: "1e-4, 3e-4, 1e-3", "lora.r": "8, 16"}.get(path, "")
                listed = gr.Textbox(
                    label="Values", placeholder=hint, max_lines=1, elem_id=f"try-values-{number}", min_width=120
                )
                pairs.append((setting, listed))
            notes.append(gr.HTML(visible=False, elem_id=f"try-note-{number}"))
        name = gr.Textbox(label="Group name", placeholder="optional", max_lines=1, elem_id="try-name")
        weak = gr.Checkbox(
            label="Stop weak runs early", info="Successive halving, by the evaluations of the runs.", elem_id="try-weak"
        )
        counted = gr.HTML(elem_id="try-count")
        start = gr.Button("Start group", elem_id="try-start", interactive=False)
        result_box = gr.HTML(visible=False, elem_id="try-result")
    with gr.Accordion("Find a learning rate", open=False, elem_id="find-lr"):
        gr.HTML(html.quiet("Trains a few steps with a rising rate and shows where the loss falls."))
        with gr.Row(elem_classes="actions"):
            search = gr.Button("Find learning rate", size="sm", elem_id="find-lr-start")
            stop = gr.Button("Stop", size="sm", visible=False, elem_id="find-lr-stop")
        progress = gr.HTML(visible=False, elem_id="find-lr-progress")
        plot = gr.HTML(visible=False, elem_id="find-lr-plot")
        use = gr.Button("Use", size="sm", variant="primary", visible=False, elem_id="find-lr-use")
    state = gr.State(Looked())
    return TriesView(pairs, notes, name, weak, counted, start, result_box, search, stop, progress, plot, use, state)


def _can_be_tried(path: str) -> bool:
    return path not in NOT_TRIED and path.partition(".")[0] not in NOT_LEARNED


def tries_of(typed: Sequence[Any]) -> Tries:
    """The lists of the fields. Raises `StudioError` for a setting that is chosen twice."""
    tries: dict[str, list[str]] = {}
    for path, text in zip(typed[0 : 2 * MAX_SETTINGS : 2], typed[1 : 2 * MAX_SETTINGS : 2], strict=True):
        if not path or not str(text or "").strip():
            continue
        if path in tries:
            raise StudioError(f"{path} is listed twice.", "Give all of its values in one list.")
        tries[str(path)] = split_values(str(text))
    return tries


def row_notes(typed: Sequence[Any]) -> list[str]:
    """What each pair of a setting and its values lacks, "" for nothing."""
    pairs = zip(typed[0 : 2 * MAX_SETTINGS : 2], typed[1 : 2 * MAX_SETTINGS : 2], strict=True)
    return ["" if path or not str(text or "").strip() else NO_SETTING for path, text in pairs]


def counted(typed: Sequence[Any]) -> tuple[str, int]:
    """How many runs the lists make, in words and as a number; 0 while there is nothing to start."""
    try:
        lists = [len(values) for values in tries_of(typed).values()]
    except StudioError as error:
        return html.problem(error), 0
    number = 1
    for length in lists:
        number *= length
    if number < 2:
        return "", 0
    product = f" ({' × '.join(map(str, lists))})" if len(lists) > 1 else ""
    return html.quiet(f"{count(number, 'run')}{product}"), number


def wire(view: TriesView, shared: Shared, studio: Studio, widgets: Sequence[Any], read: Read) -> None:
    """Wires both folds; `widgets` are those of the form, `read` gives its config."""
    _wire_group(view, shared, studio, widgets, read)
    _wire_search(view, shared, studio, widgets, read)


def _wire_group(view: TriesView, shared: Shared, studio: Studio, widgets: Sequence[Any], read: Read) -> None:
    workspace, size = studio.workspace, len(view.typed)

    def count_runs(*typed: Any) -> Updates:
        text, number = counted(typed)
        updates = {view.count: text, view.start: _start_button(number)}
        try:
            workspace.write_draft(DRAFT, list(typed))
        except StudioError as error:
            return {**updates, view.result_box: gr.HTML(html.problem(error), visible=True)}
        return {**updates, view.result_box: gr.HTML(visible=False)}

    def noted(*typed: Any) -> Updates:
        notes = row_notes(typed)
        return {
            place: gr.HTML(html.render("text.row_error", note), visible=bool(note))
            for place, note in zip(view.notes, notes, strict=True)
        }

    def restore_lists() -> Updates:
        draft = workspace.read_draft(DRAFT)
        if not isinstance(draft, list) or len(draft) != size:
            return {view.count: ""}
        text, number = counted(draft)
        restored = dict(zip(view.typed, draft, strict=True))
        return {**restored, **noted(*draft), view.count: text, view.start: _start_button(number)}

    def start_runs(*values: Any) -> Iterator[Updates]:
        typed, raws = values[:size], values[size:]
        yield {view.result_box: gr.HTML(html.progress("Checking data, model, memory and disk"), visible=True)}
        name, weak = str(typed[-2] or ""), bool(typed[-1])
        try:
            made = variants(read(raws), tries_of(typed))
            check_group(studio.supervisor, made, name, stop_weak=weak)
            memory = _checked(studio, made)
            group_id, _ = start_group(studio.supervisor, made, name=name, stop_weak=weak, memory=memory)
        except StudioError as error:
            yield {view.result_box: gr.HTML(html.problem(error), visible=True)}
            return
        wish = Wish(group=group_id, time=time.time())
        yield {view.result_box: gr.HTML(visible=False), shared.wish: wish, shared.tabs: gr.Tabs(selected="runs")}

    outputs = [*view.typed, *view.notes, view.count, view.start, view.result_box]
    edits = [field.input for field in view.typed]
    gr.on(edits, count_runs, view.typed, outputs, trigger_mode="always_last", **QUIET)
    left = [event for setting, listed in view.pairs for event in (setting.input, listed.blur)]
    gr.on(left, noted, view.typed, view.notes, trigger_mode="always_last", **QUIET)
    gr.on(None, restore_lists, None, outputs, **QUIET)
    view.start.click(
        start_runs,
        [*view.typed, *widgets],
        [view.result_box, shared.wish, shared.tabs],
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=view.start,
        api_visibility="private",
    )


def _start_button(number: int) -> gr.Button:
    return gr.Button(f"Start {count(number, 'run')}" if number else "Start group", interactive=number > 1)


def _checked(studio: Studio, made: Sequence[Variant]) -> int | None:
    """The memory that the heaviest run needs. Raises `StudioError` where it would fail."""
    config = heaviest(made)
    report = check_before_start(config, studio.workspace, studio.inspector, busy=bool(studio.supervisor.busy(config)))
    if report.state == FAILED:
        failed = next(check for check in report.checks if check.state == FAILED)
        raise StudioError(f"The run that needs most memory would fail. {failed.title}: {failed.found}", failed.advice)
    if report.state == ASK:
        raise StudioError(
            "The run that needs most memory probably does not fit.",
            "Try smaller values, or start it alone.",
        )
    return report.memory if report.state == OK else None


def _wire_search(view: TriesView, shared: Shared, studio: Studio, widgets: Sequence[Any], read: Read) -> None:
    supervisor, workspace = studio.supervisor, studio.workspace

    def start_search(*raws: Any) -> Updates:
        try:
            job_id = supervisor.launch(as_searched(read(raws)), kind=SEARCH)
        except StudioError as error:
            return {view.progress: gr.HTML(html.problem(error), visible=True)}
        workspace.write_draft(SEARCHED, job_id)
        return look_at_search(Looked(job_id))

    def look_at_search(before: Looked) -> Updates:
        try:
            state = supervisor.state(before.job) if before.job else None
        except StudioError:  # deleted meanwhile
            state = None
        stamp = (state.events, state.state, state.waiting) if state else ()
        if before.stamp == stamp:
            return {view.looked_at: gr.skip()}
        return {**search_updates(view, state), view.looked_at: Looked(before.job if state else "", stamp)}

    def restore_search() -> Updates:
        return look_at_search(Looked(str(workspace.read_draft(SEARCHED) or "")))

    def stop_search(before: Looked) -> Updates:
        try:
            supervisor.stop(before.job)
        except StudioError as error:
            return {view.progress: gr.HTML(html.problem(error), visible=True)}
        return look_at_search(Looked(before.job))

    def use_rate(before: Looked) -> Handover:
        rate = rate_curve(supervisor.state(before.job).steps).suggestion
        return Handover(time.time(), {RATE: rate}, "Suggested learning rate")

    view.search.click(start_search, list(widgets), view.searched, trigger_mode="once", **QUIET)
    view.stop.click(stop_search, view.looked_at, view.searched, **QUIET)
    gr.Timer(1).tick(look_at_search, view.looked_at, view.searched, trigger_mode="once", **QUIET)
    view.use.click(use_rate, view.looked_at, shared.data, **QUIET)
    gr.on(None, restore_search, None, view.searched, **QUIET)


def search_updates(view: TriesView, state: RunState | None) -> Updates:
    """What the fold shows of a search; None where none was started."""
    if state is None:
        hidden = {part: gr.update(visible=False) for part in (view.stop, view.progress, view.plot, view.use)}
        return {**hidden, view.search: gr.Button(interactive=True)}
    curve = rate_curve(state.steps)
    going, done = not state.final, state.state == "done"
    rate = curve.suggestion if done else None
    return {
        view.search: gr.Button(interactive=not going),
        view.stop: gr.Button(visible=state.state in ("running", "queued")),
        view.progress: gr.HTML(search_words(state, curve), visible=True),
        view.plot: gr.HTML(search_plot(curve, shows_suggestion=done), visible=bool(curve.rates)),
        view.use: gr.Button(f"Use {float_text(rate)}" if rate else "Use", visible=rate is not None),
    }


def search_words(state: RunState, curve: RateCurve) -> str:
    """How far a search is, or what came of it."""
    if state.state == "queued":
        return html.quiet(f"Queued. {state.waiting}".strip())
    if not state.final:
        phase = words.PHASES.get(state.phase, "starting")
        steps = f", step {state.step} of {state.total_steps}" if state.phase == "train" and state.total_steps else ""
        return html.progress(f"{phase[:1].upper()}{phase[1:]}{steps}")
    if state.state != "done":
        message, hint = ending_words(state)
        return html.notice(message or "Stopped.", hint, "error" if state.state == "failed" else "info")
    return html.quiet(curve.words)


def search_plot(curve: RateCurve, *, shows_suggestion: bool) -> str:
    """The losses of a search against the rate, with the suggestion marked."""
    raw = list(zip(curve.rates, curve.losses, strict=True))
    smooth = list(zip(curve.rates, curve.smooth, strict=False))
    marks = []
    if shows_suggestion and curve.suggestion is not None:
        marks = [Mark(curve.suggestion, f"suggested {float_text(curve.suggestion)}")]
    top = 2.5 * max(curve.smooth[:3], default=1.0)  # of losses that diverge the curve before would be flat
    lines = [
        Series("loss", [(rate, loss) for rate, loss in raw if loss <= top], 1, pale=True),
        Series("smoothed", [(rate, loss) for rate, loss in smooth if loss <= top], 1),
    ]
    across, up = Axis("Learning rate", True), Axis("Training loss")
    return plots.picture(across, up, lines=lines, marks=marks)
