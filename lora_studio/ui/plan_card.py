"""The card beside the form that says what a run would need, and the buttons that make it need less.

Words are plan_words.py's, numbers plan.py's. Each of the three changes has a button that writes it into the form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.advice import SHOWN
from lora_studio.ui import plan_words
from lora_studio.ui.plan import Plan


@dataclass(frozen=True)
class Card:
    """The card's components. `offered` holds the settings, by path, that each button writes into the form."""

    numbers: gr.HTML
    memory: gr.HTML
    fetch: gr.Button
    said: gr.HTML
    heading: gr.HTML
    buttons: tuple[gr.Button, ...]
    offered: gr.State

    @property
    def shown(self) -> list[Any]:
        """Everything that a change of the form may change."""
        return [self.numbers, self.memory, self.fetch, self.said, self.heading, *self.buttons, self.offered]


def draw() -> Card:
    """Draws the card; nothing is known yet."""
    numbers = gr.HTML(plan_words.numbers(None), elem_id="plan")
    memory = gr.HTML(elem_id="plan-memory")
    fetch = gr.Button("Look up this model's size", size="sm", visible=False, elem_id="plan-fetch")
    said = gr.HTML(visible=False, elem_id="plan-said")
    heading = gr.HTML('<h3 class="part">What would save most memory</h3>', visible=False)
    buttons = tuple(
        gr.Button(size="sm", visible=False, elem_id=f"plan-change-{number}", elem_classes="plan-change")
        for number in range(1, SHOWN + 1)
    )
    return Card(numbers, memory, fetch, said, heading, buttons, gr.State([]))


def updates(card: Card, found: Plan | None) -> dict[Any, Any]:
    """What the card shows of a plan; None stands for settings that are not right yet."""
    if found is None:
        hidden: dict[Any, Any] = {button: gr.Button(visible=False) for button in card.buttons}
        blank = {card.memory: "", card.fetch: gr.Button(visible=False), card.heading: gr.HTML(visible=False)}
        return {card.numbers: plan_words.numbers(None), **blank, **hidden, card.offered: []}
    changes = found.memory.changes if found.memory else ()
    labels = [plan_words.change_label(change) for change in changes]
    labels += [""] * (len(card.buttons) - len(labels))
    return {
        card.numbers: plan_words.numbers(found),
        card.memory: plan_words.memory(found.memory),
        card.fetch: gr.Button(visible=found.memory is None),
        card.said: gr.HTML(visible=False),
        card.heading: gr.HTML(visible=bool(changes)),
        **{button: gr.Button(label, visible=bool(label)) for button, label in zip(card.buttons, labels, strict=True)},
        card.offered: [dict(change.settings) for change in changes],
    }


def wire(
    card: Card,
    inputs: list[Any],
    outputs: list[Any],
    apply: Callable[[Mapping[str, Any], list[Any]], dict[Any, Any]],
    quiet: Mapping[str, Any],
) -> None:
    """Each button hands its change to `apply`, with the values of `inputs`."""

    def press(number: int) -> Callable[..., dict[Any, Any]]:
        def pressed(offered: list[dict[str, Any]], *values: Any) -> dict[Any, Any]:
            return apply(offered[number] if number < len(offered) else {}, list(values))

        return pressed

    for number, button in enumerate(card.buttons):
        button.click(press(number), [card.offered, *inputs], outputs, **quiet)
