"""The Chat tab: one question, the answers of the base and up to three adapters, also of others, side by side.

Draws and wires, with sets of prompts and the blind vote; `ui.chat.handlers` has what the events of the open chat do.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.chat import choices, prompts
from lora_studio.chat.arbiter import Ready, Status
from lora_studio.chat.choices import FOLDER, MAX_ADAPTERS, select_models
from lora_studio.chat.conversation import BASE, BlindTrial, ChatState, draft_key, plain, write_state
from lora_studio.chat.prompts import Answered, examples_for
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs.protocol import TRANSFORMERS, VLLM, BatchColumn, ColumnPrompt, Ended, Generated, Piece
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import markup, mixing
from lora_studio.ui.chat.handlers import Chat, Click, Parts
from lora_studio.ui.components import QUIET, EventOptions, Shared, Updates, Wish
from lora_studio.ui.studio import Studio

OWN_SAMPLING = "as set below"
ENGINE = "chat-engine"
"""The draft that holds the engine of prompt sets and programs."""
ENGINE_WORDS = (
    "vLLM starts with the next prompt set or request, which takes minutes. It takes the place of the chat's model on "
    "the GPU; the next question in the chat loads that again."
)
FIRST_SECONDS = 3
"""Between two looks of a chat without adapters for a first one."""
FOLLOW_SECONDS = 1
"""Between two looks at an answer that an earlier page asked for."""


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    who = gr.State("")
    parts, drawer, train_demo = draw()
    job_views.wire_train_demo(train_demo, shared)
    place = job_views.place(studio.workspace)
    act = Chat(studio, parts)
    parts.like.choices = [(name, name) for name in (OWN_SAMPLING, *form.sampling_presets(studio.workspace))]
    _wire(act, who, shared.wish, place)
    with drawer:
        build_prompt_sets(act, who)
        mixing.build(act, who)
        build_external(act, who)


def draw() -> tuple[Parts, gr.Column, gr.Button]:
    """The components, the drawer, which others add to, and the button in the place of a chat without adapters."""
    nothing, train_demo = job_views.draw_no_adapter("chat")
    with gr.Column(visible=False, elem_id="chat") as body:
        with gr.Row(elem_id="chat-top"):
            status = gr.HTML(js_on_load=theme.on_load("chatClicks"), elem_id="chat-status")
            tools = gr.HTML(js_on_load=theme.on_load("chatTools"), elem_id="chat-tools")
        notes = gr.HTML(elem_id="chat-notes")
        with gr.Row(elem_id="chat-stage"):
            with gr.Column(elem_id="chat-main"):
                with gr.Column(elem_id="chat-window"):
                    heads = gr.HTML(js_on_load=theme.on_load("chatClicks"), elem_id="chat-heads")
                    board = gr.HTML(js_on_load=theme.on_load("chatBoard"), elem_id="chat-board")
                    extra = gr.HTML(js_on_load=theme.on_load("chatTokens"), elem_id="chat-extra")
                message = gr.HTML(js_on_load=theme.on_load("chatClicks"), elem_id="chat-message")
                with gr.Row(elem_id="chat-composer"):
                    question = gr.Textbox(
                        label="Your question",
                        show_label=False,
                        placeholder="Ask all columns",
                        lines=1,
                        max_lines=8,
                        elem_id="chat-question",
                    )
                    send = gr.Button("Send", variant="primary", scale=0, elem_id="chat-send")
                    stop = gr.Button("Stop", scale=0, visible=False, elem_id="chat-stop")
            with gr.Column(elem_id="chat-drawer") as drawer:
                cards, system, like_box, sampling = _draw_settings()
                device = job_views.device_field("chat")
        copied = gr.HTML(js_on_load=theme.on_load("chatCopied"), elem_id="chat-copied")
    own = (question, send, stop, cards, system, like_box, sampling, copied, device)
    return Parts(nothing, body, status, tools, notes, heads, board, extra, message, *own), drawer, train_demo


def _draw_settings() -> tuple[gr.HTML, gr.Textbox, gr.Dropdown, list[Any]]:
    """The settings of the drawer."""
    gr.HTML(html.render("chat.drawer_head"), js_on_load=theme.on_load("chatTools"), elem_id="chat-drawer-head")
    system = gr.Textbox(
        label="System prompt",
        info="For all columns; at first the first adapter's own.",
        lines=2,
        max_lines=8,
        placeholder="none",
    )
    with gr.Accordion("Sampling", open=True, elem_id="chat-sampling"):
        like_box = gr.Dropdown(
            [OWN_SAMPLING],
            value=OWN_SAMPLING,
            label="Sample as a preset does",
            info="Fills in the settings below.",
            filterable=False,
        )
        with gr.Column(elem_classes="grid"):
            sampling = [
                form.draw_widget(setting, f"chat-{setting.path.rpartition('.')[2]}") for setting in form.SAMPLING
            ]
    with gr.Accordion("Adapter details", open=False):
        cards = gr.HTML(elem_id="chat-cards")
    return cards, system, like_box, sampling


def _wire(act: Chat, who: gr.State, wish: gr.State, place: gr.HTML) -> None:
    p = act.parts
    everything = p.all()
    answer: EventOptions = {"concurrency_id": "chat", "concurrency_limit": 8, **QUIET}

    _wire_arrivals(act, who, wish)

    def send(person: str, question: str, system: str, *sampling: Any) -> Iterator[Updates]:
        if act.talk(person).blinded:
            yield from ask(act, person, question, system, sampling)
        else:
            yield from act.send(person, question, system, *sampling)

    def click(event: gr.EventData, person: str, system: str, *sampling: Any) -> Iterator[Updates]:
        target = Click(str(event.act), str(event.column), str(event.value), str(event.text))
        if target.act == "vote":
            yield {p.board: vote(act, person, int(target.value))}
        elif target.act in VOTES_AS:
            yield {place: download(act, target.act)}
        elif target.act == "example" and (talk := act.talk(person)).blinded:
            example = examples_for(act.columns(talk).shown)[int(target.value)]
            yield from ask(act, person, example.question, example.system or system, sampling)
        else:
            yield from act.act(target, person, system, place, sampling)

    # Gradio drops an event that comes while the last one ends; the chat itself refuses a question in words, or waits.
    asked: EventOptions = {"trigger_mode": "multiple", **answer}
    gr.on([p.send.click, p.question.submit], send, [who, p.question, p.system, *p.sampling], everything, **asked)
    p.stop.click(act.stop, who, [p.send, p.stop], queue=False, **QUIET)
    p.like.select(lambda name: form.sampling_like(act.studio.workspace, name), p.like, p.sampling, **QUIET)
    p.device.input(act.choose_device, [who, p.device], [p.status, p.notes, p.message], **QUIET)
    clicked = [p.status.click, p.tools.click, p.heads.click, p.board.click, p.message.click]
    gr.on(clicked, click, [who, p.system, *p.sampling], [*everything, place], **answer)


def _wire_arrivals(act: Chat, who: gr.State, wish: gr.State) -> None:
    """What the tab shows when the page or the tab is opened, and once there is a first adapter."""
    everything = act.parts.all()
    empty, waiting, following = gr.State(True), gr.Timer(FIRST_SECONDS), gr.Timer(FOLLOW_SECONDS, active=False)

    def open_page(browser: str) -> Updates:
        return {who: browser} | arrived(browser)

    def take_up(person: str, request: Wish) -> Updates:
        return {wish: Wish()} | arrived(person, request.adapter, request.others)

    def arrived(person: str, *wished: Any) -> Updates:
        updates = act.arrive(person, *wished)
        return updates | {empty: act.parts.board not in updates, following: gr.Timer(active=is_followed(act, person))}

    def look_again(person: str, typed: str) -> Updates:
        ended = not act.is_busy(person)
        return follow(act, person, typed) | ({following: gr.Timer(active=False)} if ended else {})

    def look(person: str, still_empty: bool) -> Updates:
        """The first checkpoint of a run at work appears by itself; then nobody looks until the tab is opened again."""
        if not person or (still_empty and not act.choices(act.talk(person))):
            return {empty: True}
        return (arrived(person) if still_empty else {}) | {waiting: gr.Timer(active=False)}

    name = gr.Textbox(visible=False)
    gr.on(fn=open_page, inputs=name, outputs=[who, *everything, empty, following], js=theme.call("chatName"), **QUIET)
    tab = act.parts.body.parent
    assert isinstance(tab, gr.Tab)  # its own event, because that of `shared.tabs` is silent when another tab opens it
    job_views.open_anew(tab, take_up, [who, wish], [*everything, wish, empty, following])
    waiting.tick(look, [who, empty], [*everything, empty, waiting, following], trigger_mode="once", **QUIET)
    following.tick(look_again, [who, act.parts.question], [*everything, following], trigger_mode="once", **QUIET)


def is_followed(act: Chat, who: str) -> bool:
    """Whether a page that is opened has to look again: an answer grows that an earlier page asked for, or a question
    was left unanswered there."""
    return act.is_busy(who) or bool(act.talk(who).unsent)


def follow(act: Chat, who: str, typed: str) -> Updates:
    """The answer that an earlier page asked for, as it grows and as it ended. A question that was left unanswered comes
    back, unless another is being typed."""
    p, growing = act.parts, act.growing(who)
    if growing:
        return {} if growing.blinded else {p.board: act.board(growing, act.columns(growing), busy=True)}
    talk = act.talk(who)
    columns = act.columns(talk)
    back: Updates = {}
    if talk.unsent and not typed.strip():
        words = "The page was left before the answer began, so your question is below again."
        back = {p.question: talk.unsent, p.message: html.notice(words)}
        talk.unsent = ""
        act.keep(who, talk)
    return (
        {p.board: act.board(talk, columns), p.tools: markup.tools(talk)} | act.memory(columns) | act.buttons(who) | back
    )


def build_prompt_sets(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Prompt sets", open=False, elem_id="chat-prompts"):
        lines_box, message = _saved_sets(act, who)
        _build_engine(act, message)
        with gr.Row(elem_classes="actions"):
            run = gr.Button("Run prompt set", scale=0, size="sm")
            stop = gr.Button("Stop", scale=0, size="sm", visible=False)
        table = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="chat-prompts-table")
        place = job_views.place(act.studio.workspace)

    def ask(person: str, lines: str, system: str, *sampling: Any) -> Iterator[Updates]:
        yield {run: gr.Button(visible=False), stop: gr.Button(visible=True)}
        idle = {run: gr.Button(visible=True), stop: gr.Button(visible=False)}
        try:
            for words, answers in asked(act, person, prompts.prompts_of(lines), system, sampling):
                yield {message: words, table: answers}
            yield idle
        except StudioError as error:
            yield idle | {message: markup.problem(error)}

    def download(event: gr.EventData, person: str) -> str:
        columns, rows = kept_rows(act, person)
        write = prompts.as_csv if event.act == "csv" else prompts.answers_as_jsonl
        path = job_views.new_file(act.studio.workspace, f"answers.{event.act}")
        path.write_text(write(columns, rows), encoding="utf-8")
        return job_views.link(path)

    inputs = [who, lines_box, act.parts.system, *act.parts.sampling]
    asking = run.click(ask, inputs, [run, stop, message, table], concurrency_id="chat", concurrency_limit=8, **QUIET)
    asking.then(act.remember, who, [act.parts.status, act.parts.notes, act.parts.message], **QUIET)
    stop.click(act.stop, who, [act.parts.send, act.parts.stop], queue=False, **QUIET)
    table.click(download, who, place, **QUIET)
    who.change(lambda person: drawn(*kept_rows(act, person)), who, table, **QUIET)


def _build_engine(act: Chat, message: gr.HTML) -> None:
    """Draws and wires the choice of what answers prompt sets and programs; one for all, since it holds the device."""
    workspace = act.studio.workspace
    if (remembered := workspace.read_draft(ENGINE)) in (TRANSFORMERS, VLLM):
        act.engine.batch_engine = str(remembered)
    info = "For prompt sets and the API. vllm is faster with many requests. It needs a GPU and vLLM."
    box = gr.Dropdown([TRANSFORMERS, VLLM], value=act.engine.batch_engine, label="Engine", info=info)

    def choose(engine: str) -> tuple[Any, str]:
        try:
            workspace.policy.check_may("choose the engine of prompt sets and /v1")
            act.engine.choose_engine(engine)
        except StudioError as error:
            return gr.Dropdown(value=act.engine.batch_engine), html.problem(error)
        workspace.write_draft(ENGINE, engine)
        return gr.skip(), html.notice(ENGINE_WORDS, kind="info") if engine == VLLM else ""

    box.input(choose, box, [box, message], **QUIET)


def _saved_sets(act: Chat, who: gr.State) -> tuple[gr.Textbox, gr.HTML]:
    """Draws and wires what saves prompts; gives the box with the prompts, and where messages appear."""
    workspace = act.studio.workspace
    saved = gr.Dropdown(prompts.names(workspace), label="Saved set", value=None)
    lines_box = gr.Textbox(label="Prompts, one per line", info="Each starts a new conversation.", lines=4, max_lines=12)
    name = gr.Textbox(label="Set name", placeholder="such as first-impressions", max_lines=1)
    with gr.Row(elem_classes="actions"):
        save = gr.Button("Save set", scale=0, size="sm")
        delete = gr.Button("Delete set", scale=0, size="sm")
    message = gr.HTML()

    def choose(set_name: str | None) -> tuple[Any, Any, Any]:
        try:
            return set_name or "", "\n".join(prompts.read_prompts(workspace, set_name or "")), ""
        except StudioError as error:
            return gr.skip(), gr.skip(), html.problem(error)

    def save_set(set_name: str, lines: str) -> tuple[Any, Any]:
        try:
            saved_name = prompts.save(workspace, set_name, prompts.prompts_of(lines))
        except StudioError as error:
            return gr.skip(), html.problem(error)
        words = html.notice(f"Saved as {saved_name}.", kind="good")
        return gr.Dropdown(choices=prompts.names(workspace), value=saved_name), words

    def delete_set(set_name: str | None) -> tuple[Any, Any]:
        prompts.delete(workspace, set_name or "")
        return gr.Dropdown(choices=prompts.names(workspace), value=None), ""

    def keep(person: str, lines: str) -> Any:
        try:
            keep_lines(act, person, lines)
        except StudioError as error:
            return html.problem(error)
        return gr.skip()

    def restore(person: str) -> tuple[Any, str]:
        return gr.Dropdown(choices=prompts.names(workspace)), kept_lines(act, person)

    who.change(restore, who, [saved, lines_box], **QUIET)
    lines_box.change(keep, [who, lines_box], message, trigger_mode="always_last", **QUIET)
    saved.select(choose, saved, [name, lines_box, message], **QUIET)
    save.click(save_set, [name, lines_box], [saved, message], **QUIET)
    delete.click(delete_set, saved, [saved, message], **QUIET)
    return lines_box, message


def asked(
    act: Chat, who: str, prompts: Sequence[str], system: str, sampling: Sequence[Any]
) -> Iterator[tuple[str, str]]:
    """Asks all prompts at once; yields words on how far it is, and the table of those that all columns answered."""
    _, adapters, _ = act.followed(who)
    selected = adapters.chosen
    names = [BASE, *(choice.value for choice in selected)]
    titles = [adapters.titles[name] for name in names]
    settings = plain(form.sampling(sampling))
    opening = [{"role": "system", "content": system}] if system.strip() else []
    conversations = [[*opening, {"role": "user", "content": prompt}] for prompt in prompts]
    columns = [
        BatchColumn(adapter=None if name == BASE else name, messages=messages, settings=settings)
        for messages in conversations
        for name in names
    ]
    answers: dict[int, str] = {}
    rows: list[Answered] = []
    stopped = False
    yield html.progress("Prompts", 0, len(prompts)), ""
    with contextlib.closing(act.engine.answer_all(act.asker(who), select_models(selected), columns)) as ended:
        for answer in ended:
            if isinstance(answer, Status):
                yield markup.status(answer), drawn(titles, rows)
            elif isinstance(answer, Ended):
                if answer.answer is None:
                    raise StudioError(answer.message, answer.hint)
                stopped = stopped or answer.answer.finish == "stopped"
                answers |= {} if answer.answer.finish == "stopped" else {answer.position: answer.answer.text}
                places = [range(at * len(names), (at + 1) * len(names)) for at in range(len(prompts))]
                whole = [(at, row) for at, row in enumerate(places) if all(place in answers for place in row)]
                if len(whole) > len(rows):
                    rows = [Answered(prompts[at], tuple(answers[place] for place in row)) for at, row in whole]
                    _keep_rows(act, who, titles, rows)
                    yield html.progress("Prompts", len(rows), len(prompts)), drawn(titles, rows)
    words = f"{html.count(len(rows), 'prompt')} answered by {html.count(len(names), 'column')}."
    yield (
        html.notice("Stopped. " + words if stopped else words, kind="info" if stopped else "good"),
        drawn(titles, rows),
    )


def _keep_rows(act: Chat, who: str, titles: Sequence[str], rows: Sequence[Answered]) -> None:
    table = {"columns": list(titles), "rows": [[row.prompt, *row.answers] for row in rows]}
    act.studio.workspace.write_draft(f"chat-prompts-{draft_key(who)}", table)


def keep_lines(act: Chat, who: str, lines: str) -> None:
    """Keeps the prompts that were typed in this browser. Raises `StudioError` without room for them."""
    act.studio.workspace.write_draft(f"chat-lines-{draft_key(who)}", lines)


def kept_lines(act: Chat, who: str) -> str:
    """The prompts as they were typed last; "" where none were."""
    lines = act.studio.workspace.read_draft(f"chat-lines-{draft_key(who)}")
    return lines if isinstance(lines, str) else ""


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
    failure, workspace = None, act.studio.workspace.bound()
    try:
        act.check_idle(who)
        with act.answering(who, talk, [question]):
            yield act.buttons(who) | {p.question: "", p.tools: markup.tools(talk, busy=True)}
            yield from _answered(act, who, talk, question, system, sampling)
    except GeneratorExit:  # its page is gone: the next one gets the question back
        talk.unsent = question
        write_state(workspace, who, talk)
        raise
    except StudioError as error:
        failure = error
    board = {p.board: markup.blind_board(act.talk(who).blind, prompts.read_votes(act.studio.workspace))}
    painted = board | {p.tools: markup.tools(talk)}
    if failure is None:
        yield act.buttons(who) | act.memory(columns) | painted
    elif not act.is_asking(who, question):
        yield act.failed(who, columns, failure) | painted | {p.question: question}


def _answered(
    act: Chat, who: str, talk: ChatState, question: str, system: str, sampling: Sequence[Any]
) -> Iterator[Updates]:
    p = act.parts
    check_length("The question", question, QUESTION)
    check_length("The system prompt", system, SYSTEM_PROMPT)
    present = act.columns(talk)
    selected, titles = present.chosen, present.titles
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


VOTES_AS: Mapping[str, tuple[str, Callable[[Sequence[prompts.Vote]], str]]] = {
    "pairs": ("preferences.jsonl", prompts.votes_as_jsonl),
    "rated": ("feedback.jsonl", prompts.rated_as_jsonl),
}
"""What all votes can be downloaded as, by the button: a file's name, and what writes its rows."""


def download(act: Chat, kind: str) -> str:
    """A link to all votes as preference pairs, or as answers labelled good or bad."""
    name, rows = VOTES_AS[kind]
    path = job_views.new_file(act.studio.workspace, name)
    path.write_text(rows(prompts.read_votes(act.studio.workspace)), encoding="utf-8")
    return job_views.link(path)


ABOUT = "Same base, safetensors. Files that could run code are never read."


def build_external(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Load external adapter", open=False, elem_id="chat-external") as fold:
        name = gr.Textbox(label="Folder or Hub name", info=ABOUT, placeholder="/path/to/adapter or hub:owner/name")
        with gr.Row(elem_classes="actions"):
            add = gr.Button("Load adapter", scale=0, size="sm")
            zipped = gr.UploadButton("Upload zip", file_types=[".zip"], scale=0, size="sm")
        message = gr.HTML(elem_id="chat-external-message")
        imported = gr.Dropdown([], label="External adapters", elem_id="chat-imported")
        with gr.Row(elem_classes="actions"):
            remove = gr.Button("Remove adapter", scale=0, size="sm", elem_id="chat-remove")
    outputs = [*act.parts.all(), message, name, imported]

    def shown(updates: Updates) -> Updates:
        own = {"message": message, "name": name}
        return {own.get(key, key): value for key, value in updates.items()} | listed()

    def listed() -> Updates:
        return {imported: gr.Dropdown(choices=offered(act), value=None)}

    def load(source: str, person: str) -> Updates:
        return shown(added(act, person, source.strip()))

    def upload(path: str, person: str) -> Updates:
        return shown(added(act, person, path, zipped=True))

    gr.on([add.click, name.submit], load, [name, who], outputs, **QUIET)
    zipped.upload(upload, [zipped, who], outputs, **QUIET)
    remove.click(lambda folder, person: shown(removed(act, person, folder)), [imported, who], outputs, **QUIET)
    fold.expand(listed, None, [imported], **QUIET)


def added(act: Chat, who: str, source: str, *, zipped: bool = False) -> Updates:
    """Takes an adapter in and gives it a column; "message" and "name" stand for the fold's own components."""
    talk = act.talk(who)
    workspace = act.studio.workspace
    try:
        if not source:
            raise StudioError("No adapter is named yet.", "Type a folder or hub:owner/name, or upload a zip.")
        base = act.columns(talk).chosen[0].card().base if talk.adapters else None
        if zipped:
            folder = choices.from_zip(Path(source), workspace, Path(source).name, base)
        elif choices.is_on_hub(source):
            folder = choices.from_hub(source, workspace, base)
        else:
            folder = choices.from_folder(source, workspace, base)
            talk.folders = list(dict.fromkeys([*talk.folders, str(folder)]))
        value = f"{FOLDER}{folder}"
        full = len(talk.adapters) >= MAX_ADAPTERS and value not in talk.adapters
        if not full:
            talk.adapters = list(dict.fromkeys([*talk.adapters, value]))
        act.keep(who, talk)
        where = "All columns are taken: choose it in one of them." if full else "It has a column now."
        words = html.notice(f"{folder.name}: {choices.about(folder)}. {where}", kind="good")
        return act.paint(talk) | {"message": words, "name": ""}
    except StudioError as error:
        return {"message": html.problem(error)}


def offered(act: Chat) -> list[tuple[str, str]]:
    """The external adapters as (name, folder), those among them that can't be read."""
    return [(folder.name, str(folder)) for folder in choices.imported(act.studio.workspace)]


def removed(act: Chat, who: str, selected: str | None) -> Updates:
    """Deletes an external adapter, and takes it out of the columns."""
    talk = act.talk(who)
    try:
        if not selected:
            raise StudioError("No adapter is chosen to be removed.", "Choose an external adapter.")
        folder = Path(selected)
        choices.remove(folder, act.studio.workspace)
        talk.adapters = [value for value in talk.adapters if value != f"{FOLDER}{folder}"]
        act.keep(who, talk)
        return act.arrive(who) | {"message": html.notice(f"{folder.name} is removed.", kind="good")}
    except StudioError as error:
        return {"message": html.problem(error)}
