"""The fold of the chat tab that compares without names: columns shuffled and unnamed, a vote, and what came of all."""

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from lora_studio.chat import prompts
from lora_studio.chat.arbiter import Status
from lora_studio.chat.choices import wanted
from lora_studio.chat.conversation import BASE, ChatState, plain
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import columns as chat_board
from lora_studio.ui.chat.handlers import Chat, said
from lora_studio.ui.chat.prompts import QUIET

LETTERS = "ABCD"
ABOUT = (
    "The columns chosen above answer in a new order each time and without their names, each question by itself. Say "
    "which answer is better; then you see whose it was. Votes are kept and can train a model with DPO."
)


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Blind comparison", open=False, elem_id="chat-blind"):
        gr.HTML(html.hint(ABOUT))
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            question = gr.Textbox(label="Question", placeholder="Enter asks", scale=6, min_width=260, max_lines=8)
            ask = gr.Button("Ask blindly", variant="primary", scale=0, min_width=150)
            stop = gr.Button("Stop", scale=0, min_width=80)
        message = gr.HTML()
        panel = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="chat-blind-panel")
        place = job_views.place(act.studio.workspace)

    def asked(person: str, text: str, system: str, *sampling: Any) -> Iterator[dict[Any, Any]]:
        try:
            for words, markup in answered(act, person, text.strip(), system, sampling):
                yield {message: words, panel: markup}
            yield {message: "", question: ""}
        except StudioError as error:
            yield {message: said(error)}

    def click(event: gr.EventData, person: str) -> dict[Any, Any]:
        if event.act == "download":
            path = job_views.new_file(act.studio.workspace, "preferences.jsonl")
            path.write_text(prompts.votes_as_jsonl(prompts.read_votes(act.studio.workspace)), encoding="utf-8")
            return {place: job_views.link(path)}
        return {panel: vote(act, person, int(str(event.act)))}

    parts = act.parts
    answering = gr.on(
        [ask.click, question.submit],
        asked,
        [who, question, parts.system, *parts.sampling],
        [message, panel, question],
        concurrency_id="chat",
        concurrency_limit=8,
        **QUIET,
    )
    answering.then(act.remember, who, [parts.status, parts.unload], **QUIET)
    stop.click(act.stop, who, queue=False, **QUIET)
    panel.click(click, who, [panel, place], **QUIET)
    who.change(lambda person: drawn(act, act.talk(person)), who, panel, **QUIET)


def answered(act: Chat, who: str, question: str, system: str, sampling: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Asks all columns in a new order; yields words on how far it is, and the panel."""
    if not question:
        raise StudioError("There is no question yet.", "Type one.")
    check_length("The question", question, QUESTION)
    check_length("The system prompt", system, SYSTEM_PROMPT)
    talk, adapters, _ = act.followed(who)
    selected = adapters.chosen
    titles = {BASE: f"Base: {selected[0].card().base}"} | {choice.value: choice.name for choice in selected}
    order = random.SystemRandom().sample(list(titles), len(titles))
    opening = [{"role": "system", "content": system}] if system.strip() else []
    messages = [*opening, {"role": "user", "content": question}]
    columns = [ColumnPrompt(adapter=None if name == BASE else name, messages=messages) for name in order]
    blind: dict[str, Any] = {
        "base": selected[0].card().base,
        "messages": messages,
        "names": [titles[name] for name in order],
        "base_at": order.index(BASE),
        "answers": [""] * len(order),
        "done": False,
        "best": None,
    }
    talk.blind = blind
    settings = plain(form.sampling(sampling))
    so_far = tally(prompts.read_votes(act.studio.workspace))
    with contextlib.closing(act.engine.answer(act.asker(who), wanted(selected), columns, settings)) as answers:
        for answer in answers:
            if isinstance(answer, Status):
                yield chat_board.status(answer), _question(blind) + so_far
            elif isinstance(answer, Piece):
                blind["answers"] = [a + b for a, b in zip(blind["answers"], answer.texts, strict=True)]
                yield "", _question(blind) + so_far
            elif isinstance(answer, Generated):
                blind["answers"] = [column.text for column in answer.columns]
                blind["done"] = True
    latest = act.talk(who)  # the chat may have gone on meanwhile
    latest.blind = blind
    act.keep(who, latest)
    yield "", drawn(act, latest)


def vote(act: Chat, who: str, best: int) -> str:
    """Keeps a vote, once for each question, and shows whose answers they were."""
    talk = act.talk(who)
    blind = talk.blind
    if blind and blind["done"] and blind["best"] is None and best < len(blind["names"]):
        blind["best"] = best
        fields = {name: blind[name] for name in ("base", "messages", "names", "answers", "best")}
        prompts.keep(act.studio.workspace, prompts.Vote(time=time.time(), **fields, base_at=blind.get("base_at")))
        act.keep(who, talk)
    return drawn(act, talk)


def drawn(act: Chat, talk: ChatState) -> str:
    """Question, unnamed answers, the vote or what it revealed, and the tally of all votes."""
    return _question(talk.blind) + tally(prompts.read_votes(act.studio.workspace))


def _question(blind: dict[str, Any]) -> str:
    if not blind:
        return ""
    best = blind["best"]
    columns = []
    for at, (letter, answer) in enumerate(zip(LETTERS, blind["answers"], strict=False)):
        title = f"Answer {letter}" + (f": {blind['names'][at]}" if best is not None else "")
        columns.append((letter, title + (" ✓ better" if best == at else ""), chat_board.answer(answer)))
    voting = blind["done"] and best is None
    return html.render("chat.blind", blind["messages"][-1]["content"], columns, voting, prompts.TIE)


def tally(votes: Sequence[prompts.Vote]) -> str:
    """What came of all votes, as a table."""
    if not votes:
        return html.empty("No vote yet", "Ask something, and say which answer is better.")
    rows = []
    for pair in prompts.tallies(votes):
        share = "nothing decided"
        if pair.decided:
            low, high = pair.interval
            share = f"{100 * pair.wins / pair.decided:.0f} % (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        rows.append((pair.first, pair.second, pair.wins, pair.losses, pair.ties, share))
    head = ("First", "Second", "First better", "Second better", "Neither", "First better, of those decided")
    pairs = sum(1 for _ in prompts.pairs(votes))
    button = {"act": "download", "words": f"Download {html.count(pairs, 'preference pair')}"}
    counted, table = html.count(len(votes), "vote"), html.table(head, rows, "Votes")
    return html.render("chat.tally", counted, table, [button] if pairs else ())
