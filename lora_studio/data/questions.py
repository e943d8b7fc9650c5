"""Validation rows as questions with the answer that each row gives, always the same ones for a seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_studio.data.dataset import Prepared
from lora_studio.data.messages import Conversation, Message
from lora_studio.errors import StudioError


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, as a chat template takes it, and what the row answers."""

    messages: list[dict[str, Any]]
    reference: str


def questions(prepared: Prepared, count: int, *, seed: int, longest: int) -> list[Question]:
    """At most `count` validation rows of at most `longest` tokens. Raises `StudioError` where none asks anything."""
    part = prepared.kept_back or prepared.part
    chosen = prepared.chosen[1]
    order = chosen[part.rows.measures(chosen).length <= longest].tolist()
    random.Random(seed).shuffle(order)
    positions = np.asarray(part.rows.position)[order]
    found: list[Question] = []
    for start in range(0, len(positions), count):
        taken = part.conversations.at(np.sort(positions[start : start + count]))
        found += [question for chat in taken for question in question_of(chat)]
        if len(found) >= count:
            break
    if not found:
        raise StudioError(
            f"No validation row of at most {longest:,} tokens asks something that is answered.",
            "Set evaluation.gen_eval_samples to 0, or choose data with questions and answers.",
        )
    return found[:count]


def question_of(chat: Conversation) -> Iterator[Question]:
    """The last answer of a conversation and what stands before it."""
    messages: tuple[Message, ...] = (*chat.messages, *chat.chosen[:1])
    if len(messages) > 1 and messages[-1].role == "assistant":
        yield Question([message.to_dict() for message in messages[:-1]], messages[-1].content)
