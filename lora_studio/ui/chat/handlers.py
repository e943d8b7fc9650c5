"""What the chat tab's events do: choose columns, load, ask, edit, undo, stop, and carry pieces of text to the page.

State is in `chat.conversation`, who can answer in `chat.choices`, markup in `ui.chat.markup`, the way to the
engine in `chat.arbiter`. Each browser has its own chat, kept in the workspace: a reload loses nothing.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from lora_studio.chat import choices as chat_choices
from lora_studio.chat import conversation, prompts
from lora_studio.chat.arbiter import Answer, Ready, Status, asker
from lora_studio.chat.choices import Choice, Columns, from_elsewhere, runs_of, select_models
from lora_studio.chat.conversation import BASE, ChatState, plain
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs import queue
from lora_studio.jobs.kinds import EVALUATE, EXPORT
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece, Scored
from lora_studio.models.accelerators import AUTO
from lora_studio.ui import form, html, job_views
from lora_studio.ui.chat import markup
from lora_studio.ui.components import Updates
from lora_studio.ui.studio import Studio

DEVICE = "chat-device"
"""The draft that holds the device on which the chat answers."""
KEEP_SECONDS = 1.0  # how often a growing answer is written down
STOPPED_SECONDS = 5.0  # how long a stopped answer may take to be written down; then its page is taken to be gone


@dataclass(frozen=True)
class Click:
    """A click in the markup of the tab: what it asks for, in which column, with which value or text."""

    act: str
    column: str = ""
    value: str = ""
    text: str = ""


@dataclass(frozen=True)
class Turn:
    """A chat that is being answered, and the questions. `ended` is set once nothing of it is written any more."""

    talk: ChatState
    questions: frozenset[str]
    ended: threading.Event


@dataclass(frozen=True)
class Parts:
    """The tab's components."""

    nothing: gr.Column
    body: gr.Column
    status: gr.HTML
    tools: gr.HTML
    notes: gr.HTML
    heads: gr.HTML
    board: gr.HTML
    extra: gr.HTML
    message: gr.HTML
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    cards: gr.HTML
    system: gr.Textbox
    like: gr.Dropdown
    sampling: list[Any]
    copied: gr.HTML
    device: gr.Dropdown

    def all(self) -> list[Component | gr.Column]:
        """Every component, for events that may change any of them."""
        flat: list[Component | gr.Column] = []
        for part in vars(self).values():
            flat += part if isinstance(part, list) else [part]
        return flat


class Chat:
    """What the tab's events do; `who` is the browser that asks."""

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts
        self.engine = studio.engine
        self._answering: dict[str, Turn] = {}  # by `asker`
        self._stopped: dict[str, Turn] = {}  # the same of answers that were stopped and may not have ended yet

    # -- who can answer, and what was said

    def asker(self, who: str) -> str:
        """What the engine knows a browser by: with its visitor's name, so that nobody stops another's answer."""
        return asker("page", self.studio.workspace.policy.owner_id, who)

    def talk(self, who: str) -> ChatState:
        return conversation.read_state(self.studio.workspace, who)

    def keep(self, who: str, talk: ChatState) -> None:
        conversation.write_state(self.studio.workspace, who, talk)

    def choices(self, talk: ChatState) -> list[Choice]:
        """Every adapter there is: a look at every run."""
        return chat_choices.choices(self.studio.workspace, self.studio.supervisor.runs(), talk.folders)

    def columns(self, talk: ChatState) -> Columns:
        """The adapters of a chat's columns as they are now: a look at their runs alone."""
        runs = self.studio.supervisor.runs(runs_of(talk.adapters))
        elsewhere = from_elsewhere(talk.adapters)
        choices = chat_choices.choices(self.studio.workspace, runs, talk.folders, elsewhere=elsewhere)
        return Columns(choices, list(talk.adapters))

    def followed(self, who: str) -> tuple[ChatState, Columns, Updates]:
        """A person's chat, a run's newest adapter in the place of a deleted one; and the sentence that says so.

        An answer that was stopped is written down first.
        """
        stopped = self._stopped.get(self.asker(who))
        if stopped:
            stopped.ended.wait(STOPPED_SECONDS)
            self._stopped.pop(self.asker(who), None)
        talk = self.talk(who)
        columns, updates = self._follow(talk)
        if updates:
            self.keep(who, talk)
        return talk, columns, updates or {self.parts.message: ""}

    def _follow(self, talk: ChatState) -> tuple[Columns, Updates]:
        """The same for a chat that is at hand; without updates where no adapter of it was deleted."""
        columns = self.columns(talk)
        words = chat_choices.follow(columns.found, talk)
        if not words:
            return columns, {}
        columns = replace(columns, adapters=list(talk.adapters))
        updates = {self.parts.heads: self._heads(talk, columns, self.choices(talk))}
        return columns, updates | {self.parts.message: html.notice(words)}

    # -- painting

    def arrive(self, who: str, adapter: str = "", others: Sequence[str] = ()) -> Updates:
        """The page or the tab is opened: what there is now, and the adapters that another tab asks for."""
        talk, _, updates = self.followed(who)
        choices = self.choices(talk)
        available = {choice.value for choice in choices}
        adapters = [value for value in talk.adapters if value in available]
        if adapter or not adapters:
            wished = [chat_choices.preferred(choices, adapter), *(chat_choices.named(choices, run) for run in others)]
            values = list(dict.fromkeys(choice.value for choice in wished if choice))[: chat_choices.MAX_ADAPTERS]
            adapters = adapters if set(values) <= set(adapters) else values
        if adapters != talk.adapters:
            talk.adapters, talk.system = adapters, None
            self.keep(who, talk)
        return (
            updates | self._paint(talk, choices) | self._sampling_shown(talk) | self._device_shown() | self.buttons(who)
        )

    def pick(self, who: str, values: Sequence[str]) -> Updates:
        """Other columns: those that were shown before bring their conversations back."""
        talk = self.talk(who)
        first = talk.adapters[:1]
        talk.adapters, talk.scored = list(dict.fromkeys(values)), False
        if talk.adapters[:1] != first:
            talk.system = None
        self.keep(who, talk)
        talk, _, updates = self.followed(who)
        return updates | self.paint(talk)

    def paint(self, talk: ChatState) -> Updates:
        """Everything as it is now."""
        return self._paint(talk, self.choices(talk))

    def _paint(self, talk: ChatState, choices: Sequence[Choice]) -> Updates:
        p = self.parts
        if not choices:
            return {p.nothing: gr.Column(visible=True), p.body: gr.Column(visible=False)}
        columns = Columns(choices, list(talk.adapters))
        updates: Updates = {
            p.nothing: gr.Column(visible=False),
            p.body: gr.Column(visible=True),
            p.heads: self._heads(talk, columns, choices),
            p.tools: markup.tools(talk),
        }
        if not talk.scored:
            updates[p.extra] = ""
        with contextlib.suppress(StudioError):  # the message says it
            updates |= {p.system: self.system(talk, columns.chosen), p.cards: markup.cards(columns.chosen)}
        return updates | self.memory(columns) | {p.board: self.board(talk, columns)}

    def _heads(self, talk: ChatState, columns: Columns, choices: Sequence[Choice]) -> str:
        if talk.blinded:
            return markup.blind_head()
        return markup.heads(columns.titles[BASE], choices, [choice.value for choice in columns.shown])

    def memory(self, columns: Columns) -> Updates:
        """What is in memory, or why the columns can't answer together."""
        p, loaded = self.parts, self.engine.loaded
        try:
            selected = columns.chosen
        except StudioError as error:
            pill = markup.memory(None, [], "", loaded.base if loaded else "")
            return {p.status: pill, p.notes: "", p.message: html.problem(error)}
        here = loaded if self.engine.holds(select_models(selected)) else None
        holder = f"the chat ({loaded.base})" if loaded else None
        run, evaluating, exporting = self.engine.run, *map(self.engine.works_beside, (EVALUATE, EXPORT))
        holders = queue.holders(run, holder, evaluating, exporting)
        sharing = holders if loaded and (run or evaluating or exporting) else ""
        pill = markup.memory(here, selected, holders, loaded.base if loaded else "")
        return {p.status: pill, p.notes: markup.memory_notes(here, sharing)}

    def remember(self, who: str) -> Updates:
        """The same for a browser, after something else brought models into memory."""
        return self.memory(self.columns(self.talk(who)))

    def system(self, talk: ChatState, selected: Sequence[Choice]) -> str:
        """The system prompt that the columns are given."""
        return selected[0].card().system_prompt if talk.system is None else talk.system

    def board(self, talk: ChatState, columns: Columns, *, busy: bool = False) -> str:
        """All columns of a person's chat. Called for each piece of an answer: reads nothing once something is said."""
        titles = columns.titles
        names = [name for name in talk.names if name in titles]
        turns = talk.turns(names)
        start = markup.start(len(names), prompts.examples_for(columns.shown)) if not turns else ""
        if talk.blinded:
            all_votes = prompts.read_votes(self.studio.workspace)
            return markup.blind_board(talk.blind, all_votes) if talk.blind else start + markup.tally(all_votes)
        if not turns:
            return start
        visible = [markup.Column(name, titles[name], talk.column(name), talk.notes.get(name, "")) for name in names]
        return markup.board(visible, turns, marks=talk.marks, busy=busy)

    def _sampling_shown(self, talk: ChatState) -> Updates:
        boxes = zip(self.parts.sampling, form.SAMPLING, strict=True)
        return {box: form.to_widget(item, talk.sampling.get(item.path, item.default)) for box, item in boxes}

    def _device_shown(self) -> Updates:
        """The devices to choose from, for the owner: all chats share the one that answers."""
        offered, workspace = self.studio.supervisor.devices(), self.studio.workspace
        if not workspace.policy.is_admin:
            return {}
        choice = workspace.read_draft(DEVICE)
        self.engine.choice = choice if choice in [device.choice for device in offered] else AUTO
        return {self.parts.device: job_views.device_choice(offered, self.engine.choice)}

    def choose_device(self, who: str, choice: str) -> Updates:
        """The next question is answered on that device."""
        self.studio.workspace.policy.check_may("choose the device of the chat")
        self.studio.workspace.write_draft(DEVICE, choice)
        self.engine.choice = choice
        return self.remember(who) | {self.parts.message: ""}

    # -- memory

    def load(self, who: str, force: bool = False) -> Iterator[Updates]:
        """Brings base and adapters into memory, with progress."""
        p = self.parts
        _, columns, updates = self.followed(who)
        yield updates
        try:
            selected = columns.chosen
            with contextlib.closing(self.engine.load(self.asker(who), select_models(selected), force=force)) as answers:
                for answer in answers:
                    if isinstance(answer, Status):
                        yield {p.status: markup.status(answer)}
            yield self.memory(columns)
        except StudioError as error:
            yield self.memory(columns) | {p.message: markup.problem(error)}

    def unload(self, who: str) -> Iterator[Updates]:
        """Frees the memory: the owner at once, others when nobody is being answered."""
        p = self.parts
        try:
            with contextlib.closing(
                self.engine.unload(self.asker(who), at_once=self.studio.workspace.policy.is_admin)
            ) as answers:
                for answer in answers:
                    if isinstance(answer, Status):
                        yield {p.status: markup.status(answer), p.stop: gr.Button(visible=True)}
            yield self.paint(self.talk(who)) | self.buttons(who)
        except StudioError as error:
            yield self.remember(who) | {p.message: markup.problem(error)} | self.buttons(who)

    # -- asking

    def send(self, who: str, question: str, system: str, *sampling: Any) -> Iterator[Updates]:
        """Asks all columns and shows their answers as they grow."""
        question = question.strip()
        if not question:
            yield {self.parts.message: html.notice("There is no question yet.", "Type one, or press a suggestion.")}
            return
        talk, columns, updates = self.followed(who)
        yield updates
        try:
            yield from self.ask(who, talk, columns, dict.fromkeys(talk.names, question), system, sampling)
        except StudioError as error:
            if not self.is_asking(who, question):
                yield self.failed(who, columns, error) | {self.parts.question: question}

    def is_asking(self, who: str, question: str) -> bool:
        """Whether a browser's question is being answered: a double click sends it twice."""
        turn = self._answering.get(self.asker(who))
        return turn is not None and question in turn.questions

    def growing(self, who: str) -> ChatState | None:
        """A browser's chat while it is answered, with what is not written down yet."""
        turn = self._answering.get(self.asker(who))
        return turn.talk if turn else None

    def check_idle(self, who: str) -> None:
        """Raises `StudioError` while a browser's chat is answered: a question would follow half an answer."""
        if self.is_busy(who):
            raise StudioError("The last question is still being answered.", "Wait for it, or press Stop and ask again.")

    def ask(
        self,
        who: str,
        talk: ChatState,
        columns: Columns,
        questions: Mapping[str, str],
        system: str,
        sampling: Sequence[Any],
        before: Mapping[str, list[dict[str, str]]] | None = None,
    ) -> Iterator[Updates]:
        """Asks each column its question. A failed or stopped answer keeps what was said; without any, the column is as
        it was `before`, and a question that was typed comes back, to the next page where this one is gone."""
        self.check_idle(who)
        for text in questions.values():
            check_length("The question", text, QUESTION)
        check_length("The system prompt", system, SYSTEM_PROMPT)
        p, names = self.parts, list(questions)
        question = questions[names[0]]
        workspace = self.studio.workspace.bound()  # what is kept at the end is kept for whoever asked
        selected = columns.chosen
        own = selected[0].card().system_prompt
        talk.sampling, talk.system = form.sampling(sampling), None if system == own else system
        with self.answering(who, talk, questions.values()):
            for name, text in questions.items():
                talk.ask(text, [name])
            self.keep(who, talk)
            begun = {p.question: "", p.extra: "", p.tools: markup.tools(talk, busy=True)}
            failure, gone = None, False
            try:
                yield self.buttons(who) | begun | {p.board: self.board(talk, columns, busy=True)}
                with contextlib.closing(self._answers(who, talk, selected, names, system)) as answers:
                    yield from self._carry(who, talk, columns, names, answers)
            except StudioError as error:
                failure = error
            except GeneratorExit:
                gone = True
                raise
            finally:
                unanswered = talk.take_back(names, before)
                typed = question if unanswered and not conversation.holds(before, question) else ""
                talk.unsent = typed if gone and typed else talk.unsent
                conversation.write_state(workspace, who, talk)
        if self.is_busy(who):
            return  # stopped, and the next question is on the board already
        if failure is None:
            yield self.buttons(who) | {p.tools: markup.tools(talk), p.board: self.board(talk, columns)}
            if talk.scored:
                yield from self._score(who, talk, columns, system)
            return
        # A run may have deleted a checkpoint while that was loaded.
        columns, updates = self._follow(talk) if unanswered else (columns, {})
        if updates and not before:
            yield updates
            yield from self.ask(who, talk, columns, dict.fromkeys(talk.names, question), system, sampling)
            return
        if updates:
            self.keep(who, talk)
        back = {p.question: typed} if typed else {}
        painted = {p.board: self.board(talk, columns), p.tools: markup.tools(talk)}
        yield self.failed(who, columns, failure) | updates | back | painted

    def _answers(
        self, who: str, talk: ChatState, selected: Sequence[Choice], names: Sequence[str], system: str
    ) -> Generator[Answer, None, None]:
        """The engine's answers to the last question of these columns."""
        requests = [
            ColumnPrompt(adapter=None if name == BASE else name, messages=talk.prompt(name, system)) for name in names
        ]
        return self.engine.answer(self.asker(who), select_models(selected), requests, plain(talk.sampling))

    @contextlib.contextmanager
    def answering(self, who: str, talk: ChatState, questions: Iterable[str]) -> Iterator[None]:
        """Meanwhile a browser's chat is being answered, and what is switched in it counts at once."""
        key, turn = self.asker(who), Turn(talk, frozenset(questions), threading.Event())
        if self._answering.setdefault(key, turn) is not turn:
            self.check_idle(who)
        try:
            yield
        finally:
            turn.ended.set()
            for turns in (self._answering, self._stopped):
                if turns.get(key) is turn:
                    del turns[key]

    def _carry(
        self, who: str, talk: ChatState, columns: Columns, names: Sequence[str], answers: Iterator[Answer]
    ) -> Iterator[Updates]:
        """Pieces from the engine to the page; leaving early stops the engine."""
        p, written = self.parts, time.monotonic()
        for answer in answers:
            if isinstance(answer, Status):
                yield {p.status: markup.status(answer)}
                continue
            if isinstance(answer, Ready):
                yield self.memory(columns)
                continue
            if isinstance(answer, Piece):
                talk.add(dict(zip(names, answer.texts, strict=True)))
                words = [html.count(tokens, "token") for tokens in answer.tokens]
                talk.notes |= dict(zip(names, words, strict=True))
            elif isinstance(answer, Generated):
                talk.finish({name: column.text for name, column in zip(names, answer.columns, strict=True)})
                notes = [markup.column_note(column) for column in answer.columns]
                talk.notes |= dict(zip(names, notes, strict=True))
            if time.monotonic() - written > KEEP_SECONDS:
                self.keep(who, talk)
                written = time.monotonic()
            yield {p.board: self.board(talk, columns, busy=True)}

    def is_busy(self, who: str) -> bool:
        """Whether a browser's chat is being answered."""
        return self.asker(who) in self._answering

    def buttons(self, who: str) -> Updates:
        """Stop in the place of Send while a browser's chat is being answered."""
        busy = self.is_busy(who)
        return {self.parts.send: gr.Button(visible=not busy), self.parts.stop: gr.Button(visible=busy)}

    def failed(self, who: str, columns: Columns, error: StudioError) -> Updates:
        """The reason stands above the composer; the pill says again what is in memory."""
        return self.buttons(who) | self.memory(columns) | {self.parts.message: markup.problem(error)}

    def stop(self, who: str) -> Updates:
        """Ends the answer; the next question can be asked also where the page that asked the last one is gone."""
        self.engine.stop(self.asker(who))
        turn = self._answering.pop(self.asker(who), None)
        if turn:
            self._stopped[self.asker(who)] = turn
        return self.buttons(who)

    # -- clicks in the markup

    def act(self, click: Click, who: str, system: str, place: gr.HTML, sampling: Sequence[Any]) -> Iterator[Updates]:
        """A click in heads, toolbar or conversation."""
        if click.act in ("pick", "add", "remove"):
            yield self._columns_changed(click, who)
            return
        if click.act in ("load", "force", "unload"):
            yield from self.unload(who) if click.act == "unload" else self.load(who, click.act == "force")
            return
        talk, columns, updates = self.followed(who)
        yield updates
        try:
            match click.act:
                case "example":
                    example = prompts.examples_for(columns.shown)[int(click.value)]
                    system = example.system or system
                    yield {self.parts.system: system}
                    questions = dict.fromkeys(talk.names, example.question)
                    yield from self.ask(who, talk, columns, questions, system, sampling)
                case "again" | "edit" | "ask":
                    yield from self._again(who, talk, columns, click, system, sampling)
                case "undo" | "clear":
                    yield self._taken_out(click, who, talk, columns)
                case "marks" | "blind" | "tokens":
                    yield from self._switched(click, who, talk, columns, system)
                case "copy" | "markdown" | "json" | "jsonl":
                    yield self._shared(click, talk, columns, system, place)
        except StudioError as error:
            yield self.failed(who, columns, error)

    def _columns_changed(self, click: Click, who: str) -> Updates:
        """Another adapter in a column, a column more, or one less."""
        talk = self.talk(who)
        adapters = list(talk.adapters)
        if click.act == "add":
            choice = chat_choices.next_choice(self.choices(talk), adapters)
            if choice is None:
                words = html.notice("No other adapter of this base.", "Train one, or load an external adapter.")
                return {self.parts.message: words}
            adapters.append(choice.value)
        elif click.act == "remove":
            adapters = [value for value in adapters if value != click.column or len(adapters) == 1]
        else:
            adapters = [click.value if value == click.column else value for value in adapters]
        return self.pick(who, adapters)

    def _again(
        self, who: str, talk: ChatState, columns: Columns, click: Click, system: str, sampling: Sequence[Any]
    ) -> Iterator[Updates]:
        """Questions asked anew, each column's last or one that is changed; what came after them is taken out."""
        self.check_idle(who)
        check_length("The question", click.text, QUESTION)
        names = [click.column] if click.column in talk.names else talk.names
        before = {name: list(talk.column(name)) for name in names}
        if click.act == "again":
            removed = {name: talk.again(name) for name in names}
        elif click.act == "edit":
            removed = {name: talk.edit(name, turn) for name, turn in talk.turn_at(int(click.value), names).items()}
        else:  # a column that has no turn where others have one
            turns = talk.turn_at(int(click.value), talk.names)
            removed = {name: talk.column(other)[2 * turn]["content"] for name in names for other, turn in turns.items()}
        questions = {name: click.text.strip() or question for name, question in removed.items() if question}
        if questions:
            yield from self.ask(who, talk, columns, questions, system, sampling, before)

    def _taken_out(self, click: Click, who: str, talk: ChatState, columns: Columns) -> Updates:
        """The last turn, of one column or of all that have it; or everything."""
        self.check_idle(who)
        if click.act == "clear":
            talk.clear()
        else:
            talk.undo([click.column] if click.column in talk.names else talk.turn_at(-1, talk.names))
        self.keep(who, talk)
        return {
            self.parts.board: self.board(talk, columns),
            self.parts.extra: "",
            self.parts.tools: markup.tools(talk),
        }

    def _switched(self, click: Click, who: str, talk: ChatState, columns: Columns, system: str) -> Iterator[Updates]:
        """A toggle of the toolbar; what is being answered now is shown by it as well."""
        p, turn = self.parts, self._answering.get(self.asker(who))
        if click.act == "marks":
            talk.marks = not talk.marks
            if turn:
                turn.talk.marks = talk.marks
                talk = turn.talk
            self.keep(who, talk)
            yield {
                p.board: self.board(talk, columns, busy=bool(turn)),
                p.tools: markup.tools(talk, busy=bool(turn)),
            }
            return
        self.check_idle(who)
        if click.act == "blind":
            talk.blinded = not talk.blinded
            self.keep(who, talk)
            yield self.paint(talk) | {p.extra: ""}
            return
        talk.scored = not talk.scored
        self.keep(who, talk)
        yield {p.tools: markup.tools(talk), p.extra: ""}
        if talk.scored:
            yield from self._score(who, talk, columns, system)

    def _shared(self, click: Click, talk: ChatState, columns: Columns, system: str, place: gr.HTML) -> Updates:
        """The conversation for the clipboard, or as a file."""
        if click.act == "copy":
            text = talk.markdown(columns.titles, system)
            return {self.parts.copied: html.render("chat.copied", text, secrets.token_hex(4))}
        if click.act == "jsonl":
            name, text = "conversations.jsonl", talk.jsonl(system)
        elif click.act == "json":
            name, text = "conversation.json", talk.as_json(columns.titles, system)
        else:
            name, text = "conversation.md", talk.markdown(columns.titles, system)
        path = job_views.new_file(self.studio.workspace, name)
        path.write_text(text, encoding="utf-8")
        return {place: job_views.link(path)}

    def _score(self, who: str, talk: ChatState, columns: Columns, system: str) -> Iterator[Updates]:
        """The first adapter's last answer as forced text: how likely base and adapters find each token."""
        p, selected = self.parts, columns.chosen
        name = next((value for value in talk.adapters if talk.column(value)), "")
        if not name or not talk.column(name)[-1]["content"]:
            yield {p.extra: html.empty("No answer to score yet", "Token probabilities appear with the next answer.")}
            return
        yield {p.extra: html.progress("Scoring the answer with base and adapters")}
        scoring = self.engine.score(
            self.asker(who), select_models(selected), talk.prompt(name, system), talk.column(name)[-1]["content"]
        )
        try:
            with contextlib.closing(scoring) as answers:
                for answer in answers:
                    if isinstance(answer, Status):
                        yield {p.status: markup.status(answer)}
                    elif isinstance(answer, Ready):
                        yield self.memory(columns)
                    elif isinstance(answer, Scored):
                        titles = {choice.value: choice.name for choice in selected}
                        yield {p.extra: markup.tokens(answer, titles)}
        except StudioError as error:
            yield self.failed(who, columns, error) | {p.extra: ""}
