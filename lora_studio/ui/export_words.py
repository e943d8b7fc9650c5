"""Exports in words and markup: the forms to choose from, a form's settings, how far an export is, and what came out."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.events import RunState
from lora_studio.export_targets import TARGETS, Target
from lora_studio.exports import PHASES
from lora_studio.jobs.ending_words import ending_words
from lora_studio.settings import described
from lora_studio.ui import job_list, run_words
from lora_studio.ui.text import Html, empty, escape, notice, progress, render, size

IN_PART = "Made in part"
TOLD = frozenset(("words", "tried", "same", "notes", "link", "command", "files", "bytes", "place"))
"""What the result of an export has to hold to be shown."""
WHOLE_BYTES = 500_000_000


def cards(chosen: str, sizes: Mapping[str, int | None], rooms: Mapping[str, int | None], free: int) -> str:
    """The forms, each with what it is for, how large it will be, and what it takes on the way where that is more."""
    forms = [
        (target, target.name == chosen, _large(sizes[target.name], rooms[target.name])) for target in TARGETS.values()
    ]
    return render("export.cards", forms, size(free))


def _large(octets: int | None, room: int | None) -> str:
    words = f"about {size(octets)}" if octets else "size known when the base is here"
    return f"{words}; {size(room)} of disk while it is made" if octets and room and room > octets else words


def form(target: Target, values: Mapping[str, Any]) -> str:
    """The settings of a form and the button that starts; `values` are those that were typed before."""
    fields = [(setting, values.get(setting.path, setting.default)) for setting in described(target.settings)]
    beside = job_list.BESIDE if target.whole_model else ""
    return render("export.form", target, fields, values.get("trial", True), beside, bool(values.get("beside")))


def listing(states: Sequence[RunState], looked_at: str, now: float, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The earlier exports to choose from; `results` are what came out of those that ended well."""
    if not states:
        return empty("No export yet", "Choose an adapter and a form above, and press the button below it.")

    def about(state: RunState) -> tuple[str, str]:
        result = results.get(state.id) or {}
        said = IN_PART if result.get("missing") else job_list.STATES[state.state]
        return said, size(int(result["bytes"])) if result.get("bytes") else ""

    return render("export.listing", job_list.listing(states, looked_at, now, "export", about))


def head(state: RunState, result: Mapping[str, Any], root: str = "") -> str:
    """One export: how far it is, or what came out. `root` is the workspace's folder where the places of this machine
    are not for whoever looks: they download what came out, and its commands are for the folder they put it in."""
    shown = _head(state, result, places=not root)
    if root:
        for place, name in ((str(result.get("place", root)), "."), (root, "."), (sys.executable, "python")):
            shown = shown.replace(escape(place), name)
    return shown


def _head(state: RunState, result: Mapping[str, Any], *, places: bool) -> str:
    if not state.final:
        return render("export.head", state, _progress(state), state.warnings, stop=job_list.stop_label(state))
    words = ""
    if state.state == "done" and not result.keys() >= TOLD:
        damaged = "result.json of this export is damaged: what came out is not known."
        outcome = notice(damaged, "Make it again.", "error")
    elif state.state != "done":
        outcome = notice(*ending_words(state), "error" if state.state == "failed" else "info")
    else:
        words, outcome = IN_PART if result.get("missing") else "", _outcome(result, places=places)
    return render("export.head", state, job_list.ended(state, words), state.warnings, outcome)


def _progress(state: RunState) -> str:
    if state.state == "queued":
        return job_list.waits()
    words = "stopping" if state.state == "stopping" else PHASES.get(state.phase, state.phase or "starting")
    label = words[:1].upper() + words[1:]
    if state.phase_unit != "bytes":
        unit = f", {state.phase_unit}" if state.phase_total else ""
        return progress(label + unit, state.phase_done, state.phase_total, remark=run_words.speed_words(state))
    done = ", ".join(filter(None, (run_words.amount(state), run_words.speed_words(state))))
    return progress(f"{label}, percent", 100 * state.phase_done // max(1, state.phase_total), 100, remark=done)


def _outcome(result: Mapping[str, Any], *, places: bool) -> Html:
    """What came out: how it is used, whether it was tried, and the files."""
    link, files = str(result["link"]), result["files"]
    whole = ""
    if len(files) > 1 and result["bytes"] <= WHOLE_BYTES:
        whole = f"Download all as a zip ({size(result['bytes'])})"
    return render(
        "export.outcome",
        {"missing": "", **result},
        link if link.startswith(("https://", "http://")) else "",
        [(file["name"], size(file["bytes"])) for file in files],
        whole,
        result["place"] if places else "",
    )
