"""The top of a run on the runs tab: name, state, actions, outcome, ways to train it further, progress and numbers."""

import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Literal

import gradio as gr

from lora_studio.config.parsing import load_config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.events import RunState, StepLogged
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.runs.health import is_worse
from lora_studio.runs.summary import settings_of
from lora_studio.ui import html, words
from lora_studio.ui.html import render
from lora_studio.ui.runs import table
from lora_studio.ui.studio import (
    QUIET,
    Components,
    Handover,
    RunView,
    Shared,
    Studio,
    ViewValues,
    Wish,
    opening,
    stat_of,
)
from lora_studio.ui.words import clock, elapsed, figure
from lora_studio.units import GIB
from lora_studio.workspace import RunFolder


def build_outcome(studio: Studio, shared: Shared) -> Components:
    """The ending in words, and the comparison with the base."""
    return {
        "ending": gr.HTML(elem_id="run-ending", visible=False),
        "outcome": gr.HTML(elem_id="run-outcome", visible=False),
    }


def stamp_outcome(view: RunView) -> Hashable:
    return view.mark, stat_of(view.folder.complete)


def view_outcome(view: RunView) -> ViewValues:
    """Why the run ended, where that needs words; the comparison, where there is one."""
    measured = view.comparison
    return {"ending": ending(view.run) or None, "outcome": compared(measured, view.folder) if measured else None}


def is_collapsed(view: RunView) -> bool:
    """Whether the run's adapter is worse than its base."""
    measured = view.comparison
    return measured is not None and is_worse(measured, _method(view.folder))


def _method(folder: RunFolder) -> str:
    try:
        return load_config(folder.config).training.method
    except StudioError:  # settings of an older version
        return "sft"


def ending(run: RunState) -> str:
    """What a person should know of how a run ended; "" while it goes on, or where there is nothing to add."""
    message, hint = ending_words(run)
    if not run.final or not (message or hint):
        return ""
    return html.notice(message, hint, "error" if run.state == "failed" else "info")


def compared(measured: Mapping[str, Any], folder: RunFolder) -> str:
    """The worker's sentence on base and adapter: an error where the adapter is the worse of both."""
    kind = "error" if is_worse(measured, _method(folder)) else "good" if measured["moves"] else "warning"
    return html.notice(measured["sentence"], measured["rows_sentence"], kind)


BUTTONS: tuple[tuple[str, str, Literal["primary", "secondary"]], ...] = (
    ("stop", "Stop", "secondary"),
    ("cancel", "Cancel", "secondary"),
    ("resume", "Resume", "secondary"),
    ("other_rows", "Resume with these rows", "secondary"),
    ("again", "Duplicate and edit", "secondary"),
    ("delete", "Delete…", "secondary"),
    ("export", "Export", "secondary"),
    ("chat", "Chat with it", "primary"),
)


def build_head(studio: Studio, shared: Shared) -> Components:
    """Headline, buttons, the question before a deletion, and what went wrong with an action."""
    buttons: dict[str, gr.Button] = {}
    with gr.Row(elem_classes="run-top"):
        headline = gr.HTML(elem_id="run-headline", min_width=260)
        with gr.Row(elem_classes="actions", scale=0):
            for name, label, kind in BUTTONS:
                buttons[name] = gr.Button(
                    label, variant=kind, size="md", visible=False, scale=0, min_width=0, elem_id=f"run-{name}"
                )
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=260)
        yes = gr.Button("Delete for good", variant="stop", elem_id="run-delete-yes", size="md", scale=0, min_width=150)
        no = gr.Button("Keep it", elem_id="run-delete-no", size="md", scale=0, min_width=100)
    error_box = gr.HTML(visible=False)

    def ask(run_id: str) -> tuple[Any, Any]:
        return gr.Row(visible=True), table.deletion_question(studio, [run_id])

    def delete(run_id: str) -> tuple[Any, Any, Any]:
        problems = table.delete_runs(studio, [run_id])
        return gr.skip() if problems else "", gr.Row(visible=False), gr.HTML(problems, visible=bool(problems))

    def again(run_id: str) -> tuple[Any, Any, Any]:
        try:
            config = settings_of(studio.workspace.run(run_id), studio.supervisor.state(run_id))
        except StudioError as error:
            return gr.skip(), gr.skip(), gr.HTML(html.problem(error), visible=True)
        return (
            Handover(time.time(), flatten(config), f"Copied from {run_id}"),
            gr.Tabs(selected="train"),
            gr.HTML(visible=False),
        )

    buttons["stop"].click(acting(studio.supervisor.stop), shared.run, error_box, **QUIET)
    buttons["cancel"].click(acting(studio.supervisor.cancel), shared.run, error_box, **QUIET)
    buttons["resume"].click(acting(studio.supervisor.resume), shared.run, error_box, **QUIET)
    go_on = partial(studio.supervisor.resume, other_rows=True)
    buttons["other_rows"].click(acting(go_on), shared.run, error_box, **QUIET)
    for tab in ("chat", "export"):
        buttons[tab].click(partial(_open, tab), shared.run, [shared.wish, shared.tabs], **QUIET)
    buttons["again"].click(again, shared.run, [shared.form, shared.tabs, error_box], **QUIET)
    buttons["delete"].click(ask, shared.run, [confirm, question], **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(delete, shared.run, [shared.run, confirm, error_box], **QUIET)
    shared.run.change(lambda: (gr.Row(visible=False), gr.HTML(visible=False)), None, [confirm, error_box], **QUIET)
    return {"headline": headline, **buttons}


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


def stamp_head(view: RunView) -> Hashable:
    folder = view.folder
    return view.mark, stat_of(folder.checkpoints), stat_of(folder.adapter), stat_of(folder.complete)


def view_head(view: RunView) -> ViewValues:
    run, folder = view.run, view.folder
    usable = (folder.adapter / WEIGHTS_FILE).is_file() or bool(folder.checkpoint_folders())
    return {
        "headline": words.headline(run, is_collapsed(view)),
        "stop": run.state in ("running", "queued"),
        "cancel": run.state in ("running", "stopping"),
        "resume": run.state in ("stopped", "failed"),
        "other_rows": run.state == "failed" and bool(folder.read_result().get("other_rows")),
        "chat": usable,
        "export": usable,
        "again": True,
        "delete": run.final,
    }


GOING = (
    "<b>Stop</b> ends after the step and saves a checkpoint. <b>Cancel</b> ends at once: what came after the last "
    "checkpoint is lost, the checkpoints stay. Resume goes on after either."
)
RESUME = "<b>Resume</b> goes on with the same settings, exactly as if the run had not ended."
LONGER = "<b>More epochs</b> goes on beyond the planned end, with the learning rate of a run planned so long at first."
ADAPTER = "<b>Continue from its adapter</b> begins a new run that starts with what this one learnt, with new settings."


def build_life(studio: Studio, shared: Shared) -> Components:
    """Sentences, and for a run that ended a fold with the controls that fit its state."""
    words = gr.HTML(visible=False, elem_id="run-life")
    with gr.Accordion("Train it further", open=False, visible=False, elem_id="run-further") as further:
        ways = gr.HTML()
        with gr.Row(elem_classes="run-life-row"):
            epochs = gr.Number(1, label="Epochs more", minimum=0, scale=0, min_width=150, elem_id="run-epochs")
            more = gr.Button("Train more epochs", size="md", scale=0, min_width=0, elem_id="run-extend")
            following = gr.Button("Continue from its adapter…", size="md", scale=0, min_width=0, elem_id="run-continue")
    error_box = gr.HTML(visible=False)

    def extend(run_id: str, epochs: float | None) -> Any:
        return told(lambda: studio.supervisor.resume(run_id, checked(epochs)))

    def go_on(run_id: str) -> tuple[Handover, gr.Tabs]:
        return continuation(studio, run_id), gr.Tabs(selected="train")

    more.click(extend, [shared.run, epochs], error_box, **QUIET)
    following.click(go_on, shared.run, [shared.form, shared.tabs], **QUIET)
    shared.run.change(lambda: gr.HTML(visible=False), None, error_box, **QUIET)
    parts: Components = {"words": words, "further": further, "ways": ways, "epochs": epochs}
    return parts | {"extend": more, "continue": following}


def told(action: Any) -> Any:
    """Does something and shows what went wrong with it."""
    try:
        action()
    except StudioError as error:
        return gr.HTML(html.problem(error), visible=True)
    return gr.HTML(visible=False)


def checked(epochs: float | None) -> float:
    """The number of epochs as typed. Raises `StudioError` where there is none."""
    if not epochs or epochs < 0:
        raise StudioError("How many epochs more?", "Type a number above 0, such as 1 or 0.5.")
    return float(epochs)


def continuation(studio: Studio, run_id: str) -> Handover:
    """The train form's values for a new run that begins with this run's adapter."""
    run = studio.workspace.run(run_id)
    values = flatten(load_config(run.config))
    title = f"{studio.supervisor.state(run.id).title or 'run'}, continued"
    values |= {"title": title[:120], "model.adapter_name_or_path": run.id}
    return Handover(time.time(), values, f"Continued from {run_id}")


def stamp_life(view: RunView) -> Hashable:
    return view.run.id, view.run.state, stat_of(view.folder.checkpoints), stat_of(view.folder.adapter)


def view_life(view: RunView) -> ViewValues:
    state = view.run.state
    saved = bool(view.folder.checkpoint_folders())
    usable = view.run.final and (saved or view.folder.adapter.is_dir())
    longer = view.run.final and (saved or state != "done")
    words = GOING if state in ("running", "stopping") else RESUME if state in ("stopped", "failed") else ""
    ways = " ".join([LONGER] * longer + [ADAPTER] * usable)
    return {
        "words": _quiet(words) if words else None,
        "further": longer or usable,
        "ways": _quiet(ways),
        "epochs": longer,
        "extend": longer,
        "continue": usable,
    }


def _quiet(words: str) -> str:
    return f'<p class="quiet">{words}</p>'


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
    """What a run comes to so far: (value, what it is, remark) each."""
    last = run.steps[-1] if run.steps else None
    evaluated = run.evaluations[-1] if run.evaluations else None
    best = run.best
    unit = "of a pair" if last and "reward_margin" in last.metrics else "nats a token"
    tiles = [
        (f"{run.step:,}" if run.total_steps else "–", "Step", f"of {run.total_steps:,}" if run.total_steps else ""),
        (f"{run.epoch:.2f}" if run.total_steps else "–", "Epoch", ""),
        (figure(last.loss if last else None), "Training loss", unit),
        (
            figure(evaluated.loss if evaluated else None),
            "Validation loss",
            f"best {figure(best.loss)} at step {best.step:,}" if best else unit,
        ),
        (_percent(last.token_accuracy if last else None), "Right tokens", "of the answers"),
        (figure(last.learning_rate if last else None), "Learning rate", ""),
        (figure(last.grad_norm if last else None), "Gradient norm", "0.2 to 2 is usual"),
        (f"{last.tokens_per_second:,.0f}" if last else "–", "Tokens a second", ""),
        (_memory(last), "Memory", _peak(last)),
        (f"{last.device_load:.0f} %" if last and last.device_load is not None else "–", "Load", _heat(last)),
        (clock(elapsed(run, now)), "Elapsed", ""),
    ]
    if not run.final:
        tiles.append((clock(run.seconds_left), "Left", ""))
    if run.model:
        share = 100 * run.model.trainable_parameters / max(1, run.model.parameters)
        tiles.append((f"{run.model.trainable_parameters:,}", "Trained parameters", f"{share:.2f} % of the model"))
    if run.data:
        tiles.append((f"{run.data.train_rows:,}", "Training rows", f"{run.data.validation_rows:,} to measure on"))
    return [(value, label, remark or NOTHING) for value, label, remark in tiles]


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
    return f"{last.device_celsius:.0f} °C" if last and last.device_celsius is not None else "of the device"


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


def build_progress(studio: Studio, shared: Shared) -> Components:
    """Notices, phases and tiles."""
    return {
        "notices": gr.HTML(elem_id="run-notices"),
        "phases": gr.HTML(elem_id="run-phases"),
        "numbers": gr.HTML(elem_id="run-numbers"),
    }


def stamp_progress(view: RunView) -> Hashable:
    """Times pass while the run goes on."""
    return view.mark, None if view.run.final else int(view.now)


def view_progress(view: RunView) -> ViewValues:
    return {
        "notices": notices(view.run) or None,
        "phases": phases(view.run),
        "numbers": html.tiles(numbers(view.run, view.now)),
    }


def notices(run: RunState) -> str:
    """The warnings of a run, each once."""
    return "".join(html.notice(message, kind="warning") for message in dict.fromkeys(run.warnings))
