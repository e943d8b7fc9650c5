"""Which column plays which part: known column names, `Format` as detected, and `Mapping` as a person sets it."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lora_studio.data.dialogues import Marks
from lora_studio.data.messages import Record, RowError, shorten
from lora_studio.data.turns import ROLES, as_text, held_turns, read_value
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.units import kind_of

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
            raise ReadingError(f"A column mapping is an object of names, not {kind_of(value)}.", KNOWN_PARTS)
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
        problems += self._answers_named_twice()
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

    def _answers_named_twice(self) -> list[str]:
        """The model would be shown what it is to answer. A template may repeat an answer, on purpose."""
        columns = self.columns()
        pairs = dict.fromkeys(
            tuple(sorted((part, other)))
            for part in ("assistant", "chosen", "rejected")
            for other, name in columns.items()
            if other != part and name == columns.get(part)
        )
        return [f"`{one}` and `{other}` name the same column, `{columns[one]}`." for one, other in pairs]


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


SAMPLE = 500
_LOOKED_AT = 50
TURNS = (
    *("messages", "contents", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"),
    "conversational",
)
USER = (
    *("prompt", "instruction", "question", "query", "problem", "user", "human", "input", "request"),
    *("user_prompt", "user_message", "user_input", "text_input", "input_text", "source"),
)
ASSISTANT = (
    *("completion", "response", "output", "answer", "assistant", "solution", "target", "reply", "gpt", "bot"),
    *("assistant_response", "model_answer", "expected_output", "result", "generation"),
    *("output_text", "correct_answer", "gold_answer", "answer_key", "answerkey", "ideal"),
)
EXTRA = ("input", "context")
PASSAGES = ("passage", "document", "article", "paragraph", "background")
TITLES = ("title", "name", "heading", "headline", "subject")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
HISTORY = ("history",)
TOOLS = ("tools", "functions", "toolconfig", "tool_config")
REASONING = ("reasoning_content", "reasoning", "thinking", "complex_cot", "cot", "chain_of_thought")
TEXT = ("text", "content", "document", "body", "passage")
LOSS_MASK = ("loss_mask", "completion_mask", "assistant_mask", "assistant_masks")
# Columns that tell to which conversation a row belongs, where each row is one message.
THREADS = ("parent_id", "message_tree_id", "conversation_id", "thread_id", "dialog_id")
LABEL = ("label", "kto_tag")
# The word in a worse answer's column, and those in its place in the better one's: `rejected_response` stands beside
# `chosen_response` or beside `response`.
WORSE_AND_BETTER = (
    *(("rejected", ("chosen", "accepted", "preferred", "")), ("non_preferred", ("preferred", ""))),
    *(("dispreferred", ("preferred", "")), ("worse", ("better",)), ("loser", ("winner",)), ("losing", ("winning",))),
)
# Columns that tell of a row and say nothing of their own, by the last word of their names or by what they hold.
_ABOUT_ROWS = re.compile(
    r"(?:^|_)(?:ids?|idx|index|uuid|guid|hash|sha\d*|md5|ur[li]|link|href|date|datetime|time|timestamp|created|created_at|"
    r"updated_at|author|username|lang|language|locale|licen[sc]e|domain|file|filename|path|filepath|split|subset|dataset|"
    r"source|origin|version|model|meta|metadata)\Z"
)
_MACHINE_MADE = re.compile(r"https?://\S+|\d{4}-\d\d-\d\d[T \d:.+Z-]*|[0-9a-fA-F-]{8,64}")
# What an answer or a question is to look like is neither of the two.
_DESCRIPTION = re.compile(
    r"(?:expected_)?(?:input|output|answer|response|result|target|prompt|question)_"
    r"(?:format|description|specification|spec|type|schema|template)s?"
)
_ENOUGH = 0.95
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_NAMES = {*TURNS, *USER, *ASSISTANT, *TEXT, *(word for word, _ in WORSE_AND_BETTER)}


def is_known(names: Iterable[str]) -> bool:
    """Whether any name is a known name of a training column."""
    return any(name.strip().lower() in _NAMES for name in names)


def spread(records: Sequence[Record]) -> list[Record]:
    """A sample for format detection, spread evenly over the records."""
    step = max(1, len(records) // SAMPLE)
    return list(records[::step][:SAMPLE])


class ColumnSample:
    """The columns of sample rows by plain name: lower case, underscores, also without a plural s."""

    def __init__(self, sample: Sequence[Record]) -> None:
        self.sample = sample
        every = dict.fromkeys(name for record in sample for name in record.fields)
        self.names = [name for name in every if str(name).strip()]
        self._plain = {name: re.sub(r"[\s\-]+", "_", str(name).strip().lower()) for name in self.names}
        self._counts: dict[str, int] = {}
        self._by_plain: dict[str, str] = {}
        for name, plain in self._plain.items():
            self._by_plain.setdefault(plain, name)
        for plain, name in list(self._by_plain.items()):
            self._by_plain.setdefault(plain.removesuffix("s"), name)

    def find(self, aliases: Iterable[str], without: Iterable[str] = ()) -> str | None:
        """The best match of `find_all`, or None."""
        return next(iter(self.find_all(aliases, without)), None)

    def find_all(self, aliases: Iterable[str], without: Iterable[str] = ()) -> list[str]:
        """The columns with one of the names; those filled in nearly as many rows as the fullest come first."""
        excluded = set(without)
        hits = dict.fromkeys(self._by_plain[alias] for alias in aliases if alias in self._by_plain)
        matches = [name for name in hits if name not in excluded]
        if len(matches) < 2:
            return matches
        shares = {name: self.share(name) for name in matches}
        most = max(shares.values())
        return sorted(matches, key=lambda name: -shares[name] if shares[name] < _ENOUGH * most else -most)

    def values(self, name: str) -> list[Any]:
        return [record.fields[name] for record in self.sample if record.fields.get(name) is not None]

    def compared(self) -> tuple[str, ...]:
        """Columns of the better and the worse answer, or (); the shortest names win, as longer ones describe them."""
        for worse in sorted(self._by_plain, key=len):
            for word, better_words in WORSE_AND_BETTER:
                better = self._beside(worse, word, better_words) if f"_{word}_" in f"_{worse}_" else None
                if better and self._holds_answers(better) and self._holds_answers(self._by_plain[worse]):
                    return better, self._by_plain[worse]
        return ()

    def _beside(self, worse: str, word: str, better_words: Sequence[str]) -> str | None:
        """The column of the better answer by the name of the worse one, else the column of the conversation."""
        before, _, after = f"_{worse}_".partition(f"_{word}_")
        parts = [[part for part in (before.strip("_"), other, after.strip("_")) if part] for other in better_words]
        better = self.find("_".join(part) for part in parts if part)
        remainder = "_".join(part for part in (before.strip("_"), after.strip("_")) if part)
        if better or "" not in better_words or remainder not in ("", *ASSISTANT):
            return better
        return self.find(TURNS)

    def _holds_answers(self, name: str) -> bool:
        values = self.values(name)
        return bool(values) and all(isinstance(value, (str, list, dict)) for value in values)

    def values_as_text(self, name: str) -> list[str]:
        return [value for value in self.values(name) if isinstance(value, str)]

    def share(self, name: str) -> float:
        """How many of the sample rows have something in that column."""
        filled = sum(value != [] and not (isinstance(value, str) and not value.strip()) for value in self.values(name))
        return filled / max(len(self.sample), 1)

    def texts(self) -> list[str]:
        """Columns whose values are all text."""
        return [
            name for name in self.names if (values := self.values(name)) and all(isinstance(v, str) for v in values)
        ]

    def contents(self) -> list[str]:
        """Columns of text that say something of their own: not the same in each row, nor an id, a link or the like."""
        return [name for name in self.texts() if not self.is_constant(name) and not self.is_about_rows(name)]

    def is_constant(self, name: str) -> bool:
        """Whether a column has a single value while other columns vary."""
        return self._distinct(name) == 1 and any(self._distinct(other) > 1 for other in self.names)

    def answers(self, name: str) -> bool:
        """Whether some value of a column can be an answer: text, a value written as text, or turns."""
        return not self.values(name) or any(map(_is_answer, self.values(name)))

    def is_class(self, name: str) -> bool:
        """Whether a column holds few values, each in many rows."""
        return 10 * self._distinct(name) <= len(self.values(name))

    def _distinct(self, name: str) -> int:
        if name not in self._counts:
            values = (value if isinstance(value, (str, int, float)) else id(value) for value in self.values(name))
            self._counts[name] = len(set(values))
        return self._counts[name]

    def is_about_rows(self, name: str) -> bool:
        """Whether a column is metadata: an id, a link, a date, a source."""
        texts = self.values_as_text(name)[:_LOOKED_AT]
        machine = bool(texts) and all(len(text) < 200 and _MACHINE_MADE.fullmatch(text.strip()) for text in texts)
        return machine or _ABOUT_ROWS.search(self._plain[name]) is not None

    def is_description(self, name: str) -> bool:
        """Whether a column describes the form of an answer or a question."""
        return _DESCRIPTION.fullmatch(self._plain[name]) is not None

    def plain(self, name: str) -> str:
        return self._plain[name]


def _is_answer(value: Any) -> bool:
    try:
        return is_turns(value) or bool(as_text(value, ""))
    except RowError:
        return False


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, or an object that holds one."""
    value = held_turns(value)
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return bool(value[0].keys() & {"role", "from", "parts"}) or {ROLES.get(key) for key in value[0]} >= {
        "user",
        "assistant",
    }


_TURN_MARKS = ('"role"', '"from"', "'role'", "'from'")


def may_be_turns(value: Any) -> bool:
    """Whether a value is a list of turns or a text of such, in JSON or Python's own form, as CSV cells hold them."""
    if not isinstance(value, str):
        return is_turns(value)
    if value.lstrip()[:1] != "[" or not any(mark in value for mark in _TURN_MARKS):
        return False
    try:
        return is_turns(read_value(value))
    except ValueError:
        return True  # broken turns are still turns: the row is reported as bad, not read as text


def quoted(names: Iterable[str], most: int = 8) -> str:
    """Column names as a person reads them: `a`, `b` and 3 more."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(f"`{shorten(str(name), 40)}`" for name in listed[:most]) + more
