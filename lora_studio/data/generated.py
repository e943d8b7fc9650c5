"""Rows that a model writes about chunks of documents: the prompt, reading its answer, and what is doubtful in a row.

Models rarely answer with JSON alone, so that it is looked for in whatever they write, and what can't be read is kept as
it is. No model and no file here.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lora_studio.data.messages import Conversation, Message
from lora_studio.data.quality import group_key, near_groups
from lora_studio.data.readers.documents import Chunk
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

CHUNK, COUNT, SOURCE, HEADING = "{chunk}", "{count}", "{source}", "{heading}"
PROMPT = """\
Write {count} questions that a reader could ask about the text below, each with its answer.

- Ask in the language of the text.
- Each question makes sense without the text: name what it is about, and do not write "the text" or "the author".
- Each answer is complete, correct and supported by the text alone.
- Ask about different facts. Write fewer questions if the text does not hold enough.

Answer with a JSON array and nothing else: [{"question": "...", "answer": "..."}]

Source: {source}
Section: {heading}

Text:
{chunk}"""
"""The prompt unless a person changes it."""
MAX_ROWS_PER_CHUNK = 100
MAX_CHARACTERS = 20_000
"""Of a question or an answer; a longer one is cut off, as it is no answer about a chunk."""
MIN_OVERLAP = 0.5
"""An answer is marked as ungrounded if less than this share of its words occurs in its chunk."""
QUESTIONS = ("question", "q", "prompt", "instruction", "user", "input")
ANSWERS = ("answer", "a", "response", "completion", "output", "assistant")
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_DECORATION = " \t>*_#-"
_LINE = re.compile(
    r"(?:\d{1,3}[.)] {0,3})?[*_]{0,3}(q|question|a|answer) {0,2}\d{0,3}[*_]{0,3} {0,2}[:：](.*)", re.IGNORECASE
)
_TRAILING_COMMA = re.compile(r",(?=\s*[\]}])")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
NEAR, UNGROUNDED, EMPTY = "near-duplicate", "ungrounded", "empty"


@dataclass(frozen=True, slots=True)
class Row:
    """A question with its answer about a chunk. `number` counts those of the chunk from 0; `dropped` rows are not
    used for training."""

    chunk: int
    number: int
    question: str
    answer: str
    dropped: bool = False
    edited: bool = False

    @property
    def key(self) -> str:
        """What tells a row from all others of a job."""
        return f"{self.chunk}:{self.number}"

    def as_conversation(self, row: int) -> Conversation:
        """The row as the checks of the data's quality take it."""
        return Conversation(row=row, messages=(Message("user", self.question), Message("assistant", self.answer)))


def check_prompt(prompt: str) -> None:
    """Raises `StudioError` for a prompt without the place of the chunk."""
    if CHUNK not in prompt:
        raise StudioError(
            f"The prompt does not contain {CHUNK}.", f"Write {CHUNK} where the text of the chunk belongs."
        )


def fill(prompt: str, chunk: Chunk, questions: int) -> str:
    """The prompt for a chunk. What stands in the chunk is never taken for a place to fill."""
    filled = prompt.replace(COUNT, str(questions)).replace(SOURCE, chunk.source).replace(HEADING, chunk.heading or "-")
    return chunk.text.join(filled.split(CHUNK))


def read_rows(text: str, chunk: int) -> list[Row]:
    """The rows in a model's answer; empty where it holds none.

    Reads arrays and objects of JSON wherever they stand (in code fences, after words, one a line, cut off at the end)
    with the usual names of the fields; and else lines that begin with `Q:` and `A:`.
    """
    plain = _THOUGHTS.sub("", text)
    pairs = max(_json_pairs(plain), _json_pairs(_TRAILING_COMMA.sub("", plain)), key=len) or list(_lines(plain))
    pairs = list(dict.fromkeys(pairs))[:MAX_ROWS_PER_CHUNK]
    return [Row(chunk, at, question, answer) for at, (question, answer) in enumerate(pairs)]


def _json_pairs(text: str) -> list[tuple[str, str]]:
    return [pair for value in _values(text) for pair in _pairs(value)]


def _values(text: str) -> Iterator[Any]:
    """Every value of JSON that begins with a bracket, outermost first; of an array that is cut off, its whole items."""
    decoder = json.JSONDecoder(strict=False)
    at, tries = 0, 0
    while (start := min((place for place in (text.find("[", at), text.find("{", at)) if place >= 0), default=-1)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            at = start + 1
            tries += 1
            if tries > 200:  # each try may read far: text that is full of brackets is no answer
                return


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    """Questions with answers in a value of JSON, at most three levels deep."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop(0)
        if isinstance(item, Mapping):
            fields = {str(name).strip().casefold(): inner for name, inner in item.items()}
            question = next((fields[name] for name in QUESTIONS if name in fields), None)
            answer = next((fields[name] for name in ANSWERS if name in fields), None)
            if _is_text(question) and _is_text(answer):
                yield _tidy(question), _tidy(answer)
                continue
        inner = list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, list) else []
        if depth < 3:
            waiting += [(nested, depth + 1) for nested in inner if isinstance(nested, list | dict)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())


def _tidy(value: Any) -> str:
    text = str(value).encode("utf-8", "replace").decode("utf-8")  # half a character is no text
    return text.strip()[:MAX_CHARACTERS]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Pairs out of lines with marks: `Q: ...`, `**Answer 2:** ...`; further lines belong to the part above them."""
    parts: list[tuple[str, str]] = []
    for line in text.splitlines():
        mark = _LINE.fullmatch(line.lstrip(_DECORATION))
        if mark:
            parts.append((mark[1][0].lower(), mark[2].lstrip("*_ \t").strip()))
        elif parts:
            kind, before = parts[-1]
            parts[-1] = kind, f"{before}\n{line.rstrip()}"
    for (first, question), (second, answer) in pairwise(parts):
        if (first, second) == ("q", "a") and question.strip() and answer.strip():
            yield _tidy(question), _tidy(answer)


def overlap(answer: str, chunk: str) -> float:
    """The share of an answer's words, each counted once, that occur in the chunk, whatever their case; 1 for an answer
    without words.

    Words of at least four letters and numbers count, because short ones such as "the" occur everywhere; all words where
    there are no others. Of scripts without spaces each character counts.
    """
    words = set(_WORD.findall(answer.casefold()))
    telling = {word for word in words if len(word) >= 4 or not word.isascii() or any(map(str.isdigit, word))} or words
    return len(telling & set(_WORD.findall(chunk.casefold()))) / len(telling) if telling else 1.0


def marks(rows: Sequence[Row], chunks: Mapping[int, str]) -> dict[str, list[str]]:
    """What is doubtful in rows that are not dropped, by the key of the row.

    `NEAR` is for all but the first of rows that repeat or nearly repeat each other, `UNGROUNDED` where the overlap is
    below `MIN_OVERLAP`, `EMPTY` where question or answer is. `chunks` are the texts by number.
    """
    used = [row for row in rows if not row.dropped]
    conversations = [row.as_conversation(at) for at, row in enumerate(used)]
    groups, _ = near_groups(conversations, seconds=5.0)
    near = {at for group in groups for at in group[1:]}
    first: dict[str, int] = {}
    near |= {at for at, chat in enumerate(conversations) if first.setdefault(group_key(chat), at) != at}
    result: dict[str, list[str]] = {}
    for at, row in enumerate(used):
        doubts = [EMPTY] if not (row.question.strip() and row.answer.strip()) else []
        doubts += [NEAR] if at in near else []
        doubts += [UNGROUNDED] if overlap(row.answer, chunks.get(row.chunk, "")) < MIN_OVERLAP else []
        if doubts:
            result[row.key] = doubts
    return result


def reviewed(rows: Sequence[Row], decisions: Mapping[str, Any]) -> list[Row]:
    """Rows as a person left them. `decisions` holds, by the key of a row, the fields that were changed."""
    changed = []
    for row in rows:
        decision = decisions.get(row.key)
        if isinstance(decision, Mapping):
            question, answer = (decision.get(name) for name in ("question", "answer"))
            edited = isinstance(question, str) and isinstance(answer, str)
            row = replace(row, dropped=decision.get("dropped") is True)
            row = replace(row, question=str(question), answer=str(answer), edited=True) if edited else row
        changed.append(row)
    return changed


def training_row(row: Row, chunk: Chunk, form: str) -> JsonObject:
    """A row as training takes it: `chat` has `messages`, `prompt` has `prompt` and `completion`; both name where it
    comes from, with chunks counted from 1."""
    place = {"source": chunk.source, "chunk": chunk.number + 1, "heading": chunk.heading, "page": chunk.page}
    if form == "prompt":
        return {"prompt": row.question, "completion": row.answer, **place}
    turns = [{"role": "user", "content": row.question}, {"role": "assistant", "content": row.answer}]
    return {"messages": turns, **place}
