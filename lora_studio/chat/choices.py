"""Who can answer in the chat: finished adapters, checkpoints and adapters from elsewhere; and which go together.

Pure functions and values; no gradio, no model.
"""

import contextlib
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lora_studio.chat.conversation import BASE, ChatState
from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.protocol import ModelSelection
from lora_studio.models import imports
from lora_studio.models.adapters import AdapterCard, read_card, together
from lora_studio.workspace import RunFolder, Workspace, step_of

MAX_ADAPTERS = 3
"""Adapters beside the base."""
FOLDER = "folder:"
EXTERNAL = "External adapters"


@dataclass(frozen=True)
class Choice:
    """An adapter that can be talked to; `run` is the run it comes from, None for an external one.

    `short` names it among those of its `group`, a run with its date. `best` marks a run's checkpoint with the lowest
    validation loss. Its card is read when it is first asked for, and once.
    """

    value: str
    label: str
    name: str
    folder: Path
    run: RunFolder | None = None
    group: str = ""
    short: str = ""
    best: bool = False

    def card(self) -> AdapterCard:
        return self._card

    @cached_property
    def _card(self) -> AdapterCard:
        return read_card(self.folder)

    def config(self) -> Config | None:
        """What its run was trained with."""
        return load_config(self.run.config) if self.run else None


def base_of(columns: Sequence[Choice]) -> str:
    """The base of the first adapter whose files can be read; "" where there is none."""
    for choice in columns:
        with contextlib.suppress(StudioError):
            return choice.card().base
    return ""


def choices(
    workspace: Workspace, runs: Sequence[RunState], folders: Sequence[str] = (), *, elsewhere: bool = True
) -> list[Choice]:
    """Every adapter of these runs, newest run first; within a run the finished one, then its checkpoints from the last.

    After them those from elsewhere, unless they are not asked for; `folders` are folders of this machine that a person
    named.
    """
    run_ids = {run.id: run for run in workspace.runs()} if runs else {}
    result = []
    for state in runs:
        run = run_ids.get(state.id)
        if run is None:
            continue
        title = state.title or state.id
        group = f"{title} · {_when(state.id)}"
        if state.final and run.adapter.is_dir():
            ended = "finished" if state.state == "done" else state.state
            label, short = f"{title} ({ended}, {_when(state.id)})", f"Final adapter ({ended})"
            result.append(Choice(run.id, label, title, run.adapter, run, group, short))
        losses = {saved.name: saved.loss for saved in state.checkpoints}
        checkpoints = run.checkpoint_folders()
        best = _lowest({folder.name: losses.get(folder.name) for folder in checkpoints})
        for folder in reversed(checkpoints):
            step = step_of(folder.name)
            loss = losses.get(folder.name)
            measured = "" if loss is None else f", validation loss {loss:.3g}"
            label, short = f"{title}, checkpoint at step {step}{measured}", f"Step {step}{measured}"
            value, name = f"{run.id}/{folder.name}", f"{title}, step {step}"
            result.append(Choice(value, label, name, folder, run, group, short, folder.name == best))
    brought = [*imports.imported(workspace), *map(Path, folders)] if elsewhere else []
    for folder in dict.fromkeys(brought):
        if folder.is_dir():
            value, label = f"{FOLDER}{folder}", f"{folder.name} (external)"
            result.append(Choice(value, label, folder.name, folder, group=EXTERNAL, short=folder.name))
    return result


def _lowest(losses: Mapping[str, float | None]) -> str:
    """The checkpoint with the lowest loss; "" where fewer than two have one, as there is nothing to choose from."""
    measured = {name: loss for name, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(measured, key=lambda name: measured[name]) if len(measured) > 1 else ""


@dataclass(frozen=True, slots=True)
class Option:
    """An adapter in the list of a column; `reason` says why it can't be chosen there, "" where it can.

    `label` names it among those of its group, `name` by itself.
    """

    value: str
    label: str
    name: str
    best: bool = False
    reason: str = ""


def options(available: Sequence[Choice], adapters: Sequence[str], column: str) -> list[tuple[str, list[Option]]]:
    """What a column's list offers, by run: everything there is, with the reason why some can't answer there.

    The other columns decide the base: an adapter of another base can't answer beside them.
    """
    neighbours = [choice for choice in available if choice.value in adapters and choice.value != column]
    groups: dict[str, tuple[str, list[Option]]] = {}
    for choice, reason in zip(available, _reasons(available, neighbours), strict=True):
        key = choice.run.id if choice.run else choice.group
        _, offered = groups.setdefault(key, (choice.group, []))
        offered.append(Option(choice.value, choice.short, choice.name, choice.best, reason))
    return list(groups.values())


def next_choice(available: Sequence[Choice], adapters: Sequence[str]) -> Choice | None:
    """The first adapter that can get a column beside those that have one; best checkpoints come before others."""
    neighbours = [choice for choice in available if choice.value in adapters]
    free = [
        choice
        for choice, reason in zip(available, _reasons(available, neighbours), strict=True)
        if not reason and choice.value not in adapters
    ]
    return min(free, key=lambda choice: not choice.best, default=None)


def _reasons(available: Sequence[Choice], neighbours: Sequence[Choice]) -> list[str]:
    """Why each can't answer beside the `neighbours`; "" where it can, and for all where there are none."""
    values = {choice.value for choice in neighbours}
    first = next((card for choice in neighbours if (card := _base_card(choice)) is not None), None)
    reason_of: dict[Hashable, str] = {}  # the same for all adapters of one base, of which a workspace has many
    of_group: dict[str, AdapterCard | None] = {}  # a run's checkpoints share its base
    reasons = []
    for choice in available:
        if choice.value in values:
            reasons.append("in another column")
            continue
        if first is None:
            reasons.append("")
            continue
        place = choice.run.id if choice.run else choice.value
        if place not in of_group:
            of_group[place] = _base_card(choice)
        card = of_group[place]
        if card is None:
            reasons.append("its files can't be read")
            continue
        key = (card.base, card.revision, card.base_fingerprint)
        if key not in reason_of:
            reason_of[key] = _other_base(first, card)
        reasons.append(reason_of[key])
    return reasons


def _other_base(first: AdapterCard, card: AdapterCard) -> str:
    """Which other base an adapter was trained on; "" where both can answer together."""
    try:
        together([first, card])
    except StudioError:
        revision = f" at {card.revision}" if card.base == first.base and card.revision else ""
        return f"other base: {card.base}{revision}"
    return ""


def _base_card(choice: Choice) -> AdapterCard | None:
    """A choice's card; None where its files can't be read."""
    try:
        return choice.card()
    except StudioError:
        return None


def adapter_choices(workspace: Workspace, runs: Sequence[RunState]) -> list[tuple[str, str]]:
    """Every adapter as (label, what an evaluation or an export takes), in the same order."""
    return [(choice.label, choice.value if choice.run else str(choice.folder)) for choice in choices(workspace, runs)]


def _when(run_id: str) -> str:
    """Day and time out of a run's id, which begins with them."""
    day, _, clock = run_id.partition("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}"


def preferred(available: Sequence[Choice], run_id: str) -> Choice | None:
    """The adapter of that value, else the first of its run (finished, or newest checkpoint), else the newest of all."""
    return named(available, run_id) or next(iter(available), None)


def named(available: Sequence[Choice], run_id: str) -> Choice | None:
    """The adapter of that value, else the first of its run; None if it has none."""
    exact = [choice for choice in available if choice.value == run_id]
    of_run = [choice for choice in available if choice.run and choice.run.id == run_id.partition("/")[0]]
    return next(iter([*exact, *of_run]), None)


def follow(available: Sequence[Choice], talk: ChatState) -> str:
    """Puts what a run has now in the place of its adapters that are gone: it deletes older checkpoints as it goes on.

    Says so in words; empty where all are there, or where nothing can take their place.
    """
    values = {choice.value for choice in available}
    newest = {choice.run.id: choice for choice in reversed(available) if choice.run}
    sentences = []
    for value in talk.adapters:
        run, _, checkpoint = value.partition("/")
        if value not in values and run in newest:
            talk.succeed(value, newest[run].value)
            gone = f"The checkpoint at step {step_of(checkpoint)}" if checkpoint else "The final adapter"
            sentences.append(f"{gone} no longer exists: {newest[run].label} answers instead.")
    return "\n".join(sentences)


def require(available: Sequence[Choice], values: Sequence[str]) -> list[Choice]:
    """The choices of these values, all of one base. Raises `StudioError` where one is gone or does not go with them."""
    if not values:
        raise StudioError("No adapter is selected.", "Choose one to three adapters. The base always answers too.")
    if len(values) > MAX_ADAPTERS:
        raise StudioError(
            f"{len(values)} adapters are selected; at most {MAX_ADAPTERS} can answer next to the base.", "Remove one."
        )
    by_value = {choice.value: choice for choice in available}
    if any(value not in by_value for value in values):
        raise StudioError("A selected adapter no longer exists.", "Choose another one.")
    selected = [by_value[value] for value in values]
    together([replace(choice.card(), name=choice.name) for choice in selected])
    return selected


def runs_of(values: Sequence[str]) -> Collection[str]:
    """Ids of the runs that these adapters come from."""
    return {value.partition("/")[0] for value in values if not value.startswith(FOLDER)}


def from_elsewhere(values: Sequence[str]) -> bool:
    """Whether an adapter among these was not trained here."""
    return any(value.startswith(FOLDER) for value in values)


@dataclass(frozen=True)
class Columns:
    """The adapters beside the base in a chat as they are at one moment: what a question needs to know of them.

    `found` are all those that may be meant by `adapters`, the values chosen. Everything is read at most once, so that
    what is drawn for each piece of an answer reads no file.
    """

    found: Sequence[Choice]
    adapters: Sequence[str]

    @property
    def chosen(self) -> list[Choice]:
        """All of them. Raises `StudioError` where one is gone, or where they can't answer together."""
        return require(self.found, self.adapters)

    @cached_property
    def shown(self) -> list[Choice]:
        """Those that are there."""
        by_value = {choice.value: choice for choice in self.found}
        return [by_value[value] for value in self.adapters if value in by_value]

    @cached_property
    def titles(self) -> dict[str, str]:
        """What stands above each column."""
        base = f"Base: {base_of(self.shown)}" if self.shown else "Base"
        return {choice.value: choice.name for choice in self.shown} | {BASE: base}


def select_models(selected: Sequence[Choice]) -> ModelSelection:
    """What the engine has to hold so that these columns, and the base, can answer."""
    card = selected[0].card()
    adapters = tuple((choice.value, choice.folder) for choice in selected)
    return ModelSelection(card.base, card.revision, card.quantization, adapters)
