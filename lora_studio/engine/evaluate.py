"""Answers of base and adapters to the questions of a file, beside the answers that the file expects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.data.dataset import resolve_source
from lora_studio.data.formats import convert, recognise
from lora_studio.data.messages import Conversation, RowError
from lora_studio.data.records import read_records
from lora_studio.engine.generate import Column, generate, greedy
from lora_studio.engine.load import LoadedModel
from lora_studio.engine.metrics import is_exact, share
from lora_studio.errors import StudioError

AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Judged:
    """One question with what was expected and what each column said, in the columns' order."""

    row: int
    messages: list[dict[str, Any]]
    expected: str
    answers: list[str]
    right: list[bool]


def read_questions(name_or_path: str, system_prompt: str | None = None) -> list[Conversation]:
    """The conversations of a file that end with an answer to compare with; rows that can't be read are left out."""
    file = read_records(resolve_source(name_or_path))
    shape = recognise(file.records)
    found = []
    for record in file.records:
        try:
            conversation = convert(record, shape, system_prompt)
        except RowError:
            continue
        if conversation.messages and conversation.messages[-1].role == "assistant":
            found.append(conversation)
    if not found:
        raise StudioError(f"{file.path.name} has no question with an answer.", f"It was read so: {shape.words}")
    return found


def exact_match(
    loaded: LoadedModel,
    conversations: Sequence[Conversation],
    columns: Sequence[str | None],
    *,
    max_new_tokens: int = 128,
    enable_thinking: bool | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Judged]:
    """Greedy answers of each column (None is the base) to each conversation's last turn, in the given order."""
    questions = [conversation.to_dicts()[:-1] for conversation in conversations]
    order = sorted(range(len(questions)), key=lambda at: sum(len(turn["content"]) for turn in questions[at]))
    rows_at_once = max(1, AT_ONCE // len(columns))
    judged: dict[int, Judged] = {}
    for first in range(0, len(order), rows_at_once):
        chosen = order[first : first + rows_at_once]
        answers = generate(
            loaded,
            [Column(column, questions[at]) for at in chosen for column in columns],
            greedy(loaded, max_new_tokens),
            enable_thinking=enable_thinking,
            stop=stop,
        )
        if stop():
            break
        for place, at in enumerate(chosen):
            expected = conversations[at].messages[-1].content
            texts = [answer.text for answer in answers[place * len(columns) : (place + 1) * len(columns)]]
            right = [is_exact(text, expected) for text in texts]
            judged[at] = Judged(conversations[at].row, questions[at], expected, texts, right)
        on_progress(len(judged), len(order))
    return [judged[at] for at in sorted(judged)]


def scores(judged: Sequence[Judged]) -> list[float]:
    """The share of exact answers of each column."""
    return [share([row.right[column] for row in judged]) for column in range(len(judged[0].right))] if judged else []
