"""The head of a run on the Runs tab: name, state, progress and actions in one row; and its numbers."""

import contextlib
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import gradio as gr

from lora_studio.config.parsing import load_config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import batch_note, change_processes
from lora_studio.jobs.events import RunState, StepLogged
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.runs.summary import settings_of
from lora_studio.ui import html, theme, words
from lora_studio.ui.components import QUIET, Components, Handover, Shared, Wish, opening, stat_of
from lora_studio.ui.html import render
from lora_studio.ui.runs import table
from lora_studio.ui.runs.results import summary_text
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.ui.words import clock, elapsed, figure, unit_of_loss
from lora_studio.units import GIB, dollars

Variant = Literal["primary", "secondary"]
BUTTONS: tuple[tuple[str, str, Variant], ...] = (
    ("stop", "Stop", "secondary"),
    ("export", "Export", "secondary"),
    ("chat", "Chat", "primary"),
)
MENU = (
    ("resume", "Resume"),
    ("other_rows", "Resume with changed rows"),
    ("processes", "Resume with other processes…"),
    ("further", "Continue training…"),
    ("again", "Duplicate and edit"),
    ("copy", "Copy summary"),
    ("cancel", "Cancel now"),
    ("delete", "Delete…"),
)


def build_head(studio: Studio, shared: Shared) -> Components:
    """Headline and buttons, a menu with the others, and what these ask before they act."""
    buttons: dict[str, gr.Button] = {}
    with gr.Row(elem_classes="run-top"):
        headline = gr.HTML(elem_id="run-headline", min_width=160)
        with gr.Row(elem_classes="actions", scale=0):
            for name, label, variant in BUTTONS:
                buttons[name] = gr.Button(
                    label, variant=variant, size="md", visible=False, scale=0, min_width=0, elem_id=f"run-{name}"
                )
            gr.Button("More", size="md", scale=0, min_width=0, elem_id="run-more", elem_classes="opens-menu")
            with gr.Column(elem_classes="menu", elem_id="run-menu", min_width=0):
                for name, label in MENU:
                    buttons[name] = gr.Button(label, size="md", visible=False, elem_id=f"run-{name}")
    _build_deletion(studio, shared, buttons["delete"])
    _build_processes(studio, shared, buttons["processes"])
    _build_continuation(studio, shared, buttons["further"])
    error_box = gr.HTML(visible=False)
    _wire(studio, shared, buttons, error_box)
    return {"headline": headline, **buttons}


def _wire(studio: Studio, shared: Shared, buttons: dict[str, gr.Button], error_box: gr.HTML) -> None:
    def again(run_id: str) -> tuple[Any, Any, Any]:
        try:
            config = settings_of(studio.workspace.run(run_id), studio.supervisor.state(run_id))
        except StudioError as error:
            return gr.skip(), gr.skip(), gr.HTML(html.problem(error), visible=True)
        handover = Handover(time.time(), flatten(config), f"Copied from {run_id}")
        return handover, gr.Tabs(selected="train"), gr.HTML(visible=False)

    actions = {"stop": studio.supervisor.stop, "cancel": studio.supervisor.cancel, "resume": studio.supervisor.resume}
    for name, action in actions.items():
        buttons[name].click(acting(action), shared.run, error_box, **QUIET)
    with_changed_rows = partial(studio.supervisor.resume, other_rows=True)
    buttons["other_rows"].click(acting(with_changed_rows), shared.run, error_box, **QUIET)
    for tab in ("chat", "export"):
        buttons[tab].click(partial(_open, tab), shared.run, [shared.wish, shared.tabs], **QUIET)
    buttons["again"].click(again, shared.run, [shared.form, shared.tabs, error_box], **QUIET)
    buttons["copy"].click(None, js=theme.call("copySummary"), api_visibility="private")
    shared.run.change(lambda: gr.HTML(visible=False), None, error_box, **QUIET)


def _build_deletion(studio: Studio, shared: Shared, button: gr.Button) -> None:
    """The question before the run is deleted."""
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=200)
        yes = gr.Button("Delete for good", variant="stop", elem_id="run-delete-yes", size="md", scale=0, min_width=150)
        no = gr.Button("Keep run", elem_id="run-delete-no", size="md", scale=0, min_width=100)
    error_box = gr.HTML(visible=False)

    def ask(run_id: str) -> tuple[Any, Any]:
        return gr.Row(visible=True), table.deletion_question(studio, [run_id])

    def delete(run_id: str) -> tuple[Any, Any, Any]:
        problems = table.delete_runs(studio, [run_id])
        return gr.skip() if problems else "", gr.Row(visible=False), gr.HTML(problems, visible=bool(problems))

    button.click(ask, shared.run, [confirm, question], **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(delete, shared.run, [shared.run, confirm, error_box], **QUIET)
    shared.run.change(lambda: (gr.Row(visible=False), gr.HTML(visible=False)), None, [confirm, error_box], **QUIET)


def _build_processes(studio: Studio, shared: Shared, button: gr.Button) -> None:
    """Resumes a run in another number of processes, and tells before what becomes of its batches."""
    with gr.Column(visible=False, elem_id="run-processes-row", min_width=0) as row:
        with gr.Row(elem_classes="run-life-row"):
            count = gr.Number(label="Processes", precision=0, minimum=1, scale=0, min_width=120, elem_id="run-in")
            resume = gr.Button("Resume", variant="primary", size="md", scale=0, min_width=0, elem_id="run-in-resume")
            close = gr.Button("Close", size="md", scale=0, min_width=0)
        batch_line = gr.HTML(elem_id="run-in-batch")
    error_box = gr.HTML(visible=False)

    def show(run_id: str) -> tuple[Any, ...]:
        try:
            now = load_config(studio.workspace.run(run_id).config).compute.world_size
        except StudioError as error:
            return gr.Column(visible=False), gr.skip(), gr.skip(), gr.HTML(html.problem(error), visible=True)
        return gr.Column(visible=True), now, batch_after(studio, run_id, now), gr.HTML(visible=False)

    def act(run_id: str, processes: float | None) -> tuple[Any, Any]:
        try:
            resume_in(studio, run_id, processes)
        except StudioError as error:
            return gr.skip(), gr.HTML(html.problem(error), visible=True)
        return gr.Column(visible=False), gr.HTML(visible=False)

    button.click(show, shared.run, [row, count, batch_line, error_box], **QUIET)
    count.input(partial(batch_after, studio), [shared.run, count], batch_line, **QUIET)
    gr.on([resume.click, count.submit], act, [shared.run, count], [row, error_box], **QUIET)
    close.click(lambda: gr.Column(visible=False), None, row, **QUIET)
    shared.run.change(lambda: (gr.Column(visible=False), gr.HTML(visible=False)), None, [row, error_box], **QUIET)


def batch_after(studio: Studio, run_id: str, processes: float | None) -> str:
    """What a step of a run becomes in so many processes, in a sentence."""
    try:
        config, state = load_config(studio.workspace.run(run_id).config), studio.supervisor.state(run_id)
    except StudioError as error:
        return html.problem(error)
    if not processes or processes < 1:
        return html.hint("Type a number of processes, such as 1.")
    begun = state.first_processes if state.events else int(processes)
    return html.hint(batch_note(config, begun, int(processes)))


def resume_in(studio: Studio, run_id: str, processes: float | None) -> None:
    """Resumes a run in so many processes. Raises `StudioError` where that can't be."""
    supervisor, run = studio.supervisor, studio.workspace.run(run_id)
    if not processes or processes < 1:
        raise StudioError("How many processes?", "Type a number from 1.")
    studio.workspace.policy.check_may("change the processes of a run")
    if supervisor.state(run_id).final:
        change_processes(run, str(int(processes)), supervisor.devices())
    supervisor.resume(run_id)


def may_share(view: RunView) -> bool:
    """Whether an ended run may go on in another number of processes: it had several, or there are several GPUs."""
    run = view.run
    if run.state not in ("stopped", "failed") or words.place_of(run):  # a target has its own number
        return False
    if max(run.processes, run.first_processes, sum(each.is_gpu for each in view.studio.supervisor.devices())) > 1:
        return True
    with contextlib.suppress(StudioError):  # settings of another version
        return load_config(view.folder.config).compute.world_size > 1  # it ended before its processes began
    return False


MORE_EPOCHS = "The learning rate follows the schedule of the longer run."


def _build_continuation(studio: Studio, shared: Shared, button: gr.Button) -> None:
    """Two ways on: more epochs of the same run, or a new run from its adapter."""
    with gr.Row(visible=False, elem_classes="run-life-row", elem_id="run-further-row") as row:
        epochs = gr.Number(
            1, label="Epochs to add", info=MORE_EPOCHS, minimum=0, scale=1, min_width=200, elem_id="run-epochs"
        )
        more = gr.Button("Train more epochs", size="md", scale=0, min_width=0, elem_id="run-extend")
        following = gr.Button("Start from this adapter", size="md", scale=0, min_width=0, elem_id="run-continue")
        close = gr.Button("Close", size="md", scale=0, min_width=0)
    error_box = gr.HTML(visible=False)

    def show(run_id: str) -> tuple[Any, Any, Any]:
        longer, usable = ways_on(studio, run_id)
        return gr.Row(visible=True), gr.Button(interactive=longer), gr.Button(interactive=usable)

    def extend(run_id: str, epochs: float | None) -> tuple[Any, Any]:
        try:
            studio.supervisor.resume(run_id, checked(epochs))
        except StudioError as error:
            return gr.skip(), gr.HTML(html.problem(error), visible=True)
        return gr.Row(visible=False), gr.HTML(visible=False)

    def start_from(run_id: str) -> tuple[Handover, gr.Tabs]:
        return continuation(studio, run_id), gr.Tabs(selected="train")

    button.click(show, shared.run, [row, more, following], **QUIET)
    more.click(extend, [shared.run, epochs], [row, error_box], **QUIET)
    following.click(start_from, shared.run, [shared.form, shared.tabs], **QUIET)
    close.click(lambda: gr.Row(visible=False), None, row, **QUIET)
    shared.run.change(lambda: (gr.Row(visible=False), gr.HTML(visible=False)), None, [row, error_box], **QUIET)


def _open(tab: str, run_id: str) -> tuple[Wish, gr.Tabs]:
    return opening(tab, adapter=run_id)


def acting(action: Callable[[str], None]) -> Callable[[str], Any]:
    """An action on a run as a handler that shows what went wrong."""

    def handler(run_id: str) -> Any:
        try:
            action(run_id)
        except StudioError as error:
            return gr.HTML(html.problem(error), visible=True)
        return gr.HTML(visible=False)

    return handler


def checked(epochs: float | None) -> float:
    """The number of epochs as typed. Raises `StudioError` if there is none."""
    if not epochs or epochs < 0:
        raise StudioError("How many epochs more?", "Type a number above 0, such as 1 or 0.5.")
    return float(epochs)


def continuation(studio: Studio, run_id: str) -> Handover:
    """The train form's values for a new run that begins with this run's adapter."""
    run = studio.workspace.run(run_id)
    values = flatten(load_config(run.config))
    title = f"{studio.supervisor.state(run_id).title or 'run'}, continued"
    values |= {"title": title[:120], "model.adapter_name_or_path": run.id}
    return Handover(time.time(), values, f"Continued from {run_id}")


def ways_on(studio: Studio, run_id: str) -> tuple[bool, bool]:
    """Whether an ended run can train more epochs, and whether a new run can start from its adapter."""
    run, folder = studio.supervisor.state(run_id), studio.workspace.run(run_id)
    saved = bool(folder.checkpoint_folders())
    longer = run.final and (saved or run.state != "done")
    return longer, run.final and (saved or folder.adapter.is_dir())


def stamp_head(view: RunView) -> Hashable:
    folder = view.folder
    return view.mark, stat_of(folder.checkpoints), stat_of(folder.adapter), stat_of(folder.complete)


def view_head(view: RunView) -> ViewValues:
    run, folder = view.run, view.folder
    usable = (folder.adapter / WEIGHTS_FILE).is_file() or bool(folder.checkpoint_folders())
    return {
        "headline": headline(view),
        "stop": run.state in ("running", "queued"),
        "cancel": run.state in ("running", "stopping"),
        "resume": run.state in ("stopped", "failed"),
        "other_rows": run.state == "failed" and bool(folder.read_result().get("other_rows")),
        "processes": may_share(view),
        "further": any(ways_on(view.studio, run.id)),
        "chat": usable,
        "export": usable,
        "again": True,
        "copy": True,
        "delete": run.final,
    }


def headline(view: RunView) -> str:
    """Name, state, progress and expected end in one row."""
    run = view.run
    tone, share = words.progress(run, "worse" if view.verdict.kind == "collapsed" and run.state == "done" else "")
    position = f"{run.step:,} of {run.total_steps:,} steps" if run.total_steps else ""
    remaining_seconds = run.seconds_left if run.state == "running" else None
    eta = f"ETA {clock(remaining_seconds)}" if remaining_seconds is not None else ""
    state = words.STATES.get(run.state, run.state) + words.place_of(run)
    facts = (state, position, eta, words.restarts_of(run))
    return render("runs.headline", tone, share, words.name_of(run), run.id, facts, summary_text(view))


NOTHING = "\u00a0"  # keeps a line's height
# The phases that every run goes through, by what a person calls them; downloads and measurements come in between.
STATIONS = (
    ("start", "Start"),
    ("data", "Data"),
    ("model", "Model"),
    ("train", "Training"),
    ("save", "Save"),
    ("compare", "Compare"),
)
WITHIN = {"download": "model", "evaluate": "train"}
MARKS = {"done": "✓", "now": "●", "next": "○", "ended": "✕"}


def numbers(run: RunState, now: float) -> list[tuple[str, str, str]]:
    """The six numbers of a run that are read first: (value, label, remark) each."""
    last = run.steps[-1] if run.steps else None
    evaluated = run.evaluations[-1] if run.evaluations else None
    best, unit = run.best, unit_of_loss(last)
    best_loss = f" {figure(best.loss)}" if best and best is not evaluated else ""
    of_epoch = f"of {run.total_steps:,}, epoch {run.epoch:.2f}" if run.total_steps else ""
    time_tile = (clock(elapsed(run, now)), "Time", "")
    if not run.final:
        time_tile = (clock(run.seconds_left), "ETA", f"{clock(elapsed(run, now))} elapsed")
    if run.charge and run.state == "queued":
        time_tile = (clock(now - run.charge.since), run.charge.stage, run.charge.hardware.partition(",")[0])
    tiles = [
        (f"{run.step:,}" if run.total_steps else "–", "Step", of_epoch),
        (figure(last.loss if last else None), "Training loss", unit),
        (
            figure(evaluated.loss if evaluated else None),
            "Validation loss",
            f"best{best_loss} at step {best.step:,}" if best else unit,
        ),
        (_percent(last.token_accuracy if last else None), "Token accuracy", "training batch"),
        (f"{last.tokens_per_second:,.0f}" if last else "–", "Speed", "tokens/s"),
        time_tile,
    ]
    if run.charge:
        tiles.append((dollars(run.charge.at(now)), "Cost", f"at most {dollars(run.charge.most)}"))
    return [(value, label, remark or NOTHING) for value, label, remark in tiles]


def more_numbers(run: RunState) -> list[tuple[str, str, str]]:
    """The other numbers, under Details."""
    last = run.steps[-1] if run.steps else None
    tiles = [
        (figure(last.learning_rate if last else None), "Learning rate", ""),
        (figure(last.grad_norm if last else None), "Gradient norm", "0.2 to 2 is usual"),
        (_memory(last), "Memory", _peak(last)),
        (f"{last.device_load:.0f} %" if last and last.device_load is not None else "–", _load_of(run), _heat(last)),
    ]
    if run.model:
        share = 100 * run.model.trainable_parameters / max(1, run.model.parameters)
        tiles.append((f"{run.model.trainable_parameters:,}", "Trainable parameters", f"{share:.2f} % of the model"))
    if run.data:
        validation = html.count(run.data.validation_rows, "validation row")
        tiles.append((f"{run.data.train_rows:,}", "Training rows", validation))
    return [(value, label, remark or NOTHING) for value, label, remark in tiles]


def _load_of(run: RunState) -> str:
    return "CPU utilization" if run.device_kind == "cpu" else "GPU utilization"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _memory(last: StepLogged | None) -> str:
    return f"{last.memory_bytes / GIB:.2f} GiB" if last and last.memory_bytes else "–"


def _peak(last: StepLogged | None) -> str:
    if last is None or not last.memory_peak_bytes:
        return ""
    capacity = f" of {last.memory_available_bytes / GIB:.1f}" if last.memory_available_bytes else ""
    return f"at most {last.memory_peak_bytes / GIB:.2f}{capacity} GiB"


def _heat(last: StepLogged | None) -> str:
    return f"{last.device_celsius:.0f} °C" if last and last.device_celsius is not None else ""


def stations(run: RunState) -> list[tuple[str, str]]:
    """The phases as (what it is called; done, now, next or ended)."""
    order = [name for name, _ in STATIONS]
    phase = WITHIN.get(run.phase, run.phase)
    at = order.index(phase) if phase in order else -1
    if run.state == "done":
        at = len(order)
    labelled = []
    for number, (_, label) in enumerate(STATIONS):
        state = "done" if number < at else "next" if number > at else "ended" if run.final else "now"
        labelled.append((label, state))
    return labelled


def phases(run: RunState) -> str:
    """The phases in one line; what goes on in the present one stands beside the run's name."""
    return render("runs.phases", [(state, MARKS[state], label) for label, state in stations(run)])


def build_numbers(studio: Studio, shared: Shared) -> Components:
    """Six numbers in one row."""
    return {"numbers": gr.HTML(elem_id="run-numbers")}


def build_details(studio: Studio, shared: Shared) -> Components:
    """Warnings, phases, and the other numbers."""
    return {
        "notices": gr.HTML(elem_id="run-notices"),
        "phases": gr.HTML(elem_id="run-phases"),
        "more": gr.HTML(elem_id="run-more-numbers"),
    }


def stamp_numbers(view: RunView) -> Hashable:
    """Times pass while the run goes on."""
    return view.mark, None if view.run.final else int(view.now)


def view_numbers(view: RunView) -> ViewValues:
    return {"numbers": html.tiles(numbers(view.run, view.now))}


def view_details(view: RunView) -> ViewValues:
    """The fold's label counts what is wrong beside the verdict, for it is folded at first."""
    additional = [item for item in view.diagnoses if item is not view.verdict.diagnosis]
    warned = len(set(view.run.warnings)) + len(additional)
    return {
        "fold": gr.update(label=f"Details ({html.count(warned, 'warning')})" if warned else "Details"),
        "notices": notices(view.run) or None,
        "phases": phases(view.run),
        "more": html.tiles(more_numbers(view.run)),
    }


def notices(run: RunState) -> str:
    """The warnings of a run, each once."""
    return "".join(html.notice(message, kind="warning") for message in dict.fromkeys(run.warnings))
