"""Make rows from documents, on the Data tab: draws and wires it. A job does the work, and its folder is what is shown.

What was typed is kept for a reload, but for the key of a server, which only the browser and the worker know.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.chat import documents
from lora_studio.chat.choices import adapter_choices
from lora_studio.chat.documents import FORMS, DocumentsRequest, Writing, checked, edit, make_request, split_request
from lora_studio.config.settings import described
from lora_studio.data.readers.documents import KINDS, SUFFIXES
from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.files import JsonObject
from lora_studio.jobs.protocol import Progress, SplitDocuments
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.components import QUIET, Components, Wish, stat_of
from lora_studio.ui.data.row_review import LOOKED_AT, PARTS, GenerationBoard, GenerationView, chunks_preview
from lora_studio.ui.studio import Studio

BASE, ADAPTER, SERVER = "base", "adapter", "server"
WRITERS = [("Base model", BASE), ("Adapter", ADAPTER), ("OpenAI-compatible server", SERVER)]
SETTINGS = described(Writing)
FIELDS = ("documents", "writer", "base", "adapter", "server", "server_model", *(setting.path for setting in SETTINGS))
DEFAULTS: JsonObject = {
    "documents": [],
    "writer": BASE,
    "base": "demo",
    "adapter": None,
    "server": "",
    "server_model": "",
}
DRAFT, SPLIT = "documents", "documents-split"
STEP_SECONDS = 0.3
LENGTH = "max_new_tokens"
BASIC = ("chunk_size", "chunk_overlap", "questions")
PHASES = {"tokenizer": "Loading the tokenizer", "documents": "Reading documents", "pages": "Reading pages"}
ABOUT = (
    "A model writes questions with answers about each chunk of your documents. You review them before they are used. "
    "Nothing leaves this machine unless you choose a server."
)
DELETES = "Delete this job, its chunks and all of its rows?"


def build(studio: Studio) -> gr.State:
    """Draws the fold and wires it; the state holds a `Wish` for the dataset that was made of the rows."""
    dataset = gr.State(Wish())
    with gr.Accordion("Make rows from documents", open=False, elem_id="documents"):
        gr.HTML(html.hint(ABOUT))
        Documents(studio, dataset).wire()
    return dataset


class Documents:
    """The fold: its components, and what their events do."""

    def __init__(self, studio: Studio, dataset: gr.State) -> None:
        self.studio, self.made = studio, dataset
        self.board = GenerationBoard(studio.workspace, studio.supervisor)
        self._stopping: set[str] = set()  # whoever asked for the end of their split
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                selected = self._draw_documents()
            with gr.Column(scale=1, min_width=300):
                writer = self._draw_writer()
        settings = self._draw_settings()
        self.fields: list[Any] = [selected, *writer, *(settings[setting.path] for setting in SETTINGS)]
        with gr.Row(elem_classes="data-buttons"):
            self.split = gr.Button("Split documents", scale=0, min_width=180, elem_id="documents-split")
            self.start = gr.Button("Write rows", variant="primary", scale=0, min_width=160, elem_id="documents-start")
            self.stop = gr.Button("Stop", visible=False, scale=0, min_width=120)
        self.message = gr.HTML(elem_id="documents-message")
        self.chunks = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="documents-chunks")
        self.page = gr.State(0)
        self._draw_jobs()

    def _draw_documents(self) -> gr.Dropdown:
        selected = gr.Dropdown(
            [],
            label="Documents",
            multiselect=True,
            allow_custom_value=True,
            info="Uploaded files, or paths.",
            elem_id="documents-chosen",
        )
        self.upload = gr.File(
            label=f"Upload {KINDS}",
            height=112,
            type="filepath",
            file_count="multiple",
            file_types=list(SUFFIXES),
            elem_id="documents-upload",
        )
        return selected

    def _draw_writer(self) -> list[Any]:
        """The writer's fields in the order of `FIELDS`."""
        writer = gr.Radio(WRITERS, value=BASE, label="Writer", info="The model that writes the rows.")
        base = gr.Textbox("demo", label="Base model", info="A folder, or a model of the Hub.", max_lines=1)
        adapter = gr.Dropdown([], label="Adapter", info="A run, a checkpoint or an external adapter.", visible=False)
        with gr.Column(visible=False) as self.of_server:
            server = gr.Textbox(
                label="Base URL",
                placeholder="http://127.0.0.1:8080/v1",
                info="Your documents are sent there.",
                max_lines=1,
            )
            model = gr.Textbox(label="Server model", info="The name that the server gives it.", max_lines=1)
            self.key = gr.Textbox(
                label="API key", type="password", info="Not stored. Empty: none. Needed again to resume.", max_lines=1
            )
            with gr.Row():
                self.prices = {
                    setting.path: form.draw_widget(setting, f"documents-{setting.path}")
                    for setting in SETTINGS
                    if setting.path.endswith("_price")
                }
        self.doubt = gr.HTML(self.show_doubt(BASE, "demo", None), elem_id="documents-doubt")
        return [writer, base, adapter, server, model]

    def _draw_settings(self) -> Components:
        widgets: Components = dict(self.prices)
        with gr.Row():
            for setting in SETTINGS:
                if setting.path in BASIC:
                    widgets[setting.path] = form.draw_widget(setting, f"documents-{setting.path}")
        with gr.Accordion("Prompt, generation, max chunks", open=False):
            with gr.Row():
                for setting in SETTINGS:
                    if setting.path not in widgets and setting.path != "prompt":
                        widgets[setting.path] = form.draw_widget(setting, f"documents-{setting.path}")
            prompt = next(setting for setting in SETTINGS if setting.path == "prompt")
            widgets["prompt"] = form.draw_widget(prompt, "documents-prompt")
            self.reset = gr.Button("Reset prompt", size="sm", scale=0, min_width=140)
        return widgets

    def _draw_jobs(self) -> None:
        clicks = theme.on_load("evaluation", questions={"delete": DELETES})
        self.parts: dict[str, gr.HTML] = {}
        with gr.Row(elem_classes="job-layout"):
            with gr.Column(elem_classes="job-rail", min_width=0):
                self.parts["list"] = gr.HTML(js_on_load=clicks, elem_id="documents-list")
            with gr.Column(elem_classes="job-main", min_width=0):
                self.job_message = gr.HTML(elem_id="documents-job-message")
                self.parts["head"] = gr.HTML(js_on_load=clicks, elem_id="documents-head")
                with gr.Row(elem_classes="actions"):
                    self.form = gr.Dropdown(
                        [(label, name) for name, label in FORMS.items()],
                        value="chat",
                        label="Row format",
                        filterable=False,
                        scale=0,
                        min_width=220,
                    )
                    self.use = gr.Button("Use rows", variant="primary", scale=0, min_width=160, elem_id="documents-use")
                    self.download = gr.Button("Download JSONL", scale=0, min_width=160)
                with gr.Column(visible=False, elem_id="documents-edit") as self.editor:
                    self.question = gr.Textbox(label="Question", lines=2, max_lines=8)
                    self.answer = gr.Textbox(label="Answer", lines=4, max_lines=16)
                    with gr.Row():
                        self.save = gr.Button("Save row", variant="primary", scale=0, min_width=120)
                        self.cancel = gr.Button("Cancel", scale=0, min_width=120)
                self.parts["review"] = gr.HTML(js_on_load=clicks, elem_id="documents-review")
                self.downloaded = job_views.place(self.studio.workspace)
        assert set(self.parts) == set(PARTS)

    def wire(self) -> None:
        """Wires all events."""
        self.view, inspect = gr.State(GenerationView()), {"concurrency_id": "inspect", "concurrency_limit": 1, **QUIET}
        busy = [self.message, self.chunks, self.page, self.split, self.start, self.stop]
        self.upload.upload(
            self.take_uploads, [self.upload, self.fields[0]], [self.upload, self.fields[0], self.message], **QUIET
        )
        # A path that is typed into the list of documents is part of it once the field is left.
        edits = [self.fields[0].blur, *(field.input for field in self.fields)]
        gr.on(edits, self.keep, self.fields, None, trigger_mode="always_last", **QUIET)
        self.fields[1].change(self.show_writer, self.fields[1], [*self.fields[2:4], self.of_server], **QUIET)
        writer = self.fields[1:4]
        gr.on([field.change for field in writer], self.show_doubt, writer, self.doubt, **QUIET)
        self.split.click(self.split_documents, self.fields, busy, **inspect)
        self.start.click(self.begin, [self.view, self.key, *self.fields], [*busy, self.view], **inspect)
        self.stop.click(self.stop_splitting, queue=False, **QUIET)
        self.chunks.click(self.turn, [self.page, *self.fields], [self.chunks, self.page], **QUIET)
        reset = self.reset.click(lambda: Writing().prompt, None, self.fields[-1], **QUIET)
        reset.then(self.keep, self.fields, None, **QUIET)
        job_views.wire(
            self.parts,
            self.view,
            self.board.look,
            wish=gr.State(Wish()),
            opening=lambda wish: self.opening(),
            opened=[self.view, *self.fields, self.chunks, self.message],
            act=self.act,
            messages=[self.job_message, self.downloaded],
            busy=self.studio.supervisor.busy,
        )
        # The key goes along with a click that resumes, and nowhere else.
        for part in self.parts.values():
            part.click(self.resume, [self.view, self.key], self.job_message, **QUIET)
        editor = [self.editor, self.question, self.answer]
        self.view.change(self.open_editor, self.view, editor, **QUIET)
        self.save.click(self.save_row, [self.view, self.question, self.answer], [self.view, self.job_message], **QUIET)
        self.cancel.click(lambda view: view.act("edit", ""), self.view, self.view, **QUIET)
        self.use.click(self.use_rows, [self.view, self.form], [self.made, self.job_message], **QUIET)
        self.download.click(self.download_rows, [self.view, self.form], [self.downloaded, self.job_message], **QUIET)

    # -- the form

    def values(self, *widget_values: Any) -> JsonObject:
        """What the form says, by name."""
        return dict(zip(FIELDS, widget_values, strict=True))

    def keep(self, *widget_values: Any) -> None:
        """Keeps what is typed, so that a reload brings it back."""
        self.studio.workspace.write_draft(DRAFT, self.values(*widget_values))

    def offered(self) -> list[tuple[str, str]]:
        """The uploads that are documents."""
        return [(path.name, str(path)) for path in self.studio.workspace.uploads() if path.suffix.lower() in SUFFIXES]

    def opening(self) -> list[Any]:
        """The form as it was, the last job, and the chunks of the last split as far as they are of this form."""
        workspace = self.studio.workspace
        draft = workspace.read_draft(DRAFT)
        saved: Mapping[str, Any] = draft if isinstance(draft, dict) else {}
        first = {**DEFAULTS, **{setting.path: form.to_widget(setting, setting.default) for setting in SETTINGS}}
        values = {name: saved.get(name, first[name]) for name in FIELDS}
        adapters = adapter_choices(workspace, self.studio.supervisor.runs())
        if values["adapter"] not in [value for _, value in adapters]:
            values["adapter"] = adapters[0][1] if adapters else None
        writers = WRITERS if workspace.policy.is_admin else WRITERS[:-1]
        if values["writer"] not in [value for _, value in writers]:
            values["writer"] = BASE
        documents_there = [str(path) for path in values["documents"] or ()]
        values["documents"] = gr.Dropdown(choices=self.offered(), value=documents_there, allow_custom_value=True)
        if (most := workspace.policy.max_answer) is not None and isinstance(values[LENGTH], int):
            values[LENGTH] = min(values[LENGTH], most)
        writer, adapter = values["writer"], values["adapter"]
        values["writer"] = gr.Radio(choices=writers, value=writer)
        values["base"] = gr.Textbox(value=values["base"], visible=writer == BASE)
        values["adapter"] = gr.Dropdown(choices=adapters, value=adapter, visible=writer == ADAPTER)
        return [GenerationView(self.board.opening()), *values.values(), "", ""]

    def show_writer(self, writer: str) -> tuple[gr.Textbox, gr.Dropdown, gr.Column]:
        """The fields of the writer that is chosen; a server's model is counted with the base's tokenizer."""
        about = "Its tokenizer counts the tokens." if writer == SERVER else "A folder, or a model of the Hub."
        return (
            gr.Textbox(visible=writer != ADAPTER, info=about),
            gr.Dropdown(visible=writer == ADAPTER),
            gr.Column(visible=writer == SERVER),
        )

    def show_doubt(self, writer: str, base: str, adapter: str | None) -> str:
        """That the model that is chosen can't write rows; "" for others."""
        if writer == SERVER or (writer == ADAPTER and not adapter):
            return ""
        chosen = (adapter or "") if writer == ADAPTER else ""
        doubt = documents.weak_writer(self.studio.workspace, base or "", chosen)
        return html.notice(*doubt, "warning") if doubt else ""

    def take_uploads(self, paths: list[str] | None, selected: list[str] | None) -> tuple[None, Any, Any]:
        """Copies documents into the workspace and chooses them beside those that are chosen."""
        try:
            names = [Path(path) for path in paths or ()]
            if wrong := [path.name for path in names if path.suffix.lower() not in SUFFIXES]:
                raise StudioError(f"{', '.join(wrong[:3])}: no supported document.", f"Supported: {KINDS}.")
            saved = [str(self.studio.workspace.save_upload(path)) for path in names]
        except StudioError as error:
            return None, gr.skip(), html.problem(error)
        value = list(dict.fromkeys([*(selected or ()), *saved]))
        draft = self.studio.workspace.read_draft(DRAFT)
        self.studio.workspace.write_draft(DRAFT, {**(draft if isinstance(draft, dict) else {}), "documents": value})
        return None, gr.Dropdown(choices=self.offered(), value=value, allow_custom_value=True), ""

    def request(self, values: Mapping[str, Any]) -> tuple[DocumentsRequest, list[str]]:
        """What the form asks for, and the documents. Raises `StudioError` for what can't be done."""
        paths = [str(path).strip() for path in values["documents"] or () if str(path).strip()]
        for path in paths:
            check_length("The path of a document", path, LINE)
        writing = checked({setting.path: form.from_widget(setting, values[setting.path]) for setting in SETTINGS})
        writer = values["writer"]
        if writer == ADAPTER and not values["adapter"]:
            raise StudioError("No adapter is chosen.", "Train one first, or choose a base model.")
        if writer == SERVER and not str(values["server"] or "").strip():
            raise StudioError("No server is named.", "Enter its base URL, such as http://127.0.0.1:8080/v1.")
        request = make_request(
            self.studio.workspace,
            paths,
            writing,
            model=str(values["server_model" if writer == SERVER else "base"] or ""),
            adapter=str(values["adapter"] or "") if writer == ADAPTER else "",
            server=str(values["server"] or "") if writer == SERVER else "",
        )
        return request, paths

    # -- chunks

    @property
    def chunk_file(self) -> Path:
        """The chunks of the last split of whoever is answered."""
        return self.studio.workspace.drafts_folder / "documents-chunks.jsonl"

    def _signature(self, request: DocumentsRequest, paths: list[str], base: str) -> tuple[Any, list[Any]]:
        """The request to the reader, and what makes another one of it: its settings, and the documents' times."""
        split_message = split_request(request, paths, base, self.chunk_file)
        return split_message, [
            split_message.to_fields(),
            [list(stat_of(Path(path))) for path in split_message.documents],
        ]

    def _split(self, request: DocumentsRequest, paths: list[str], base: str) -> Iterator[str | SplitDocuments]:
        """Progress in markup, and the result last: at once where this was split before."""
        workspace = self.studio.workspace
        split_message, signature = self._signature(request, paths, base)
        last = workspace.read_draft(SPLIT)
        if isinstance(last, dict) and last.get("signature") == signature and self.chunk_file.is_file():
            yield SplitDocuments(**last["found"])
            return
        last_update, result, maker = 0.0, None, workspace.policy.owner_id
        self._stopping.discard(maker)
        for answer in self.studio.inspector.stream(split_message, beat=True):
            if maker in self._stopping:
                raise StudioError("Stopped. The documents are still chosen.")
            if isinstance(answer, SplitDocuments):
                result = answer
            elif isinstance(answer, Progress) and time.monotonic() - last_update >= STEP_SECONDS:
                last_update = time.monotonic()
                yield html.progress(PHASES.get(answer.phase, "Splitting documents"), answer.done, answer.total)
        if result is None:
            raise StudioError("The documents were not split.", "Try again.")
        workspace.write_draft(SPLIT, {"signature": signature, "found": result.to_fields()})
        yield result

    def _preview(self, result: SplitDocuments, writing: Writing, page: int, tokenizer: str) -> str:
        return chunks_preview(result, writing, self.chunk_file, page, tokenizer)

    def _while_splitting(self, *, ends: bool) -> dict[Any, Any]:
        return {
            self.split: gr.Button(interactive=ends),
            self.start: gr.Button(interactive=ends),
            self.stop: gr.Button(visible=not ends),
        }

    def split_documents(self, *widget_values: Any) -> Iterator[dict[Any, Any]]:
        """Splits the documents and shows the chunks."""
        yield {**self._while_splitting(ends=False), self.message: html.progress("Splitting documents")}
        try:
            values = self.values(*widget_values)
            request, paths = self.request(values)
            for step in self._split(request, paths, str(values["base"] or "")):
                if isinstance(step, str):
                    yield {self.message: step}
                    continue
                documents.with_read(request, step)
                tokenizer, _ = documents.tokenizer_of(request, str(values["base"] or ""))
                yield {self.message: "", self.page: 0, self.chunks: self._preview(step, request.writing, 0, tokenizer)}
        except StudioError as error:
            yield {self.message: html.problem(error), self.chunks: ""}
        yield self._while_splitting(ends=True)

    def stop_splitting(self) -> None:
        """Leaves the reader, which ends within seconds what nobody waits for."""
        self._stopping.add(self.studio.workspace.policy.owner_id)

    def turn(self, event: gr.EventData, page: int, *widget_values: Any) -> tuple[Any, Any]:
        """Another page of the chunks that are shown, as long as they are those of the form."""
        values = self.values(*widget_values)
        try:
            request, paths = self.request(values)
            _, signature = self._signature(request, paths, str(values["base"] or ""))
            last = self.studio.workspace.read_draft(SPLIT)
            if not isinstance(last, dict) or last.get("signature") != signature:
                raise StudioError("The documents or settings have changed.", "Split the documents again.")
            result, page = SplitDocuments(**last["found"]), max(0, page + int(event.value))
            tokenizer, _ = documents.tokenizer_of(request, str(values["base"] or ""))
            return self._preview(result, request.writing, page, tokenizer), page
        except StudioError as error:
            return html.problem(error), 0

    # -- jobs

    def begin(self, view: GenerationView, key: str, *widget_values: Any) -> Iterator[dict[Any, Any]]:
        """Splits the documents unless they are, and starts or queues the job."""
        yield {**self._while_splitting(ends=False), self.message: html.progress("Starting")}
        try:
            values = self.values(*widget_values)
            request, paths = self.request(values)
            base = str(values["base"] or "")
            for step in self._split(request, paths, base):
                if isinstance(step, str):
                    yield {self.message: step}
                    continue
                read = documents.with_read(request, step)
                supervisor = self.studio.supervisor
                memory = None
                if not read.server:
                    memory = documents.memory_for(read, supervisor.allocation().for_session()).need
                job = documents.start(supervisor, read, self.chunk_file, key=key or "", memory=memory)
                tokenizer, _ = documents.tokenizer_of(read, base)
                preview = self._preview(step, read.writing, 0, tokenizer)
                yield {self.message: "", self.page: 0, self.chunks: preview, self.view: self._look_at(job)}
        except StudioError as error:
            yield {self.message: html.problem(error)}
        yield self._while_splitting(ends=True)

    def _look_at(self, job: str) -> GenerationView:
        self.studio.workspace.write_draft(LOOKED_AT, job)
        return GenerationView(job)

    def act(self, event: gr.EventData, view: GenerationView) -> tuple[Any, Any, Any]:
        """View, message and download link after a click; `resume`, which needs the key, is an event of its own."""
        act, value = str(event.act), str(event.value)
        match act:
            case "open":
                return self._look_at(value), "", gr.skip()
            case "delete":
                self.studio.supervisor.delete(value)
                return (self._look_at(self.board.opening()) if view.job == value else view), "", gr.skip()
            case "stop":
                self.studio.supervisor.stop(view.job)
            case "drop" | "keep":
                documents.decide(self._folder(view), {value: {"dropped": act == "drop"}})
            case "drop-marked":
                self.board.drop_marked(self._folder(view))
            case "resume":
                return gr.skip(), gr.skip(), gr.skip()
            case _:
                return view.act(act, value), gr.skip(), gr.skip()
        return view, "", gr.skip()

    def resume(self, event: gr.EventData, view: GenerationView, key: str) -> Any:
        """Goes on with a job that ended early."""
        if event.act != "resume":
            return gr.skip()
        return self._said(lambda: documents.resume(self.studio.supervisor, view.job, key=key or ""))

    def _said(self, work: Callable[[], Any]) -> str:
        try:
            work()
        except StudioError as error:
            return html.problem(error)
        return ""

    def _folder(self, view: GenerationView) -> Any:
        return documents.folders(self.studio.workspace).find(view.job)

    def open_editor(self, view: GenerationView) -> tuple[gr.Column, Any, Any]:
        """The fields of the row that is edited; hidden while there is none."""
        try:
            rows = self.board.reviewed(self._folder(view)).rows if view.editing else []
        except StudioError:
            rows = []
        row = next((row for row in rows if row.key == view.editing), None)
        if row is None:
            return gr.Column(visible=False), gr.skip(), gr.skip()
        return gr.Column(visible=True), row.question, row.answer

    def save_row(self, view: GenerationView, question: str, answer: str) -> tuple[GenerationView, str]:
        """Puts the person's words into the row."""
        error = self._said(lambda: edit(self._folder(view), view.editing, question or "", answer or ""))
        return (view if error else view.act("edit", "")), error

    def use_rows(self, view: GenerationView, row_form: str) -> tuple[Any, str]:
        """Writes the rows among the uploads, and lets the Data tab open them."""
        try:
            path = documents.save_upload(self._folder(view), self.studio.workspace, row_form)
        except StudioError as error:
            return gr.skip(), html.problem(error)
        return Wish(data=str(path), time=time.time()), html.notice(f"{path.name} is the dataset now.", kind="good")

    def download_rows(self, view: GenerationView, row_form: str) -> tuple[Any, str]:
        """The rows as a file for the browser."""
        try:
            folder = self._folder(view)
            target = job_views.new_file(self.studio.workspace, f"{folder.id}-rows.jsonl")
            documents.write_training_file(folder, target, row_form)
        except StudioError as error:
            return gr.skip(), html.problem(error)
        return job_views.link(target), ""
