"""Recognises the shape of a file by its content over many rows, and converts rows of that shape to conversations.

Shapes: lists of turns (messages, sharegpt), columns (alpaca, instruction, prompt_completion) and plain text. Preference
pairs and tokenised rows are recognised in order to be refused with a reason.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_studio.data.messages import Conversation, Message, RowError, check, check_text
from lora_studio.data.rows import Record, shorten
from lora_studio.data.turns import MEDIA, MISSING, ROLES, as_text, parse_history, parse_tools, parse_turns
from lora_studio.errors import StudioError

_SAMPLE = 500
_TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "conversational")
_USER = (
    *("prompt", "instruction", "question", "query", "problem", "user", "human", "input", "request", "source"),
    *("user_prompt", "user_message", "user_input"),
)
_ASSISTANT = (
    *("completion", "response", "output", "answer", "assistant", "solution", "target", "reply", "gpt", "bot"),
    *("assistant_response", "model_answer", "expected_output", "result"),
)
_EXTRA = ("input", "context")
_SYSTEM = ("system", "system_prompt", "system_message")
_HISTORY = ("history",)
_TOOLS = ("tools", "functions")
_TEXT = ("text", "content", "document", "body", "passage")
_MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
_MEDIA_TAG = re.compile(r"<(img|audio|video)>[^<]+</\1>")
_SHAPES = (
    "Known shapes: `messages` or `conversations` with a list of turns; `instruction`, `input`, `output`; pairs such as "
    "`prompt` and `completion` or `question` and `answer`; `text`."
)


@dataclass(frozen=True, slots=True)
class Format:
    """A recognised shape: `columns` says which column plays which part, `words` says it to a person."""

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    words: str = ""


def recognise(records: Sequence[Record]) -> Format:
    """The shape that most rows have. Raises StudioError for unknown shapes and for those that are not for SFT."""
    sample = _spread(records)
    columns = _Columns(sample)
    _refuse_tokenised(columns)
    found = [shape for shape in (_turns(columns), _pair(columns), _text(columns)) if shape is not None]
    fits = [sum(_fits(record, shape) for record in sample) for shape in found]
    best = max(fits, default=0)
    _refuse_preference(columns, found[0] if found and fits[0] else None)
    for shape, count in zip(found, fits, strict=True):
        if count and count >= 0.8 * best:
            return _in_words(shape, columns)
    names = ", ".join(f"`{shorten(name, 40)}`" for name in columns.names[:12]) or "none"
    raise StudioError(f"The shape of the rows is not known. Their fields are: {names}.", _SHAPES)


def _spread(records: Sequence[Record]) -> list[Record]:
    """Rows for recognition, evenly spread over the file."""
    step = max(1, len(records) // _SAMPLE)
    return list(records[::step][:_SAMPLE])


class _Columns:
    """The columns of the sample rows by plain name: lower case, underscores, also without a plural s."""

    def __init__(self, sample: Sequence[Record]) -> None:
        self.sample = sample
        self.names = list(dict.fromkeys(name for record in sample for name in record.fields))
        self._by_plain: dict[str, str] = {}
        for name in self.names:
            plain = re.sub(r"[\s\-]+", "_", str(name).strip().lower())
            self._by_plain.setdefault(plain, name)
        for plain, name in list(self._by_plain.items()):
            self._by_plain.setdefault(plain.removesuffix("s"), name)

    def find(self, aliases: Iterable[str], without: Iterable[str] = ()) -> str | None:
        """The first column that bears one of the names."""
        taken = set(without)
        hits = (self._by_plain[alias] for alias in aliases if alias in self._by_plain)
        return next((name for name in hits if name not in taken), None)

    def values(self, name: str) -> list[Any]:
        return [record.fields[name] for record in self.sample if record.fields.get(name) is not None]

    def texts(self) -> list[str]:
        """Columns whose values are all text."""
        return [name for name in self.names if (found := self.values(name)) and all(isinstance(v, str) for v in found)]


def _is_turns(value: Any) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return bool(value[0].keys() & {"role", "from"}) or {ROLES.get(key) for key in value[0]} >= {"user", "assistant"}


def _may_be_turns(value: Any) -> bool:
    """Also a JSON text of turns, as CSV cells hold them."""
    written = isinstance(value, str) and value.lstrip()[:1] == "["
    return (written and ('"role"' in value or '"from"' in value)) or _is_turns(value)


def _turns(columns: _Columns) -> Format | None:
    named = columns.find(_TURNS)
    name = named if named and any(map(_may_be_turns, columns.values(named))) else None
    if name is None:
        pair = {columns.find(_USER), columns.find(_ASSISTANT), "chosen", "rejected"}
        others = [other for other in columns.names if other not in pair]
        name = next((other for other in others if any(map(_is_turns, columns.values(other)))), None)
    if name is None:
        return None
    first = next(value for value in columns.values(name) if _may_be_turns(value))
    openai = '"role"' in first if isinstance(first, str) else "role" in first[0]
    parts = {"messages": name, "system": columns.find(_SYSTEM), "tools": columns.find(_TOOLS)}
    return Format("messages" if openai else "sharegpt", _present(parts))


def _pair(columns: _Columns) -> Format | None:
    """A column that asks and one that answers; the second may bear any name when it is the only other text."""
    helpers = {columns.find(_SYSTEM), columns.find(_HISTORY), columns.find(_TOOLS)}
    instruction = columns.find(("instruction",))
    user = instruction or columns.find(_USER)
    answer = columns.find(_ASSISTANT, without=[user] if user else [])
    if user is None and answer is None:
        return None
    if user is None or answer is None:
        known = user or answer
        rest = [name for name in columns.texts() if name not in helpers and name != known]
        if len(rest) != 1 or rest[0] in ("chosen", "rejected"):
            return None
        user, answer = user or rest[0], answer or rest[0]
    extra = columns.find(_EXTRA, without=[user, answer])
    parts = {"system": columns.find(_SYSTEM), "history": columns.find(_HISTORY)}
    if instruction:
        shape = {"instruction": user, "input": extra, "output": answer, **parts}
        return Format("alpaca" if extra else "instruction", _present(shape))
    shape = {"prompt": user, "input": extra, "completion": answer, **parts, "tools": columns.find(_TOOLS)}
    return Format("prompt_completion", _present(shape))


def _text(columns: _Columns) -> Format | None:
    name = columns.find(_TEXT)
    if name is None and len(columns.texts()) == len(columns.names) == 1:
        name = columns.names[0]
    return Format("text", {"text": name}) if name else None


def _present(parts: dict[str, str | None]) -> dict[str, str]:
    return {part: name for part, name in parts.items() if name is not None}


def _fits(record: Record, shape: Format) -> bool:
    needed = [name for part, name in shape.columns.items() if part not in ("system", "tools", "history", "input")]
    return all(record.fields.get(name) is not None for name in needed)


def _refuse_tokenised(columns: _Columns) -> None:
    ids = columns.find(("input_ids",))
    if ids and any(isinstance(value, list) and value and isinstance(value[0], int) for value in columns.values(ids)):
        raise StudioError(
            "The rows are already tokenised (`input_ids`).",
            "Use the file with the text that the tokens were made from.",
        )


def _refuse_preference(columns: _Columns, turns: Format | None) -> None:
    """Refuses pairs of a better and a worse answer, and rows marked good or bad, unless answers stand beside them."""
    chosen, rejected = columns.find(("chosen",)), columns.find(("rejected",))
    if chosen and rejected and not _answers_beside(columns, turns):
        raise StudioError(
            f"These are preference pairs (`{chosen}` and `{rejected}`), for learning by comparison (DPO), not example.",
            f"To learn from the better answers, leave `{rejected}` out and rename `{chosen}` to `completion`.",
        )
    label = columns.find(("label",))
    marks = columns.values(label) if label else []
    if marks and all(isinstance(mark, bool) for mark in marks) and (turns or _pair(columns)):
        raise StudioError(
            f"The rows are marked good or bad (`{label}`), which is preference data (KTO): learning from every row "
            "would also teach the bad answers.",
            f"Keep the rows whose `{label}` is true and leave the column out.",
        )


def _answers_beside(columns: _Columns, shape: Format | None) -> bool:
    if shape is None or "messages" not in shape.columns:
        return _pair(columns) is not None
    turns = columns.values(shape.columns["messages"])
    ends = [
        value[-1].get("role", value[-1].get("from")) for value in turns if _is_turns(value) and _is_turns(value[-1:])
    ]
    return 2 * sum(isinstance(end, str) and ROLES.get(end) == "assistant" for end in ends) > len(turns)


def _in_words(shape: Format, columns: _Columns) -> Format:
    """The format with its sentence, in the file's own column names."""
    part = {key: f"`{shorten(name, 60)}`" for key, name in shape.columns.items()}
    if "messages" in part:
        how = "a role and content" if shape.name == "messages" else "who speaks and what is said"
        words = f"{part['messages']} holds the conversation, a list of turns, each with {how}"
    elif "text" in part:
        words = f"{part['text']} is plain text, learned as it stands"
    else:
        asked, answered = part.get("instruction") or part["prompt"], part.get("output") or part["completion"]
        joined = f" followed by {part['input']}" if "input" in part else ""
        words = f"{asked}{joined} is the user's turn, {answered} the assistant's"
    extras = {"system": "the system prompt", "history": "the earlier turns", "tools": "the tools on offer"}
    words += "".join(f"; {part[key]} is {meaning}" for key, meaning in extras.items() if key in part)
    unused = [f"`{shorten(name, 40)}`" for name in columns.names if name not in shape.columns.values()]
    more = f" and {len(unused) - 8} more" if len(unused) > 8 else ""
    aside = f" Left aside: {', '.join(unused[:8])}{more}." if unused else ""
    return Format(shape.name, shape.columns, f"{words}.{aside}")


def convert(record: Record, fmt: Format, system_prompt: str | None = None) -> Conversation:
    """A row as a conversation. `system_prompt` is put in front only where the row brings none. Raises RowError."""
    fields = record.fields
    for name in fields:
        if name in _MEDIA_COLUMNS and fields[name]:
            raise RowError(MEDIA, name, fields[name])
    if fmt.name == "text":
        text = as_text(_needed(fields, fmt.columns["text"]), fmt.columns["text"])
        check_text(text, fmt.columns["text"])
        return Conversation(record.row, text=text)
    if "messages" in fmt.columns:
        place = fmt.columns["messages"]
        messages = parse_turns(_needed(fields, place), place)
    else:
        messages, place = _from_columns(fields, fmt.columns)
    if messages[0].role != "system":
        own = as_text(fields.get(fmt.columns["system"]), fmt.columns["system"]) if "system" in fmt.columns else ""
        system = own if own.strip() else system_prompt
        messages = [Message("system", system), *messages] if system and system.strip() else messages
    check(messages, place)
    if any("<" in message.content and _MEDIA_TAG.search(message.content) for message in messages):
        raise RowError(MEDIA, place, next(m.content for m in messages if _MEDIA_TAG.search(m.content)))
    tools = parse_tools(fields.get(fmt.columns["tools"]), fmt.columns["tools"]) if "tools" in fmt.columns else ()
    return Conversation(record.row, tuple(messages), tools=tools)


def _needed(fields: dict[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise RowError(MISSING, name, "fields: " + ", ".join(map(str, fields)))
    return fields[name]


def _from_columns(fields: dict[str, Any], columns: dict[str, str]) -> tuple[list[Message], str]:
    """Turns out of a row's columns, and the name of the answer's column."""
    asked, answered = columns.get("instruction") or columns["prompt"], columns.get("output") or columns["completion"]
    prompt, answer = _needed(fields, asked), _needed(fields, answered)
    if _is_turns(prompt):
        return parse_turns(prompt, asked) + _answer_turns(answer, answered), answered
    instruction = as_text(prompt, asked)
    extra = as_text(fields.get(columns["input"]), columns["input"]) if "input" in columns else ""
    if extra.strip():
        both = f"{instruction}\n\n{extra}" if instruction.strip() else extra
        turn = Message("user", both, instruction=instruction, input=extra)
    else:
        turn = Message("user", instruction)
    history = parse_history(fields.get(columns["history"]), columns["history"]) if "history" in columns else []
    return [*history, turn, *_answer_turns(answer, answered)], answered


def _answer_turns(answer: Any, name: str) -> list[Message]:
    return parse_turns(answer, name) if _is_turns(answer) else [Message("assistant", as_text(answer, name))]
