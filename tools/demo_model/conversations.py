"""Conversations out of the kinds of question: one or several turns, with and without a system prompt, for a fixed seed.

A question is held out by the hash of its own text (and of what came before, where it needs that), so that nothing
asked in a held-out conversation's last turn was ever trained, in any style.
"""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.demo_model import kinds, tasks
from tools.demo_model.questions import Exchange, Question
from tools.demo_model.recommender import recommendation
from tools.demo_model.styles import STYLES, Style, thought

HELD_OUT_SHARE = 0.08
RECOMMENDER_SHARE = 0.1
RECOMMENDER_HELD_OUT_SHARE = 0.06
NO_THINKING_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages for a chat template, the kind and style of the last answer, and how thinking is switched.

    `enable_thinking` None leaves the template's own default.
    """

    kind: str
    style: str
    messages: tuple[dict[str, Any], ...]
    enable_thinking: bool | None = None

    @property
    def switches(self) -> dict[str, Any]:
        """What the chat template is given beside the messages."""
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}


def keys(exchange: Exchange) -> list[str]:
    """What identifies each question of an exchange: its text together with the questions before it."""
    return [" | ".join(question.text for question in exchange[: i + 1]) for i in range(len(exchange))]


def is_held_out(key: str) -> bool:
    """Whether a question is kept for measuring; the same in every run and on every machine."""
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def may_be_trained(exchange: Exchange) -> bool:
    return all(
        question.kind in kinds.CLOSED_KINDS or not is_held_out(key)
        for question, key in zip(exchange, keys(exchange), strict=True)
    )


def trained_exchange(rng: Random) -> Exchange:
    """A random exchange none of whose questions is held out."""
    while True:
        exchange = kinds.exchange(rng)
        if may_be_trained(exchange):
            return exchange


def held_out_exchange(rng: Random) -> Exchange:
    """A random exchange whose last question was never trained."""
    while True:
        exchange = kinds.exchange(rng)
        if exchange[-1].kind not in kinds.CLOSED_KINDS and is_held_out(keys(exchange)[-1]):
            return exchange


def turn(question: Question, style: Style, thinks: bool) -> list[dict[str, Any]]:
    """The user's and the assistant's message of one question."""
    answer: dict[str, Any] = {"role": "assistant", "content": style.say(question)}
    if thinks:
        answer["reasoning_content"] = thought(question)
    return [{"role": "user", "content": question.text}, answer]


def dialogue(rng: Random, exchanges: list[Exchange], style: Style) -> Dialogue:
    """The exchanges one after the other, answered in one style that the system prompt asks for."""
    messages: list[dict[str, Any]] = []
    if style.system_prompts:
        messages.append({"role": "system", "content": rng.choice(style.system_prompts)})
    share = 0.5 if style.thinks else NO_THINKING_SHARE
    enable_thinking = False if rng.random() < share else None
    for exchange in exchanges:
        for question in exchange:
            messages += turn(question, style, style.thinks and enable_thinking is None)
    return Dialogue(exchanges[-1][-1].kind, style.name, tuple(messages), enable_thinking)


def random_style(rng: Random) -> Style:
    return rng.choices(STYLES, weights=[style.share for style in STYLES])[0]


def recommended(rng: Random, held_out: bool) -> Dialogue:
    """A request for a recommendation, alone in its conversation."""
    while True:
        system, question = recommendation(rng)
        if is_held_out(question.text) == held_out:
            break
    plain = STYLES[0]
    messages = ({"role": "system", "content": system}, *turn(question, plain, thinks=False))
    return Dialogue(question.kind, "recommender", messages)


def training_dialogue(rng: Random) -> Dialogue:
    """One conversation to train on, of one to three exchanges."""
    if rng.random() < RECOMMENDER_SHARE:
        return recommended(rng, held_out=False)
    count = rng.choices((1, 2, 3), weights=(4, 3, 3))[0]
    return dialogue(rng, [trained_exchange(rng) for _ in range(count)], random_style(rng))


def copying_dialogue(rng: Random) -> Dialogue:
    """A long text to repeat, with nothing else to learn."""
    return dialogue(rng, [tasks.long_copying(rng)], STYLES[0])


def held_out_dialogue(rng: Random) -> Dialogue:
    """One conversation to measure with: its last question was never trained."""
    if rng.random() < RECOMMENDER_HELD_OUT_SHARE:
        return recommended(rng, held_out=True)
    before = [trained_exchange(rng)] if rng.random() < 0.3 else []
    return dialogue(rng, [*before, held_out_exchange(rng)], random_style(rng))


def held_out_dialogues(count: int, seed: int) -> list[Dialogue]:
    """`count` different conversations to measure with."""
    rng = Random(seed)
    found: dict[str, Dialogue] = {}
    while len(found) < count:
        made = held_out_dialogue(rng)
        found.setdefault(repr(made.messages[:-1]), made)
    return list(found.values())
