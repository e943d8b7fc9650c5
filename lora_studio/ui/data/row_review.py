"""What the Data tab shows of rows about documents: chunks, progress, costs, rows to keep, edit or drop. No gradio."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.chat.documents import (
    DocumentsRequest,
    Totals,
    Writing,
    decide,
    estimate,
    folders,
    request_of,
    rows_of,
    totals,
    used_chunks,
)
from lora_studio.data.generated import MIN_OVERLAP, NEAR, UNGROUNDED, Row, marks
from lora_studio.data.readers.documents import Chunk, read_chunks
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import DOCUMENTS, DocumentsFolder
from lora_studio.jobs.protocol import SplitDocuments
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui import job_views
from lora_studio.ui import words as run_words
from lora_studio.ui.components import stat_of
from lora_studio.ui.html import count, empty, notice, pager, render, tiles
from lora_studio.units import dollars, percent
from lora_studio.workspace import Workspace

PARTS = ("list", "head", "review")
LOOKED_AT = "documents-looked-at"
ROWS, CHUNKS, UNREADABLE = 20, 5, 20
PHASES = {"start": "Starting", "model": "Loading model", "download": "Downloading base model", "answer": "Writing rows"}
MARK_WORDS = {
    NEAR: "Repeats an earlier row, or nearly.",
    UNGROUNDED: f"Less than {MIN_OVERLAP:.0%} of the answer's words occur in its chunk.",
}
FILTERS: dict[str, tuple[str, Callable[[Row, Sequence[str]], bool]]] = {
    "all": ("All rows", lambda row, doubts: True),
    "kept": ("Kept", lambda row, doubts: not row.dropped),
    "marked": ("Marked", lambda row, doubts: bool(doubts)),
    "dropped": ("Dropped", lambda row, doubts: row.dropped),
}


@dataclass(frozen=True)
class GenerationView:
    """The job that is looked at, and what was chosen in its table; `editing` is the key of a row."""

    job: str = ""
    filter: str = "all"
    page: int = 0
    editing: str = ""

    def act(self, action: str, value: str) -> "GenerationView":
        """The view after a click."""
        match action:
            case "filter" if value in FILTERS:
                return replace(self, filter=value, page=0)
            case "page":
                return replace(self, page=max(0, self.page + int(value)))
            case "edit":
                return replace(self, editing=value)
            case _:
                return self


@dataclass(frozen=True)
class Reviewed:
    """The rows of a job as they are now, what is doubtful in them, and the chunks that they are about."""

    rows: list[Row]
    marks: Mapping[str, list[str]]
    chunks: Mapping[int, Chunk]
    totals: Totals
    unreadable: list[JsonObject]


class GenerationBoard:
    """Reads jobs for the tab. What did not change on disk is not read again."""

    def __init__(self, workspace: Workspace, jobs: Supervisor) -> None:
        self.workspace, self.jobs = workspace, jobs
        self._seen: tuple[object, Reviewed | None] = (None, None)

    def reviewed(self, folder: DocumentsFolder) -> Reviewed:
        """The rows of the job that is looked at. Raises `StudioError` where its chunks are lost."""
        stamp = (folder.path, stat_of(folder.answers), stat_of(folder.review))
        if self._seen[0] != stamp or self._seen[1] is None:
            answers = list(folder.read_answers())
            rows, chunks = rows_of(folder), {chunk.number: chunk for chunk in read_chunks(folder.chunks)}
            doubts = marks(rows, {number: chunk.text for number, chunk in chunks.items()})
            unreadable = [answer for answer in answers if not answer["rows"]]
            self._seen = stamp, Reviewed(rows, doubts, chunks, totals(answers), unreadable)
        assert self._seen[1] is not None
        return self._seen[1]

    def look(self, view: GenerationView, now: float) -> dict[str, str]:
        """The markup of every part."""
        states = self.jobs.jobs(DOCUMENTS)
        listed = job_views.listing(states, view.job, now, DOCUMENTS.noun, _about) if states else ""
        state = next((candidate for candidate in states if candidate.id == view.job), None)
        if state is None:
            return {"list": listed, "head": "", "review": ""}
        folder = folders(self.workspace).find(view.job)
        try:
            request, reviewed = request_of(folder), self.reviewed(folder)
            of = len(used_chunks(folder, request.writing))
        except StudioError as error:
            return {"list": listed, "head": notice(error.message, error.hint, "error"), "review": ""}
        return {
            "list": listed,
            "head": head(state, request, reviewed.totals, of),
            "review": table(reviewed, view) if reviewed.rows or reviewed.unreadable else _nothing(state),
        }

    def opening(self) -> str:
        """The job to look at first: the one looked at last, else the newest."""
        return job_views.opening(self.workspace, self.jobs.jobs(DOCUMENTS), LOOKED_AT)

    def drop_marked(self, folder: DocumentsFolder) -> None:
        """Drops all rows that are marked."""
        decide(folder, {key: {"dropped": True} for key in self.reviewed(folder).marks})


def _about(state: RunState) -> tuple[str, str]:
    status = run_words.STATES[state.state]
    if state.state == "running" and state.phase_total and state.phase == "answer":
        status += f", {percent(state.phase_done, state.phase_total)}"
    return status, ""


def _nothing(state: RunState) -> str:
    return "" if state.final else empty("No rows yet", "Rows appear here chunk by chunk.")


def head(state: RunState, request: DocumentsRequest, sums: Totals, of: int) -> str:
    """What is written by whom, how far it is, what it cost, and what can be done."""
    act = None
    if state.state != "done":
        act = ("resume", "", "Resume") if state.final else ("stop", "", job_views.stop_label(state))
    cost = request.writing.cost(sums.input_tokens, sums.output_tokens)
    facts = [
        (f"{sums.rows:,}", "rows", f"about {sums.chunks:,} of {count(of, 'chunk')}"),
        (f"{sums.input_tokens:,}", "input tokens", ""),
        (f"{sums.output_tokens:,}", "output tokens", ""),
        *([(dollars(cost), "cost", "at the prices you entered")] if request.writing.is_paid else []),
        *([(f"{sums.unreadable:,}", "unreadable answers", "without rows")] if sums.unreadable else []),
    ]
    notes = job_views.notes(state)
    if sums.cut:
        words = f"{count(sums.cut, 'answer')} ended at max new tokens; whole rows before that are kept."
        notes.append((words, "Raise max new tokens, or ask for fewer questions per chunk.", "info"))
    return render(
        "rows.head",
        state,
        job_views.activity(state, PHASES, {"answer": "chunks"}),
        request.server or "this machine",
        act,
        notes,
        tiles(facts),
    )


def chosen_rows(reviewed: Reviewed, view: GenerationView) -> list[Row]:
    """The rows that the filter leaves."""
    fits = FILTERS[view.filter][1]
    return [row for row in reviewed.rows if fits(row, reviewed.marks.get(row.key, ()))]


def table(reviewed: Reviewed, view: GenerationView) -> str:
    """The rows of the page asked for, with filters and what drops all marked ones; then the unreadable answers."""
    matches = chosen_rows(reviewed, view)
    page = min(view.page, max(0, (len(matches) - 1) // ROWS))
    chips = [
        (
            name,
            f"{words} ({sum(fits(row, reviewed.marks.get(row.key, ())) for row in reviewed.rows):,})",
            view.filter == name,
        )
        for name, (words, fits) in FILTERS.items()
    ]
    counts = [
        f"{sum(name in reasons for reasons in reviewed.marks.values()):,} {name}: {words}"
        for name, words in MARK_WORDS.items()
        if any(name in doubts for doubts in reviewed.marks.values())
    ]
    rows = [
        (row, reviewed.marks.get(row.key, ()), _place(reviewed.chunks.get(row.chunk)), reviewed.chunks.get(row.chunk))
        for row in matches[page * ROWS : (page + 1) * ROWS]
    ]
    turned = pager(len(matches), len(reviewed.rows), page, ROWS, "row") if matches else empty("No matching rows")
    unreadable = [
        (_place(reviewed.chunks.get(answer["chunk"])), str(answer["text"]))
        for answer in reviewed.unreadable[:UNREADABLE]
    ]
    more = len(reviewed.unreadable) - len(unreadable)
    return render("rows.review", chips, counts, rows, turned, bool(reviewed.marks), unreadable, more)


def _place(chunk: Chunk | None) -> str:
    """Where a chunk stands: guide.pdf, page 3, Install > Linux."""
    if chunk is None:
        return "lost chunk"
    page = f"page {chunk.page}" if chunk.page else ""
    return ", ".join(filter(None, (chunk.source, page, chunk.heading, f"chunk {chunk.number + 1}")))


def chunks_preview(result: SplitDocuments, writing: Writing, file: Path, page: int, tokenizer: str) -> str:
    """What the documents were split into, what a writer would read and write, and some of the chunks of the `file`."""
    chunks = read_chunks(file)
    input_tokens, output_tokens = estimate(writing, result.chunks, result.tokens, result.prompt_tokens)
    used = min(result.chunks, writing.max_chunks or result.chunks)
    facts = [
        (f"{result.chunks:,}", "chunks", f"{used:,} used" if used < result.chunks else ""),
        (f"{result.tokens:,}", "tokens", f"tokenizer of {tokenizer}"),
        (f"{input_tokens:,}", "input tokens", "chunks and prompts"),
        (f"{output_tokens:,}", "output tokens", "at most"),
    ]
    if writing.is_paid:
        facts.append((dollars(writing.cost(input_tokens, output_tokens)), "estimated cost", "at most"))
    notes = [(message, hint, "error") for message, hint in result.problems]
    notes += [
        (f"{document['name']}: {note}", "", "info") for document in result.documents for note in document["notes"]
    ]
    page = min(max(0, page), max(0, (len(chunks) - 1) // CHUNKS))
    listed_chunks = [
        (_place(chunk), f"{chunk.tokens:,}", chunk.text) for chunk in chunks[page * CHUNKS : (page + 1) * CHUNKS]
    ]
    turned = pager(len(chunks), len(chunks), page, CHUNKS, "chunk") if chunks else ""
    return render("rows.chunks", tiles(facts), notes, listed_chunks, turned)
