"""The plan and the checks before a start, as markup. Plain functions; drawing and wiring are plan_card.py's."""

from collections.abc import Mapping

from lora_studio.advice import Change
from lora_studio.estimate import MIB, PARTS
from lora_studio.hardware import GIB
from lora_studio.preflight import ASK, FAILED, NOTE, OK, ROUGH, Report
from lora_studio.ui.plan import Memory, Plan
from lora_studio.ui.run_words import clock, figure
from lora_studio.ui.text import escape, marked, notice, tiles

VERDICTS = {
    "fits": ("good", "Fits"),
    "tight": ("warn", "Tight: it may or may not fit"),
    "does not fit": ("bad", "Does not fit"),
    "a guess": ("warn", "Not known"),
}
GUESS = "A guess: this kind of model is counted when the run is checked before its start."
LOOK = "press “Look at this data” on the Data tab"
NO_ROWS = f"The rows of this data are not counted yet: {LOOK}, then they stand here."
NO_PACKS = f"How many steps there are depends on how the rows fill the packs: with these settings, {LOOK}."
SIGNS = {OK: ("good", "✓"), NOTE: ("warn", "!"), ASK: ("warn", "?"), FAILED: ("bad", "✗")}
SPOKEN = {OK: "all right", NOTE: "worth knowing", ASK: "to decide", FAILED: "failed"}


def gib(octets: float) -> str:
    """An amount of memory as it is compared: 4 MiB, 0.42 GiB, 1.4 GiB, 123 GiB."""
    value = octets / GIB
    if value < 0.1:
        return f"{octets / MIB:.0f} MiB"
    return f"{value:,.0f} GiB" if value >= 100 else f"{value:.1f} GiB" if value >= 1 else f"{value:.2f} GiB"


def numbers(found: Plan | None) -> str:
    """Batch, rows, steps and time as tiles; `None` stands for settings that are not right yet."""
    if found is None:
        return tiles([("–", name, "") for name in ("Effective batch", "Training rows", "Steps", "Time")])
    known = found.seconds is not None
    trained = found.memory.estimate if found.memory else None
    shown = [
        (f"{found.effective_batch:,}", "Effective batch", "rows a step"),
        ("–" if found.rows is None else f"{found.rows:,}", "Training rows", ""),
        ("–" if found.steps is None else figure(found.steps), "Steps", "about"),
        (clock(found.seconds) if known else "–", "Time", "as fast as before" if known else "unknown until a first run"),
    ]
    if trained:
        share = f"{100 * trained.share:.2f} % of {_short(trained.parameters)}"
        shown += [(_short(trained.trainable), "Trained parameters", share)]
    return _missing(found) + tiles(shown) + _reading(found)


def _reading(found: Plan) -> str:
    """How the data was read, with its columns' names set off."""
    return f'<p class="ls-hint" id="plan-reading">{marked(found.reading)}</p>' if found.reading else ""


def _missing(found: Plan) -> str:
    """What is not known yet, and how to get it."""
    words = NO_ROWS if found.rows is None else NO_PACKS if found.steps is None else ""
    return f'<p class="ls-hint">{escape(words)}</p>' if words else ""


def _short(value: int) -> str:
    """Parameters as people say them: 10.1 M, 606 M, 8.19 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def memory(found: Memory | None) -> str:
    """The verdict, a bar of the parts against the memory there is, and a line for each part."""
    if found is None:
        words = "Its size is not known before its config.json is on this machine."
        return f'<div class="plan-memory"><h3 class="part">Memory</h3><p class="quiet">{words}</p></div>'
    kind, words = VERDICTS[found.verdict]
    total, room = found.estimate.total, max(found.available, found.estimate.total)
    pieces = "".join(
        f'<i class="part-{key}" style="width:{100 * octets / room:.2f}%"></i>'
        for key, octets in found.estimate.parts.items()
    )
    label = f"{gib(total)} estimated of {gib(found.available)}"
    notes = [] if found.estimate.exact else [f"A rough estimate: {ROUGH}." if found.estimate.counted else GUESS]
    if found.assumed_tokens is not None:
        notes.append(
            f"Counted for rows of {found.assumed_tokens:,} tokens, the most allowed. For the real ones, {LOOK}."
        )
    if found.estimate.gradient_checkpointing:
        notes.append("With gradient checkpointing.")
    return (
        f'<div class="plan-memory"><h3 class="part">Memory <span class="verdict {kind}">{words}</span></h3>'
        f"<p>About <b>{gib(total)}</b> of {gib(found.available)} free on {escape(found.device.name)}.</p>"
        f'<div class="memory-bar" role="img" aria-label="{label}">{pieces}</div>'
        f"{_parts(found.estimate.parts)}"
        f"{''.join(f'<p class=quiet>{escape(note)}</p>' for note in notes)}</div>"
    )


def _parts(parts: Mapping[str, int]) -> str:
    rows = "".join(
        f'<tr title="{escape(PARTS[key][1])}"><th scope="row"><i class="part-{key}"></i>{PARTS[key][0]}</th>'
        f"<td>{gib(octets)}</td></tr>"
        for key, octets in parts.items()
    )
    return f'<table class="memory-parts"><caption class="hidden">Estimated memory by part</caption>{rows}</table>'


def change_label(change: Change) -> str:
    """What a button that applies a change says."""
    return f"{change.title}: saves {gib(change.saves)}"


def checks(report: Report) -> str:
    """Every check with its number, and what to do about those that are not all right."""
    lines = []
    for number, check in enumerate(report.checks, 1):
        kind, sign = SIGNS[check.state]
        advice = f'<span class="do">{escape(check.advice)}</span>' if check.advice else ""
        lines.append(
            f'<li class="{kind}"><span class="sign" aria-label="{SPOKEN[check.state]}">{sign}</span><span>'
            f"<b>{number}. {escape(check.title)}</b> {escape(check.found)} {advice}</span></li>"
        )
    kind = "error" if report.state == FAILED else "warning" if report.state == ASK else "good"
    return f'{notice(report.words, kind=kind)}<ol class="checks">{"".join(lines)}</ol>'
