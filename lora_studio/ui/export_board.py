"""What the export tab shows at one moment, painted from the exports' folders and from nothing else. No gradio."""

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapter_source import adapter_folder
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.export_targets import TARGETS, Sizes
from lora_studio.exports import checked, request_of, sizes_of, target_of
from lora_studio.job_folders import ExportFolder
from lora_studio.jobs.kinds import EXPORT
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.settings import described
from lora_studio.ui import downloads, export_words, job_list
from lora_studio.workspace import Workspace

FORM, LOOKED_AT = "export", "export-looked-at"
PARTS = ("cards", "form", "head", "list")
STEP = 10**8
"""Free disk is told in steps of 100 MB, so that it does not change all the time."""


Values = tuple[tuple[str, Any], ...]
"""Settings by name, as a state of the page can hold them: it has to be hashable."""


@dataclass(frozen=True)
class View:
    """What is chosen: the adapter, the form, the values that its fields were painted with, the export looked at."""

    adapter: str = ""
    target: str = "zip"
    values: Values = ()
    export: str = ""


class Board:
    """Reads exports for the tab. What did not change on disk is not read again."""

    def __init__(self, workspace: Workspace, jobs: Supervisor) -> None:
        self.workspace, self.jobs = workspace, jobs
        self._results: dict[str, dict[str, Any]] = {}
        self._sizes: dict[str, Sizes] = {}

    def look(self, view: View, now: float) -> dict[str, str]:
        """The markup of every part."""
        states = self.jobs.jobs(EXPORT)
        results = {state.id: self.result(state) for state in states}
        state = next((one for one in states if one.id == view.export), None)
        listed = export_words.listing(states, view.export, now, results)
        cards, form, head = "", "", ""
        if view.adapter:
            free = shutil.disk_usage(self.workspace.root).free
            cards = export_words.cards(view.target, *self.sizes(view), free // STEP * STEP or free)
            form = export_words.form(target_of(view.target), dict(view.values))
        if state is not None:
            root = "" if self.workspace.owned else str(self.workspace.root)
            head = export_words.head(state, results[state.id], root)
        return {"cards": cards, "form": form, "head": head, "list": listed}

    def result(self, state: RunState) -> dict[str, Any]:
        """What came out of an export; empty where nothing did (yet)."""
        if state.state != "done":
            return {}
        if state.id not in self._results:
            self._results[state.id] = ExportFolder(self.workspace.exports_folder / state.id).read_result()
        return self._results[state.id]

    def sizes(self, view: View) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """How large each form of the chosen adapter will be, and what making it takes; the chosen one with the settings
        typed for it."""
        if view.adapter not in self._sizes:
            try:
                folder = adapter_folder(self.workspace, view.adapter)
            except StudioError:  # deleted meanwhile
                return dict.fromkeys(TARGETS), dict.fromkeys(TARGETS)
            inside = [run for run in self.workspace.runs() if run.path in folder.parents]
            self._sizes[view.adapter] = sizes_of(folder, inside[0] if inside else None)
        known = self._sizes[view.adapter]
        found, rooms = {}, {}
        for name, target in TARGETS.items():
            try:
                settings = checked(target, typed(name, dict(view.values)) if name == view.target else {})
            except StudioError:
                settings = target.settings()
            found[name], rooms[name] = target.size(known, settings), target.room_for(known, settings)
        return found, rooms

    def opening(self) -> str:
        """The export to look at first: the one looked at last, else the newest."""
        return job_list.opening(self.workspace, self.jobs.jobs(EXPORT), LOOKED_AT)


def typed(target: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a form as typed: a number's empty field is none."""
    settings = {setting.path: setting for setting in described(target_of(target).settings)}
    return {
        name: value
        for name, value in values.items()
        if name in settings and not (value == "" and settings[name].kind != "str")
    }


def remembered(workspace: Workspace, adapters: Sequence[tuple[str, str]], run: str = "") -> View:
    """What was chosen last, as far as it is still there; an adapter of that `run` goes first."""
    draft = _kept(workspace)
    there = [value for _, value in adapters]
    of_run = [value for value in there if run and value.partition("/")[0] == run]
    last = draft.get("adapter")
    adapter = next(iter([*of_run, *([last] if last in there else []), *there]), "")
    target = str(draft.get("target")) if draft.get("target") in TARGETS else "zip"
    return View(str(adapter), target, values_of(workspace, target))


def _kept(workspace: Workspace) -> dict[str, Any]:
    draft = workspace.read_draft(FORM)
    return draft if isinstance(draft, dict) else {}


def values_of(workspace: Workspace, target: str) -> Values:
    """What was typed for a form last."""
    values = _kept(workspace).get("values")
    found = values.get(target) if isinstance(values, dict) else None
    return tuple(found.items()) if isinstance(found, dict) else ()


def keep(workspace: Workspace, view: View, values: Mapping[str, Any] | None = None) -> None:
    """Keeps what is chosen and typed, so that a reload brings it back."""
    before = _kept(workspace).get("values")
    after: dict[str, Any] = dict(before) if isinstance(before, dict) else {}
    if values is not None:
        after[view.target] = dict(values)
    workspace.write_draft(FORM, {"adapter": view.adapter, "target": view.target, "values": after})


def download(workspace: Workspace, folder: ExportFolder, result: Mapping[str, Any], which: str) -> Path:
    """A file of a result, or all as a zip, where the browser can fetch it. Raises `StudioError` where it is gone."""
    place, files = folder.result, result["files"]
    names = [str(file["name"]) for file in files]
    found = {name: place if place.is_file() else place / name for name in names}
    if not all(path.is_file() for path in found.values()):
        raise StudioError("The result is not there any more.", "It was moved or deleted: make it again.")
    if which == "all":
        title = f"{request_of(folder).adapter_title}-{request_of(folder).target}"
        target = downloads.new_file(workspace, f"{title}.zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, path in found.items():
                archive.write(path, f"{target.stem}/{name}")
        return target
    name = names[int(which)]
    target = downloads.new_file(workspace, Path(name).name)
    try:
        os.link(found[name], target)  # the same file under a second name: nothing is copied
    except OSError:  # another disk
        shutil.copyfile(found[name], target)
    return target
