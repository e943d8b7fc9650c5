"""Who can answer in the chat: finished adapters, checkpoints and adapters from elsewhere; and which go together.

Pure functions and values; no gradio, no model.
"""

import contextlib
from collections.abc import Collection, Sequence
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


@dataclass(frozen=True)
class Choice:
    """An adapter that can be talked to; `run` is the run it comes from, None for one from elsewhere.

    Its card is read when it is first asked for, and once.
    """

    value: str
    label: str
    name: str
    folder: Path
    run: RunFolder | None = None

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
        if state.final and run.adapter.is_dir():
            ended = "finished" if state.state == "done" else state.state
            result.append(Choice(run.id, f"{title} ({ended}, {_when(state.id)})", title, run.adapter, run))
        losses = {saved.name: saved.loss for saved in state.checkpoints}
        for folder in reversed(run.checkpoint_folders()):
            step = step_of(folder.name)
            loss = losses.get(folder.name)
            measured = "" if loss is None else f", validation loss {loss:.3g}"
            label = f"{title}, checkpoint at step {step}{measured}"
            result.append(Choice(f"{run.id}/{folder.name}", label, f"{title}, step {step}", folder, run))
    brought = [*imports.imported(workspace), *map(Path, folders)] if elsewhere else []
    for folder in dict.fromkeys(brought):
        if folder.is_dir():
            result.append(Choice(f"{FOLDER}{folder}", f"{folder.name} (external)", folder.name, folder))
    return result


def adapter_choices(workspace: Workspace, runs: Sequence[RunState]) -> list[tuple[str, str]]:
    """Every adapter as (label, what an evaluation or an export takes), in the same order."""
    return [(choice.label, choice.value if choice.run else str(choice.folder)) for choice in choices(workspace, runs)]


def _when(run_id: str) -> str:
    """Day and time out of a run's id, which begins with them."""
    day, _, clock = run_id.partition("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}"


def preferred(available: Sequence[Choice], run_id: str) -> Choice | None:
    """The adapter of that value, else the first of its run (finished, or newest checkpoint), else the newest of all."""
    exact = [choice for choice in available if choice.value == run_id]
    of_run = [choice for choice in available if choice.run and choice.run.id == run_id.partition("/")[0]]
    return next(iter([*exact, *of_run, *available]), None)


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
