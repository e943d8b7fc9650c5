"""What is said in the chat: two columns of messages, what each is asked, what is kept, and what could be asked.

Pure functions and values; no gradio, no model. The chat tab wires them to the page and to the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.config import Config
from lora_studio.data.formats import convert, recognise
from lora_studio.data.messages import RowError
from lora_studio.data.records import read_records
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.parsing import parse, read_yaml
from lora_studio.ui import text
from lora_studio.workspace import RunFolder, Workspace, shipped_data

COLUMNS = ("base", "adapter")
DRAFT = "chat"
EXAMPLES = 4
NOTHING_SAID = "The answers will stand here."
FINISH = {"eos": "", "length": "cut at the longest answer", "stopped": "stopped"}

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """An adapter that can be talked to: a run's finished one, or one of its checkpoints."""

    value: str
    label: str
    name: str
    run: RunFolder
    folder: Path

    def config(self) -> Config:
        """What the run was trained with."""
        return parse(read_yaml(self.run.config))


def choices(workspace: Workspace, runs: Sequence[RunState]) -> list[Choice]:
    """Every adapter there is, newest run first; within a run the finished one, then its checkpoints from the last."""
    known = {run.id: run for run in workspace.runs()}
    found = []
    for state in runs:
        run = known.get(state.id)
        if run is None:
            continue
        title = state.title or state.id
        if state.final and run.adapter.is_dir():
            ended = "finished" if state.state == "done" else state.state
            found.append(Choice(run.id, f"{title} ({ended}, {_when(state.id)})", title, run, run.adapter))
        losses = {saved.name: saved.loss for saved in state.checkpoints}
        for folder in reversed(run.checkpoint_folders()):
            step = folder.name.rpartition("-")[2]
            loss = losses.get(folder.name)
            measured = "" if loss is None else f", validation loss {loss:.3g}"
            label = f"{title}, checkpoint at step {step}{measured}"
            found.append(Choice(f"{run.id}/{folder.name}", label, f"{title}, step {step}", run, folder))
    return found


def _when(run_id: str) -> str:
    """Day and time out of a run's id, which begins with them."""
    day, _, rest = run_id.partition("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {rest[:2]}:{rest[2:4]}"


def preferred(found: Sequence[Choice], wanted: str) -> Choice | None:
    """The adapter of that value, else the first of its run (finished, or newest checkpoint), else the newest of all."""
    exact = [choice for choice in found if choice.value == wanted]
    of_run = [choice for choice in found if choice.run.id == wanted.partition("/")[0]]
    return next(iter([*exact, *of_run, *found]), None)


def read_settings(workspace: Workspace) -> dict[str, Any]:
    """What was chosen on the chat tab last: the adapter ("choice") and the sampling settings by path ("sampling")."""
    draft = workspace.read_draft(DRAFT)
    return {"choice": "", "sampling": {}, **(draft if isinstance(draft, dict) else {})}


def choose(workspace: Workspace, value: str) -> None:
    """Makes an adapter, or whatever a run offers first, the one that the chat tab shows next."""
    workspace.write_draft(DRAFT, read_settings(workspace) | {"choice": value})


@dataclass
class Talk:
    """A conversation in columns, with the last words about each column, as it is kept between reloads."""

    system: str = ""
    columns: list[list[Message]] = field(default_factory=lambda: [[] for _ in COLUMNS])
    notes: list[str] = field(default_factory=lambda: ["" for _ in COLUMNS])

    def ask(self, question: str) -> None:
        """A new turn in every column, with an answer that is still empty."""
        self.notes = ["" for _ in COLUMNS]
        for column in self.columns:
            column += [{"role": "user", "content": question}, {"role": "assistant", "content": ""}]

    def add(self, pieces: Sequence[str]) -> None:
        """Text that came for each column since the last."""
        for column, piece in zip(self.columns, pieces, strict=True):
            column[-1]["content"] += piece

    def finish(self, texts: Sequence[str]) -> None:
        """The whole answers, as they ended."""
        for column, whole in zip(self.columns, texts, strict=True):
            column[-1]["content"] = whole

    def take_back(self) -> bool:
        """Removes the last turn where no column answered anything; whether it did."""
        if any(column and column[-1]["content"] for column in self.columns):
            return False
        self.columns = [column[:-2] for column in self.columns]
        return True

    def prompts(self) -> list[list[Message]]:
        """What each column is asked: system prompt, the turns that were answered, and the open question."""
        opening = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [opening + _answered(column) for column in self.columns]


def _answered(column: Sequence[Message]) -> list[Message]:
    turns = list(zip(column[::2], column[1::2], strict=True))
    return [message for turn in turns[:-1] if turn[1]["content"] for message in turn] + [turns[-1][0]]


def read_talk(workspace: Workspace, choice: Choice) -> Talk:
    """The conversation kept for an adapter; a new one, with the adapter's own system prompt, where none is."""
    draft = workspace.read_draft(_draft_name(choice))
    if isinstance(draft, dict) and len(draft["columns"]) == len(COLUMNS):
        return Talk(**draft)
    return Talk(system=choice.config().data.system_prompt or "")


def write_talk(workspace: Workspace, choice: Choice, talk: Talk) -> None:
    workspace.write_draft(_draft_name(choice), {"system": talk.system, "columns": talk.columns, "notes": talk.notes})


def _draft_name(choice: Choice) -> str:
    return "chat-" + choice.value.replace("/", "-")


def heading(title: str) -> str:
    """Who answers in a column."""
    return f'<h3 class="ls-column">{text.escape(title)}</h3>'


def column(messages: Sequence[Message]) -> str:
    """A column's messages, exactly as they are: markup in an answer is shown, not obeyed."""
    begun = [message for message in messages if message["content"] or message["role"] == "user"]
    if not begun:
        return f'<p class="ls-none">{NOTHING_SAID}</p>'
    waiting = '<p class="ls-none" role="status">…</p>' if not messages[-1]["content"] else ""
    return text.bubbles(begun) + waiting


def note(words: str) -> str:
    return f'<p class="ls-note">{text.escape(words)}</p>'


def column_note(answer: Mapping[str, Any]) -> str:
    """How quick an answer was and how it ended."""
    if not answer["tokens"]:
        return "No token before the stop"
    ended = FINISH[answer["finish"]]
    words = (
        f"{text.count(answer['tokens'], 'token')}, {answer['tokens_per_second']:.0f} tokens/s, "
        f"first after {text.duration(answer['first_token_seconds'])}"
    )
    return f"{words}, {ended}" if ended else words


@dataclass(frozen=True, slots=True)
class Example:
    """A question that the training did not see, with the system prompt that it was asked with in the data."""

    question: str
    system: str


def examples(config: Config) -> list[Example]:
    """Questions out of the held-out file of a data set that comes with the studio; none for other data."""
    shipped = shipped_data().get(config.data.train_file)
    if shipped is None:
        return []
    records = read_records(shipped.heldout).records
    shape = recognise(records)
    found: dict[str, Example] = {}
    for record in records[:: max(1, len(records) // (3 * EXAMPLES))]:
        try:
            messages = convert(record, shape, config.data.system_prompt).messages
        except RowError:
            continue  # a bad row makes no question
        said = {message.role: message.content for message in reversed(messages)}
        if "user" in said:
            found.setdefault(said["user"], Example(said["user"], said.get("system", "")))
    return list(found.values())[:EXAMPLES]


def memory_line(loaded: Mapping[str, Any] | None, name: str, training: bool) -> str:
    """What is in memory, and whether a run uses the same machine."""
    busy = "A run is training at the same time: both share this machine's memory and speed." if training else ""
    if loaded is None:
        return text.notice("No model is in memory. It is loaded with the first question.", busy)
    where = f"{loaded['device']}, {loaded['dtype']}, {text.size(loaded['memory_bytes'])}"
    return text.notice(f"In memory: {loaded['base']} with {name} ({where}).", busy, "good")


def require(found: Sequence[Choice], value: str | None) -> Choice:
    """The choice of that value; a StudioError where it is gone."""
    for choice in found:
        if choice.value == value:
            return choice
    raise StudioError(
        "This adapter is not there any more." if value else "No adapter is chosen.", "Choose another one."
    )
