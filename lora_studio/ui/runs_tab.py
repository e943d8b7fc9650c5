"""The runs: a list, and all about the one that is looked at, painted from its folder and from nothing else.

A timer looks for news once a second; what did not change is not sent. Acting on a run is the supervisor's matter.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.ui import dialogue, plots, run_words, text
from lora_studio.ui.studio import Shared, Studio

_CHOOSE = """
let focused = '';
element.addEventListener('focusin', event => { focused = event.target.dataset.run || ''; });
element.addEventListener('focusout', () => { focused = ''; });
element.addEventListener('click', event => {
  const card = event.target.closest('[data-run]');
  if (card) trigger('click', {run: card.dataset.run});
});
watch('value', () => { if (focused) element.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus(); });
"""
SELECTION = "selected-run"
MAY_BE_EMPTY = ("notices", "numbers", "chart")
BUTTONS: tuple[tuple[str, str, Literal["primary", "secondary"]], ...] = (
    ("stop", "Stop", "secondary"),
    ("resume", "Resume", "secondary"),
    ("delete", "Delete…", "secondary"),
    ("chat", "Chat with it", "primary"),
)


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="runs"):
        with gr.Column(scale=1, min_width=260):
            parts["list"] = gr.HTML(js_on_load=_CHOOSE, elem_id="run-list")
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_classes="run-top"):
                parts["headline"] = gr.HTML(elem_id="run-headline", min_width=260)
                with gr.Row(elem_classes="actions", scale=0):
                    for name, label, kind in BUTTONS:
                        parts[name] = gr.Button(
                            label, variant=kind, size="md", visible=False, scale=0, min_width=92, elem_id=f"run-{name}"
                        )
            with gr.Row(visible=False, elem_classes="confirm") as confirm:
                question = gr.HTML()
                yes = gr.Button("Delete for good", variant="stop", elem_id="run-delete-yes")
                no = gr.Button("Keep it", elem_id="run-delete-no")
            said = gr.HTML(visible=False)
            parts["notices"] = gr.HTML(elem_id="run-notices")
            parts["numbers"] = gr.HTML(elem_id="run-numbers")
            parts["chart"] = plots.chart()
            with gr.Column(visible=False) as parts["details"]:
                with gr.Accordion("Checkpoints", open=False):
                    parts["checkpoints"] = gr.HTML()
                with gr.Accordion("Log", open=False):
                    parts["log"] = gr.Textbox(lines=14, max_lines=14, show_label=False, container=False, elem_id="log")
                with gr.Accordion("Settings of this run", open=False):
                    parts["settings"] = gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24)
    _paint_wiring(studio, shared, parts, confirm, said)
    _act_wiring(studio, shared, parts, confirm, question, yes, no, said)


def _paint_wiring(studio: Studio, shared: Shared, parts: dict[str, Any], confirm: gr.Row, said: gr.HTML) -> None:
    seen = gr.State({})
    names = list(parts)

    def paint(run_id: str, before: dict[str, Any]) -> list[Any]:
        now = view(studio, run_id, before)
        updates = [_update(name, now[name]) if before.get(name) != now[name] else gr.skip() for name in names]
        return [*updates, now if now != before else gr.skip()]

    def repaint(run_id: str) -> list[Any]:
        return [*paint(run_id, {}), gr.Row(visible=False), gr.HTML(visible=False)]

    def begin() -> str:
        return opening_run(studio)

    def choose(event: gr.EventData) -> str:
        studio.workspace.write_draft(SELECTION, event.run)
        return event.run

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = [*parts.values(), seen]
    gr.on(None, begin, None, shared.run, **quiet).then(repaint, shared.run, [*outputs, confirm, said], **quiet)
    shared.run.change(repaint, shared.run, [*outputs, confirm, said], **quiet)
    gr.Timer(1).tick(paint, [shared.run, seen], outputs, trigger_mode="once", **quiet)
    parts["list"].click(choose, None, shared.run, **quiet)


def _act_wiring(
    studio: Studio,
    shared: Shared,
    parts: dict[str, Any],
    confirm: gr.Row,
    question: gr.HTML,
    yes: gr.Button,
    no: gr.Button,
    said: gr.HTML,
) -> None:
    """The buttons: stop, resume, chat, delete after a question."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def ask(run_id: str) -> tuple[Any, Any]:
        name = run_words.name_of(studio.supervisor.state(run_id))
        return gr.Row(visible=True), f"<span>{text.escape(f'Delete “{name}” with its adapter and checkpoints?')}</span>"

    def delete(run_id: str) -> tuple[Any, Any, Any]:
        try:
            studio.supervisor.delete(run_id)
        except StudioError as error:
            return gr.skip(), gr.Row(visible=False), gr.HTML(text.problem(error), visible=True)
        return opening_run(studio), gr.Row(visible=False), gr.HTML(visible=False)

    def chat(run_id: str) -> gr.Tabs:
        dialogue.choose(studio.workspace, run_id)
        return gr.Tabs(selected="chat")

    parts["stop"].click(_acting(studio.supervisor.stop), shared.run, said, **quiet)
    parts["resume"].click(_acting(studio.supervisor.resume), shared.run, said, **quiet)
    parts["chat"].click(chat, shared.run, shared.tabs, **quiet)
    parts["delete"].click(ask, shared.run, [confirm, question], **quiet)
    no.click(lambda: gr.Row(visible=False), None, confirm, **quiet)
    yes.click(delete, shared.run, [shared.run, confirm, said], **quiet)


def _acting(action: Callable[[str], None]) -> Callable[[str], Any]:
    """An action on a run as a handler that shows what went wrong."""

    def handler(run_id: str) -> Any:
        try:
            action(run_id)
        except StudioError as error:
            return gr.HTML(text.problem(error), visible=True)
        return gr.HTML(visible=False)

    return handler


def _update(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return gr.update(visible=value)
    return gr.HTML(value, visible=bool(value)) if name in MAY_BE_EMPTY else value


def opening_run(studio: Studio) -> str:
    """The run to look at when the page opens: the one that runs, else the one last looked at, else the newest."""
    runs = studio.supervisor.runs()
    active = next((run.id for run in runs if run.state in ("running", "stopping")), None)
    last = studio.workspace.read_draft(SELECTION)
    known = {run.id for run in runs}
    return active or (last if last in known else None) or (runs[0].id if runs else "")


def view(studio: Studio, run_id: str, before: dict[str, Any]) -> dict[str, Any]:
    """What every part of the tab shows, by its name. Costly parts are taken from `before` where nothing happened."""
    now = time.time()
    runs = studio.supervisor.runs()
    run = next((item for item in runs if item.id == run_id), None)
    if run is None:
        return _nothing(runs, now)
    folder = studio.workspace.run(run.id)
    mark = (run.id, run.events, run.state)
    same = before.get("mark") == mark
    log_mark = _stamp(folder.log)
    return {
        "mark": mark,
        "log_mark": (run.id, log_mark),
        "list": run_words.cards(runs, run.id, now),
        "headline": run_words.headline(run),
        "stop": run.state in ("running", "queued"),
        "resume": run.state in ("stopped", "failed"),
        "chat": (folder.adapter / "adapter_model.safetensors").is_file() or bool(folder.checkpoint_folders()),
        "delete": run.final,
        "details": True,
        "notices": notices(run),
        "numbers": text.tiles(run_words.numbers(run, now)),
        "chart": before["chart"] if same else plots.curves(run),
        "checkpoints": before["checkpoints"] if same else checkpoints(run, folder.checkpoints),
        "log": before["log"] if before.get("log_mark") == (run.id, log_mark) else studio.supervisor.log(run.id),
        "settings": before["settings"] if same else folder.config.read_text(encoding="utf-8"),
    }


def _nothing(runs: list[RunState], now: float) -> dict[str, Any]:
    if runs:
        words = text.empty("No run is chosen", "Choose one from the list.")
    else:
        words = text.empty(
            "No run yet", "Press Start on the Train tab: its settings already fit the built-in model and data."
        )
    blank = dict.fromkeys(("notices", "numbers", "checkpoints", "log", "settings"), "")
    hidden = dict.fromkeys(("stop", "resume", "chat", "delete", "details"), False)
    listed = run_words.cards(runs, "", now) if runs else ""
    return {"mark": None, "log_mark": None, "list": listed, "headline": words, "chart": {}, **blank, **hidden}


def _stamp(path: Path) -> tuple[int, int]:
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (0, 0)


def notices(run: RunState) -> str:
    """What a person should know of a run: how it ended where that needs words, and its warnings."""
    parts = []
    if run.state in ("failed", "stopped") and (run.message or run.hint):
        parts.append(text.notice(run.message, run.hint, "error" if run.state == "failed" else "info"))
    parts += [text.notice(message, kind="warning") for message in dict.fromkeys(run.warnings)]
    return "".join(parts)


def checkpoints(run: RunState, folder: Path) -> str:
    """The checkpoints that are still on disk, with step, validation loss and size; the best one is named."""
    rows = []
    present = [item for item in run.checkpoints if (folder / item.name).is_dir()]
    best = min((item for item in present if item.loss is not None), key=lambda item: item.loss or 0.0, default=None)
    for item in reversed(present):
        octets = sum(path.stat().st_size for path in (folder / item.name).rglob("*") if path.is_file())
        loss = run_words.figure(item.loss) + (" (best)" if item is best and len(present) > 1 else "")
        rows.append((item.name, f"{item.step:,}", loss, text.size(octets)))
    if not rows:
        return text.empty("No checkpoint yet", "One is saved after each epoch, unless the settings say otherwise.")
    return text.table(("Checkpoint", "Step", "Validation loss", "Size"), rows, "Checkpoints of this run")
