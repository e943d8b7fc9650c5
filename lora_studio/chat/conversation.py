"""The state of a chat: a conversation for each column, how its answers are sampled, and what a reload brings back.

Columns are named by who answers: "base", or an adapter's value.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from lora_studio.config.fields import SettingValues
from lora_studio.config.settings import settings
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


@dataclass
class ChatState:
    """One person's chat: which adapters answer, the conversation of each column, and how it is shown.

    `system` None is each adapter's own; `columns` keeps columns that are not shown now, so that they can come back.
    """

    adapters: list[str] = field(default_factory=list)
    system: str | None = None
    columns: dict[str, list[Message]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    sampling: SettingValues = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    marks: bool = False
    blind: BlindTrial = field(default_factory=BlindTrial)

    @property
    def names(self) -> list[str]:
        """The columns that are shown."""
        return [BASE, *self.adapters]

    def column(self, name: str) -> list[Message]:
        return self.columns.setdefault(name, [])

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


SAMPLING = tuple(setting for setting in settings() if setting.section == "generation")


def plain(sampling: Mapping[str, Any]) -> SettingValues:
    """Settings by their last names, as the engine takes them."""
    return {path.rpartition(".")[2]: value for path, value in sampling.items()}
