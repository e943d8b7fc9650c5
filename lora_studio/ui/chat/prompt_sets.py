"""Questions beside the open chat: a set of prompts with the answers as a table, and a blind comparison with a vote."""

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from lora_studio.chat import prompts
from lora_studio.chat import prompts as prompt_sets
from lora_studio.chat.arbiter import Ready, Status
from lora_studio.chat.choices import select_models
from lora_studio.chat.conversation import BASE, BlindTrial, ChatState, draft_key, plain
from lora_studio.chat.prompts import Answered
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import markup
from lora_studio.ui.chat import markup as controls
from lora_studio.ui.chat.handlers import Chat
from lora_studio.ui.components import QUIET, Updates
from lora_studio.workspace import Workspace


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Prompt sets", open=False, elem_id="chat-prompts"):
        prompts, message = _saved_sets(act.studio.workspace, who)
        with gr.Row(elem_classes="actions"):
            run = gr.Button("Run prompt set", scale=0, size="sm")
            stop = gr.Button("Stop", scale=0, size="sm", visible=False)
        table = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="chat-prompts-table")
        place = job_views.place(act.studio.workspace)

    def ask(person: str, lines: str, system: str, *sampling: Any) -> Iterator[Updates]:
        yield {run: gr.Button(visible=False), stop: gr.Button(visible=True)}
        idle = {run: gr.Button(visible=True), stop: gr.Button(visible=False)}
        try:
            for words, markup in asked(act, person, prompt_sets.prompts_of(lines), system, sampling):
                yield {message: words, table: markup}
            yield idle
        except StudioError as error:
            yield idle | {message: controls.problem(error)}

    def download(event: gr.EventData, person: str) -> str:
        columns, rows = kept_rows(act, person)
        write = prompt_sets.as_csv if event.act == "csv" else prompt_sets.answers_as_jsonl
        path = job_views.new_file(act.studio.workspace, f"answers.{event.act}")
        path.write_text(write(columns, rows), encoding="utf-8")
        return job_views.link(path)

    inputs = [who, prompts, act.parts.system, *act.parts.sampling]
    asking = run.click(ask, inputs, [run, stop, message, table], concurrency_id="chat", concurrency_limit=8, **QUIET)
    asking.then(act.remember, who, [act.parts.status, act.parts.notes, act.parts.message], **QUIET)
    stop.click(act.stop, who, [act.parts.send, act.parts.stop], queue=False, **QUIET)
    table.click(download, who, place, **QUIET)
    who.change(lambda person: drawn(*kept_rows(act, person)), who, table, **QUIET)


def _saved_sets(workspace: Workspace, who: gr.State) -> tuple[gr.Textbox, gr.HTML]:
    """Draws and wires what saves prompts; gives the box with the prompts, and where messages appear."""
    saved = gr.Dropdown(prompt_sets.names(workspace), label="Saved set", value=None)
    prompts = gr.Textbox(label="Prompts, one per line", info="Each starts a new conversation.", lines=4, max_lines=12)
    name = gr.Textbox(label="Set name", placeholder="such as first-impressions", max_lines=1)
    with gr.Row(elem_classes="actions"):
        save = gr.Button("Save set", scale=0, size="sm")
        delete = gr.Button("Delete set", scale=0, size="sm")
    message = gr.HTML()

    def choose(set_name: str | None) -> tuple[Any, Any, Any]:
        try:
            return set_name or "", "\n".join(prompt_sets.read_prompts(workspace, set_name or "")), ""
        except StudioError as error:
            return gr.skip(), gr.skip(), html.problem(error)

    def save_set(set_name: str, lines: str) -> tuple[Any, Any]:
        try:
            saved_name = prompt_sets.save(workspace, set_name, prompt_sets.prompts_of(lines))
        except StudioError as error:
            return gr.skip(), html.problem(error)
        words = html.notice(f"Saved as {saved_name}.", kind="good")
        return gr.Dropdown(choices=prompt_sets.names(workspace), value=saved_name), words

    def delete_set(set_name: str | None) -> tuple[Any, Any]:
        prompt_sets.delete(workspace, set_name or "")
        return gr.Dropdown(choices=prompt_sets.names(workspace), value=None), ""

    who.change(lambda: gr.Dropdown(choices=prompt_sets.names(workspace)), None, saved, **QUIET)
    saved.select(choose, saved, [name, prompts, message], **QUIET)
    save.click(save_set, [name, prompts], [saved, message], **QUIET)
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
        yield html.progress("Prompts", len(rows), len(prompts)), drawn(titles, rows)
        messages = [*opening, {"role": "user", "content": prompt}]
        columns = [ColumnPrompt(adapter=None if name == BASE else name, messages=messages) for name in names]
        with contextlib.closing(
            act.engine.answer(act.asker(who), select_models(selected), columns, settings)
        ) as answers:
            for answer in answers:
                if isinstance(answer, Status):
                    yield controls.status(answer), drawn(titles, rows)
                elif isinstance(answer, Generated):
                    rows.append(Answered(prompt, tuple(column.text for column in answer.columns)))
                    stopped = any(column.finish == "stopped" for column in answer.columns)
        act.studio.workspace.write_draft(
            f"chat-prompts-{draft_key(who)}", {"columns": titles, "rows": [[row.prompt, *row.answers] for row in rows]}
        )
        if stopped:
            break
    words = f"{html.count(len(rows), 'prompt')} answered by {html.count(len(names), 'column')}."
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
    buttons = [(kind, f"Download {kind.upper()}") for kind in ("csv", "jsonl")]
    return html.render("chat.answers", table, buttons)


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
            yield act.buttons(who) | {p.question: "", p.tools: markup.tools(talk, busy=True)}
            yield from _answered(act, who, talk, question, system, sampling)
    except StudioError as error:
        failure = error
    board = {p.board: markup.blind_board(act.talk(who).blind, prompts.read_votes(act.studio.workspace))}
    painted = board | {p.tools: markup.tools(talk)}
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
    tally = markup.tally(prompts.read_votes(act.studio.workspace))
    with contextlib.closing(act.engine.answer(act.asker(who), select_models(selected), columns, settings)) as answers:
        for answer in answers:
            if isinstance(answer, Status):
                yield {p.status: markup.status(answer), p.board: markup.question(blind) + tally}
            elif isinstance(answer, Ready):
                yield act.remember(who)
            elif isinstance(answer, Piece):
                blind["answers"] = [a + b for a, b in zip(blind["answers"], answer.texts, strict=True)]
                yield {p.board: markup.question(blind) + tally}
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
    return markup.blind_board(blind, prompts.read_votes(act.studio.workspace))


def download(act: Chat) -> str:
    """A link to the preference pairs of all votes."""
    path = job_views.new_file(act.studio.workspace, "preferences.jsonl")
    path.write_text(prompts.votes_as_jsonl(prompts.read_votes(act.studio.workspace)), encoding="utf-8")
    return job_views.link(path)
