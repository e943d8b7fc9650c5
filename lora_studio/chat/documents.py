"""Rows that a model writes about documents, as a job: the request, how it is started, the review, and what it costs.

The writer is a base model, an adapter, or a server that the workspace's owner names. Nothing is sent anywhere else.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from lora_studio.config.fields import Section, plain_words, setting
from lora_studio.data.generated import PROMPT, Row, check_prompt, marks, reviewed, training_row
from lora_studio.data.readers.documents import Chunk, read_chunks
from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.files import JsonObject, read_object
from lora_studio.jobs.kinds import DOCUMENTS, DocumentsFolder, JobFolders, JobStarter, damaged_request
from lora_studio.jobs.protocol import Split, SplitDocuments
from lora_studio.models.adapters import named_adapter, read_card
from lora_studio.models.hardware import Device
from lora_studio.models.hub import SERVER_KEY
from lora_studio.models.memory import MemoryVerdict, memory_verdict
from lora_studio.workspace import DEMO_MODEL, Workspace, write_atomically

FORMS = {"chat": "Chat (messages)", "prompt": "Prompt and completion"}
"""The forms of a training row, with their labels."""
MILLION = 1e6


class Writing(Section):
    """How documents are split and what the writer is asked. Prices are in dollars per million tokens."""

    chunk_size: int = setting(512, "Chunk size (tokens)", "A chunk is shown to the model as a whole.", ge=32, le=16_384)
    chunk_overlap: int = setting(
        64, "Chunk overlap (tokens)", "Repeated from the previous chunk unless a heading separates them.", ge=0, le=4096
    )
    questions: int = setting(3, "Questions per chunk", "What the prompt asks for; models may write fewer.", ge=1, le=50)
    max_chunks: int | None = setting(None, "Max chunks", "Uses the first chunks. Empty: all chunks.", ge=1)
    batch_size: int = setting(
        4, "Chunks at once", "Batch size of a local model, parallel requests to a server.", ge=1, le=64
    )
    max_new_tokens: int = setting(768, "Max new tokens", "Length limit of an answer in tokens.", ge=16, le=32_768)
    temperature: float = setting(0.2, "Temperature", "0 is greedy decoding. Higher values vary more.", ge=0, le=2)
    quantization: Literal["none", "8bit", "4bit"] = setting(
        "none", "Quantization", "Of a local base model. Adapters use that of their training."
    )
    input_price: float = setting(0.0, "Input price ($ per 1M tokens)", "Of a paid server.", ge=0, le=10_000)
    output_price: float = setting(0.0, "Output price ($ per 1M tokens)", "Of a paid server.", ge=0, le=10_000)
    prompt: str = setting(
        PROMPT, "Prompt", "{chunk} is the text; {count}, {source} and {heading} may be used too.", max_length=4000
    )

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, in dollars."""
        return (self.input_price * input_tokens + self.output_price * output_tokens) / MILLION

    @property
    def is_paid(self) -> bool:
        return self.input_price > 0 or self.output_price > 0


@dataclass(frozen=True, slots=True)
class DocumentsRequest:
    """What is asked of whom. The writer is the server at `server`, which calls its model `model`; else the adapter in
    the folder `adapter`; else the base `model` of this machine."""

    title: str
    documents: tuple[str, ...]
    model: str
    writing: Writing
    adapter: str = ""
    server: str = ""

    def to_dict(self) -> JsonObject:
        """As the folder keeps it."""
        return {
            **{name: getattr(self, name) for name in ("title", "model", "adapter", "server")},
            "documents": list(self.documents),
            "writing": self.writing.model_dump(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DocumentsRequest":
        names = ("title", "model", "adapter", "server")
        written = Writing(**values["writing"])
        return cls(
            documents=tuple(map(str, values["documents"])),
            writing=written,
            **{name: str(values[name]) for name in names},
        )


def request_of(folder: DocumentsFolder) -> DocumentsRequest:
    """What was asked for. Raises `StudioError` where its file is damaged."""
    try:
        return DocumentsRequest.from_dict(folder.read_facts())
    except (TypeError, KeyError, AttributeError, ValueError):
        raise damaged_request(folder) from None


def checked(values: Mapping[str, Any]) -> Writing:
    """The settings of a request; what is None is left at its default. Raises `StudioError` with all that is wrong."""
    fields = Writing.model_fields
    try:
        writing = Writing(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            label = fields[name].title if name in fields else name
            problems.append(f"{label} {plain_words(item)} (found {str(item['input'])[:80]!r}).")
        raise StudioError(" ".join(problems), "Correct the settings.") from None
    check_prompt(writing.prompt)
    return writing


def check_server(address: str) -> str:
    """The address of a server without a trailing slash. Raises `StudioError` for what is none or holds a secret."""
    check_length("The server's address", address, LINE)
    plain = address.strip().rstrip("/").removesuffix("/chat/completions")
    hint = "Give the base URL, such as http://127.0.0.1:8080/v1 or https://api.openai.com/v1."
    try:
        parts = urlsplit(plain)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(letter.isspace() for letter in plain):
        raise StudioError(f"{address[:120]!r} is not the address of a server.", hint)
    if parts.username or parts.password or parts.fragment or set(parse_qs(parts.query)) - {"api-version"}:
        raise StudioError("The address holds more than a server's base URL.", f"Put a key into API key. {hint}")
    return plain


def make_request(
    workspace: Workspace,
    documents: Sequence[str],
    writing: Writing,
    *,
    model: str = "",
    adapter: str = "",
    server: str = "",
) -> DocumentsRequest:
    """What a person asked for, checked. An adapter is named by run, RUN/checkpoint-N or folder.

    Raises `StudioError` for what can't be done or may not be done by the caller.
    """
    policy, model = workspace.policy, model.strip()
    if server and not policy.is_admin:
        raise StudioError("Only the owner can send documents to a server.", "Choose a base model or an adapter.")
    names = check_documents(workspace, documents)
    about = _about(names)
    writing = writing.model_copy(update={"max_chunks": policy.test_rows(writing.max_chunks)})
    policy.check_request({"settings": {"max_new_tokens": writing.max_new_tokens}})
    if server:
        if not model:
            raise StudioError("No model of the server is named.", "Enter the name that the server gives it.")
        check_length("The name of the model", model, LINE)
        return DocumentsRequest(f"{model} on {about}", names, model, writing, server=check_server(server))
    if adapter:
        result = named_adapter(workspace, adapter)
        base = read_card(result.folder).base
        return DocumentsRequest(f"{result.title} on {about}", names, base, writing, adapter=str(result.folder))
    if not model:
        raise StudioError("No model is named.", "Enter a base model: a folder, or its name on the Hub.")
    policy.check_request({"model": model})
    return DocumentsRequest(f"{model} on {about}", names, model, writing)


def weak_writer(workspace: Workspace, model: str, adapter: str = "") -> tuple[str, str] | None:
    """That the built-in model, or an adapter of it, is chosen to write rows, and what to do; None for all others."""
    if adapter:
        try:
            model = read_card(named_adapter(workspace, adapter).folder).base
        except StudioError:
            return None  # whoever starts with it is told what is damaged
    if model.strip() != DEMO_MODEL:
        return None
    words = "The built-in demo model can't write rows like these: it was made to learn four small tasks."
    return words, "Name another base model, choose an adapter of another one, or use a server."


def _about(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def with_read(request: DocumentsRequest, result: SplitDocuments) -> DocumentsRequest:
    """The request about the documents that could be read. Raises `StudioError` where there is none."""
    names = tuple(str(document["name"]) for document in result.documents)
    if not names or not result.chunks:
        message, hint = result.problems[0] if result.problems else ("The documents hold no text.", "Choose others.")
        raise StudioError(message, hint)
    title = request.title.removesuffix(_about(request.documents)) + _about(names)
    return replace(request, documents=names, title=title)


def check_documents(workspace: Workspace, documents: Sequence[str]) -> tuple[str, ...]:
    """The documents' names. Raises `StudioError` where there are none, or one may not be read."""
    if not documents:
        raise StudioError("No document is chosen.", "Upload or choose one.")
    for path in documents:
        workspace.policy.check_path(path)
    return tuple(Path(path).name for path in documents)


def tokenizer_of(request: DocumentsRequest, base: str) -> tuple[str, str | None]:
    """Whose tokenizer counts the tokens, with its revision: the writer's own, of a server's model that of `base`."""
    if request.adapter:
        card = read_card(Path(request.adapter))
        return card.base, card.revision
    return (base if request.server else request.model), None


def split_request(request: DocumentsRequest, documents: Sequence[str], base: str, path: Path) -> Split:
    """What a reading child is asked for first: the chunks of the documents, in the file `path`."""
    model, revision = tokenizer_of(request, base)
    return Split(
        documents=[str(Path(name).expanduser().absolute()) for name in documents],
        model=model,
        revision=revision,
        chunk_size=request.writing.chunk_size,
        chunk_overlap=request.writing.chunk_overlap,
        prompt=request.writing.prompt,
        path=str(path),
    )


def folders(workspace: Workspace) -> JobFolders[DocumentsFolder]:
    """Where these jobs are kept."""
    return JobFolders(workspace, DOCUMENTS.place(workspace), DocumentsFolder, DOCUMENTS.noun)


def start(
    supervisor: JobStarter,
    request: DocumentsRequest,
    chunks: Path,
    *,
    key: str = "",
    at_once: bool = False,
    memory: int | None = None,
) -> str:
    """Makes the job's folder with a copy of the chunks and starts its worker, or queues it; its id.

    The `key` for a server goes into the worker's environment and nowhere else.
    """
    workspace = supervisor.workspace
    read_chunks(chunks)

    def make() -> DocumentsFolder:
        workspace.policy.check_room(chunks.stat().st_size)
        needs: JsonObject = {"needs_device": False} if request.server else {}
        needs |= {} if memory is None or request.server else {"memory_bytes": memory}
        folder = folders(workspace).create({**request.to_dict(), **needs})
        shutil.copyfile(chunks, folder.chunks)
        return folder

    return supervisor.submit(DOCUMENTS, make, at_once=at_once, secrets=_secrets(request, key))


def resume(supervisor: JobStarter, job_id: str, *, key: str = "", at_once: bool = False) -> None:
    """Goes on with the chunks that have no answer yet. A server needs its key again, which no file holds."""
    request = request_of(folders(supervisor.workspace).find(job_id))
    if request.server and not supervisor.workspace.policy.is_admin:
        raise StudioError("Only the owner can send documents to a server.")
    supervisor.resume(job_id, at_once=at_once, secrets=_secrets(request, key))


def _secrets(request: DocumentsRequest, key: str) -> dict[str, str] | None:
    """The worker's environment for a server's key. Raises `StudioError` for a key that no header can hold."""
    plain = key.strip()
    if not request.server or not plain:
        return None
    if not plain.isascii() or not plain.isprintable() or len(plain) > 4096:
        raise StudioError("The API key holds characters that no key has.", "Copy it again.")
    return {SERVER_KEY: plain}


def memory_for(request: DocumentsRequest, device: Device) -> MemoryVerdict:
    """Whether the writer fits beside what is in a device's memory now."""
    writing = request.writing
    card = read_card(Path(request.adapter)) if request.adapter else None
    quantization = card.quantization if card else writing.quantization
    tokens = writing.batch_size * (2 * writing.chunk_size + writing.max_new_tokens)
    adapters = [Path(request.adapter)] if request.adapter else []
    return memory_verdict(request.model, card.revision if card else None, quantization, adapters, tokens, device)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a job came to so far. `unreadable` answers held no row; tokens are those that the writer counted."""

    chunks: int
    rows: int
    unreadable: int
    input_tokens: int
    output_tokens: int
    cut: int


def totals(answers: Iterable[Mapping[str, Any]]) -> Totals:
    """The sums over the answers of a job."""
    listed = list(answers)
    return Totals(
        chunks=len(listed),
        rows=sum(len(answer["rows"]) for answer in listed),
        unreadable=sum(not answer["rows"] for answer in listed),
        input_tokens=sum(answer["input_tokens"] or 0 for answer in listed),
        output_tokens=sum(answer["output_tokens"] or 0 for answer in listed),
        cut=sum(bool(answer["cut"]) for answer in listed),
    )


def estimate(writing: Writing, chunks: int, tokens: int, prompt_tokens: int) -> tuple[int, int]:
    """Tokens that a job reads, and those that it writes at most. `tokens` are those of all `chunks`; where fewer are
    used, their share of them."""
    used = min(chunks, writing.max_chunks or chunks)
    share = used / chunks if chunks else 0.0
    return round(tokens * share) + used * prompt_tokens, used * writing.max_new_tokens


def rows_of(folder: DocumentsFolder) -> list[Row]:
    """All rows in the order of their chunks, as a person left them."""
    rows = [
        Row(answer["chunk"], number, str(row["question"]), str(row["answer"]))
        for answer in sorted(folder.read_answers(), key=lambda answer: int(answer["chunk"]))
        for number, row in enumerate(answer["rows"])
    ]
    return reviewed(rows, read_review(folder))


def marks_of(folder: DocumentsFolder, rows: Sequence[Row]) -> dict[str, list[str]]:
    """What is doubtful in the rows of a job, by their keys (`data.generated.marks`)."""
    return marks(rows, {chunk.number: chunk.text for chunk in read_chunks(folder.chunks)})


def read_review(folder: DocumentsFolder) -> JsonObject:
    """What a person decided, by the key of a row; empty where nothing was decided yet, and of a damaged file."""
    try:
        return read_object(folder.review)
    except (FileNotFoundError, ValueError):
        return {}


def decide(folder: DocumentsFolder, decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds decisions to the review: `dropped`, or another `question` and `answer`."""
    review = read_review(folder)
    for key, decision in decisions.items():
        review[key] = {**review.get(key, {}), **decision}
    write_atomically(folder.review, json.dumps(review, ensure_ascii=False))


def edit(folder: DocumentsFolder, key: str, question: str, answer: str) -> None:
    """Puts a person's words in place of the model's. Raises `StudioError` for an empty or a very long text."""
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise StudioError(f"The {name} is empty.", "Write one, or drop the row.")
        check_length(f"The {name}", text, 20_000)
    decide(folder, {key: {"question": question.strip(), "answer": answer.strip(), "dropped": False}})


def write_training_file(folder: DocumentsFolder, path: Path, form: str = "chat") -> int:
    """Writes the rows that are not dropped as JSONL, in one of `FORMS`; how many. Raises `StudioError` for none."""
    if form not in FORMS:
        raise StudioError(f"There is no form {form!r}.", f"Forms: {', '.join(FORMS)}.")
    chunks = {chunk.number: chunk for chunk in read_chunks(folder.chunks)}
    rows = [
        row
        for row in rows_of(folder)
        if not row.dropped and row.question.strip() and row.answer.strip() and row.chunk in chunks
    ]
    if not rows:
        raise StudioError("There are no rows to train on.", "Wait for the first rows, or keep some of them.")
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(json.dumps(training_row(row, chunks[row.chunk], form), ensure_ascii=False) + "\n")
    return len(rows)


def save_upload(folder: DocumentsFolder, workspace: Workspace, form: str = "chat") -> Path:
    """The same as a file among the uploads, named after the first document; the same rows are not kept twice."""
    request = request_of(folder)
    name = f"{Path(request.documents[0]).stem}-rows.jsonl"
    with tempfile.TemporaryDirectory(dir=folder.path) as temporary:
        path = Path(temporary) / "rows.jsonl"
        write_training_file(folder, path, form)
        return workspace.save_upload(path, name)


def used_chunks(folder: DocumentsFolder, writing: Writing) -> list[Chunk]:
    """The chunks that the job asks about."""
    return read_chunks(folder.chunks)[: writing.max_chunks]


def as_answer(
    chunk: int, rows: Sequence[Row], text: str, tokens: tuple[int | None, int | None], *, cut: bool
) -> JsonObject:
    """The line of `answers.jsonl` for a chunk. An answer without rows keeps its `text`."""
    return {
        "chunk": chunk,
        "rows": [{"question": row.question, "answer": row.answer} for row in rows],
        "text": "" if rows else text[:4000].encode("utf-8", "replace").decode("utf-8"),
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "cut": cut,
    }


def result_of(folder: DocumentsFolder, request: DocumentsRequest, state: str) -> JsonObject:
    """What `result.json` holds: the totals, and what they cost."""
    sums = totals(folder.read_answers())
    cost = request.writing.cost(sums.input_tokens, sums.output_tokens)
    of = len(used_chunks(folder, request.writing))
    return {"documents": folder.id, "state": state, **asdict(sums), "of_chunks": of, "cost": cost}
