"""The plan and the checks before a start, as markup. Plain functions; drawing and wiring are plan_card.py's."""

from lora_studio.advice import Change
from lora_studio.estimate import MIB, PARTS
from lora_studio.hardware import GIB
from lora_studio.preflight import ASK, FAILED, NOTE, OK, ROUGH, Report
from lora_studio.ui.plan import Memory, Plan
from lora_studio.ui.run_words import clock, figure
from lora_studio.ui.text import hint, render, tiles

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
    missing = NO_ROWS if found.rows is None else NO_PACKS if found.steps is None else ""
    above, below = hint(missing) if missing else "", hint(found.reading, "plan-reading") if found.reading else ""
    return above + tiles(shown) + below


def _short(value: int) -> str:
    """Parameters as people say them: 10.1 M, 606 M, 8.19 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def memory(found: Memory | None) -> str:
    """The verdict, a bar of the parts against the memory there is, and a line for each part."""
    if found is None:
        return render("train.no_memory")
    estimate, room = found.estimate, max(found.available, found.estimate.total)
    notes = [] if estimate.exact else [f"A rough estimate: {ROUGH}." if estimate.counted else GUESS]
    if found.assumed_tokens is not None:
        notes.append(
            f"Counted for rows of {found.assumed_tokens:,} tokens, the most allowed. For the real ones, {LOOK}."
        )
    if estimate.gradient_checkpointing:
        notes.append("With gradient checkpointing.")
    parts = [(key, 100 * octets / room, gib(octets), *PARTS[key]) for key, octets in estimate.parts.items()]
    total, available = gib(estimate.total), gib(found.available)
    return render("train.memory", VERDICTS[found.verdict], total, available, found.device.name, parts, notes)


def change_label(change: Change) -> str:
    """What a button that applies a change says."""
    return f"{change.title}: saves {gib(change.saves)}"


def checks(report: Report) -> str:
    """Every check with its number, and what to do about those that are not all right."""
    found = [(check, *SIGNS[check.state], SPOKEN[check.state]) for check in report.checks]
    kind = "error" if report.state == FAILED else "warning" if report.state == ASK else "good"
    return render("train.checks", report.words, kind, found)
