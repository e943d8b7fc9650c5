"""What the chat tab's events do: choose columns, load, ask, edit, undo, stop, and carry pieces of text to the page.

State is in `chat.conversation`, who can answer in `chat.choices`, markup in `ui.chat.columns`, the way to the engine in
`chat.arbiter`. Each browser has its own chat, kept in the workspace, so a reload loses nothing.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from lora_studio.chat import arbiter, conversation
from lora_studio.chat import choices as chat_choices
from lora_studio.chat.arbiter import Answer, ConsentError, Ready, Status, asker
from lora_studio.chat.choices import Choice, Columns, from_elsewhere, runs_of, select_models
from lora_studio.chat.conversation import BASE, SAMPLING, ChatState, plain
from lora_studio.chat.prompts import examples_for
from lora_studio.config.parsing import parse
from lora_studio.config.presets import presets
from lora_studio.errors import QUESTION, SYSTEM_PROMPT, StudioError, check_length
from lora_studio.jobs.kinds import EVALUATE, EXPORT
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece, Scored
from lora_studio.ui import form, html, job_views
from lora_studio.ui.chat import columns as chat_board
from lora_studio.ui.studio import Studio, Updates

KEEP_SECONDS = 1.0  # how often a growing answer is written down
OWN_SAMPLING = "as set below"


@dataclass(frozen=True)
class Parts:
    """The tab's components."""

    nothing: gr.HTML
    body: gr.Column
    choice: gr.Dropdown
    load: gr.Button
    unload: gr.Button
    status: gr.HTML
    board: gr.HTML
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    message: gr.HTML
    extra: gr.HTML
    system: gr.Textbox
    like: gr.Dropdown
    sampling: list[Any]

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
        """A person's chat, a run's newest adapter in the place of a deleted one; and the sentence that says so."""
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
        updates = {self.parts.choice: _offered(self.choices(talk), talk), self.parts.message: html.notice(words)}
        return replace(columns, adapters=list(talk.adapters)), updates

    # -- painting

    def arrive(self, who: str, adapter: str = "", others: Sequence[str] = ()) -> Updates:
        """The page or the tab is opened: what there is now, and the adapters that another tab asks for."""
        talk, _, updates = self.followed(who)
        choices = self.choices(talk)
        available = {choice.value for choice in choices}
        adapters = [value for value in talk.adapters if value in available]
        if adapter or not adapters:
            wished = [chat_choices.preferred(choices, value) for value in (adapter, *others)]
            values = list(dict.fromkeys(choice.value for choice in wished if choice))[: chat_choices.MAX_ADAPTERS]
            adapters = adapters if set(values) <= set(adapters) else values
        if adapters != talk.adapters:
            talk.adapters, talk.system = adapters, None
            self.keep(who, talk)
        return updates | self._paint(talk, choices) | self._sampling_shown(talk)

    def pick(self, who: str, values: list[str]) -> Updates:
        """Other columns: those that were shown before bring their conversations back."""
        talk = self.talk(who)
        first = talk.adapters[:1]
        talk.adapters = list(values or [])
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
            return {p.nothing: gr.HTML(visible=True), p.body: gr.Column(visible=False)}
        updates: Updates = {
            p.nothing: gr.HTML(visible=False),
            p.body: gr.Column(visible=True),
            p.choice: _offered(choices, talk),
            p.extra: "",
        }
        columns = Columns(choices, list(talk.adapters))
        with contextlib.suppress(StudioError):  # the status says it
            updates |= {p.system: self.system(talk, columns.chosen)}
        return updates | self.memory(columns) | {p.board: self.board(talk, columns)}

    def memory(self, columns: Columns) -> Updates:
        """What is in memory, or why the columns can't answer together; and whether there is something to unload."""
        try:
            words = self.status(columns.chosen)
        except StudioError as error:
            words = html.problem(error)
        return {self.parts.status: words, self.parts.unload: gr.Button(interactive=self.engine.loaded is not None)}

    def remember(self, who: str) -> Updates:
        """The same for a browser, after something else brought models into memory."""
        return self.memory(self.columns(self.talk(who)))

    def status(self, selected: Sequence[Choice]) -> str:
        loaded = self.engine.loaded if self.engine.holds(select_models(selected)) else None
        holder = f"the chat ({self.engine.loaded.base})" if self.engine.loaded else None
        evaluating, exporting = (bool(self.studio.supervisor.working(kind)) for kind in (EVALUATE, EXPORT))
        who = arbiter.holders(self.engine.run, holder, evaluating, exporting)
        return chat_board.memory(loaded, selected, who, self.engine.loaded is not None) + chat_board.cards(selected)

    def system(self, talk: ChatState, selected: Sequence[Choice]) -> str:
        """The system prompt that the columns are given."""
        return selected[0].card().system_prompt if talk.system is None else talk.system

    def board(self, talk: ChatState, columns: Columns) -> str:
        """All columns of a person's chat. Called for each piece of an answer: reads nothing once something is said."""
        titles = columns.titles
        columns_shown = [
            (name, titles[name], talk.column(name), talk.notes.get(name, "")) for name in talk.names if name in titles
        ]
        has_messages = any(messages for _, _, messages, _ in columns_shown)
        return chat_board.board(
            columns_shown, marks=talk.marks, examples=() if has_messages else examples_for(columns.shown)
        )

    def _sampling_shown(self, talk: ChatState) -> Updates:
        boxes = zip(self.parts.sampling, SAMPLING, strict=True)
        return {box: form.to_widget(item, talk.sampling.get(item.path, item.default)) for box, item in boxes}

    # -- memory

    def load(self, who: str, force: bool = False) -> Iterator[Updates]:
        """Brings base and adapters into memory, with progress."""
        p = self.parts
        again = {p.load: gr.Button(interactive=True)}
        _, columns, updates = self.followed(who)
        yield {p.load: gr.Button(interactive=False)} | updates
        try:
            selected = columns.chosen
            with contextlib.closing(self.engine.load(self.asker(who), select_models(selected), force=force)) as answers:
                for answer in answers:
                    if isinstance(answer, Status):
                        yield {p.status: chat_board.status(answer)}
            yield again | self.memory(columns)
        except StudioError as error:
            yield again | {p.status: said(error)}

    def unload(self, who: str) -> Iterator[Updates]:
        """Frees the memory: the owner at once, others when nobody is being answered."""
        p = self.parts
        try:
            with contextlib.closing(
                self.engine.unload(self.asker(who), at_once=self.studio.workspace.policy.is_admin)
            ) as answers:
                for answer in answers:
                    if isinstance(answer, Status):
                        yield {p.status: chat_board.status(answer), p.stop: gr.Button(interactive=True)}
            yield self.paint(self.talk(who)) | {p.stop: gr.Button(interactive=False)}
        except StudioError as error:
            yield {p.status: said(error), p.stop: gr.Button(interactive=False)}

    # -- asking

    def send(self, who: str, question: str, system: str, *sampling: Any) -> Iterator[Updates]:
        """Asks all columns and shows their answers as they grow."""
        question = question.strip()
        if not question:
            yield {self.parts.message: html.notice("There is no question yet.", "Type one, or press an example.")}
            return
        talk, columns, updates = self.followed(who)
        yield updates
        try:
            yield from self.ask(who, talk, columns, dict.fromkeys(talk.names, question), system, sampling)
        except StudioError as error:
            yield self._failed(columns, error) | {self.parts.question: question}

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
        it was `before`, and a new question comes back."""
        for question in questions.values():
            check_length("The question", question, QUESTION)
        check_length("The system prompt", system, SYSTEM_PROMPT)
        p, names = self.parts, list(questions)
        workspace = self.studio.workspace.bound()  # what is kept at the end is kept for whoever asked
        selected = columns.chosen
        own = selected[0].card().system_prompt
        talk.sampling, talk.system = form.sampling(sampling), None if system == own else system
        for name, question in questions.items():
            talk.ask(question, [name])
        self.keep(who, talk)
        begun = {p.send: gr.Button(interactive=False), p.stop: gr.Button(interactive=True), p.question: ""}
        yield begun | {p.board: self.board(talk, columns), p.extra: ""}
        requests = [
            ColumnPrompt(adapter=None if name == BASE else name, messages=talk.prompt(name, system)) for name in names
        ]
        try:
            with contextlib.closing(
                self.engine.answer(self.asker(who), select_models(selected), requests, plain(talk.sampling))
            ) as answers:
                yield from self._carry(who, talk, columns, names, answers)
            yield self._idle()
        except StudioError as error:
            question = questions[names[0]]
            unanswered = talk.take_back(names, before)
            # A run may have deleted a checkpoint while that was loaded.
            columns, updates = self._follow(talk) if unanswered else (columns, {})
            if updates and not before:
                yield updates
                yield from self.ask(who, talk, columns, dict.fromkeys(talk.names, question), system, sampling)
                return
            back = {p.question: question} if unanswered and not before else {}
            yield self._failed(columns, error) | updates | back | {p.board: self.board(talk, columns)}
        finally:
            talk.take_back(names, before)
            conversation.write_state(workspace, who, talk)

    def _carry(
        self, who: str, talk: ChatState, columns: Columns, names: Sequence[str], answers: Iterator[Answer]
    ) -> Iterator[Updates]:
        """Pieces from the engine to the page; leaving early stops the engine."""
        p, written = self.parts, time.monotonic()
        for answer in answers:
            if isinstance(answer, Status):
                yield {p.status: chat_board.status(answer)}
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
                notes = [chat_board.column_note(column) for column in answer.columns]
                talk.notes |= dict(zip(names, notes, strict=True))
            if time.monotonic() - written > KEEP_SECONDS:
                self.keep(who, talk)
                written = time.monotonic()
            yield {p.board: self.board(talk, columns)}

    def _idle(self) -> Updates:
        p = self.parts
        return {p.send: gr.Button(interactive=True), p.stop: gr.Button(interactive=False)}

    def _failed(self, columns: Columns, error: StudioError) -> Updates:
        """The reason stands where the question was asked; above is again what is in memory."""
        return self._idle() | self.memory(columns) | {self.parts.message: said(error)}

    def stop(self, who: str) -> None:
        self.engine.stop(self.asker(who))

    # -- clicks in the columns

    def act(
        self, event: Mapping[str, str], who: str, system: str, place: gr.HTML, sampling: Sequence[Any]
    ) -> Iterator[Updates]:
        """A click in the columns: ask again, change a question, undo, clear, mark, score, or take away."""
        talk, columns, updates = self.followed(who)
        names = [event["column"]] if event["column"] in talk.names else talk.names
        yield updates
        try:
            match event["act"]:
                case "example":
                    example = examples_for(columns.shown)[int(event["value"])]
                    system = example.system or system
                    yield {self.parts.system: system}
                    questions = dict.fromkeys(talk.names, example.question)
                    yield from self.ask(who, talk, columns, questions, system, sampling)
                case "again" | "edit":
                    yield from self._again(who, talk, columns, names, event, system, sampling)
                case "tokens":
                    yield from self._score(who, talk, columns, system)
                case "export":
                    path = job_views.new_file(self.studio.workspace, "conversations.jsonl")
                    path.write_text(talk.jsonl(system), encoding="utf-8")
                    yield {place: job_views.link(path)}
                case "undo" | "clear" | "marks":
                    if event["act"] == "undo":
                        talk.undo(names)
                    elif event["act"] == "clear":
                        talk.clear()
                    else:
                        talk.marks = not talk.marks
                    self.keep(who, talk)
                    yield {self.parts.board: self.board(talk, columns), self.parts.extra: ""}
        except StudioError as error:
            yield self._failed(columns, error) | {self.parts.extra: ""}

    def _again(
        self,
        who: str,
        talk: ChatState,
        columns: Columns,
        names: Sequence[str],
        event: Mapping[str, str],
        system: str,
        sampling: Sequence[Any],
    ) -> Iterator[Updates]:
        """Each column's last question asked anew, or an earlier one changed; what came after it is taken out."""
        check_length("The question", event["text"], QUESTION)
        before = {name: list(talk.column(name)) for name in names}
        turn = int(event["value"]) if event["act"] == "edit" else None
        removed = {name: talk.again(name) if turn is None else talk.edit(name, turn) for name in names}
        questions = {name: event["text"].strip() or question for name, question in removed.items() if question}
        if questions:
            yield from self.ask(who, talk, columns, questions, system, sampling, before)

    def _score(self, who: str, talk: ChatState, columns: Columns, system: str) -> Iterator[Updates]:
        """The first adapter's last answer as forced text: how likely base and adapters find each token."""
        selected = columns.chosen
        name = next((value for value in talk.adapters if talk.column(value)), "")
        if not name or not talk.column(name)[-1]["content"]:
            raise StudioError(
                "There is no answer to look at yet.", "Ask something first, and wait until it is answered."
            )
        yield {self.parts.extra: html.progress("Scoring the answer with base and adapters")}
        with contextlib.closing(
            self.engine.score(
                self.asker(who), select_models(selected), talk.prompt(name, system), talk.column(name)[-1]["content"]
            )
        ) as answers:
            for answer in answers:
                if isinstance(answer, Status):
                    yield {self.parts.status: chat_board.status(answer)}
                elif isinstance(answer, Ready):
                    yield self.memory(columns)
                elif isinstance(answer, Scored):
                    titles = {choice.value: choice.name for choice in selected}
                    yield {self.parts.extra: chat_board.tokens(answer, titles)}

    # -- sampling

    def sampling_like(self, name: str) -> list[Any]:
        """The widgets' values as a preset has them."""
        config = parse(presets(self.studio.workspace)[name].values() if name in self.offers() else {})
        return form.sampling_boxes(config.generation.model_dump())

    def offers(self) -> list[str]:
        """Presets that say how to sample."""
        return [name for name, preset in presets(self.studio.workspace).items() if "generation" in preset.values()]


def _offered(choices: Sequence[Choice], talk: ChatState) -> gr.Dropdown:
    return gr.Dropdown([(choice.label, choice.value) for choice in choices], value=talk.adapters, multiselect=True)


def said(error: StudioError) -> str:
    """An error, or the question whether to go on."""
    return chat_board.memory_question(error) if isinstance(error, ConsentError) else html.problem(error)
