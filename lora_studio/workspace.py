"""The one folder everything lives in, and the only module that knows the names of files in it.

A workspace holds uploads, runs and drafts. A run is a folder; what is in it is the truth about the run. Files that
matter are written beside their place and renamed, so that a reader never sees half a file.
"""

import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, fits, is_time, meant, numbered, read_object, same_content

ConfigT = TypeVar("ConfigT")
DEMO_MODEL = "demo"
PRIVATE = 0o700  # of a folder that its owner alone reads
_CACHE = "cache"
_NUMBER = (int, float, type(None))
_FACTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("title", "maker", "model", "data", "compute_target"), (str,)),
    **dict.fromkeys(("memory_bytes", "device_share"), (int, type(None))),
    **{"versions": (dict,), "columns": (list,), "devices": (list,), "group": (dict,)},
}
_RESULT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("state", "message", "reason", "missing"), (str,)),
    **dict.fromkeys(("difference", "retry"), (dict, type(None))),
    **{"eval_metrics": (dict,), "best_checkpoint": (str, type(None)), "bytes": (int,)},
    **dict.fromkeys(("files", "notes"), (list,)),
    **dict.fromkeys(("steps", "epochs", "tokens", "seconds", "train_rows", "tokens_per_second"), _NUMBER),
    **dict.fromkeys(("train_loss", "eval_loss", "peak_memory_bytes", "estimated_memory_bytes"), _NUMBER),
}
"""Kinds of what a run's small files hold: one of another kind is damaged."""


def in_space(environment: Mapping[str, str]) -> bool:
    """Whether this is a Hugging Face Space."""
    return bool(environment.get("SPACE_ID"))


def usual_place(environment: Mapping[str, str], storage: Path = Path("/data")) -> Path:
    """Where things are kept if nobody names a place: the current folder; of a Space its mounted storage or its home."""
    if in_space(environment) and os.path.ismount(storage) and os.access(storage, os.W_OK):
        return storage
    return Path() if not in_space(environment) or os.access(".", os.W_OK) else Path.home()


def demo_folder() -> Path:
    """Where the built-in model and its data sets are."""
    return Path(__file__).parent / "demo"


def model_source(name: str) -> str:
    """What a model's name loads from: the built-in model's folder for "demo", else the name (folder, Hub id) itself."""
    return str(demo_folder() / "model") if name == DEMO_MODEL else os.path.expanduser(name)


@dataclass(frozen=True, slots=True)
class ShippedData:
    """A data set that comes with the studio; `train` and `heldout` are files."""

    name: str
    title: str
    about: str
    train: Path
    heldout: Path


@cache
def shipped_data() -> Mapping[str, ShippedData]:
    """The data sets that come with the studio, by the name that stands for their training file in a config."""
    folder = demo_folder() / "data"
    table = json.loads((folder / "datasets.json").read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: ShippedData(name, row["title"], row["about"], folder / row["train"], folder / row["heldout"])
            for name, row in table.items()
        }
    )


def write_atomically(path: Path, text: str) -> None:
    """Writes text so that the file is either the old or the new one, never half, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def safe_name(name: str, fallback: str = "file") -> str:
    """A file name of letters, digits, dot, dash and underscore, at most 80 long, that can't leave its folder."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name.replace("\\", "/")).name).strip(".-")
    stem, dot, suffix = plain.rpartition(".")
    plain = f"{stem[: 79 - len(suffix)]}{dot}{suffix[:20]}" if stem else plain[:80]
    return plain or fallback


def step_of(checkpoint: str) -> int:
    """The step at which a checkpoint was saved, from its name or path."""
    return int(checkpoint.rpartition("-")[2])


@dataclass(frozen=True)
class JobFolder:
    """The files that every kind of job has: what was asked for, what happened, who does it, what came out."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def facts(self) -> Path:
        """What was asked for, when and by whom, written once before the start."""
        return self.path / "request.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def folded(self) -> Path:
        """What the events come to, in short; made from them and may be deleted at any time."""
        return self.path / "folded.json"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def worker(self) -> Path:
        """Which process does the work and what was asked of it, written by its launcher."""
        return self.path / "worker.json"

    @property
    def devices(self) -> Path:
        """Which devices its latest worker holds, written before that starts."""
        return self.path / "devices.json"

    @property
    def complete(self) -> Path:
        """Final state and numbers: the last file written."""
        return self.path / "complete.json"

    @property
    def cache(self) -> Path:
        """The workspace's folder of prepared data."""
        return self.path.parent.parent / _CACHE

    def read_facts(self) -> JsonObject:
        """What was noted before the start; of a damaged file, when it was written, under a title that says so."""
        try:
            facts = read_object(self.facts)
        except ValueError:
            facts = {}
        if fits(facts, _FACTS) and is_time(facts.get("created")):
            return facts
        title = f"{self.id} ({self.facts.name} is damaged)"
        return {"title": title, "created": self.facts.lstat().st_mtime, "maker": "", "damaged": True}

    @property
    def owner_id(self) -> str:
        """The user who asked for it; empty where users were not told apart."""
        return str(self.read_facts().get("maker", ""))

    def read_result(self) -> JsonObject:
        """The final numbers; empty while the job has none, and where their file is damaged."""
        try:
            result = read_object(self.complete)
        except (FileNotFoundError, ValueError):
            return {}
        return result if fits(result, _RESULT) else {}

    def damaged(self) -> list[str]:
        """The small files of the job that are there and can't be read, by name."""
        names = [self.facts.name] if self.read_facts().get("damaged") else []
        return names + ([self.complete.name] if os.path.lexists(self.complete) and not self.read_result() else [])

    @property
    def watched(self) -> tuple[Path, ...]:
        """What changes while the job goes on: its worker, its events, and what else its state tells of."""
        return self.worker, self.events

    def checkpoint_folders(self) -> list[Path]:
        """Where the work can go on from, oldest first; empty for kinds of jobs that save nothing in between."""
        return []

    def holds_checkpoint(self, name: str) -> bool:
        """Whether the checkpoint of that name exists, whole or not."""
        return False

    def remove_unfinished(self) -> None:
        """Removes what a worker that is gone left half-written and nobody can use."""


class RunFolder(JobFolder):
    """The files of one run: beside those of a job its settings, checkpoints, adapter and report."""

    @property
    def facts(self) -> Path:
        """Versions, seed, creation time and title, written once before the start."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The whole resolved config, written once before the start."""
        return self.path / "config.yaml"

    @property
    def labels(self) -> Path:
        """Tags and the note that a person gave the run; the run itself never reads them."""
        return self.path / "labels.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def unfinished_adapter(self) -> Path:
        """Where the adapter is written before it takes its place."""
        return self.path / ".adapter"

    @property
    def questions(self) -> Path:
        """A few questions of the validation rows, which the chat suggests."""
        return self.path / "questions.json"

    @property
    def watched(self) -> tuple[Path, ...]:
        return self.worker, self.events, self.checkpoints

    def holds_checkpoint(self, name: str) -> bool:
        return (self.checkpoints / name).is_dir()

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    def checkpoint_folders(self) -> list[Path]:
        """Checkpoints that are whole (the trainer writes its state last), oldest first."""
        states = self.checkpoints.glob("checkpoint-*/trainer_state.json")
        whole = [path.parent for path in states if path.parent.name.removeprefix("checkpoint-").isdecimal()]
        return sorted(whole, key=lambda path: step_of(path.name))

    @property
    def has_checkpoints(self) -> bool:
        """Whether there are any, whole or not: what became of those that are not is told by who resumes."""
        return any(self.checkpoints.glob("checkpoint-*"))

    def remove_unfinished(self) -> None:
        """A checkpoint or an adapter that is not whole is no use."""
        torn = set(self.checkpoints.glob("*")) - set(self.checkpoint_folders())
        for path in (*torn, self.unfinished_adapter):
            shutil.rmtree(path, ignore_errors=True)


class Policy:
    """What the caller may see and do: everything, as at this machine. `access.policy` is for users of a server."""

    owner_id: str = ""  # of what the caller makes; empty where users are not told apart
    is_admin: bool = True  # whether the caller owns the workspace
    has_quota: bool = False  # whether any user has less room than the disk
    max_queued: int | None = None  # jobs that the caller may have in the queue; None for any number
    max_answer: int | None = None  # tokens of an answer that the caller may ask for; None for any number
    device_share: int | None = None  # devices that the caller's jobs may hold at a time; None for any number

    def can_read(self, job: "JobFolder") -> bool:
        """Whether the caller may see a job."""
        return True

    def user_folder(self, root: Path) -> Path:
        """The folder of the caller's uploads, drafts, presets, prompts and votes, in a workspace at `root`."""
        return root

    def uploads_of_others(self, root: Path) -> list[Path]:
        """Uploads of other users that the caller may see."""
        return []

    def check_path(self, name: str) -> None:
        """Raises `StudioError` where a name leads to files that the caller may not read."""

    def check_request(self, params: Mapping[str, Any]) -> None:
        """Checks all names among the parameters of a request to a child process, as `check_path` does."""

    def check_may(self, action: str) -> None:
        """Raises `StudioError` where the caller may not do it; `action` is a verb with its object."""

    def admit(self, config: ConfigT) -> ConfigT:
        """The config of a run as the caller may start it. Raises `StudioError` where they may not."""
        return config

    def run_created(self) -> None:
        """Counts a run that the caller started."""

    def check_room(self, size: int = 0) -> None:
        """Raises `StudioError` where the caller has no room on the disk for `size` more bytes."""

    def check_growth(self, size: int) -> None:
        """Does the same for small and frequent writes, such as what is being typed; nothing if `size` is negative."""

    def over_quota(self, owner_id: str) -> str:
        """Why the work of that user is ended: it takes more than their room; "" if it may go on."""
        return ""

    def tokens(self, owner_id: str) -> Mapping[str, str]:
        """Environment of a child process that works for that user, as to the Hub's tokens."""
        return {}

    def jobs_token(self, owner_id: str) -> str | None:
        """The Hub token that pays for that user's jobs on rented machines: None for this machine's own, "" for none."""

    def shares_queue_with(self, owner_id: str) -> bool:
        """Whether a queued job of that user counts towards the caller's `max_queued`."""
        return True

    def test_rows(self, requested: int | None) -> int | None:
        """How many rows of a test file may be answered; None for all."""
        return requested


class Workspace:
    """Uploads, runs and drafts under one root folder, made where missing; `policy` says what the caller may do."""

    def __init__(self, root: Path, policy: Callable[[], Policy] = Policy) -> None:
        self.root = root.expanduser().resolve()
        self._policy = policy
        self.unrestricted = self  # the workspace with nothing hidden, for those who look after the machine
        self._known: dict[str, tuple[int, str, RunFolder]] = {}
        self.root.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        for folder in (self.runs_folder, self.logs_folder, self.root / "uploads", self.root / "drafts"):
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def find(cls, name: str | None = None) -> "Workspace":
        """The workspace named, else that of LORA_STUDIO_HOME, else ./workspace (of a Space: where it may write)."""
        root = Path(name or os.environ.get("LORA_STUDIO_HOME") or usual_place(os.environ) / "workspace")
        try:
            return cls(root)
        except OSError as error:
            hint = "Choose another folder with --workspace or LORA_STUDIO_HOME."
            problem = "can't be written" if root.is_dir() else "can't be created"
            raise StudioError(f"The workspace {root} {problem}: {error.strerror}.", hint) from None

    def with_policy(self, policy: Callable[[], Policy]) -> "Workspace":
        """The same folder, as callers with that policy see it."""
        view = Workspace(self.root, policy)
        view.unrestricted = self.unrestricted
        return view

    @property
    def policy(self) -> Policy:
        """What the current caller may see and do."""
        return self._policy()

    def bound(self) -> "Workspace":
        """The same for the current caller, also after their request was answered."""
        policy = self.policy
        return self.with_policy(lambda: policy)

    @property
    def user_folder(self) -> Path:
        """The folder of what is one person's: uploads, drafts, presets, prompts, votes."""
        return self.policy.user_folder(self.root)

    @property
    def runs_folder(self) -> Path:
        return self.root / "runs"

    @property
    def evaluations_folder(self) -> Path:
        """Evaluations of adapters on test files; a run's own measurements are in its folder."""
        return self.root / "evaluations"

    @property
    def exports_folder(self) -> Path:
        """Adapters taken away: each in the form that another program reads."""
        return self.root / "exports"

    @property
    def benchmarks_folder(self) -> Path:
        """Adapters measured on public benchmarks."""
        return self.root / "benchmarks"

    @property
    def searches_folder(self) -> Path:
        """Searches for a learning rate."""
        return self.root / "searches"

    @property
    def uploads_folder(self) -> Path:
        return self.user_folder / "uploads"

    @property
    def adapters_folder(self) -> Path:
        """Adapters from elsewhere: uploaded, or fetched from the Hub."""
        return self.user_folder / "adapters"

    @property
    def prompt_sets_folder(self) -> Path:
        """Prompts that a person keeps to ask again and again."""
        return self.user_folder / "prompts"

    @property
    def votes(self) -> Path:
        """What a person found better without knowing whose answer it was, one vote a line."""
        return self.user_folder / "votes.jsonl"

    @property
    def logs_folder(self) -> Path:
        """Logs of session children, which belong to no run."""
        return self.root / "logs"

    @property
    def drafts_folder(self) -> Path:
        """What a person typed and did not send yet."""
        return self.user_folder / "drafts"

    @property
    def downloads_folder(self) -> Path:
        """Files made for a download, such as a zipped checkpoint; they go when newer ones are made."""
        return self.root / "downloads"

    @property
    def cache_folder(self) -> Path:
        """Prepared data, kept between starts; may be deleted at any time."""
        return self.root / _CACHE

    def cache_size(self) -> int:
        """Bytes that prepared data takes."""
        return sum(path.stat().st_size for path in self.cache_folder.rglob("*") if path.is_file())

    def clear_cache(self) -> int:
        """Removes all prepared data and returns the bytes freed. What is in use stays readable until it is let go."""
        if not self.policy.is_admin:
            raise StudioError("The cache is shared by all visitors.", "The owner can clear it.")
        freed = self.cache_size()
        shutil.rmtree(self.cache_folder, ignore_errors=True)
        return freed

    @property
    def presets_folder(self) -> Path:
        """Presets that the user saved."""
        return self.user_folder / "presets"

    @property
    def queue(self) -> Path:
        """The jobs that wait for the device, in order."""
        return self.root / "queue.json"

    @property
    def queue_lock(self) -> Path:
        """An empty file: whoever changes the queue holds its lock."""
        return self.root / "queue.lock"

    def create_run(self, title: str, text: str, facts: Mapping[str, Any], place: Path | None = None) -> RunFolder:
        """A new run folder with its config (YAML), named by time, title and four random letters; `place` holds it."""
        policy = self.policy
        policy.check_room()
        for _ in range(10):
            stamp = time.strftime("%Y%m%d-%H%M%S")
            name = safe_name(re.sub(r"[/\\]", " ", title), "run").lower()[:40]
            run = RunFolder((place or self.runs_folder) / f"{stamp}-{name}-{secrets.token_hex(2)}")
            try:
                run.path.mkdir(parents=True)
            except FileExistsError:
                continue
            write_atomically(run.config, text)
            request = {"title": title, "created": time.time(), "maker": policy.owner_id, **facts}
            write_atomically(run.facts, json.dumps(request, indent=2))
            policy.run_created()
            return run
        raise StudioError("The folder of a new run could not be created.", f"Check {self.runs_folder}.")

    def run(self, run_id: str, noun: str = "run") -> RunFolder:
        """The run of that id, the newest for "last", or the one that `files.meant` finds; StudioError for none."""
        run = self.run_named(run_id)
        if run is not None and self.policy.can_read(run):
            return run
        runs = {run.id: run for run in self.runs()}
        if run_id == "last" and runs:
            return next(iter(runs.values()))
        return runs[meant(run_id, list(runs), lambda name: str(runs[name].read_facts().get("title", "")), noun)]

    def runs(self) -> list[RunFolder]:
        """Every run that the caller may see, newest first. Only folders not seen before are looked into: what dates a
        run is written once."""
        policy = self.policy
        return [run for run in self.unrestricted._all_runs() if policy.can_read(run)]

    def _all_runs(self) -> list[RunFolder]:
        names = {name: self._known.get(name) or self._dated(name) for name in os.listdir(self.runs_folder)}
        self._known = {name: dated for name, dated in names.items() if dated is not None}
        return [run for _, _, run in sorted(self._known.values(), key=lambda item: item[:2], reverse=True)]

    def run_named(self, name: str) -> RunFolder | None:
        """The run of that very id, whoever made it."""
        dated = self._dated(name)
        return dated[2] if dated else None

    def _dated(self, name: str) -> tuple[int, str, RunFolder] | None:
        """When the run of that very name was made, its id and its folder; None where it is no run."""
        run = RunFolder(self.runs_folder / name)
        if run.id != name or name.startswith("."):
            return None
        try:
            return run.facts.stat().st_mtime_ns, name, run
        except (OSError, ValueError):  # also a name that no folder can bear
            return None

    def save_upload(self, source: Path, name: str | None = None) -> Path:
        """Copies a file into the workspace under a safe name; a different file of that name is never overwritten."""
        self.policy.check_room(source.stat().st_size)
        wanted = safe_name(name or source.name)
        for candidate in numbered(self.uploads_folder / wanted):
            if not candidate.exists():
                with self._copied([source]) as hidden:
                    return (hidden / safe_name(source.name)).rename(candidate)
            if same_content(candidate, source):
                return candidate
        raise AssertionError("unreachable: numbered never ends")

    def save_uploads(self, sources: Sequence[Path]) -> Path:
        """Copies files that belong together into a new folder of the workspace; a single file stands by itself."""
        if len(sources) == 1:
            return self.save_upload(sources[0])
        self.policy.check_room(sum(source.stat().st_size for source in sources))
        name = f"{safe_name(sources[0].stem)}-and-{len(sources) - 1}-more"
        folder = next(path for path in numbered(self.uploads_folder / name) if not path.exists())
        with self._copied(sources) as hidden:
            return hidden.rename(folder)

    @contextmanager
    def _copied(self, sources: Sequence[Path]) -> Iterator[Path]:
        """A folder out of sight with copies of files, to be given their names once all is there; the rest goes.

        Raises `StudioError` where the disk is full.
        """
        hidden = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.uploads_folder))
        hidden.chmod(self.uploads_folder.stat().st_mode & 0o777)  # it may become a folder of uploads itself
        try:
            for source in sources:
                wanted = hidden / safe_name(source.name)
                shutil.copyfile(source, next(path for path in numbered(wanted) if not path.exists()))
            yield hidden
        except OSError as error:
            raise StudioError(
                f"{sources[0].name} cannot be stored: {error.strerror}.", "Free some space on the disk, and try again."
            ) from None
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def uploads(self) -> list[Path]:
        """The caller's uploads, files and folders, newest first; then those of others that they may see."""
        files = [path for path in self.uploads_folder.iterdir() if not path.name.startswith(".")]
        newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
        return newest + self.policy.uploads_of_others(self.root)

    def read_draft(self, name: str) -> Any:
        """What `write_draft` kept under that name; None where nothing (readable) is there."""
        try:
            return json.loads((self.drafts_folder / f"{safe_name(name)}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def write_draft(self, name: str, value: Any) -> None:
        """Keeps a JSON value so that a reload or restart brings it back. Raises `StudioError` without room for it."""
        path, text = self.drafts_folder / f"{safe_name(name)}.json", json.dumps(value, ensure_ascii=False)
        before = path.stat().st_size if path.exists() else 0
        self.policy.check_growth(len(text.encode("utf-8", "surrogatepass")) - before)
        try:
            write_atomically(path, text)
        except OSError as error:
            hint = "Free some space on the disk. Until then, a reload restores the earlier state."
            raise StudioError(f"Your changes cannot be stored: {error.strerror}.", hint) from None
