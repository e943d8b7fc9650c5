"""The fold of the chat tab that asks a kept set of prompts of all columns and shows the answers as a table.

The fold of the chat tab that compares without names: columns shuffled and unnamed, a vote, and what came of all.
"""

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from lora_studio.chat import prompts
from lora_studio.chat import prompts as prompt_sets
from lora_studio.chat.arbiter import Status
from lora_studio.chat.choices import select_models
from lora_studio.chat.conversation import BASE, BlindTrial, ChatState, draft_key, plain
from lora_studio.chat.prompts import Answered
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import columns as chat_board
from lora_studio.ui.chat.handlers import Chat, said
from lora_studio.ui.studio import QUIET, Updates
from lora_studio.workspace import Workspace


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Prompt sets", open=False, elem_id="chat-prompts"):
        prompts, message = _kept_sets(act.studio.workspace, who)
        with gr.Row(elem_classes="actions"):
            run = gr.Button("Ask them all", variant="primary", scale=0, min_width=130)
            stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
        table = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="chat-prompts-table")
        place = job_views.place(act.studio.workspace)

    def ask(person: str, lines: str, system: str, *sampling: Any) -> Iterator[Updates]:
        yield {run: gr.Button(interactive=False), stop: gr.Button(interactive=True)}
        idle = {run: gr.Button(interactive=True), stop: gr.Button(interactive=False)}
        try:
            for words, markup in asked(act, person, prompt_sets.prompts_of(lines), system, sampling):
                yield {message: words, table: markup}
            yield idle
        except StudioError as error:
            yield idle | {message: said(error)}

    def download(event: gr.EventData, person: str) -> str:
        columns, rows = kept_rows(act, person)
        write = prompt_sets.as_csv if event.act == "csv" else prompt_sets.answers_as_jsonl
        path = job_views.new_file(act.studio.workspace, f"answers.{event.act}")
        path.write_text(write(columns, rows), encoding="utf-8")
        return job_views.link(path)

    inputs = [who, prompts, act.parts.system, *act.parts.sampling]
    asking = run.click(ask, inputs, [run, stop, message, table], concurrency_id="chat", concurrency_limit=8, **QUIET)
    asking.then(act.remember, who, [act.parts.status, act.parts.unload], **QUIET)
    stop.click(act.stop, who, queue=False, **QUIET)
    table.click(download, who, place, **QUIET)
    who.change(lambda person: drawn(*kept_rows(act, person)), who, table, **QUIET)


def _kept_sets(workspace: Workspace, who: gr.State) -> tuple[gr.Textbox, gr.HTML]:
    """Draws and wires what keeps prompts; gives the box with the prompts, and where things are told."""
    with gr.Row(equal_height=True, elem_classes="ls-pager"):
        sets = prompt_sets.names(workspace)
        saved = gr.Dropdown(sets, label="Kept set", value=None, scale=3, min_width=180)
        name = gr.Textbox(label="Name", placeholder="such as first-impressions", scale=3, min_width=180, max_lines=1)
        keep = gr.Button("Keep", scale=0, min_width=80)
        delete = gr.Button("Delete", scale=0, min_width=80)
    prompts = gr.Textbox(
        label="Prompts, one a line",
        info="Each is asked of all columns as a new conversation, with the system prompt and sampling above.",
        lines=4,
        max_lines=12,
    )
    message = gr.HTML()

    def choose(set_name: str | None) -> tuple[Any, Any, Any]:
        try:
            return set_name or "", "\n".join(prompt_sets.read_prompts(workspace, set_name or "")), ""
        except StudioError as error:
            return gr.skip(), gr.skip(), html.problem(error)

    def keep_set(set_name: str, lines: str) -> tuple[Any, Any]:
        try:
            saved_name = prompt_sets.save(workspace, set_name, prompt_sets.prompts_of(lines))
        except StudioError as error:
            return gr.skip(), html.problem(error)
        words = html.notice(f"Kept as {saved_name}.", kind="good")
        return gr.Dropdown(choices=prompt_sets.names(workspace), value=saved_name), words

    def delete_set(set_name: str | None) -> tuple[Any, Any]:
        prompt_sets.delete(workspace, set_name or "")
        return gr.Dropdown(choices=prompt_sets.names(workspace), value=None), ""

    who.change(lambda: gr.Dropdown(choices=prompt_sets.names(workspace)), None, saved, **QUIET)
    saved.select(choose, saved, [name, prompts, message], **QUIET)
    keep.click(keep_set, [name, prompts], [saved, message], **QUIET)
    delete.click(delete_set, saved, [saved, message], **QUIET)
    return prompts, message


def asked(
    act: Chat, who: str, prompts: Sequence[str], system: str, sampling: Sequence[Any]
) -> Iterator[tuple[str, str]]:
    """Asks one prompt after the other; yields words on how far it is, and the table so far."""
    _, adapters, _ = act.followed(who)
    selected = adapters.chosen
    names = [BASE, *(choice.value for choice in selected)]
    titles = [f"Base: {selected[0].card().base}", *(choice.name for choice in selected)]
    settings = plain(form.sampling(sampling))
    opening = [{"role": "system", "content": system}] if system.strip() else []
    rows: list[Answered] = []
    stopped = False
    for prompt in prompts:
        yield html.progress("Asking", len(rows), len(prompts)), drawn(titles, rows)
        messages = [*opening, {"role": "user", "content": prompt}]
        columns = [ColumnPrompt(adapter=None if name == BASE else name, messages=messages) for name in names]
        with contextlib.closing(
            act.engine.answer(act.asker(who), select_models(selected), columns, settings)
        ) as answers:
            for answer in answers:
                if isinstance(answer, Status):
                    yield chat_board.status(answer), drawn(titles, rows)
                elif isinstance(answer, Generated):
                    rows.append(Answered(prompt, tuple(column.text for column in answer.columns)))
                    stopped = any(column.finish == "stopped" for column in answer.columns)
        act.studio.workspace.write_draft(
            f"chat-prompts-{draft_key(who)}", {"columns": titles, "rows": [[row.prompt, *row.answers] for row in rows]}
        )
        if stopped:
            break
    words = f"{html.count(len(rows), 'prompt')} asked of {html.count(len(names), 'column')}."
    yield (
        html.notice("Stopped. " + words if stopped else words, kind="info" if stopped else "good"),
        drawn(titles, rows),
    )


def kept_rows(act: Chat, who: str) -> tuple[list[str], list[Answered]]:
    """The answers of the last time, by this browser."""
    draft = act.studio.workspace.read_draft(f"chat-prompts-{draft_key(who)}")
    if not isinstance(draft, dict):
        return [], []
    return list(draft["columns"]), [Answered(row[0], tuple(row[1:])) for row in draft["rows"]]


def drawn(columns: Sequence[str], rows: Sequence[Answered]) -> str:
    """The answers as a table, with the buttons that take it away."""
    if not rows:
        return ""
    table = html.table(["Prompt", *columns], [[row.prompt, *row.answers] for row in rows], "Answers to the prompts")
    buttons = [{"act": kind, "words": f"Download as {kind.upper()}"} for kind in ("csv", "jsonl")]
    return html.render("chat.answers", table, buttons)


LETTERS = "ABCD"
ABOUT = (
    "The columns chosen above answer in a new order each time and without their names, each question by itself. Say "
    "which answer is better; then you see whose it was. Votes are kept and can train a model with DPO."
)


def build_blind(act: Chat, who: gr.State) -> None:
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

    def asked(person: str, text: str, system: str, *sampling: Any) -> Iterator[Updates]:
        try:
            for words, markup in answered(act, person, text.strip(), system, sampling):
                yield {message: words, panel: markup}
            yield {message: "", question: ""}
        except StudioError as error:
            yield {message: said(error)}

    def click(event: gr.EventData, person: str) -> Updates:
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
    who.change(lambda person: drawn_blind(act, act.talk(person)), who, panel, **QUIET)


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
    blind: BlindTrial = {
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
    with contextlib.closing(act.engine.answer(act.asker(who), select_models(selected), columns, settings)) as answers:
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
    yield "", drawn_blind(act, latest)


def vote(act: Chat, who: str, best: int) -> str:
    """Keeps a vote, once for each question, and shows whose answers they were."""
    talk = act.talk(who)
    blind = talk.blind
    if blind and blind["done"] and blind["best"] is None and best < len(blind["names"]):
        blind["best"] = best
        answers = blind["base"], blind["messages"], blind["names"], blind["answers"]
        prompts.keep(act.studio.workspace, prompts.Vote(time.time(), *answers, best, blind.get("base_at")))
        act.keep(who, talk)
    return drawn_blind(act, talk)


def drawn_blind(act: Chat, talk: ChatState) -> str:
    """Question, unnamed answers, the vote or what it revealed, and the tally of all votes."""
    return _question(talk.blind) + tally(prompts.read_votes(act.studio.workspace))


def _question(blind: BlindTrial) -> str:
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
