"""`Record` and `Conversation`: what every reader yields, and the one form that rows of every format are converted to.

A row number is the line of a JSONL or text file, the element of a JSON array, or the data row of a table.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lora_studio.files import JsonObject

FOUND_LENGTH = 200
Fields = dict[str, Any]
"""The fields of a row by name, with values as JSON holds them."""
FILLED = "{rows} structs with empty fields, as Arrow fills what a row lacks: these fields are left out."
NAN = "{cells} NaN, which stands for a missing value: it is read as empty."


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file as read."""

    row: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used. `reason` is the same sentence for the same kind of fault: rows are counted by it."""

    row: int
    reason: str
    found: str = ""
    field: str = ""

    def to_dict(self) -> JsonObject:
        return asdict(self)


class Tally:
    """Counts assumptions about rows or cells by sentence, with a placeholder for the number: {rows} becomes
    "4 rows have", {cells} "4 cells hold"."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def clear(self) -> None:
        """Forgets all, as a reading does that begins anew."""
        self._counts.clear()

    def count(self, sentence: str, times: int = 1) -> None:
        """Counts an assumption."""
        self._counts[sentence] += times

    def sentences(self) -> list[str]:
        """The assumptions with their counts."""
        return [
            sentence.replace("{rows}", f"{times:,} rows have" if times > 1 else "1 row has").replace(
                "{cells}", f"{times:,} cells hold" if times > 1 else "1 cell holds"
            )
            for sentence, times in self._counts.items()
        ]


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a file: `rows()` begins anew at each call and is lazy; `assumptions` are known before.

    `tally` is what rows that have been read added to them. `sheets` are those of a workbook that can be chosen.
    """

    rows: Callable[[], Iterator[Record | BadRow]]
    assumptions: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    sheets: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """All that was assumed so far."""
        return [*self.assumptions, *self.tally.sentences()]


def shorten(value: Any, length: int = FOUND_LENGTH) -> str:
    """A value as text, shortened to `length` characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(value: Any) -> Any:
    """A value as JSON: what JSON can't represent becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


ChatMessage = dict[str, Any]
"""A message as chat templates take it: role, content and optional keys."""
ToolCall = dict[str, Any]
"""A call in OpenAI's form: type, function with name and arguments, perhaps an id."""
Tool = dict[str, Any]
"""A tool on offer, as a JSON schema in OpenAI's form."""
IGNORED = -100  # the label of a token that is context only
NO_ANSWER = "the row has no answer to train on"
EMPTY_ANSWER = "an answer is empty"
EMPTY_TURN = "a user turn is empty"
SYSTEM_LATE = "a system message comes after the first turn"
TWO_USERS = "two user turns in a row"
TWO_ASSISTANTS = "two assistant turns in a row"
LONE_TOOL = "a tool result without a preceding assistant turn"
CONTROL = "the text contains control characters"
BROKEN_TEXT = "the text contains half of a surrogate pair or bytes that cannot be decoded"
EMPTY_TEXT = "the text is empty"
# Unicode's noncharacters U+FDD0 to U+FDEF are for inner use: the chat template's marks are two of them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufdd0-\ufdef]")
# Letters without ink, and the categories of white space, control and format characters.
_INKLESS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_INKLESS_CATEGORIES = ("Zs", "Zl", "Zp", "Cc", "Cf")


class RowError(ValueError):
    """A row can't be used; rows with the same fault share the same `reason`."""

    def __init__(self, reason: str, field: str = "", found: Any = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.found = shorten(found)

    def at(self, row: int) -> BadRow:
        """This fault as the report of a row."""
        return BadRow(row, self.reason, self.found, self.field)


class Arguments(JsonObject):
    """Arguments of a tool call, with their JSON text in the file as `written`; "" if the file has an object."""

    def __init__(self, values: Mapping[str, Any], written: str = "") -> None:
        super().__init__(values)
        self.written = written


@dataclass(frozen=True, slots=True)
class Form:
    """The form of tool calls for a template: arguments as objects or JSON text, empty content as "" or None.

    `numbered`: calls and their results get ids of nine letters and digits, which Mistral's templates insist on.
    """

    text_arguments: bool = False
    null_content: bool = False
    numbered: bool = False


FORMS = (
    *(Form(text, null) for null in (False, True) for text in (False, True)),
    *(Form(text, numbered=True) for text in (False, True)),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `instruction` and `input` are the parts of an Alpaca turn, for prompt styles that use them.

    An answer with `trained` unset is context only, as a weight of 0 in the file asks for.
    """

    role: str
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    instruction: str | None = None
    input: str | None = None
    tool_call_id: str | None = None
    trained: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the values alone: what dataclasses do for slots takes four times as long."""
        own = self.role, self.content, self.reasoning_content, self.tool_calls, self.name
        return Message, (*own, self.instruction, self.input, self.tool_call_id, self.trained)

    def to_dict(self, form: Form = FORMS[0]) -> ChatMessage:
        """The message as chat templates take it, without empty keys."""
        message: ChatMessage = {"role": self.role, "content": self.content}
        if form.null_content and self.tool_calls and not self.content:
            message["content"] = None
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [_call_in(call, form) for call in self.tool_calls]
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.input is not None:
            message["instruction"] = self.instruction
            message["input"] = self.input
        return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as turns, or as plain text when `text` is set.

    For learning by comparison `messages` is the prompt of the answers `chosen` and `rejected`; or `label` says whether
    the last answer is a good one. An already tokenised row has `input_ids`, perhaps `labels`, and no messages.
    """

    row: int
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[Tool, ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    input_ids: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the values alone, as a message does."""
        own = self.row, self.messages, self.text, self.tools, self.chosen, self.rejected
        return Conversation, (*own, self.label, self.input_ids, self.labels)

    def to_dicts(self, form: Form = FORMS[0]) -> list[ChatMessage]:
        messages = [message.to_dict(form) for message in self.messages]
        return _numbered(messages) if form.numbered else messages


def _call_in(call: ToolCall, form: Form) -> ToolCall:
    """A tool call with its arguments as an object or as JSON text, in the file's own spelling if it has one."""
    arguments = call["function"]["arguments"]
    if form.text_arguments and not isinstance(arguments, str):
        written = arguments.written if isinstance(arguments, Arguments) else ""
        arguments = written or json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, Arguments):
        arguments = dict(arguments)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _numbered(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The messages with calls numbered through the conversation, and results with the numbers of calls in order."""
    number, waiting = 0, list[str]()
    for message in messages:
        for call in message.get("tool_calls", ()):
            number += 1
            call["id"] = f"call{number:05}"
            waiting.append(call["id"])
        if message["role"] == "tool" and waiting:
            message["tool_call_id"] = waiting.pop(0)
    return messages


def check(messages: Sequence[Message], field: str = "") -> None:
    """Raises RowError for the first rule that a conversation breaks."""
    before = ""
    answers = 0
    for position, message in enumerate(messages):
        role = message.role
        for text in (message.content, message.reasoning_content, message.name, message.tool_call_id):
            if text:
                _check_letters(text, field)
        check_values(message.tool_calls, field)
        if role == "system" and position > 0:
            raise RowError(SYSTEM_LATE, field, f"message {position + 1}: {message.content}")
        if role == "user" and before == "user":
            raise RowError(TWO_USERS, field, f"message {position + 1}: {message.content}")
        if role == "assistant" and before == "assistant":
            raise RowError(TWO_ASSISTANTS, field, f"message {position + 1}: {message.content}")
        if role == "tool" and before not in ("assistant", "tool"):
            raise RowError(LONE_TOOL, field, f"message {position + 1}: {message.content}")
        if role == "user" and is_blank(message.content):
            raise RowError(EMPTY_TURN, field, f"message {position + 1}")
        if role == "assistant":
            if is_blank(message.content) and not message.tool_calls:
                raise RowError(EMPTY_ANSWER, field, f"message {position + 1}")
            answers += message.trained
        before = role
    if not answers:
        raise RowError(NO_ANSWER, field, " → ".join(message.role for message in messages[:20]))


def check_text(text: str, field: str = "") -> None:
    """Raises RowError for plain text that can't be trained on."""
    if is_blank(text):
        raise RowError(EMPTY_TEXT, field)
    _check_letters(text, field)


def check_values(values: Sequence[Any], field: str = "") -> None:
    """Raises RowError for invalid characters anywhere in tool calls or tools."""
    for text in _texts_in(values) if values else ():
        _check_letters(text, field)


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: white space, zero-width and other letters without ink."""
    return not text.strip() or (not text.isascii() and all(map(_is_inkless, text)))


def is_broken(text: str) -> bool:
    """Whether the text holds bytes that could not be decoded, or half a character, and so can't be tokenised."""
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def is_odd(text: str) -> bool:
    """Whether a text holds undecodable or control characters."""
    return is_broken(text) or _CONTROLS.search(text) is not None


def _is_inkless(letter: str) -> bool:
    is_selector = "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
    return is_selector or letter in _INKLESS or unicodedata.category(letter) in _INKLESS_CATEGORIES


def _texts_in(values: Sequence[Any]) -> Iterator[str]:
    """Every string in JSON values, keys included; iterative, as files may nest to any depth."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def _check_letters(text: str, field: str) -> None:
    """Raises RowError for undecodable bytes and for control characters other than tab and line ends."""
    if is_broken(text):
        raise RowError(BROKEN_TEXT, field, text)
    control = _CONTROLS.search(text)
    if control:
        around = text[max(0, control.start() - 40) : control.end() + 40]
        raise RowError(CONTROL, field, f"U+{ord(control.group()):04X} at character {control.start() + 1}: {around!r}")


def sides(conversation: Conversation) -> tuple[Conversation, Conversation]:
    """The prompt with the better and with the worse answer; answers that stand in the prompt are not trained."""
    prompt = tuple(replace(message, trained=False) for message in conversation.messages)
    return (
        replace(conversation, messages=(*prompt, *conversation.chosen), chosen=(), rejected=()),
        replace(conversation, messages=(*prompt, *conversation.rejected), chosen=(), rejected=()),
    )


def last_answer(conversation: Conversation) -> Conversation:
    """The row with its last answer alone as the trained part: that is what its label speaks of, as in trl's KTO."""
    turns = conversation.messages
    earlier = tuple(replace(message, trained=False) for message in turns[:-1])
    return replace(conversation, messages=(*earlier, *turns[-1:]))
