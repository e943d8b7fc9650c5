"""The fold of the chat tab that asks a kept set of prompts of all columns and shows the answers as a table."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from lora_studio.chat import prompts as prompt_sets
from lora_studio.chat.arbiter import Status
from lora_studio.chat.choices import wanted
from lora_studio.chat.conversation import BASE, draft_key, plain
from lora_studio.chat.prompts import Answered
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import ColumnPrompt, Generated
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import columns as chat_board
from lora_studio.ui.chat.handlers import Chat, said
from lora_studio.workspace import Workspace

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Prompt sets", open=False, elem_id="chat-prompts"):
        prompts, message = _kept_sets(act.studio.workspace, who)
        with gr.Row(elem_classes="actions"):
            run = gr.Button("Ask them all", variant="primary", scale=0, min_width=130)
            stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
        table = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="chat-prompts-table")
        place = job_views.place(act.studio.workspace)

    def ask(person: str, lines: str, system: str, *sampling: Any) -> Iterator[dict[Any, Any]]:
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
        with contextlib.closing(act.engine.answer(act.asker(who), wanted(selected), columns, settings)) as answers:
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
