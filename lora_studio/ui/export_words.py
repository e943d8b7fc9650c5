"""Exports in words and markup: the forms to choose from, a form's settings, how far an export is, and what came out."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.events import RunState
from lora_studio.export_targets import TARGETS, Target
from lora_studio.exports import PHASES
from lora_studio.jobs.ending_words import ending_words
from lora_studio.settings import Setting, described
from lora_studio.ui import job_list, run_words
from lora_studio.ui.text import empty, escape, notice, progress, size

IN_PART = "Made in part"
TOLD = frozenset(("words", "tried", "same", "notes", "link", "command", "files", "bytes", "place"))
"""What the result of an export has to hold to be shown."""
WHOLE_BYTES = 500_000_000
TRIAL = "Load the result and ask it something; its answer is compared with that of base and adapter."


def cards(chosen: str, sizes: Mapping[str, int | None], rooms: Mapping[str, int | None], free: int) -> str:
    """The forms, each with what it is for, how large it will be, and what it takes on the way where that is more."""
    forms = (
        _card(target, target.name == chosen, sizes[target.name], rooms[target.name]) for target in TARGETS.values()
    )
    return (
        f'<div class="export-cards" role="radiogroup" aria-label="Form">{"".join(forms)}</div>'
        f'<p class="ls-hint">{escape(size(free))} free on the disk.</p>'
    )


def _card(target: Target, chosen: bool, octets: int | None, room: int | None) -> str:
    large = f"about {size(octets)}" if octets else "size known when the base is here"
    if octets and room and room > octets:
        large += f"; {size(room)} of disk while it is made"
    return (
        f'<button type="button" role="radio" aria-checked="{"true" if chosen else "false"}" data-act="choose" '
        f'data-value="{target.name}"><b>{escape(target.title)}</b><span>{escape(target.what)}</span>'
        f"<small>{escape(large)}</small></button>"
    )


def form(target: Target, values: Mapping[str, Any]) -> str:
    """The settings of a form and the button that starts; `values` are those that were typed before."""
    fields = [_field(setting, values.get(setting.path, setting.default)) for setting in described(target.settings)]
    if target.name == "hub":
        about = "One that may write, from the Hub's settings page; used once and kept nowhere. Empty takes HF_TOKEN."
        fields.append(
            _label("Token", about, '<input type="password" data-secret autocomplete="off" aria-label="Token">')
        )
    if target.name != "config":
        tried = " checked" if values.get("trial", True) else ""
        fields.append(_check("Try the result", TRIAL, f'<input type="checkbox" data-setting="trial"{tried}>'))
    return (
        f'<div class="export-fields" data-form="{target.name}">{"".join(fields)}</div>'
        '<div class="acts export-acts"><button type="button" class="export-start" data-act="start" '
        f'data-value="{target.name}">Make it: {escape(target.title)}</button></div>'
    )


def _field(setting: Setting, value: Any) -> str:
    name, title = escape(setting.path), escape(setting.title)
    if setting.kind == "bool":
        on = " checked" if value else ""
        return _check(setting.title, setting.description, f'<input type="checkbox" data-setting="{name}"{on}>')
    if setting.kind == "choice":
        options = "".join(
            f'<option value="{escape(choice)}"{" selected" if choice == value else ""}>{escape(choice)}</option>'
            for choice in setting.choices
        )
        box = f'<select data-setting="{name}" aria-label="{title}">{options}</select>'
    else:
        kind = "number" if setting.kind in ("int", "float") else "text"
        text = "" if value is None else escape(value)
        box = f'<input type="{kind}" data-setting="{name}" aria-label="{title}" value="{text}">'
    return _label(setting.title, setting.description, box)


def _label(title: str, about: str, box: str) -> str:
    return f"<label><b>{escape(title)}</b><small>{escape(about)}</small>{box}</label>"


def _check(title: str, about: str, box: str) -> str:
    return f'<label class="check"><b>{box}{escape(title)}</b><small>{escape(about)}</small></label>'


def listing(states: Sequence[RunState], looked_at: str, now: float, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The earlier exports to choose from; `results` are what came out of those that ended well."""
    if not states:
        return empty("No export yet", "Choose an adapter and a form above, and press the button below it.")

    def about(state: RunState) -> tuple[str, str]:
        result = results.get(state.id) or {}
        said = IN_PART if result.get("missing") else job_list.STATES[state.state]
        return said, size(int(result["bytes"])) if result.get("bytes") else ""

    return f'<h3 class="part">Exports</h3>{job_list.listing(states, looked_at, now, "export", about)}'


def head(state: RunState, result: Mapping[str, Any], root: str = "") -> str:
    """One export: how far it is, or what came out. `root` is the workspace's folder where the places of this machine
    are not for whoever looks: they download what came out, and its commands are for the folder they put it in."""
    shown = _head(state, result, places=not root)
    if root:
        for place, name in ((str(result.get("place", root)), "."), (root, "."), (sys.executable, "python")):
            shown = shown.replace(escape(place), name)
    return shown


def _head(state: RunState, result: Mapping[str, Any], *, places: bool) -> str:
    top, notes = job_list.title(state), "".join(notice(words, kind="warning") for words in state.warnings)
    if not state.final:
        return f'<div class="run-head">{top}{_progress(state)}</div>{job_list.buttons(("stop", "", "Stop"))}{notes}'
    said = ""
    if state.state == "done" and not result.keys() >= TOLD:
        outcome = notice(
            "result.json of this export is damaged: what came out is not known.", "Make it again.", "error"
        )
    elif state.state != "done":
        outcome = notice(*ending_words(state), "error" if state.state == "failed" else "info")
    else:
        outcome = _outcome(result, places=places)
        if result.get("missing"):
            said = IN_PART
            outcome = notice(f"{result['missing']} was not made.", kind="warning") + outcome
    return f'<div class="run-head">{top}{job_list.ended(state, said)}</div>{outcome}{notes}'


def _progress(state: RunState) -> str:
    words = "stopping" if state.state == "stopping" else PHASES.get(state.phase, state.phase or "starting")
    label = words[:1].upper() + words[1:]
    if state.phase_unit != "bytes":
        unit = f", {state.phase_unit}" if state.phase_total else ""
        return progress(label + unit, state.phase_done, state.phase_total, remark=run_words.speed_words(state))
    done = ", ".join(filter(None, (run_words.amount(state), run_words.speed_words(state))))
    return progress(f"{label}, percent", 100 * state.phase_done // max(1, state.phase_total), 100, remark=done)


def _outcome(result: Mapping[str, Any], *, places: bool) -> str:
    """What came out: how it is used, whether it was tried, and the files."""
    good = {True: "good", False: "warning", None: "info"}[result["same"]]
    parts = [f"<p>{escape(result['words'])}</p>", notice(result["tried"], kind=good) if result["tried"] else ""]
    parts += [notice(words) for words in result["notes"]]
    link = str(result["link"])
    if link.startswith(("https://", "http://")):
        parts.append(
            f'<p><a class="ls-download" href="{escape(link)}" rel="noopener" target="_blank">{escape(link)}</a></p>'
        )
    if result["command"]:
        command = escape(result["command"])
        parts.append(
            f'<div class="export-command"><pre>{command}</pre>'
            f'<button type="button" data-copy="{command}">Copy</button></div>'
        )
    files = result["files"]
    rows = "".join(
        f'<li><span>{escape(file["name"])}</span><small>{escape(size(file["bytes"]))}</small><button type="button" '
        f'data-act="download" data-value="{number}" aria-label="Download {escape(file["name"])}">Download</button></li>'
        for number, file in enumerate(files)
    )
    whole = ""
    if len(files) > 1 and result["bytes"] <= WHOLE_BYTES:
        whole = job_list.buttons(("download", "all", f"Download all as a zip ({size(result['bytes'])})"))
    place = f'<p class="id">On this machine: {escape(result["place"])}</p>' if places else ""
    return "".join(parts) + f'{whole}<ul class="export-files" aria-label="Files">{rows}</ul>{place}'
