"""The names that columns bear in the wild, and a sample of rows looked at column by column. Decides nothing."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lora_studio.data.rows import Record, shorten
from lora_studio.data.turns import ROLES, held_turns

SAMPLE = 500
TURNS = (
    "messages",
    "contents",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "chat",
    "turns",
    "conversational",
)
USER = (
    *("prompt", "instruction", "question", "query", "problem", "user", "human", "input", "request", "source"),
    *("user_prompt", "user_message", "user_input", "text_input", "input_text"),
)
ASSISTANT = (
    *("completion", "response", "output", "answer", "assistant", "solution", "target", "reply", "gpt", "bot"),
    *("assistant_response", "model_answer", "expected_output", "result", "generation"),
    "output_text",
)
EXTRA = ("input", "context")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
HISTORY = ("history",)
TOOLS = ("tools", "functions", "toolconfig", "tool_config")
REASONING = ("reasoning_content", "reasoning", "thinking", "complex_cot", "cot", "chain_of_thought")
TEXT = ("text", "content", "document", "body", "passage")
LABEL = ("label", "kto_tag")
# The word in a worse answer's column, and those in its place in the better one's: `rejected_response` stands beside
# `chosen_response` or beside `response`.
WORSE_AND_BETTER = (
    *(("rejected", ("chosen", "accepted", "preferred", "")), ("non_preferred", ("preferred", ""))),
    *(("dispreferred", ("preferred", "")), ("worse", ("better",)), ("loser", ("winner",)), ("losing", ("winning",))),
)
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def spread(records: Sequence[Record]) -> list[Record]:
    """Rows for recognition, evenly spread over those given."""
    step = max(1, len(records) // SAMPLE)
    return list(records[::step][:SAMPLE])


class Columns:
    """The columns of sample rows by plain name: lower case, underscores, also without a plural s."""

    def __init__(self, sample: Sequence[Record]) -> None:
        self.sample = sample
        every = dict.fromkeys(name for record in sample for name in record.fields)
        self.names = [name for name in every if str(name).strip()]
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

    def compared(self) -> tuple[str, ...]:
        """The columns of the better and the worse answer, or none; the shortest names, for longer ones tell of them."""
        for worse in sorted(self._by_plain, key=len):
            for word, others in WORSE_AND_BETTER:
                better = self._beside(worse, word, others) if f"_{word}_" in f"_{worse}_" else None
                if better and self._holds_answers(better) and self._holds_answers(self._by_plain[worse]):
                    return better, self._by_plain[worse]
        return ()

    def _beside(self, worse: str, word: str, others: Sequence[str]) -> str | None:
        """The column of a better answer, by the name that the worse one bears; else that of the whole conversation."""
        before, _, after = f"_{worse}_".partition(f"_{word}_")
        parts = [[part for part in (before.strip("_"), other, after.strip("_")) if part] for other in others]
        better = self.find("_".join(part) for part in parts if part)
        rest = "_".join(part for part in (before.strip("_"), after.strip("_")) if part)
        if better or "" not in others or rest not in ("", *ASSISTANT):
            return better
        return self.find(TURNS)

    def _holds_answers(self, name: str) -> bool:
        values = self.values(name)
        return bool(values) and all(isinstance(value, (str, list, dict)) for value in values)

    def values_as_text(self, name: str) -> list[str]:
        return [value for value in self.values(name) if isinstance(value, str)]

    def share(self, name: str) -> float:
        """How many of the sample rows have something in that column."""
        filled = sum(value not in ("", []) for value in self.values(name))
        return filled / max(len(self.sample), 1)

    def texts(self) -> list[str]:
        """Columns whose values are all text."""
        return [name for name in self.names if (found := self.values(name)) and all(isinstance(v, str) for v in found)]


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, or an object that holds one."""
    value = held_turns(value)
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return bool(value[0].keys() & {"role", "from", "parts"}) or {ROLES.get(key) for key in value[0]} >= {
        "user",
        "assistant",
    }


def may_be_turns(value: Any) -> bool:
    """Whether a value is a list of turns or a JSON text of such, as CSV cells hold them."""
    if not isinstance(value, str):
        return is_turns(value)
    if value.lstrip()[:1] != "[" or not ('"role"' in value or '"from"' in value):
        return False
    try:
        return is_turns(json.loads(value))
    except (ValueError, RecursionError):
        return True  # broken turns are still meant as turns: the row is reported, not read as text


def quoted(names: Iterable[str], most: int = 8) -> str:
    """Column names as a person reads them: `a`, `b` and 3 more."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(f"`{shorten(str(name), 40)}`" for name in listed[:most]) + more
