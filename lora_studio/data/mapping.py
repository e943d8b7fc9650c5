"""Which column plays which part: `Format` as detected, and `Mapping` by which a person sets or corrects it."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lora_studio.data.dialogues import Marks
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

PARTS = (
    *("messages", "user", "assistant", "system", "reasoning", "tools", "history", "text", "dialogue"),
    *("chosen", "rejected", "label"),
)
MappingValues = dict[str, Any]
"""An unchecked mapping from a config or a form: `Mapping`'s fields by name."""
SPEAKERS = ("system", "user", "assistant", "tool")
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}")


class ReadingError(StudioError):
    """The rows were read, but their format is unknown or unusable; a mapping can correct it."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Column names for the parts they play; whatever is None has no column.

    `roles` maps role names of the file to system, user, assistant or tool. `user_template` makes the user's turn out of
    columns: "{title}\\n\\n{description}"; {{ and }} stand for braces. `system_prompt` is used where a row has none.
    """

    messages: str | None = None
    user: str | None = None
    assistant: str | None = None
    system: str | None = None
    reasoning: str | None = None
    tools: str | None = None
    history: str | None = None
    text: str | None = None
    dialogue: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None
    roles: dict[str, str] = field(default_factory=dict)
    user_template: str | None = None
    system_prompt: str | None = None

    def to_dict(self) -> MappingValues:
        """The fields with a value."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, value: Any) -> "Mapping":
        """Reads a mapping; StudioError names all that is wrong with it."""
        if not isinstance(value, dict):
            raise ReadingError(f"A column mapping is an object of names, not {type(value).__name__}.", KNOWN_PARTS)
        part_names = [part.name for part in fields(cls)]
        problems = []
        for key, item in value.items():
            if key not in part_names:
                near = difflib.get_close_matches(str(key), part_names, 1)
                problems.append(f"`{key}` is not a part" + (f"; did you mean `{near[0]}`?" if near else "."))
            elif key == "roles":
                problems += _role_problems(item)
            elif item is not None and not isinstance(item, str):
                problems.append(f"`{key}` must name a column as text, not as {item!r}.")
        if problems:
            raise _problems(problems)
        return cls(**{key: item for key, item in value.items() if item})

    def columns(self) -> dict[str, str]:
        """The parts that a column plays."""
        return {part: name for part, name in self.to_dict().items() if part in PARTS}

    def needs(self) -> dict[str, str]:
        """The columns that a file must have, keyed by their use."""
        template = places(self.user_template or "")
        return {**self.columns(), **{f"user_template {{{name}}}": name for name in template}}

    def check(self, names: Iterable[str]) -> None:
        """Raises StudioError with all that does not fit a file of these columns."""
        columns = list(map(str, names))
        problems = []
        for part, name in self.needs().items():
            if name not in columns:
                near = difflib.get_close_matches(name, columns, 1)
                hint = f"; did you mean `{near[0]}`?" if near else f"; the columns are {', '.join(columns[:12])}."
                problems.append(f"{part}: there is no column `{name}`{hint}")
        question, pair = self.user or self.user_template, (self.chosen, self.rejected)
        if any(pair) and not all(pair):
            problems.append("A preference mapping needs both `chosen` and `rejected`.")
        if self.user_template and not places(self.user_template):
            problems.append("The user template contains no column, so every turn would be identical.")
        ways = [bool(self.messages), bool(self.assistant), bool(self.text), bool(self.dialogue), all(pair)]
        if not any(ways):
            problems.append("The mapping has nothing to train on: add `messages`, `assistant`, `text` or `chosen`.")
        elif (self.text or self.dialogue) and sum(ways) > 1:
            problems.append("`text` and `dialogue` are whole rows: leave the other parts empty.")
        elif self.label and (self.text or all(pair)):
            problems.append(
                "`label` marks an answer as good or bad; plain text and preference pairs have no such label."
            )
        elif self.assistant and not (question or self.messages):
            problems.append("`assistant` has no prompt: add `user` or a `user_template`.")
        if problems:
            raise _problems(problems)


KNOWN_PARTS = "Known parts: " + ", ".join((*PARTS, "roles", "user_template", "system_prompt")) + "."


def _role_problems(roles: Any) -> list[str]:
    if not isinstance(roles, dict):
        return ["`roles` must be an object with the role names of the file."]
    return [
        f"roles: `{name}` must be one of {', '.join(SPEAKERS)}, not {role!r}."
        for name, role in roles.items()
        if role not in SPEAKERS
    ]


def _problems(problems: list[str]) -> ReadingError:
    count = "Invalid column mapping: " if len(problems) == 1 else (f"The column mapping has {len(problems)} errors: ")
    return ReadingError(count + " ".join(problems), KNOWN_PARTS)


def places(template: str) -> list[str]:
    """The columns that a template names."""
    return list(dict.fromkeys(match.group(1) for match in _PLACE.finditer(template) if match.group(1) is not None))


def fill(template: str, cells: dict[str, str]) -> str:
    """Fills the template with cells; a block whose cells are all empty is left out."""

    def put(match: re.Match[str]) -> str:
        return match.group()[0] if match.group(1) is None else cells[match.group(1)]

    if all(cells[name].strip() for name in places(template)):
        return _PLACE.sub(put, template)
    blocks = [block for block in template.split("\n\n") if not _is_idle(block, cells)]
    return _PLACE.sub(put, "\n\n".join(blocks)).strip()


def _is_idle(block: str, cells: dict[str, str]) -> bool:
    """Whether a block of a template names columns, all of them empty in this row."""
    columns = places(block)
    return bool(columns) and not any(cells[name].strip() for name in columns)


@dataclass(frozen=True, slots=True)
class Format:
    """The format of a file: `columns` maps parts to columns, `words` describes it.

    `ambiguous` readings stand beside others that fit as well; `question` asks which is meant. `marks` say who speaks in
    dialogues that are written as one text.
    """

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    words: str = ""
    mapping: Mapping | None = None
    ambiguous: bool = False
    question: str = ""
    marks: Marks | None = None

    def to_dict(self) -> JsonObject:
        return {
            "name": self.name,
            "columns": dict(self.columns),
            "words": self.words,
            "mapping": self.mapping.to_dict() if self.mapping else None,
            "ambiguous": self.ambiguous,
            "question": self.question,
            "marks": asdict(self.marks) if self.marks else None,
        }

    @classmethod
    def from_dict(cls, value: JsonObject) -> "Format":
        mapping, marks = value.get("mapping"), value.get("marks")
        parsed = {
            "mapping": Mapping.from_dict(mapping) if mapping else None,
            "marks": Marks(**marks) if marks else None,
        }
        return cls(**{**value, **parsed})
