"""What the export tab shows: export targets, their settings, progress and results. No gradio."""

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_studio.config.compute import LOCAL
from lora_studio.config.settings import described
from lora_studio.errors import StudioError
from lora_studio.export.job import PHASES, Plan, checked, is_local_folder, readiness, request_of, target_of
from lora_studio.export.targets import TARGETS, Sizes, Target, sizes_of
from lora_studio.files import JsonObject
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import EXPORT, ExportFolder, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.adapters import adapter_folder, read_card
from lora_studio.ui import job_views
from lora_studio.ui import words as run_words
from lora_studio.ui.html import Html, count, empty, escape, notice, progress, render, size
from lora_studio.workspace import DEMO_MODEL, RunFolder, Workspace

REQUIRED = frozenset(("words", "tried", "same", "notes", "link", "command", "files", "bytes", "place"))
"""What the result of an export has to hold to be shown."""
WHOLE_BYTES = 500_000_000
BUTTONS = {
    "zip": "Export adapter zip",
    "merged": "Export merged model",
    "ollama": "Export Ollama model",
    "gguf": "Export GGUF file",
    "hub": "Publish to the Hub",
    "vllm": "Export for vLLM",
    "space": "Export chat app",
    "script": "Export training script",
    "config": "Export config",
}


def cards_markup(selected: str, sizes: Mapping[str, int | None], rooms: Mapping[str, int | None], free: int) -> str:
    """The targets, each with its use, its size, and the disk space that making it takes if that is more."""
    forms = [
        (target, target.name == selected, _large(sizes[target.name], rooms[target.name])) for target in TARGETS.values()
    ]
    return render("export.cards", forms, size(free))


def _large(octets: int | None, room: int | None) -> str:
    words = f"about {size(octets)}" if octets else "size unknown"
    return f"{words}, needs {size(room)} of disk" if octets and room and room > octets else words


def form_markup(target: Target, values: Mapping[str, Any], hidden: Sequence[str] = ()) -> str:
    """The settings of a target and the button that starts; `values` are those that were typed before.

    `hidden` are settings that do not apply to the adapter.
    """
    fields = [
        (setting, values.get(setting.path, setting.default))
        for setting in described(target.settings)
        if setting.path not in hidden
    ]
    alongside = (job_views.ALONGSIDE, job_views.ABOUT_ALONGSIDE) if target.whole_model else ()
    checks = values.get("trial", True), bool(values.get("beside"))
    return render("export.form", target, fields, *checks, alongside, BUTTONS[target.name])


def listing(states: Sequence[RunState], looked_at: str, now: float, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The earlier exports to choose from; `results` are what came out of those that ended well."""
    if not states:
        return empty("No export yet", "Choose a target and export the adapter. Results are listed here.")

    def about(state: RunState) -> tuple[str, str]:
        result = results.get(state.id) or {}
        status = job_views.INCOMPLETE if result.get("missing") else run_words.STATES[state.state]
        return status, size(int(result["bytes"])) if result.get("bytes") else ""

    return job_views.listing(states, looked_at, now, "export", about)


def head_markup(state: RunState, result: Mapping[str, Any], root: str = "") -> str:
    """One export: how far it is, or what came out. `root` is the workspace's folder where the places of this machine
    are not for whoever looks: they download what came out, and its commands are for the folder they put it in."""
    markup = _head(state, result, places=not root)
    if root:
        for place, name in ((str(result.get("place", root)), "."), (root, "."), (sys.executable, "python")):
            markup = markup.replace(escape(place), name)
    return markup


def _head(state: RunState, result: Mapping[str, Any], *, places: bool) -> str:
    if not state.final:
        return render("export.head", state, _progress(state), state.warnings, stop=job_views.stop_label(state))
    words, tone = "", ""
    if state.state == "done" and not result.keys() >= REQUIRED:
        damaged = "result.json of this export is damaged, so its result is unknown."
        outcome = notice(damaged, "Export again.", "error")
    elif state.state != "done":
        outcome = notice(*ending_words(state), "error" if state.state == "failed" else "info")
    else:
        if result.get("missing"):
            words, tone = job_views.INCOMPLETE, job_views.PARTIAL
        outcome = _outcome(result, places=places)
    return render("export.head", state, job_views.ended(state, words), state.warnings, outcome, tone=tone)


def _progress(state: RunState) -> str:
    if state.state == "queued":
        return job_views.waits(state)
    words = "stopping" if state.state == "stopping" else PHASES.get(state.phase, state.phase or "starting")
    label = words[:1].upper() + words[1:]
    if state.phase_unit != "bytes":
        unit = f", {state.phase_unit}" if state.phase_total else ""
        return progress(label + unit, state.phase_done, state.phase_total, remark=run_words.speed_words(state))
    done = ", ".join(filter(None, (run_words.amount(state), run_words.speed_words(state))))
    return progress(f"{label}, percent", 100 * state.phase_done // max(1, state.phase_total), 100, remark=done)


def _outcome(result: Mapping[str, Any], *, places: bool) -> Html:
    """What was made and its size, the next command, whether it was tested, and the files."""
    link, files = str(result["link"]), result["files"]
    whole = ""
    if len(files) > 1 and result["bytes"] <= WHOLE_BYTES:
        whole = f"Download all as a zip ({size(result['bytes'])})"
    return render(
        "export.outcome",
        made(result),
        {"missing": "", **result},
        link if link.startswith(("https://", "http://")) else "",
        [(file["name"], size(file["bytes"])) for file in files],
        whole,
        result["place"] if places else "",
    )


def made(result: Mapping[str, Any]) -> str:
    """What was made, in one sentence: Merged model: 12 files, 2.4 GB."""
    has_target = result.get("target") in TARGETS
    title = TARGETS[str(result["target"])].title if has_target else "Export"
    if missing := result.get("missing"):
        return f"One more step: convert the merged model ({size(result['bytes'])}) to {missing}."
    files = result["files"]
    number = f"{count(len(files), 'file')}, " if len(files) != 1 else ""
    if result["link"]:
        return f"Published: {number}{size(result['bytes'])}."
    return f"{title} is ready: {number}{size(result['bytes'])}."


FORM, LOOKED_AT = "export", "export-looked-at"
PARTS = ("ready", "cards", "form", "head", "list")
STEP = 10**8
"""Free disk is shown in steps of 100 MB, so that it does not change all the time."""
Values = tuple[tuple[str, Any], ...]
"""Settings by name, as a state of the page can hold them: it has to be hashable."""


@dataclass(frozen=True)
class ExportView:
    """What is chosen: adapter, target, the values that its fields were painted with, the export looked at, and where
    the next one runs."""

    adapter: str = ""
    target: str = "zip"
    values: Values = ()
    export: str = ""
    compute_target: str = LOCAL


class ExportBoard:
    """Reads exports for the tab. What did not change on disk is not read again."""

    def __init__(self, workspace: Workspace, jobs: Supervisor) -> None:
        self.workspace, self.jobs = workspace, jobs
        self._results: dict[str, JsonObject] = {}
        self._sizes: dict[str, tuple[Sizes, RunFolder | None]] = {}

    def look(self, view: ExportView, now: float) -> dict[str, str]:
        """The markup of every part."""
        states = self.jobs.jobs(EXPORT)
        results = {state.id: self.result(state) for state in states}
        state = next((candidate for candidate in states if candidate.id == view.export), None)
        listed = listing(states, view.export, now, results)
        ready, cards, form, head = "", "", "", ""
        if view.adapter:
            free = shutil.disk_usage(self.workspace.root).free
            form = form_markup(target_of(view.target), dict(view.values), self._not_applying(view))
            current = replace(view, values=values_of(self.workspace, view.target) or view.values)
            cards = cards_markup(view.target, *self.sizes(current), free // STEP * STEP or free)
            ready = self.ready(current, free)
        if state is not None:
            root = "" if self.workspace.policy.is_admin else str(self.workspace.root)
            head = head_markup(state, results[state.id], root)
        return {"ready": ready, "cards": cards, "form": form, "head": head, "list": listed}

    def _not_applying(self, view: ExportView) -> tuple[str, ...]:
        """Settings about the name of the base, where it is built in or a name already; those with a value stay."""
        try:
            base = read_card(adapter_folder(self.workspace, view.adapter)).base
        except StudioError:
            return ()
        hidden = ("base_name", "keep_local_base") if base == DEMO_MODEL else ("keep_local_base",)
        return () if is_local_folder(base) else tuple(name for name in hidden if not dict(view.values).get(name))

    def ready(self, view: ExportView, free: int) -> str:
        """What the chosen export still needs, in one sentence."""
        target = target_of(view.target)
        try:
            card = read_card(adapter_folder(self.workspace, view.adapter))
            settings = checked(target, typed(view.target, dict(view.values)))
        except StudioError as error:
            return render("export.ready", "error", error.message)
        sizes, run = self._measured(view.adapter)
        state = readiness(Plan(target, settings, sizes, card.base, run is not None, free // STEP * STEP or free))
        return render("export.ready", state.kind, state.words)

    def result(self, state: RunState) -> JsonObject:
        """What came out of an export; empty where nothing did (yet)."""
        if state.state != "done":
            return {}
        if state.id not in self._results:
            self._results[state.id] = ExportFolder(self.workspace.exports_folder / state.id).read_result()
        return self._results[state.id]

    def _measured(self, adapter: str) -> tuple[Sizes, RunFolder | None]:
        """What the sizes follow from, and the run that trained the adapter. Raises `StudioError` if it is gone."""
        if adapter not in self._sizes:
            folder = adapter_folder(self.workspace, adapter)
            run = next((run for run in self.workspace.runs() if run.path in folder.parents), None)
            self._sizes[adapter] = sizes_of(folder, run), run
        return self._sizes[adapter]

    def sizes(self, view: ExportView) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """The size of each target for the chosen adapter, and the disk space to make it; the chosen target with the
        settings typed for it."""
        try:
            measured, _ = self._measured(view.adapter)
        except StudioError:  # deleted meanwhile
            return dict.fromkeys(TARGETS), dict.fromkeys(TARGETS)
        sizes, rooms = {}, {}
        for name, target in TARGETS.items():
            try:
                settings = checked(target, typed(name, dict(view.values)) if name == view.target else {})
            except StudioError:
                settings = target.settings()
            sizes[name], rooms[name] = target.size(measured, settings), target.room_for(measured, settings)
        return sizes, rooms

    def opening(self) -> str:
        """The export to look at first: the one looked at last, else the newest."""
        return job_views.opening(self.workspace, self.jobs.jobs(EXPORT), LOOKED_AT)


def typed(target: str, values: Mapping[str, Any]) -> JsonObject:
    """The settings of a form as typed: a number's empty field is none."""
    settings = {setting.path: setting for setting in described(target_of(target).settings)}
    return {
        name: value
        for name, value in values.items()
        if name in settings and not (value == "" and settings[name].kind != "str")
    }


def remembered(workspace: Workspace, adapters: Sequence[tuple[str, str]], run: str = "") -> ExportView:
    """What was chosen last, as far as it is still there; an adapter of that `run` goes first."""
    draft = _kept(workspace)
    available = [value for _, value in adapters]
    of_run = [value for value in available if run and value.partition("/")[0] == run]
    last = draft.get("adapter")
    adapter = next(iter([*of_run, *([last] if last in available else []), *available]), "")
    target = str(draft.get("target")) if draft.get("target") in TARGETS else "zip"
    where = str(draft.get("compute_target") or LOCAL)
    return ExportView(str(adapter), target, values_of(workspace, target), compute_target=where)


def _kept(workspace: Workspace) -> JsonObject:
    draft = workspace.read_draft(FORM)
    return draft if isinstance(draft, dict) else {}


def values_of(workspace: Workspace, target: str) -> Values:
    """What was typed for a form last."""
    values = _kept(workspace).get("values")
    typed_values = values.get(target) if isinstance(values, dict) else None
    return tuple(typed_values.items()) if isinstance(typed_values, dict) else ()


def keep(workspace: Workspace, view: ExportView, values: Mapping[str, Any] | None = None) -> None:
    """Keeps what is chosen and typed, so that a reload brings it back."""
    before = _kept(workspace).get("values")
    after: JsonObject = dict(before) if isinstance(before, dict) else {}
    if values is not None:
        after[view.target] = dict(values)
    choices = {"adapter": view.adapter, "target": view.target, "compute_target": view.compute_target}
    workspace.write_draft(FORM, {**choices, "values": after})


def download(workspace: Workspace, folder: ExportFolder, result: Mapping[str, Any], which: str) -> Path:
    """A file of a result, or all as a zip, where the browser can fetch it. Raises `StudioError` where it is gone."""
    place, files = folder.result, result["files"]
    names = [str(file["name"]) for file in files]
    paths = {name: place if place.is_file() else place / name for name in names}
    if not all(path.is_file() for path in paths.values()):
        raise StudioError("The result no longer exists.", "It was moved or deleted. Export again.")
    if which == "all":
        title = f"{request_of(folder).adapter_title}-{request_of(folder).target}"
        target = job_views.new_file(workspace, f"{title}.zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, path in paths.items():
                archive.write(path, f"{target.stem}/{name}")
        return target
    name = names[int(which)]
    target = job_views.new_file(workspace, Path(name).name)
    try:
        os.link(paths[name], target)  # the same file under a second name: nothing is copied
    except OSError:  # another disk
        shutil.copyfile(paths[name], target)
    return target
