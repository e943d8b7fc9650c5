"""The summary beside the form: Start, steps, time, memory, what would save memory, and the checks before a start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.config.fields import SettingValues
from lora_studio.jobs.devices import Allocation
from lora_studio.jobs.kinds import EVALUATE
from lora_studio.jobs.preflight import ASK, FAILED, NOTE, OK, ROUGH, Report
from lora_studio.models.advice import SHOWN, Change
from lora_studio.models.hardware import device_for
from lora_studio.models.memory import PARTS
from lora_studio.ui import html, theme
from lora_studio.ui.components import QUIET, Updates
from lora_studio.ui.html import gib, render
from lora_studio.ui.train.plan import ELSEWHERE, GUESSED, MEASURED, MemoryPlan, Plan
from lora_studio.ui.words import clock

VERDICTS = {
    "fits": ("good", "Fits"),
    "tight": ("warn", "Tight"),
    "does not fit": ("bad", "Does not fit"),
    GUESSED: ("warn", "Unknown"),
}
GUESS = "A guess: parameters are counted by the checks before the start."
ANALYZE = "analyze the dataset on the Data tab"
NO_ROWS = f"Rows are not counted yet: {ANALYZE}."
NO_PACKS = f"With packing, steps depend on row lengths: {ANALYZE}."
NO_MODEL = "unknown until the model is on this machine"
SIGNS = {OK: ("good", "✓"), NOTE: ("warn", "!"), ASK: ("warn", "?"), FAILED: ("bad", "✗")}
SPOKEN = {OK: "passed", NOTE: "note", ASK: "to decide", FAILED: "failed"}
EMPTY = "–"


def numbers_markup(planned: Plan | None) -> str:
    """Steps, time, batch, rows and trained parameters; `None` stands for settings that are not valid yet."""
    if planned is None:
        facts = [(name, EMPTY, "") for name in ("Steps", "Time", "Effective batch", "Training rows")]
        return render("train.facts", facts, "")
    steps = EMPTY if planned.steps is None else f"{planned.steps:,}"
    facts = [
        ("Steps", steps, ""),
        ("Time", *_time(planned)),
        ("Effective batch", f"{planned.effective_batch:,} {planned.unit}", ""),
        ("Training rows", EMPTY if planned.rows is None else f"{planned.rows:,}", ""),
    ]
    if planned.offer:
        facts.insert(2, ("Cost", *planned.offer))
    if planned.memory:
        trained = planned.memory.estimate
        share = f"{100 * trained.share:.2f} % of {short(trained.parameters)}"
        facts.append(("Trained parameters", short(trained.trainable), share))
    return render("train.facts", facts, NO_ROWS if planned.rows is None else NO_PACKS if planned.steps is None else "")


def _time(planned: Plan) -> tuple[str, str]:
    """The time until the last step, what of it is the start, and what it is computed from."""
    if planned.seconds is None:
        unknown = "as long as the target takes" if planned.speed_from == ELSEWHERE else NO_MODEL
        return EMPTY, "" if planned.steps is None else unknown
    source = "from an earlier run" if planned.speed_from == MEASURED else "rough: from FLOPs and device"
    return f"≈ {clock(planned.seconds)}", f"start {clock(planned.start_seconds)} included; {source}"


def short(value: int) -> str:
    """Parameters as people say them: 10.1 M, 606 M, 8.19 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def memory(needed: MemoryPlan | None) -> str:
    """The verdict and a bar of the parts against the memory there is; the details are open where it is tight."""
    if needed is None:
        return render("train.no_memory")
    estimate, room = needed.estimate, max(needed.available, needed.estimate.total)
    notes = [] if estimate.exact else [f"A rough estimate: {ROUGH}." if estimate.counted else GUESS]
    if needed.assumed_tokens is not None:
        notes.append(f"For rows of {needed.assumed_tokens:,} tokens, the maximum. For actual lengths, {ANALYZE}.")
    if estimate.gradient_checkpointing:
        notes.append("With gradient checkpointing.")
    parts = [(key, 100 * octets / room, gib(octets), *PARTS[key]) for key, octets in estimate.parts.items()]
    total = gib(estimate.total)
    kind = "in total" if needed.available >= needed.device.memory_total else "free"  # all of it, once a run has ended
    available = f"{gib(needed.available)} {kind}" if needed.available else "an unknown amount"
    tight = needed.verdict != "fits"
    verdict, name = VERDICTS[needed.verdict], needed.device.name
    return render("train.memory", verdict, total, available, name, parts, notes, tight, needed.notes)


IN_SIGHT = 2


def advice(planned: Plan | None) -> str:
    """What would likely train a better adapter, each with the button that changes it; all but two are folded."""
    items = planned.advice if planned else ()
    return render("train.advice", items[:IN_SIGHT], items[IN_SIGHT:]) if items else ""


def change_label(change: Change) -> str:
    """What a button that applies a change says."""
    return f"{change.title}: saves {gib(change.saves)}"


def checks(report: Report) -> str:
    """Every check with its number, and what to do about those that did not pass."""
    rows = [(check, *SIGNS[check.state], SPOKEN[check.state]) for check in report.checks]
    kind = "error" if report.state == FAILED else "warning" if report.state == ASK else "good"
    return render("train.checks", report.words, kind, rows)


@dataclass(frozen=True)
class Card:
    """The card's components. `offered` holds the settings, by path, that each button writes into the form: by the name
    of the advice, or by the number of the button among those that save memory."""

    numbers: gr.HTML
    advice: gr.HTML
    memory: gr.HTML
    heading: gr.HTML
    buttons: tuple[gr.Button, ...]
    offered: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Everything that a change of the form may change."""
        return [self.numbers, self.advice, self.memory, self.heading, *self.buttons, self.offered]


def draw() -> Card:
    """Draws the card; nothing is known yet."""
    numbers = gr.HTML(numbers_markup(None), elem_id="plan")
    advice = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="plan-advice")
    memory = gr.HTML(elem_id="plan-memory")
    heading = gr.HTML('<h3 class="part">Saves most memory</h3>', visible=False)
    buttons = tuple(
        gr.Button(size="sm", visible=False, elem_id=f"plan-change-{number}", elem_classes="plan-change")
        for number in range(1, SHOWN + 1)
    )
    return Card(numbers, advice, memory, heading, buttons, gr.State({}))


def updates(card: Card, planned: Plan | None) -> Updates:
    """What the card shows of a plan; None stands for settings that are not valid yet. Changes that save memory are
    offered where it is short."""
    needed = planned.memory if planned else None
    changes = needed.changes if needed and needed.verdict != "fits" else ()
    labels = [change_label(change) for change in changes]
    labels += [""] * (len(card.buttons) - len(labels))
    offered = {item.name: dict(item.settings) for item in (planned.advice if planned else ())}
    offered |= {str(number): dict(change.settings) for number, change in enumerate(changes)}
    return {
        card.numbers: numbers_markup(planned),
        card.advice: advice(planned),
        card.memory: memory(needed) if planned else "",
        card.heading: gr.HTML(visible=bool(changes)),
        **{button: gr.Button(label, visible=bool(label)) for button, label in zip(card.buttons, labels, strict=True)},
        card.offered: offered,
    }


def wire(
    card: Card,
    inputs: list[Any],
    outputs: list[Any],
    apply: Callable[[SettingValues, list[Any]], Updates],
) -> None:
    """Each button hands its change to `apply`, with the values of `inputs`."""

    def press(number: int) -> Callable[..., Updates]:
        def pressed(offered: Mapping[str, SettingValues], *values: Any) -> Updates:
            return apply(offered.get(str(number), {}), list(values))

        return pressed

    def follow(event: gr.EventData, offered: Mapping[str, SettingValues], *values: Any) -> Updates:
        return apply(offered.get(str(event.value), {}), list(values))

    card.advice.click(follow, [card.offered, *inputs], outputs, trigger_mode="once", **QUIET)
    for number, button in enumerate(card.buttons):
        button.click(press(number), [card.offered, *inputs], outputs, **QUIET)


CHAT_HELD = html.notice("The chat holds a model in memory as well.", "Unload it on the Chat tab, and start again.")
EVALUATION_HELD = html.notice(
    "An evaluation holds a model in memory.",
    "A run that is started now waits for its end; stop it on its tab to begin at once.",
)


def beside(allocation: Allocation, choice: str) -> str:
    """What else holds memory of the device that a run of that `compute.device` could have, and how it is given back."""
    device = device_for(choice, allocation.offered)
    holders = [holder for holder in allocation.holders if device.id in holder.ids]
    evaluating = any(holder.noun == EVALUATE.noun for holder in holders)
    return (CHAT_HELD if not all(holder.job for holder in holders) else "") + (EVALUATION_HELD if evaluating else "")
