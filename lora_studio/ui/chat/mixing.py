"""Mix adapters: a fold of the chat's drawer that makes a column of several adapters, and saves it as an adapter.

The mix is written by the session that reads data, so that the chat's base stays in memory and goes on answering.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.chat import choices
from lora_studio.chat.choices import FOLDER, MAX_ADAPTERS, Choice
from lora_studio.chat.conversation import ChatState
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import Mixed
from lora_studio.models.adapters import read_card, together
from lora_studio.models.mixing import (
    DEFAULT_DENSITY,
    DEFAULT_METHOD,
    DEFAULT_SEED,
    METHODS,
    Mix,
    Parent,
    check_parents,
    checked_mix,
    recipe_of,
    recipe_words,
)
from lora_studio.ui import html
from lora_studio.ui.chat import markup
from lora_studio.ui.chat.handlers import Chat
from lora_studio.ui.components import QUIET, EventOptions, Updates

MAX_MIXED, RANGE, STEP = 4, 2.0, 0.05
BUSY = "The data analysis is still running. The adapters are mixed after it"


@dataclass(frozen=True)
class Fold:
    """The fold's components."""

    adapters: gr.Dropdown
    method: gr.Dropdown
    weights: list[gr.Slider]
    density: gr.Slider
    seed: gr.Number
    name: gr.Textbox
    message: gr.HTML

    @property
    def recipe(self) -> list[Any]:
        """What a mix is made from."""
        return [self.adapters, self.method, self.density, self.seed, *self.weights]


@dataclass(frozen=True)
class Draft:
    """What is set in the fold: the chosen adapters with their weights, and the method's settings.

    `column` is the value of the column with their mix, "" where there is none.
    """

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    method: str = DEFAULT_METHOD
    density: float = DEFAULT_DENSITY
    seed: int = DEFAULT_SEED
    column: str = ""

    @classmethod
    def of(cls, talk: ChatState) -> "Draft":
        """What a chat was left with."""
        values: Any = {item.name: talk.mix[item.name] for item in fields(cls) if item.name in talk.mix}
        draft = cls(**values)
        return replace(draft, adapters=tuple(draft.adapters), weights=tuple(draft.weights))

    @classmethod
    def typed(cls, typed: Sequence[Any], column: str) -> "Draft":
        """The values of the fold's components."""
        adapters, method, density, seed, *weights = typed
        number = int(seed) if isinstance(seed, int | float) else DEFAULT_SEED
        values = tuple(adapters or ())
        weighed = tuple(min(max(float(weight), -RANGE), RANGE) for weight in weights[: len(values)])
        return cls(values, weighed, method, min(max(float(density), STEP), 1.0), number, column)

    def keep(self, talk: ChatState) -> None:
        """Keeps it for a reload."""
        talk.mix = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def mix(self, available: Sequence[Choice]) -> Mix:
        """The mix of adapters that are there. Raises `StudioError` for one that is none."""
        by_value = {choice.value: choice for choice in available}
        if any(value not in by_value for value in self.adapters):
            raise StudioError("A selected adapter no longer exists.", "Choose another one.")
        if len(self.adapters) > MAX_MIXED:
            raise StudioError(f"{len(self.adapters)} adapters are selected.", f"Choose at most {MAX_MIXED}.")
        selected = [by_value[value] for value in self.adapters]
        parents = [
            Parent(choice.name, choice.folder, weight, choice.run.id if choice.run else "")
            for choice, weight in zip(selected, self.weights, strict=False)
        ]
        method = METHODS[self.method]
        return checked_mix(
            parents, self.method, self.density if method.prunes else None, self.seed if method.random else None
        )


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Mix adapters", open=False, elem_id="chat-mix") as fold:
        f, mix, save = draw()
    outputs = [*act.parts.all(), f.message, *f.recipe, f.name]

    def changed(person: str, *values: Any) -> Iterator[Updates]:
        yield from set_anew(act, person, f, values)

    def pressed(person: str, *values: Any) -> Iterator[Updates]:
        kept(act, person, values)
        yield from mixed(act, person, f)

    # While a mix is made only the last of the changes that come counts.
    changes: EventOptions = {"trigger_mode": "always_last", **QUIET}
    gr.on([who.change, fold.expand], lambda person: shown(act, person, f), who, outputs, **QUIET)
    f.adapters.focus(lambda person: gr.update(choices=_offered(act, person)), who, f.adapters, **QUIET)
    moved = [slider.release for slider in (*f.weights, f.density)]
    edits = [f.adapters.input, f.method.input, *moved, f.seed.submit, f.seed.blur]
    gr.on(edits, changed, [who, *f.recipe], outputs, **changes)
    mix.click(pressed, [who, *f.recipe], outputs, **QUIET)
    saving = [save.click, f.name.submit]
    gr.on(saving, lambda person, name: saved(act, person, f, name), [who, f.name], outputs, **QUIET)


def draw() -> tuple[Fold, gr.Button, gr.Button]:
    adapters = gr.Dropdown([], value=[], multiselect=True, label="Adapters", info="Two to four of the same base.")
    method = gr.Dropdown(
        list(METHODS), value=DEFAULT_METHOD, label="Combination type", info=METHODS[DEFAULT_METHOD].about
    )
    weights = [
        gr.Slider(-RANGE, RANGE, value=0.5, step=STEP, label=f"Weight {number}", visible=False, buttons=[])
        for number in range(1, MAX_MIXED + 1)
    ]
    about = "Share of the values that stay."
    density = gr.Slider(
        STEP, 1, value=DEFAULT_DENSITY, step=STEP, label="Density", info=about, visible=False, buttons=[]
    )
    seed = gr.Number(DEFAULT_SEED, label="Seed", info="Decides which values are dropped.", precision=0, visible=False)
    with gr.Row(elem_classes="actions"):
        mix = gr.Button("Mix in a column", scale=0, size="sm", elem_id="chat-mix-start")
    name = gr.Textbox(label="Adapter name", placeholder="such as pirate-mix", max_lines=1)
    with gr.Row(elem_classes="actions"):
        save = gr.Button("Save as adapter", scale=0, size="sm", elem_id="chat-mix-save")
    message = gr.HTML(elem_id="chat-mix-message")
    return Fold(adapters, method, weights, density, seed, name, message), mix, save


def _offered(act: Chat, who: str) -> list[tuple[str, str]]:
    """The adapters of the columns' base as (label, value), without mixes that were not saved."""
    talk = act.talk(who)
    available = act.choices(talk)
    reasons = {
        option.value: option.reason
        for _, options in choices.options(available, talk.adapters, "")
        for option in options
        if option.value not in talk.adapters
    }
    return [
        (choice.label, choice.value)
        for choice in available
        if not reasons.get(choice.value) and not choices.is_unsaved(choice.folder)
    ]


def shown(act: Chat, who: str, f: Fold) -> Updates:
    """The fold as it was left; at first with the adapters of the columns."""
    draft, offered = Draft.of(act.talk(who)), _offered(act, who)
    values = [value for _, value in offered]
    if not draft.adapters:
        adapters = tuple(value for value in act.talk(who).adapters if value in values)
        draft = replace(draft, adapters=adapters, weights=(0.5,) * len(adapters))
    method = METHODS[draft.method]
    return {
        f.adapters: gr.update(choices=offered, value=[value for value in draft.adapters if value in values]),
        f.method: gr.update(value=draft.method, info=method.about),
        f.density: gr.update(value=draft.density, visible=method.prunes),
        f.seed: gr.update(value=draft.seed, visible=method.random),
        **_sliders(f, draft, {value: label for label, value in offered}),
    }


def _sliders(f: Fold, draft: Draft, labels: Mapping[str, str]) -> Updates:
    """A slider for each chosen adapter."""
    updates: Updates = {}
    for at, slider in enumerate(f.weights):
        if at < len(draft.adapters):
            label = f"Weight of {html.shorten(labels.get(draft.adapters[at], 'an adapter that no longer exists'), 48)}"
            updates[slider] = gr.update(label=label, value=draft.weights[at], visible=True)
        else:
            updates[slider] = gr.update(visible=False)
    return updates


def kept(act: Chat, who: str, values: Sequence[Any]) -> Draft:
    """Keeps what was set, each adapter with its own weight also where another one was taken out before it."""
    talk = act.talk(who)
    before = Draft.of(talk)
    draft = Draft.typed(values, before.column)
    if draft.adapters != before.adapters:
        weights = dict(zip(before.adapters, before.weights, strict=False))
        draft = replace(draft, weights=tuple(weights.get(value, 0.5) for value in draft.adapters))
    draft.keep(talk)
    act.keep(who, talk)
    return draft


def set_anew(act: Chat, who: str, f: Fold, values: Sequence[Any]) -> Iterator[Updates]:
    """What follows from a change in the fold: other fields, and the mix made anew where it has a column."""
    before = Draft.of(act.talk(who))
    draft = kept(act, who, values)
    yield {f.message: gr.skip()}  # of a handler that yields nothing Gradio empties every output
    if (draft.adapters, draft.method) != (before.adapters, before.method):
        yield shown(act, who, f) | {f.message: ""}
    if draft != before and draft.column in act.talk(who).adapters:
        yield from mixed(act, who, f)


def mixed(act: Chat, who: str, f: Fold) -> Iterator[Updates]:
    """Makes the mix, and shows it in its column: a new one, or in the place of the mix before."""
    try:
        act.check_idle(who)
        talk = act.talk(who)
        draft = Draft.of(talk)
        if draft.column not in talk.adapters and len(talk.adapters) >= MAX_ADAPTERS:
            raise StudioError("All columns are taken.", "Remove a column first.")
        mix = draft.mix(act.choices(talk))
        check_parents(mix)
        first = replace(read_card(mix.parents[0].folder), name=mix.parents[0].name)
        together([*(replace(choice.card(), name=choice.name) for choice in act.columns(talk).shown[:1]), first])
        yield {f.message: html.progress(BUSY if act.studio.inspector.busy else "Mixing adapters")}
        out = choices.new_mix(act.studio.workspace)
        notes = _written(act, mix, out)
        talk = _placed(act, who, out)
        words = html.notice(f"{mix.title}: it has a column.", " ".join(notes), "good")
        yield act.paint(talk) | {f.message: words}
        loaded = act.engine.loaded
        if loaded is not None and loaded.base == act.columns(talk).chosen[0].card().base:
            yield from act.load(who)  # the base stays in memory, so that this takes a moment
    except StudioError as error:
        yield {f.message: markup.problem(error)}


def _written(act: Chat, mix: Mix, out: Path) -> list[str]:
    """Writes the mix; returns what to know of it."""
    with contextlib.closing(act.studio.inspector.stream(choices.mix_request(mix, out))) as answers:
        return next((answer.notes for answer in answers if isinstance(answer, Mixed)), [])


def _placed(act: Chat, who: str, folder: Path) -> ChatState:
    """Gives an adapter's folder the column of the mix before, with what was said in it, or a new column."""
    talk = act.talk(who)
    draft, value = Draft.of(talk), f"{FOLDER}{folder}"
    if draft.column in talk.adapters:
        before = Path(draft.column.removeprefix(FOLDER))
        talk.succeed(draft.column, value)
        talk.folders = [name for name in talk.folders if name != str(before)]
        shutil.rmtree(before, ignore_errors=True)
    else:
        talk.adapters = [*talk.adapters, value]
    if choices.is_unsaved(folder):
        talk.folders = [*talk.folders, str(folder)]
    replace(draft, column=value if choices.is_unsaved(folder) else "").keep(talk)
    act.keep(who, talk)
    return talk


def saved(act: Chat, who: str, f: Fold, name: str) -> Updates:
    """Keeps the mix as an adapter of that name, which takes over its column."""
    talk = act.talk(who)
    try:
        act.check_idle(who)
        column = Draft.of(talk).column
        folder = Path(column.removeprefix(FOLDER))
        if column not in talk.adapters or not folder.is_dir():
            raise StudioError("There is no mix to save yet.", "Choose adapters and press Mix in a column.")
        saved_folder = choices.save_mix(folder, act.studio.workspace, name.strip())
        talk = _placed(act, who, saved_folder)
        recipe = recipe_of(read_card(saved_folder).values)
        words = f"Saved as {saved_folder.name}{f': {recipe_words(recipe)}' if recipe else ''}."
        listed = "Chat, Evaluate and Export list it."
        return act.paint(talk) | {f.message: html.notice(words, listed, "good"), f.name: ""}
    except StudioError as error:
        return {f.message: html.problem(error)}
