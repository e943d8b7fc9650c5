"""The blind comparison: a question answered by shuffled, unnamed columns, and the vote on it."""

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from lora_studio.chat import prompts
from lora_studio.chat.arbiter import Ready, Status
from lora_studio.chat.choices import select_models
from lora_studio.chat.conversation import BASE, BlindTrial, ChatState, plain
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece
from lora_studio.ui import form, html, job_views
from lora_studio.ui.chat import controls, votes
from lora_studio.ui.chat.handlers import Chat
from lora_studio.ui.components import Updates


def ask(act: Chat, who: str, question: str, system: str, sampling: Sequence[Any]) -> Iterator[Updates]:
    """Asks all columns in a new order, each question by itself, and shows the answers without names."""
    p, question = act.parts, question.strip()
    if not question:
        yield {p.message: html.notice("There is no question yet.", "Type one, or press a suggestion.")}
        return
    talk, columns, updates = act.followed(who)
    yield updates
    failure = None
    try:
        act.check_idle(who)
        with act.answering(who, talk):
            yield act.buttons(who) | {p.question: "", p.tools: controls.tools(talk, busy=True)}
            yield from _answered(act, who, talk, question, system, sampling)
    except StudioError as error:
        failure = error
    board = {p.board: votes.board(act.talk(who).blind, prompts.read_votes(act.studio.workspace))}
    painted = board | {p.tools: controls.tools(talk)}
    if failure is None:
        yield act.buttons(who) | act.memory(columns) | painted
    else:
        yield act.failed(who, columns, failure) | painted | {p.question: question}


def _answered(
    act: Chat, who: str, talk: ChatState, question: str, system: str, sampling: Sequence[Any]
) -> Iterator[Updates]:
    p = act.parts
    check_length("The question", question, QUESTION)
    check_length("The system prompt", system, SYSTEM_PROMPT)
    selected = act.columns(talk).chosen
    titles = {BASE: f"Base: {selected[0].card().base}"} | {choice.value: choice.name for choice in selected}
    order = random.SystemRandom().sample(list(titles), len(titles))
    opening = [{"role": "system", "content": system}] if system.strip() else []
    messages = [*opening, {"role": "user", "content": question}]
    columns = [ColumnPrompt(adapter=None if name == BASE else name, messages=messages) for name in order]
    blind: BlindTrial = {
        "base": selected[0].card().base,
        "messages": messages,
        "names": [titles[name] for name in order],
        "base_at": order.index(BASE),
        "answers": [""] * len(order),
        "done": False,
        "best": None,
    }
    settings = plain(form.sampling(sampling))
    tally = votes.tally(prompts.read_votes(act.studio.workspace))
    with contextlib.closing(act.engine.answer(act.asker(who), select_models(selected), columns, settings)) as answers:
        for answer in answers:
            if isinstance(answer, Status):
                yield {p.status: controls.status(answer), p.board: votes.question(blind) + tally}
            elif isinstance(answer, Ready):
                yield act.remember(who)
            elif isinstance(answer, Piece):
                blind["answers"] = [a + b for a, b in zip(blind["answers"], answer.texts, strict=True)]
                yield {p.board: votes.question(blind) + tally}
            elif isinstance(answer, Generated):
                blind["answers"] = [column.text for column in answer.columns]
                blind["done"] = True
    talk.blind = blind
    act.keep(who, talk)


def vote(act: Chat, who: str, best: int) -> str:
    """Keeps a vote, once for each question, and shows whose answers they were."""
    talk = act.talk(who)
    blind = talk.blind
    if blind and blind["done"] and blind["best"] is None and best < len(blind["names"]):
        blind["best"] = best
        answers = blind["base"], blind["messages"], blind["names"], blind["answers"]
        prompts.keep(act.studio.workspace, prompts.Vote(time.time(), *answers, best, blind.get("base_at")))
        act.keep(who, talk)
    return votes.board(blind, prompts.read_votes(act.studio.workspace))


def download(act: Chat) -> str:
    """A link to the preference pairs of all votes."""
    path = job_views.new_file(act.studio.workspace, "preferences.jsonl")
    path.write_text(prompts.votes_as_jsonl(prompts.read_votes(act.studio.workspace)), encoding="utf-8")
    return job_views.link(path)
