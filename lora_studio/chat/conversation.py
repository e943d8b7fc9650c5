"""The state of a chat: a conversation for each column, how its answers are sampled, and what a reload brings back.

Columns are named by who answers: "base", or an adapter's value.
"""

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from lora_studio.config.fields import SettingValues
from lora_studio.files import JsonObject
from lora_studio.workspace import Workspace

BASE = "base"
_WHO = re.compile(r"[0-9a-f]{8,40}")
Message = dict[str, str]


class BlindTrial(TypedDict, total=False):
    """A question whose answers are compared without names; empty before the first.

    `names` and `answers` stand in the order shown, `base_at` is the base's place in it, `best` the place of the answer
    that was voted for.
    """

    base: str
    messages: list[Message]
    names: list[str]
    base_at: int
    answers: list[str]
    done: bool
    best: int | None


Turn = tuple[int | None, ...]
"""A row of the conversation: which of its turns each column has there, None where it was not asked."""


def aligned(columns: Sequence[tuple[str, ...]]) -> list[Turn]:
    """Rows of the columns' questions: the same question in one row, in the order of each column.

    Questions that differ between two common ones stand beside each other, as those of a column that was changed.
    """
    if all(questions == columns[0] for questions in columns):
        return [(place,) * len(columns) for place in range(len(columns[0]))] if columns else []
    # From the last to the first: of a question asked twice, a column that joined later has the second.
    rows: list[tuple[str, dict[int, int]]] = []
    for at, questions in enumerate(columns):
        latest_first = questions[::-1]
        merged: list[tuple[str, dict[int, int]]] = []
        matcher = difflib.SequenceMatcher(None, [question for question, _ in rows], latest_first, autojunk=False)
        for _, begin, end, other_begin, other_end in matcher.get_opcodes():
            for row, place in itertools.zip_longest(rows[begin:end], range(other_begin, other_end)):
                question, places = row or (latest_first[place], {})
                merged.append((question, places if place is None else {**places, at: len(questions) - 1 - place}))
        rows = merged
    return [tuple(places.get(at) for at in range(len(columns))) for _, places in reversed(rows)]


@dataclass
class ChatState:
    """One person's chat: which adapters answer, the conversation of each column, and how it is shown.

    `system` None is each adapter's own; `columns` keeps columns that are not shown now, so that they can come back.
    `marks`, `blinded` and `scored` are what is switched on: differences, the blind comparison, token probabilities.
    `mix` is what is set for mixing adapters, `unsent` a question whose page was left before it was answered.
    """

    adapters: list[str] = field(default_factory=list)
    system: str | None = None
    columns: dict[str, list[Message]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    sampling: SettingValues = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    marks: bool = False
    blinded: bool = False
    scored: bool = False
    blind: BlindTrial = field(default_factory=BlindTrial)
    mix: JsonObject = field(default_factory=dict)
    unsent: str = ""

    @property
    def names(self) -> list[str]:
        """The columns that are shown."""
        return [BASE, *self.adapters]

    def column(self, name: str) -> list[Message]:
        return self.columns.setdefault(name, [])

    def turns(self, names: Sequence[str]) -> list[Turn]:
        """The turns of these columns in rows, those of the same question side by side."""
        return aligned([tuple(message["content"] for message in self.column(name)[::2]) for name in names])

    def turn_at(self, row: int, names: Sequence[str]) -> dict[str, int]:
        """Which of its turns each of these columns has in a row (-1: the last); without those that have none there."""
        turns = self.turns(names)
        places = turns[row] if -1 <= row < len(turns) and turns else ()
        return {name: place for name, place in zip(names, places, strict=False) if place is not None}

    def ask(self, question: str, names: Iterable[str]) -> None:
        """A new turn in these columns, with an answer that is still empty."""
        for name in names:
            self.notes[name] = ""
            self.column(name).extend([{"role": "user", "content": question}, {"role": "assistant", "content": ""}])

    def add(self, pieces: Mapping[str, str]) -> None:
        """Text that came for each column since the last."""
        for name, piece in pieces.items():
            self.column(name)[-1]["content"] += piece

    def finish(self, answers: Mapping[str, str]) -> None:
        """The whole answers, as they ended."""
        for name, whole in answers.items():
            self.column(name)[-1]["content"] = whole

    def take_back(self, names: Sequence[str], before: Mapping[str, list[Message]] | None = None) -> bool:
        """Removes the last turn of these columns where none of them answered anything; whether it did.

        They are then as they were `before`, where that is given.
        """
        if any(self.column(name) and self.column(name)[-1]["content"] for name in names):
            return False
        self.undo(names)
        self.columns |= before or {}
        return True

    def undo(self, names: Iterable[str]) -> None:
        """Removes the last turn of these columns."""
        for name in names:
            self.columns[name] = self.column(name)[:-2]
            self.notes[name] = ""

    def again(self, name: str) -> str:
        """The last question of a column, taken out to be asked anew; empty where there is none."""
        return self.edit(name, len(self.column(name)) // 2 - 1)

    def edit(self, name: str, turn: int) -> str:
        """The question of a turn, with it and all that came after taken out; empty where there is none."""
        messages = self.column(name)
        if not 0 <= turn < len(messages) // 2:
            return ""
        self.columns[name] = messages[: 2 * turn]
        return messages[2 * turn]["content"]

    def succeed(self, old: str, new: str) -> None:
        """Another adapter takes a column over, with what was said in it unless it has a conversation of its own."""
        self.adapters = list(dict.fromkeys(new if name == old else name for name in self.adapters))
        if not self.column(new):
            self.columns[new], self.notes[new] = self.columns.pop(old, []), self.notes.pop(old, "")

    def clear(self) -> None:
        """Begins new conversations in the columns that are shown."""
        for name in self.names:
            self.columns[name], self.notes[name] = [], ""

    def prompt(self, name: str, system: str) -> list[Message]:
        """What a column is asked: system prompt, the turns that were answered, and the open question."""
        opening = [{"role": "system", "content": system}] if system.strip() else []
        return opening + _answered(self.column(name))

    def markdown(self, titles: Mapping[str, str], system: str) -> str:
        """The conversation as a document: each question once, below it every column's answer."""
        parts = [f"# Chat: {', '.join(titles[name] for name in self.names if name in titles)}"]
        if system.strip():
            parts += ["**System prompt**", system.strip()]
        for row in range(len(self.turns(self.names))):
            questions: dict[str, list[str]] = {}
            for name, place in self.turn_at(row, self.names).items():
                question, answer = self.column(name)[2 * place : 2 * place + 2]
                answers = questions.setdefault(question["content"], [])
                answers += [f"### {titles.get(name, name)}", answer["content"]]
            for question_text, answers in questions.items():
                quoted = "\n".join(f"> {line}" for line in question_text.splitlines())
                parts += [f"## Question {row + 1}", quoted, *answers]
        return "\n\n".join(parts) + "\n"

    def as_json(self, titles: Mapping[str, str], system: str) -> str:
        """The conversation with who answered and how it was sampled, as one JSON object."""
        columns = [{"name": titles.get(name, name), "messages": _complete(self.column(name))} for name in self.names]
        sampling = plain(self.sampling)
        whole = {"system_prompt": system, "sampling": sampling, "columns": columns}
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def jsonl(self, system: str) -> str:
        """The conversations shown, a line each, in the messages form that the data tab reads."""
        rows = []
        for name in self.names:
            messages = _complete(self.column(name))
            if messages:
                opening = [{"role": "system", "content": system}] if system.strip() else []
                rows.append(json.dumps({"messages": opening + messages, "answered_by": name}, ensure_ascii=False))
        return "".join(row + "\n" for row in rows)


def _answered(column: Sequence[Message]) -> list[Message]:
    return [*_complete(column[:-2]), column[-2]]


def _complete(column: Sequence[Message]) -> list[Message]:
    """The turns that got an answer."""
    turns = zip(column[::2], column[1::2], strict=True)
    return [message for turn in turns if turn[1]["content"] for message in turn]


def holds(columns: Mapping[str, Sequence[Message]] | None, question: str) -> bool:
    """Whether one of these conversations has the question: it can be asked again from there."""
    return any(message["content"] == question for column in (columns or {}).values() for message in column)


def draft_key(who: str) -> str:
    """The name under which a browser's chat is kept: its own random one, or "guest"."""
    return who if _WHO.fullmatch(who) else "guest"


def read_state(workspace: Workspace, who: str) -> ChatState:
    """What this browser's chat was when it was left."""
    draft = workspace.read_draft(f"chat-{draft_key(who)}")
    if not isinstance(draft, dict):
        return ChatState()
    names = {item.name for item in fields(ChatState)}
    return ChatState(**{name: value for name, value in draft.items() if name in names})


def write_state(workspace: Workspace, who: str, state: ChatState) -> None:
    workspace.write_draft(f"chat-{draft_key(who)}", asdict(state))


def plain(sampling: Mapping[str, Any]) -> SettingValues:
    """Settings by their last names, as the engine takes them."""
    return {path.rpartition(".")[2]: value for path, value in sampling.items()}
