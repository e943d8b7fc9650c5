"""The kinds of jobs and their folders, and why a job ended in words, for page, terminal and API alike.

Every kind has the same life: request, events, worker, log and result in one folder.
"""

import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lora_studio import __version__
from lora_studio.config.compute import LOCAL
from lora_studio.config.fields import SettingValues
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, end_last_line
from lora_studio.jobs.events import Event, Reason, RunState, to_line
from lora_studio.workspace import JobFolder, RunFolder, Workspace, write_atomically

Folder = TypeVar("Folder", bound=JobFolder)


class EvaluationFolder(JobFolder):
    """The files of one evaluation."""

    @property
    def data(self) -> Path:
        """The test file. Raises `StudioError` for a damaged request."""
        data = self.read_facts().get("data")
        if not isinstance(data, str):
            raise damaged_request(self)
        return Path(data)

    @property
    def predictions(self) -> Path:
        """One line a row, appended as answers come."""
        return self.path / "predictions.jsonl"

    @property
    def task(self) -> Path:
        """Which kind of task the test file sets, told from all its rows before the first is answered."""
        return self.path / "task.json"

    @property
    def complete(self) -> Path:
        """What the answers amount to: the last file written."""
        return self.path / "metrics_summary.json"

    def read_result(self) -> JsonObject:
        """What the answers amount to; empty before they were measured, and where the file is damaged."""
        summary = super().read_result()
        try:
            return summary if all(item["unit"] for item in summary["metrics"].values()) and summary["columns"] else {}
        except (KeyError, TypeError, AttributeError):
            return {}

    def rows(self) -> Iterator[JsonObject]:
        """The answered rows."""
        return _lines_of(self.predictions)


def _lines_of(path: Path) -> Iterator[JsonObject]:
    """The objects of a JSONL file that a worker appends to; a line that a killed process left torn is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):
                    if line.endswith("\n") and isinstance(row := json.loads(line), dict):
                        yield row
    except (FileNotFoundError, UnicodeDecodeError):
        return


class ExportFolder(JobFolder):
    """The files of one export."""

    @property
    def complete(self) -> Path:
        """What came out: the last file written."""
        return self.path / "result.json"

    @property
    def result(self) -> Path:
        """The folder that was made, or the one file where a person named one for it."""
        out = self.read_facts().get("out")
        return Path(out) if out and isinstance(out, str) else self.path / "result"

    @property
    def unfinished(self) -> Path:
        """Where the result is written before it takes its place: on the same disk."""
        return self.result.with_name(f".{self.result.name}.{self.id}")

    def remove_unfinished(self) -> None:
        shutil.rmtree(self.unfinished, ignore_errors=True)


class BenchmarkFolder(JobFolder):
    """The files of one benchmark."""

    @property
    def results(self) -> Path:
        """Where lm-evaluation-harness puts its numbers."""
        return self.path / "results"


@dataclass(frozen=True, slots=True)
class Membership:
    """The group of a run: its id and name, the run's own values by path, and whether weak runs are stopped early, by
    which metric."""

    id: str
    name: str
    values: SettingValues
    stop_weak: bool = False
    metric: str = "loss"

    def as_facts(self) -> JsonObject:
        """As the run's folder holds it."""
        return {
            "id": self.id,
            "name": self.name,
            "values": self.values,
            "stop_weak": self.stop_weak,
            "metric": self.metric,
        }


def membership(facts: Mapping[str, object]) -> Membership | None:
    """The group that a run's facts name; None for a run of its own, and for what can't be read."""
    group = facts.get("group")
    if not isinstance(group, dict) or not isinstance(group.get("values"), dict) or not group.get("id"):
        return None
    name, metric = str(group.get("name") or group["id"]), str(group.get("metric", "loss"))
    return Membership(str(group["id"]), name, group["values"], bool(group.get("stop_weak")), metric)


class DocumentsFolder(JobFolder):
    """The files of one job that writes rows about documents."""

    @property
    def chunks(self) -> Path:
        """The documents in chunks, written before the start: the documents themselves are not read again."""
        return self.path / "chunks.jsonl"

    @property
    def answers(self) -> Path:
        """One line a chunk, appended as answers come."""
        return self.path / "answers.jsonl"

    @property
    def review(self) -> Path:
        """What a person changed in the rows or dropped."""
        return self.path / "review.json"

    @property
    def complete(self) -> Path:
        """How many rows there are, and what they cost: the last file written."""
        return self.path / "result.json"

    def read_answers(self) -> Iterator[JsonObject]:
        """The answers so far, in the order in which they came; those of a damaged file as far as they are whole."""
        for answer in _lines_of(self.answers):
            rows = answer.get("rows")
            if type(answer.get("chunk")) is not int or not isinstance(rows, list):
                continue
            if all(isinstance(row, dict) and {"question", "answer"} <= row.keys() for row in rows):
                yield {"input_tokens": None, "output_tokens": None, "cut": False, "text": "", **answer}


def damaged_request(folder: JobFolder) -> StudioError:
    """What is said of a job whose request can't be read."""
    return StudioError(f"{folder.facts.name} of {folder.id} is damaged: its request is lost.", "Delete it.")


@dataclass(frozen=True)
class JobFolders(Generic[Folder]):
    """The folders of one kind of job under `parent`; `noun` is what a person calls one.

    Of those of `workspace` only what it shows is found.
    """

    workspace: Workspace
    parent: Path
    kind: Callable[[Path], Folder]
    noun: str

    def create(self, facts: Mapping[str, Any]) -> Folder:
        """A new folder, named by time and four random letters, with what was asked for."""
        self.workspace.policy.check_room()
        folder = self.kind(self.parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        folder.path.mkdir(parents=True)
        policy = self.workspace.policy
        made = {"created": time.time(), "maker": policy.owner_id}
        if policy.device_share is not None:
            made["device_share"] = policy.device_share
        write_atomically(folder.facts, json.dumps({**made, **facts}, indent=2))
        return folder

    def all(self) -> list[Folder]:
        """Every one that is shown, newest first."""
        return [folder for folder in self.list_all() if self.workspace.policy.can_read(folder)]

    def list_all(self) -> list[Folder]:
        """Every one, whoever made it, newest first."""
        if not self.parent.is_dir():
            return []
        names = sorted(os.listdir(self.parent), reverse=True)
        folders = [self.kind(self.parent / name) for name in names if not name.startswith(".")]
        return [folder for folder in folders if folder.facts.is_file()]

    def find(self, name: str) -> Folder:
        """The one of that id. Raises `StudioError` where there is none."""
        match = next((folder for folder in self.all() if folder.id == name), None)
        if match is None:
            raise StudioError(f"There is no {self.noun} {name!r}.", "It may have been deleted. Choose another one.")
        return match


RECORDED_VERSIONS = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes")


def versions() -> dict[str, str]:
    """The versions that a job is made with, by package."""
    recorded = {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS}
    return {"lora_studio": __version__, **recorded}


def remove(folder: JobFolder) -> None:
    """Removes a job's folder: first out of sight by a rename, so that no half one is ever listed."""
    hidden = folder.path.with_name(f".deleted-{folder.id}")
    folder.path.rename(hidden)
    shutil.rmtree(hidden)


def append_event(folder: JobFolder, event: Event) -> None:
    """Adds an event while the job has no worker."""
    end_last_line(folder.events)
    with folder.events.open("a", encoding="utf-8") as events:
        events.write(to_line(event))


@dataclass(frozen=True, slots=True)
class KindWords:
    """What the process that does a kind of job is called, and what helps after an early end.

    `interrupted` is for a worker that vanished, `stopped` for one that ended in good order, `cancelled` is what became
    of the work, `early` what the worker was not ready for yet.
    """

    worker: str
    interrupted: Callable[[RunState], str]
    stopped: str
    cancelled: str
    begin: str
    early: str


def _checkpoint_hint(state: RunState) -> str:
    if state.saved:
        return "Resume continues from the last checkpoint."
    return "No checkpoint was saved yet, so Resume starts over."


def _always(sentence: str) -> Callable[[RunState], str]:
    return lambda state: sentence


_AGAIN = "Start it again: incomplete results are not kept."


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. `noun` is what a person calls one, `module` the program that does it, given the job's folder.

    `resumes`: a worker can go on with what an earlier one left. `needs_device`: a job holds the device unless its
    request says otherwise. A worker that was asked to stop has `save_seconds` to save what it has.
    """

    name: str
    noun: str
    module: str
    folder: Callable[[Path], JobFolder]
    place: Callable[[Workspace], Path]
    resumes: bool
    words: KindWords
    needs_device: bool = True
    save_seconds: float = 20.0

    def folder_of(self, workspace: Workspace, job_id: str) -> JobFolder:
        """Where the files of the job of that id are, or would be."""
        return self.folder(self.place(workspace) / job_id)


TRAIN = Kind(
    name="train",
    noun="run",
    module="lora_studio.engine.train.worker",
    folder=RunFolder,
    place=lambda workspace: workspace.runs_folder,
    resumes=True,
    save_seconds=120.0,
    words=KindWords(
        worker="worker",
        interrupted=_checkpoint_hint,
        stopped="",
        cancelled="nothing more was saved",
        begin="Resume starts it.",
        early="to train",
    ),
)
EVALUATE = Kind(
    name="evaluate",
    noun="evaluation",
    module="lora_studio.engine.evaluate.worker",
    folder=EvaluationFolder,
    place=lambda workspace: workspace.evaluations_folder,
    resumes=True,
    words=KindWords(
        worker="worker",
        interrupted=_always("Resume answers the remaining rows."),
        stopped="Resume answers the remaining rows.",
        cancelled="answers so far were kept",
        begin="Resume starts it.",
        early="to answer",
    ),
)
EXPORT = Kind(
    name="export",
    noun="export",
    module="lora_studio.engine.export.worker",
    folder=ExportFolder,
    place=lambda workspace: workspace.exports_folder,
    resumes=False,
    needs_device=False,
    words=KindWords(
        worker="export process",
        interrupted=_always(_AGAIN),
        stopped="Incomplete results are not kept. Start it again at any time.",
        cancelled="incomplete results were not kept",
        begin="Start it again.",
        early="to write",
    ),
)
BENCHMARK = Kind(
    name="benchmark",
    noun="benchmark",
    module="lora_studio.engine.evaluate.benchmark",
    folder=BenchmarkFolder,
    place=lambda workspace: workspace.benchmarks_folder,
    resumes=False,
    words=KindWords(
        worker="worker",
        interrupted=_always(_AGAIN),
        stopped="Start it again at any time.",
        cancelled="incomplete results were not kept",
        begin="Start it again.",
        early="to ask",
    ),
)
DOCUMENTS = Kind(
    name="documents",
    noun="generation",
    module="lora_studio.engine.chat.documents",
    folder=DocumentsFolder,
    place=lambda workspace: workspace.root / "documents",
    resumes=True,
    words=KindWords(
        worker="worker",
        interrupted=_always("Resume asks about the remaining chunks."),
        stopped="Resume asks about the remaining chunks.",
        cancelled="rows so far were kept",
        begin="Resume starts it.",
        early="to write",
    ),
)
SEARCH = Kind(
    name="search",
    noun="learning-rate search",
    module="lora_studio.engine.train.rate_search",
    folder=RunFolder,
    place=lambda workspace: workspace.searches_folder,
    resumes=False,
    words=KindWords(
        worker="worker",
        interrupted=_always(_AGAIN),
        stopped="Start it again at any time.",
        cancelled="incomplete results were not kept",
        begin="Start it again.",
        early="to train",
    ),
)
KINDS = {kind.name: kind for kind in (TRAIN, EVALUATE, EXPORT, BENCHMARK, DOCUMENTS, SEARCH)}
"""By name, in the order in which lists show them."""


class JobStarter(Protocol):
    """The supervisor, as it is seen by whoever only asks for a job."""

    @property
    def workspace(self) -> Workspace: ...

    def submit(
        self,
        kind: Kind,
        make: Callable[[], JobFolder],
        *,
        at_once: bool = False,
        secrets: Mapping[str, str] | None = None,
        target: str = LOCAL,
        files: Sequence[Path] = (),
    ) -> str:
        """Makes a job's folder and starts its worker, or queues it; gives its id."""

    def resume(self, job_id: str, *, at_once: bool = False, secrets: Mapping[str, str] | None = None) -> None:
        """Goes on with a job that ended early."""


class JobIndex:
    """The folders of all kinds of jobs in a workspace, whoever made them. What was seen once is not looked into again:
    a folder becomes a job's with its request, which stays."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[Path, JobFolder] = {}

    def of(self, kind: Kind) -> Sequence[JobFolder]:
        """Every one of a kind, newest first."""
        if kind is TRAIN:
            return self._workspace.unrestricted.runs()
        place = kind.place(self._workspace)
        try:
            names = sorted(os.listdir(place), reverse=True)
        except FileNotFoundError:
            return []
        before = self._known
        folders = {}
        for path in (place / name for name in names if not name.startswith(".")):
            folder = before.get(path) or kind.folder(path)
            if path in before or folder.facts.is_file():
                folders[path] = folder
        self._known = {path: folder for path, folder in before.items() if path.parent != place} | folders
        return list(folders.values())

    def find(self, name: str, noun: str = "run") -> tuple[Kind, JobFolder]:
        """The job of that id which is shown to whoever is answered; a run also by the beginning of its id, its title or
        "last". Raises `StudioError` where there is none."""
        for kind in KINDS.values():
            folder = kind.folder_of(self._workspace, name)
            if kind is TRAIN or folder.id != name or name.startswith("."):
                continue
            try:
                if folder.facts.is_file() and self._workspace.policy.can_read(folder):
                    return kind, folder
            except OSError:  # a name that no folder can bear
                break
        return TRAIN, self._workspace.run(name, noun)


def made_by(whole: Workspace) -> Iterator[tuple[str, JobFolder]]:
    """Every job of whatever kind, with the name of whoever made it."""
    index = JobIndex(whole)
    for folder in [folder for kind in KINDS.values() for folder in index.of(kind)]:
        try:
            yield folder.owner_id, folder
        except FileNotFoundError:  # deleted meanwhile
            continue


def at_work(whole: Workspace) -> Iterator[tuple[str, JobFolder]]:
    """Of `made_by` those that were started and have not ended."""
    for name, folder in made_by(whole):
        if folder.worker.exists() and not folder.complete.exists():
            yield name, folder


STATES = {
    "queued": "Queued",
    "running": "Running",
    "stopping": "Stopping",
    "done": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}
"""The states of a job as a person reads them."""


def ending_words(state: RunState) -> tuple[str, str]:
    """Why a job ended and what helps, "" for what needs no words; what the worker said itself goes first."""
    if state.reason is None:
        return state.message, state.hint
    message, hint = _of_reason(state, state.reason, KINDS[state.kind])
    if state.message:
        message, hint = state.message, state.hint or (hint if state.reason is Reason.OVER_QUOTA else "")
    if state.last_output:
        hint += f" The log ends with:\n{state.last_output}"
    return message, hint.strip()


def _of_reason(state: RunState, reason: Reason, kind: Kind) -> tuple[str, str]:
    words, noun = kind.words, kind.noun
    worker, early = words.worker, words.interrupted(state)
    match reason:
        case Reason.COMPLETED:
            return "", ""
        case Reason.STOPPED:
            return "Stopped on request.", words.stopped
        case Reason.DEQUEUED:
            return "Removed from the queue.", ""
        case Reason.PRUNED:
            return "Stopped early: in the weaker half of its group.", early
        case Reason.NEVER_STARTED:
            return f"The {noun} was never started.", words.begin
        case Reason.RECORD_DAMAGED:
            return f"worker.json is damaged, so how the {noun} ended is unknown.", early
        case Reason.CANCELLED:
            return f"Cancelled at once; {words.cancelled}.", early
        case Reason.OVER_QUOTA:
            return "The disk quota is used up.", (
                "Delete it, or other things that you no longer need. A lower rank, fewer checkpoints and no "
                "modules saved in full make runs smaller."
            )
        case Reason.ENDED_BY_FORCE:
            return f"The {worker} did not stop in time and was killed.", early
        case Reason.STOPPED_EARLY:
            return f"Stopped before the {worker} was ready {words.early}.", early
        case Reason.STOPPED_SILENTLY:
            return f"The {worker} ended while stopping.", early
        case Reason.CANCELLED_ELSEWHERE:
            return f"Cancelled on {state.target}, not in the studio.", early
        case Reason.OUT_OF_TIME:
            return f"The time limit of {state.target} was reached.", early
        case Reason.PREEMPTED:
            return f"{state.target} gave its place to another job.", early
        case _:
            return _of_failure(state, reason, worker), early


def _of_failure(state: RunState, reason: Reason, worker: str) -> str:
    """One sentence on a worker that failed, or vanished without a word."""
    match reason:
        case Reason.DISK_FULL:
            return f"The disk is full: the {worker} could not record its end."
        case Reason.MEMORY_KILL:
            return f"Out of memory: the system killed the {worker}, as its count of such kills shows."
        case Reason.KILLED:
            return f"The {worker} was killed, which the system does when it is out of memory."
        case Reason.VANISHED:
            return f"The {worker} vanished: it was killed, or the machine ran out of memory or restarted."
        case Reason.CRASHED if state.exit_code is not None:
            named = signal.strsignal(-state.exit_code) or "unknown signal"
            return f"The {worker} crashed: {named} (signal {-state.exit_code})."
        case Reason.EXITED:
            return f"The {worker} ended without a message (exit code {state.exit_code})."
        case Reason.OUT_OF_MEMORY:
            return "Out of memory."
        case Reason.NODE_FAILED:
            return f"A node of {state.target} failed."
        case Reason.NOT_SHARED:
            return f"The nodes of {state.target} do not see this folder: it is on no file system that they share."
        case Reason.ADAPTER_GONE:
            return "The adapter was deleted."
    return "It failed. See the log for details."
