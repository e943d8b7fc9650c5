"""Counts what a chat template leaves out of the rows it renders: answers, reasoning, text beside a tool call.

A template that prints no answer would train a model on its own marks; that is refused.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

from lora_studio.data.dialogues import tidy
from lora_studio.data.encode import Encoder
from lora_studio.data.examples import sides
from lora_studio.data.messages import Conversation, Message, RowError
from lora_studio.data.render import CALLS_LEFT_OUT, NO_SYSTEM, NO_TOOLS, NOTHING_MARKED, REFUSED, REWRITES, WEIGHTS
from lora_studio.data.rows import BadRow, JsonObject
from lora_studio.errors import StudioError

MAX_ROWS = 2000
_OTHER_STYLE = "Choose another data.prompt_style: chatml takes every conversation"
ADVICE = {
    REWRITES: f"Set data.train_on to last_turn: the last answer of each row can be trained. Or: {_OTHER_STYLE}.",
    REFUSED: f"{_OTHER_STYLE}. Or change the rows so that the model's template takes them.",
    NOTHING_MARKED: f"{_OTHER_STYLE}.",
    WEIGHTS: f"Set data.train_on to last_turn. Or: {_OTHER_STYLE}.",
    NO_TOOLS: "Choose a model whose chat template prints tool calls; or take calls and results out of the rows.",
    CALLS_LEFT_OUT: "Choose a model whose chat template prints tool calls; or take calls and results out of the rows.",
}
"""What helps against reasons that are the template's, not the rows'."""
Omits = Callable[[Conversation, str], bool]


class ChangedAnswers(TypedDict):
    """Rows whose last answer is not trained verbatim, of the rows checked."""

    rows: int
    looked_at: int


def omits_reasoning(chat: Conversation, text: str) -> bool:
    """Whether a thought of the row is not in its text."""
    return any((message.reasoning_content or "").strip() not in text for message in chat.messages)


def omits_beside_calls(chat: Conversation, text: str) -> bool:
    """Whether the rendered text lacks the content beside a tool call."""
    return any(speaks_beside_call(message) and message.content.strip() not in text for message in chat.messages)


def speaks_beside_call(message: Message) -> bool:
    return bool(message.tool_calls and message.content.strip())


def refuses_system(bad: BadRow) -> bool:
    """Whether the chat template takes the row but for its system prompt."""
    return bad.reason == NO_SYSTEM


def count_omissions(chats: Iterable[Conversation], encoder: Encoder, omits: Omits) -> int:
    """How many of the rows miss something in their text, pairs on either side of theirs.

    Rows that can't be rendered are faults of another kind.
    """
    count = 0
    for chat in chats:
        try:
            count += any(omits(side, encoder.render(side)) for side in (sides(chat) if chat.chosen else (chat,)))
        except RowError:
            continue
    return count


def changed_answers(chats: Sequence[Conversation], encoder: Encoder, template: str) -> ChangedAnswers:
    """How many rows do not train their last answer word by word: `rows` of `looked_at`.

    Raises StudioError where no row does: what would be learned is then not what the file teaches.
    """
    changed = looked_at = 0
    for chat in chats:
        last = next((message for message in reversed(chat.messages) if message.role == "assistant"), None)
        if last is None or not last.trained or not last.content.strip():
            continue
        try:
            encoded, pieces, _ = encoder.tokens(chat)
        except RowError:
            continue
        looked_at += 1
        trained = ["".join(pieces[begin:end]) for begin, end in encoded.spans]
        answer = tidy(last.content)  # an end token that the file has written out is not written twice
        changed += not any(answer in part for part in trained)
    if looked_at and changed == looked_at:
        raise StudioError(
            f"What would be trained holds none of the answers ({looked_at} rows looked at). {template}",
            "Choose another prompt style (chatml has a place for every answer), or mend the model's chat template.",
        )
    return {"rows": changed, "looked_at": looked_at}


def sentences(facts: JsonObject) -> list[str]:
    """Sentences on omissions; [] if nothing is left out."""
    notes = []
    for name, description in (
        ("thoughts", "bring reasoning that the chat template leaves out, in whole or in part"),
        ("beside", "say something beside a tool call that the chat template leaves out"),
    ):
        counts = facts[name]
        among = f" of the {counts['looked_at']:,} looked at" if counts["looked_at"] < counts["of_rows"] else ""
        if counts["rows"]:
            notes.append(f"{counts['rows']:,} rows{among} {description}.")
    if facts["rewritten"]:
        notes.append(
            f"In {facts['rewritten']:,} rows the chat template writes earlier answers otherwise than the last: each is "
            "trained as it stands in the whole conversation."
        )
    if facts["numbered"]:
        notes.append(
            f"In {facts['numbered']:,} rows the tool calls get ids (call00001 and so on): the chat template wants "
            "some, and the rows have none of its kind."
        )
    changed = facts["answers"]
    if changed["rows"]:
        notes.append(
            f"In {changed['rows']} of {changed['looked_at']} rows looked at, the chat template changes the last answer."
        )
    return notes
