"""What the chat tab's events do: load, ask, stop, clear, and carry pieces of text from the engine to the page.

What is said and kept stands in dialogue.py, what is drawn in chat_tab.py. Conversations are kept in the workspace, one
for each adapter, so that a reload or a stopped answer loses nothing.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from lora_studio.errors import StudioError
from lora_studio.parsing import nest, parse
from lora_studio.settings import settings
from lora_studio.ui import dialogue, text
from lora_studio.ui.dialogue import COLUMNS, Choice, Talk
from lora_studio.ui.studio import Studio

SAMPLING = tuple(
    setting for setting in settings() if setting.section == "generation" and setting.kind in ("int", "float")
)
KEEP_SECONDS = 1.0  # how often a growing answer is written down
LOADING = {"base": "Loading the base model", "adapters": "Loading the adapter"}

Updates = dict[Any, Any]


@dataclass(frozen=True)
class Parts:
    """The tab's components."""

    nothing: gr.HTML
    body: gr.Column
    choice: gr.Dropdown
    load: gr.Button
    unload: gr.Button
    status: gr.HTML
    titles: list[gr.HTML]
    talks: list[gr.HTML]
    notes: list[gr.HTML]
    examples: list[gr.Button]
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    system: gr.Textbox
    sampling: list[gr.Number]

    def all(self) -> list[Component | gr.Column]:
        """Every component, for events that may change any of them."""
        flat: list[Component | gr.Column] = []
        for part in vars(self).values():
            flat += part if isinstance(part, list) else [part]
        return flat


class Chat:
    """What the tab's events do. `loaded` is what the engine said it holds."""

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts
        self._loaded: dict[str, Any] | None = None
        self._loaded_choice = ""

    def choices(self) -> list[Choice]:
        return dialogue.choices(self.studio.workspace, self.studio.supervisor.runs())

    @property
    def loaded(self) -> dict[str, Any] | None:
        """What is in memory; nothing once the child has ended."""
        return self._loaded if self.studio.chat.running else None

    def arrive(self, value: str | None) -> Updates:
        """A tab is opened: new runs and checkpoints are offered, and an adapter chosen elsewhere is shown."""
        found = self.choices()
        wanted = dialogue.preferred(found, dialogue.read_settings(self.studio.workspace)["choice"] or value or "")
        if wanted is None or wanted.value != value:
            return self._paint(found, wanted)
        offered = [(each.label, each.value) for each in found]
        return {self.parts.choice: gr.Dropdown(choices=offered, value=value), self.parts.status: self._status(wanted)}

    def repaint(self) -> Updates:
        """After a reload: the adapter chosen last, its conversation, and what is in memory."""
        kept = dialogue.read_settings(self.studio.workspace)
        found = self.choices()
        sampling = {
            box: kept["sampling"].get(setting.path, setting.default)
            for box, setting in zip(self.parts.sampling, SAMPLING, strict=True)
        }
        return self._paint(found, dialogue.preferred(found, kept["choice"])) | sampling

    def pick(self, value: str | None) -> Updates:
        """Another adapter: its conversation comes back."""
        found = self.choices()
        dialogue.choose(self.studio.workspace, value or "")
        return self._paint(found, dialogue.preferred(found, value or ""))

    def _paint(self, found: Sequence[Choice], choice: Choice | None) -> Updates:
        p = self.parts
        if choice is None:
            return {p.nothing: gr.HTML(visible=True), p.body: gr.Column(visible=False)}
        offered = [(each.label, each.value) for each in found]
        updates: Updates = {
            p.nothing: gr.HTML(visible=False),
            p.body: gr.Column(visible=True),
            p.choice: gr.Dropdown(choices=offered, value=choice.value),
            p.status: self._status(choice),
            p.unload: gr.Button(interactive=self.loaded is not None),
        }
        try:
            config = choice.config()
            talk = dialogue.read_talk(self.studio.workspace, choice)
            asked = dialogue.examples(config)
        except StudioError as error:
            return updates | {p.status: text.problem(error)}
        titles = (f"Base: {config.model.name}", f"Adapter: {choice.name}")
        updates |= {box: dialogue.heading(title) for box, title in zip(p.titles, titles, strict=True)}
        updates |= {p.system: talk.system} | self._columns(talk)
        for position, button in enumerate(p.examples):
            there = position < len(asked)
            label = text.shorten(asked[position].question, 70) if there else ""
            updates[button] = gr.Button(label, visible=there)
        return updates

    def _status(self, choice: Choice) -> str:
        runs = self.studio.supervisor.runs()
        training = any(run.state in ("running", "stopping") for run in runs)
        held = self.loaded if self._loaded_choice == choice.value else None
        if held is None and self.loaded is not None:
            return text.notice("Another adapter is in memory. This one is loaded with the next question.")
        return dialogue.memory_line(held, choice.name, training)

    def load(self, value: str | None) -> Iterator[Updates]:
        """Brings base and adapter into memory, with progress."""
        p = self.parts
        again = {p.load: gr.Button(interactive=True)}
        yield {p.load: gr.Button(interactive=False)}
        try:
            choice = dialogue.require(self.choices(), value)
            yield from self._ready(choice)
            yield again | {p.status: self._status(choice), p.unload: gr.Button(interactive=True)}
        except StudioError as error:
            yield again | {p.status: text.problem(error)}

    def _ready(self, choice: Choice) -> Iterator[Updates]:
        """Loads the choice unless it is what is in memory."""
        if self.loaded is not None and self._loaded_choice == choice.value:
            return
        p, model = self.parts, choice.config().model
        yield {p.status: text.progress("Starting the engine")}
        self._loaded, self._loaded_choice = None, ""
        request = {"base": model.name, "revision": model.revision, "quantization": model.quantization}
        with contextlib.closing(
            self.studio.chat.stream("load", **request, dtype=model.dtype, adapters={COLUMNS[1]: str(choice.folder)})
        ) as answers:
            for answer in answers:
                if answer["kind"] == "result":
                    self._loaded, self._loaded_choice = answer, choice.value
                else:
                    yield {p.status: text.progress(LOADING.get(answer["phase"], "Loading"))}

    def unload(self, value: str | None) -> Updates:
        """Ends the engine's child: its memory is free for certain."""
        self.studio.chat.close()
        self._loaded, self._loaded_choice = None, ""
        return {self.parts.unload: gr.Button(interactive=False)} | self._said(value)

    def _said(self, value: str | None) -> Updates:
        try:
            return {self.parts.status: self._status(dialogue.require(self.choices(), value))}
        except StudioError as error:
            return {self.parts.status: text.problem(error)}

    def send(self, question: str, value: str | None, system: str, *sampling: Any) -> Iterator[Updates]:
        """Asks both columns and shows their answers as they grow. A failed or stopped answer keeps the question."""
        p, workspace = self.parts, self.studio.workspace
        question = question.strip()
        if not question:
            yield {p.status: text.notice("There is no question yet.", "Type one below, or press one of the examples.")}
            return
        idle = {p.send: gr.Button(interactive=True), p.stop: gr.Button(interactive=False)}
        yield {p.send: gr.Button(interactive=False)}
        try:
            choice = dialogue.require(self.choices(), value)
            chosen = self._sampling(sampling)
            workspace.write_draft(dialogue.DRAFT, {"choice": value, "sampling": chosen})
            talk = dialogue.read_talk(workspace, choice)
            talk.system = system
            yield from self._ready(choice)
        except StudioError as error:
            yield idle | {p.status: text.problem(error), p.question: question}
            return
        yield {p.status: self._status(choice), p.unload: gr.Button(interactive=True)}
        yield {p.question: "", p.stop: gr.Button(interactive=True)}
        try:
            yield from self._answer(choice, talk, question, chosen)
            yield idle
        except StudioError as error:
            back = {p.question: question} if talk.take_back() else {}
            yield idle | back | self._columns(talk) | {p.status: text.problem(error)}
        finally:
            talk.take_back()
            dialogue.write_talk(workspace, choice, talk)

    def _answer(self, choice: Choice, talk: Talk, question: str, chosen: dict[str, Any]) -> Iterator[Updates]:
        """Carries pieces from the engine to the page; leaving early stops the engine."""
        talk.ask(question)
        dialogue.write_talk(self.studio.workspace, choice, talk)
        yield self._columns(talk)
        prompts = zip((None, COLUMNS[1]), talk.prompts(), strict=True)
        columns = [{"adapter": adapter, "messages": messages} for adapter, messages in prompts]
        plain = {path.rpartition(".")[2]: setting for path, setting in chosen.items()}
        kept = time.monotonic()
        with contextlib.closing(self.studio.chat.stream("generate", columns=columns, settings=plain)) as answers:
            for answer in answers:
                if answer["kind"] == "piece":
                    talk.add(answer["texts"])
                    talk.notes = [text.count(tokens, "token") for tokens in answer["tokens"]]
                elif answer["kind"] == "result":
                    talk.finish([column["text"] for column in answer["columns"]])
                    talk.notes = [dialogue.column_note(column) for column in answer["columns"]]
                if time.monotonic() - kept > KEEP_SECONDS:
                    dialogue.write_talk(self.studio.workspace, choice, talk)
                    kept = time.monotonic()
                yield self._columns(talk)

    def _columns(self, talk: Talk) -> Updates:
        """Both columns and the words below them."""
        talks = zip(self.parts.talks, talk.columns, strict=True)
        notes = zip(self.parts.notes, talk.notes, strict=True)
        return {box: dialogue.column(messages) for box, messages in talks} | {
            box: dialogue.note(words) for box, words in notes
        }

    def _sampling(self, values: Sequence[Any]) -> dict[str, Any]:
        """The sampling settings by path, checked; an emptied box is its default."""
        pairs = zip(SAMPLING, values, strict=True)
        chosen = {setting.path: setting.default if value is None else value for setting, value in pairs}
        checked = parse(nest(chosen)).generation.model_dump()
        return {setting.path: checked[setting.path.rpartition(".")[2]] for setting in SAMPLING}

    def ask_example(self, position: int, value: str | None, system: str) -> Updates:
        """Puts an example into the question box, with the system prompt that it has in its data."""
        example = dialogue.examples(dialogue.require(self.choices(), value).config())[position]
        return {self.parts.question: example.question, self.parts.system: example.system or system}

    def stop(self) -> None:
        self.studio.chat.stop()

    def clear(self, value: str | None, system: str) -> Updates:
        """A new conversation with the same adapter."""
        talk = Talk(system=system)
        try:
            dialogue.write_talk(self.studio.workspace, dialogue.require(self.choices(), value), talk)
        except StudioError as error:
            return {self.parts.status: text.problem(error)}
        return self._columns(talk)
