"""`rows`: questions with answers about documents, written by a local model or by a server, as a JSONL file."""

import argparse
import os
import tempfile
from pathlib import Path

from lora_studio.chat import documents
from lora_studio.chat.documents import DocumentsRequest, Writing, checked, request_of, result_of, rows_of, split_request
from lora_studio.cli.following import Telling, exit_code, follow, goes_on, progress_line
from lora_studio.cli.output import PhaseLines, print_json, say
from lora_studio.cli.settings import add_model, section_values
from lora_studio.data.generated import MIN_OVERLAP, NEAR, UNGROUNDED
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import DocumentsFolder, ending_words
from lora_studio.jobs.protocol import JsonObject, SplitDocuments
from lora_studio.jobs.session import READING, Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hub import SERVER_KEY
from lora_studio.units import count, dollars
from lora_studio.workspace import Workspace

_PHASE_WORDS = {"model": "loading model", "download": "downloading base model", "answer": "writing rows"}
_TELLING = Telling(
    _PHASE_WORDS,
    lambda state: progress_line(state, state.step if state.phase == "answer" else 0),
    "rows so far are kept",
    notes=True,
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of what is written."""
    add_model(parser, Writing)


def rows(workspace: Workspace, args: argparse.Namespace) -> int:
    """Starts or resumes the job and follows it; 0 done, 1 failed, 2 wrong input, 130 stopped."""
    out = Path(args.out).expanduser().absolute() if args.out else None
    if out is not None and (out.exists() or not out.parent.is_dir()):
        why = "already exists" if out.exists() else "is in a folder that does not exist"
        raise StudioError(f"{args.out} {why}.", "Name a new file in an existing folder with --out.")
    supervisor, key = Supervisor(workspace), os.environ.get(SERVER_KEY, "")
    if args.resume:
        if args.documents:
            raise StudioError("--resume takes no documents: their chunks are kept.", "Remove them.")
        resume(supervisor, args.resume, at_once=args.at_once)
        name = args.resume
    else:
        name = _start(workspace, supervisor, args, key)
    folder = documents.folders(workspace).find(name)
    say(f"Generation {name}: {request_of(folder).title}")
    say(goes_on(name))
    return tell_to_end(supervisor, folder, args.json, out=out, form=args.form)


def resume(supervisor: Supervisor, job_id: str, *, at_once: bool = False) -> None:
    """Goes on with a job that ended early; the key of its server is in the environment."""
    documents.resume(supervisor, job_id, key=os.environ.get(SERVER_KEY, ""), at_once=at_once)


def _start(workspace: Workspace, supervisor: Supervisor, args: argparse.Namespace, key: str) -> str:
    """Splits the documents and starts a job about the chunks; its id."""
    writing = checked(section_values(args) | ({"prompt": _prompt(args.prompt_file)} if args.prompt_file else {}))
    request = documents.make_request(
        workspace, args.documents, writing, model=args.model or "", adapter=args.adapter or "", server=args.server or ""
    )
    if not request.server and (doubt := documents.weak_writer(workspace, request.model, args.adapter or "")):
        say(" ".join(doubt))
    with tempfile.TemporaryDirectory() as temporary:
        chunks = Path(temporary) / "chunks.jsonl"
        request_to_reader = split_request(request, args.documents, args.tokenizer, chunks)
        with Session(workspace.logs_folder / "cli-rows.log", patience=lambda: READING) as reader:
            split = reader.call(request_to_reader, on_progress=PhaseLines().show)
        _tell_chunks(split, request)
        request = documents.with_read(request, split)
        memory = None
        if not request.server:
            memory = documents.memory_for(request, supervisor.allocation().for_session()).need
        return documents.start(supervisor, request, chunks, key=key, at_once=args.at_once, memory=memory)


def _prompt(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise StudioError(f"The prompt file {name} cannot be read.", "Give a text file.") from None


def _tell_chunks(split: SplitDocuments, request: DocumentsRequest) -> None:
    for message, hint in split.problems:
        say(f"  not read: {message} {hint}")
    for document in split.documents:
        say(f"  {document['name']}: {count(document['chunks'], 'chunk')}, {count(document['tokens'], 'token')}")
        for note in document["notes"]:
            say(f"    note: {note}")
    writing = request.writing
    input_tokens, output_tokens = documents.estimate(writing, split.chunks, split.tokens, split.prompt_tokens)
    cost = f", at most {dollars(writing.cost(input_tokens, output_tokens))}" if writing.is_paid else ""
    say(f"About {input_tokens:,} input tokens, at most {output_tokens:,} output tokens{cost}.")


def tell_to_end(
    supervisor: Supervisor,
    folder: DocumentsFolder,
    as_json: bool,
    *,
    out: Path | None = None,
    form: str = "chat",
    leaves: bool = False,
) -> int:
    """Follows a job and says what came out; the exit code. With `leaves` Ctrl-C ends only the telling."""
    state = follow(supervisor, folder.id, _TELLING, leaves=leaves)
    written = 0
    if out is not None and rows_of(folder):
        written = documents.write_training_file(folder, out, form)
    result = _result(folder, state, out if written else None, written)
    if as_json:
        print_json(result)
    _tell(folder, state, result)
    return exit_code(state, supervisor.exit_code(folder.id))


def _result(folder: DocumentsFolder, state: RunState, out: Path | None, written: int) -> JsonObject:
    doubtful = documents.marks_of(folder, rows_of(folder))
    words = dict(zip(("message", "hint"), ending_words(state), strict=True)) if state.state != "done" else {}
    counts = {name: sum(name in reasons for reasons in doubtful.values()) for name in (NEAR, UNGROUNDED)}
    return {
        "generation": folder.id,
        **result_of(folder, request_of(folder), state.state),
        "reason": state.reason,
        **words,
        "near_duplicates": counts[NEAR],
        "ungrounded": counts[UNGROUNDED],
        "warnings": state.warnings,
        "written": written,
        "out": str(out) if out else None,
    }


def _tell(folder: DocumentsFolder, state: RunState, result: JsonObject) -> None:
    message, hint = ending_words(state)
    if state.state == "failed":
        say(f"Failed: {message}")
    if state.state != "done":
        say(hint)
        say(f"Resume: python -m lora_studio rows --resume {folder.id}")
    used = f"{result['input_tokens']:,} input tokens, {result['output_tokens']:,} output tokens"
    cost = f", {dollars(result['cost'])}" if result["cost"] else ""
    say(f"{count(result['rows'], 'row')} about {result['chunks']:,} of {result['of_chunks']:,} chunks; {used}{cost}.")
    if result["unreadable"]:
        say(f"{count(result['unreadable'], 'answer')} held no rows.")
    if result["near_duplicates"] or result["ungrounded"]:
        say(
            f"{result['near_duplicates']:,} near-duplicates, {result['ungrounded']:,} ungrounded: less than "
            f"{MIN_OVERLAP:.0%} of the answer's words occur in its chunk. Review them on the Data tab."
        )
    if result["out"]:
        say(f"{count(result['written'], 'row')} in {result['out']}")
