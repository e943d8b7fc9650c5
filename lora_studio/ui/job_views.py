"""What the tabs of evaluations and exports share: list, states, buttons, wiring, and files for a download."""

import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import gradio as gr

from lora_studio.access.policy import downloads_folder
from lora_studio.config.compute import AUTO, LOCAL, THIS_MACHINE
from lora_studio.config.parsing import parse, presets
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.targets import Targets
from lora_studio.models.hardware import Device
from lora_studio.ui import html, theme
from lora_studio.ui import words as run_words
from lora_studio.ui.components import QUIET, Handover, Shared, Wish
from lora_studio.ui.form import known_devices, known_targets
from lora_studio.ui.html import Html, count, escape, render, size
from lora_studio.workspace import Workspace, safe_name

LISTED = 30
INCOMPLETE = "Incomplete"
PARTIAL = "worse"
"""The colour of a job that ended without all that was asked for."""
ALONGSIDE = "Run alongside other jobs"
ABOUT_ALONGSIDE = "Starts now instead of queueing. Jobs share memory and run slower."


def build_no_adapter(shared: Shared, tab: str) -> gr.Column:
    """What stands in the place of a form while there is no adapter, with the button that leads to one."""
    place, button = draw_no_adapter(tab)
    wire_train_demo(button, shared)
    return place


def draw_no_adapter(tab: str) -> tuple[gr.Column, gr.Button]:
    """The same, unwired."""
    with gr.Column(visible=False, elem_classes="job-empty no-adapter") as place:
        gr.HTML(html.empty("No adapter yet", "Train one first. The demo takes about a minute on a CPU."))
        button = gr.Button("Train the demo", variant="primary", scale=0, elem_id=f"{tab}-train-demo")
    return place, button


def wire_train_demo(button: gr.Button, shared: Shared) -> None:
    """A click opens the Train tab with the demo recipe."""
    button.click(lambda: (demo_form(), gr.Tabs(selected="train")), None, [shared.form, shared.tabs], **QUIET)


def demo_form() -> Handover:
    """The settings of the demo recipe, for a form that may hold anything."""
    preset = presets()["demo"]
    return Handover(time.time(), flatten(parse(preset.values())), f"Recipe {preset.name}", preset.name)


def open_anew(tab: gr.Tab, handler: Callable[..., Any], inputs: Any, outputs: Sequence[Any]) -> None:
    """When a tab is opened, what it said of adapters before goes at once, and `handler` tells what there is now.

    Until it has answered the form of the tab takes no input, for its answer would replace what a person just chose.
    """
    tab.select(None, js=theme.call("reopen", tab.id), api_visibility="private")
    opened = tab.select(handler, inputs, list(outputs), **QUIET)
    opened.then(None, js=theme.call("reopened", tab.id), api_visibility="private")


def visibility(has_adapters: bool) -> tuple[gr.Column, gr.Column]:
    """Whether the form is in sight, or what stands in its place."""
    return gr.Column(visible=has_adapters), gr.Column(visible=not has_adapters)


def opening(workspace: Workspace, states: Sequence[RunState], draft: str) -> str:
    """The job to look at first: the one looked at last, whose id is the draft of that name, else the newest."""
    last = workspace.read_draft(draft)
    ids = [state.id for state in states]
    return str(last) if last in ids else next(iter(ids), "")


def listing(
    states: Sequence[RunState], looked_at: str, now: float, noun: str, about: Callable[[RunState], tuple[str, str]]
) -> Html:
    """The earlier ones to choose from; `about` gives what is said before and after the time of each."""
    rows = []
    for state in states[:LISTED]:
        before, after = about(state)
        words = " · ".join(filter(None, (before, run_words.ago(state.created, now), after)))
        rows.append((state, state.id == looked_at, words, PARTIAL if before == INCOMPLETE else ""))
    omitted = len(states) - LISTED
    return render("jobs.listing", rows, noun, count(omitted, f"older {noun}") if omitted > 0 else "")


def title(state: RunState) -> Html:
    """What stands above the one that is looked at."""
    return render("jobs.title", state)


def ended(state: RunState, outcome: str = "") -> Html:
    """Finished after 12 s; `outcome` replaces the name of the state."""
    seconds = run_words.elapsed(state, 0.0)
    after = " before the start" if state.started is None else f" after {run_words.clock(seconds)}" if seconds else ""
    return render("jobs.ended", f"{outcome or run_words.STATES[state.state]}{after}.")


def waits(state: RunState) -> Html:
    """What is said of a job in the queue."""
    position = "The Runs tab shows its position." if state.target == LOCAL else ""
    return render("jobs.ended", " ".join(filter(None, ("Queued.", state.waiting, position))))


def activity(state: RunState, phases: Mapping[str, str], units: Mapping[str, str]) -> Html:
    """How far a job is, or how it ended. `phases` are the words for each phase, `units` what is counted in some."""
    if state.final:
        return ended(state)
    if state.state == "queued":
        return waits(state)
    label = "Stopping" if state.state == "stopping" else phases.get(state.phase, "Starting")
    remark = run_words.speed_words(state, state.step if state.phase == "answer" else 0)
    if state.phase == "download":
        share = 100 * state.phase_done // max(1, state.phase_total)
        remark = ", ".join(filter(None, (run_words.amount(state), remark)))
        return html.progress(f"{label}, percent", share, 100, remark=remark)
    total = state.phase_total if state.phase in units else 0
    return html.progress(f"{label}, {units[state.phase]}" if total else label, state.phase_done, total, remark=remark)


def notes(state: RunState) -> list[tuple[str, str, str]]:
    """Why a job ended early, and its warnings: message, hint and kind of each."""
    warnings = [(words, "", "warning") for words in state.warnings]
    if state.state in ("failed", "stopped"):
        return [(*ending_words(state), "error" if state.state == "failed" else "info"), *warnings]
    return warnings


def target_field(tab: str) -> gr.Dropdown:
    """Where a job runs; hidden while this machine is the only place."""
    return gr.Dropdown(
        [(THIS_MACHINE, LOCAL)],
        value=LOCAL,
        label="Target",
        info="Where the job runs.",
        filterable=False,
        visible=False,
        elem_id=f"{tab}-target",
    )


def target_choice(workspace: Workspace, value: Any = LOCAL) -> gr.Dropdown:
    """The field with the targets that the caller may use now; this machine where the one chosen is gone."""
    try:
        targets = list(Targets(workspace).all())
    except StudioError:  # the Train tab tells what is wrong with the file
        targets = []
    choices = known_targets(targets)
    return gr.Dropdown(choices=choices, value=value if value in targets else LOCAL, visible=bool(targets))


def device_field(tab: str) -> gr.Dropdown:
    """The device of this machine; hidden while there is only one."""
    return gr.Dropdown(
        known_devices([]),
        value=AUTO,
        label="Device",
        info="On this machine. auto: one that no run holds.",
        filterable=False,
        visible=False,
        elem_id=f"{tab}-device",
    )


def device_choice(offered: Sequence[Device], value: Any = AUTO) -> gr.Dropdown:
    """The field with the devices that there are now; auto where the one chosen is gone."""
    choices = known_devices(offered)
    names = [name for _, name in choices]
    return gr.Dropdown(choices=choices, value=value if value in names else AUTO, visible=len(offered) > 1)


def stop_label(state: RunState) -> str:
    """The words on the button that ends a job."""
    return "Remove from queue" if state.state == "queued" else "Stop"


def buttons(*acts: tuple[str, str, str]) -> Html:
    """Buttons beside each other: what a click asks for, with which value, and the words on it."""
    return render("jobs.buttons", acts)


def wire(
    parts: Mapping[str, gr.HTML],
    view: gr.State,
    look: Callable[[Any, float], dict[str, str]],
    *,
    wish: gr.State,
    opening: Callable[[Wish], list[Any]],
    opened: Sequence[Any],
    act: Callable[[gr.EventData, Any], tuple[Any, Any, Any]],
    messages: Sequence[Any],
    busy: Callable[[], str | None],
    trigger_mode: Literal["once", "multiple"] = "once",
) -> None:
    """Wires a tab whose parts show what `look` says of a view; a part that shows the same as before is not sent.

    `opening` gives what `opened`, the view among them, shows when the tab opens, which the first one does with the
    page; the `wish` with which another tab opened this one is taken up by it. `act` turns a click into view, message
    and download link; a `StudioError` of it becomes the message. `messages` are the last two. A message goes when the
    `busy` job ends: that another can't begin beside it is true no more.
    """
    displayed = gr.State({})
    painted = [*parts.values(), displayed, messages[0]]

    def paint(now: Any, before: dict[str, str]) -> list[Any]:
        current = look(now, time.time()) | {"busy": busy() or ""}
        if current == before:
            return [gr.skip()] * len(painted)
        ended = before.get("busy", "") not in ("", current["busy"])
        changed = [gr.skip() if current[name] == before.get(name) else current[name] for name in parts]
        return [*changed, current, "" if ended else gr.skip()]

    def click(event: gr.EventData, now: Any) -> tuple[Any, Any, Any]:
        try:
            return act(event, now)
        except StudioError as error:
            return now, html.problem(error), gr.skip()

    def take_up(request: Wish) -> list[Any]:
        return [*opening(request), Wish()]

    tab = _tab_of(opened[0])
    for part in parts.values():
        part.click(click, view, [view, *messages], trigger_mode=trigger_mode, **QUIET)
    view.change(paint, [view, displayed], painted, **QUIET)
    gr.Timer(1).tick(paint, [view, displayed], painted, trigger_mode="once", **QUIET)
    open_anew(tab, take_up, wish, [*opened, wish])  # new runs, and what another tab asks for


def _tab_of(component: Any) -> gr.Tab:
    """The tab in which a component stands."""
    place = component.parent
    while not isinstance(place, gr.Tab):
        place = place.parent
    return place


KEPT_SECONDS = 3600.0


def place(workspace: Workspace) -> gr.HTML:
    """Where a link appears that the browser follows by itself; it stays for those whose browser asks first."""
    gr.set_static_paths([str(workspace.downloads_folder)])
    return gr.HTML(visible=True, js_on_load=theme.on_load("download"), elem_classes="download-place")


def new_file(workspace: Workspace, name: str) -> Path:
    """A path for a file of that name; what was made for downloads long ago is removed."""
    theirs = folder(workspace)
    theirs.mkdir(parents=True, exist_ok=True)
    for old in (*theirs.iterdir(), *workspace.downloads_folder.iterdir()):
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old)
    workspace.policy.check_room()
    new = theirs / secrets.token_hex(8)
    new.mkdir()
    return new / safe_name(name)


def folder(workspace: Workspace) -> Path:
    """Where files for whoever is answered now are put."""
    return downloads_folder(workspace, workspace.policy.owner_id)


def link(path: Path) -> str:
    """The link to a file that was made."""
    words = f"{path.name} ({size(path.stat().st_size)})"
    return f'<a class="ls-download" download href="gradio_api/file={quote(str(path))}">{escape(words)}</a>'
