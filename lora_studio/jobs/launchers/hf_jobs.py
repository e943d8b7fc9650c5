"""Workers on rented GPUs, by Hugging Face Jobs: what a job may cost, whether it can start, and how it is followed.

Each job has a courier on this machine (`hf_sync`): a process that takes the run to the Hub, follows it there and brings
events, checkpoints and adapter back into the run's folder. It outlives page and terminal; if it dies, the next look
at the job starts another.
"""

import fcntl
import fnmatch
import importlib.metadata
import io
import json
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lora_studio.config.fields import read_yaml, setting
from lora_studio.errors import StudioError
from lora_studio.files import is_time, read_object, split_sheet, with_sheet
from lora_studio.jobs.events import Reason
from lora_studio.jobs.launchers import Exit, Target, Wait
from lora_studio.jobs.launchers.local import (
    LocalLauncher,
    find,
    python_module,
    read_worker,
    write_worker,
)
from lora_studio.models.hub import (
    JOBS_TOKEN,
    OWN_ACCOUNT,
    VARIABLE,
    VISITORS,
    Charge,
    Offer,
    jobs_offer,
    token_in,
    usual_offer,
)
from lora_studio.workspace import DEMO_MODEL, JobFolder, RunFolder, safe_name, shipped_data, write_atomically

IMAGE = "ghcr.io/astral-sh/uv:python3.11-bookworm"
"""Debian with the Python that LoRA Studio is tested on, uv, which installs PyTorch in less of the billed time than pip,
and a C compiler, which Triton needs. The pinned packages of this installation are installed into it."""
BUCKET = "lora-studio-jobs"
PLACE = "place.json"
"""In a run's folder, the terms of its job on the Hub and what was last seen of it there."""
PACKAGES = (
    *("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "tokenizers", "safetensors"),
    *("huggingface_hub", "pandas", "pydantic", "annotated-types", "PyYAML", "Jinja2", "numpy", "pyarrow", "openpyxl"),
    *("charset-normalizer", "nvidia-ml-py", "psutil", "tensorboard", "scipy", "sacrebleu", "rouge_score"),
)
"""What a worker needs; a job gets the versions of this installation."""
STAYS = ("run.json", "config.yaml", "labels.json", "folded.json", "worker.json", PLACE, "courier.log")
"""Files of a run's folder that belong to the side on which they lie."""
MOUNT = "/lora-studio-run"
SCRIPT = f"""set -e
export LORA_STUDIO_BEGAN=$(date +%s)
cd "${{TMPDIR:-/tmp}}"
python -m zipfile -e {MOUNT}/package.zip package
install="python -m pip install"
if command -v uv > /dev/null; then install="uv pip install --break-system-packages --python $(command -v python)"; fi
{{torch}}$install -r {MOUNT}/requirements.txt
export PYTHONPATH="$PWD/package${{PYTHONPATH:+:$PYTHONPATH}}"
exec python -P -m lora_studio.jobs.launchers.hf_sync --there {MOUNT}
"""
TORCH_FOR_CPU = "$install --index-url https://download.pytorch.org/whl/cpu torch=={version}\n"
COURIER = "lora_studio.jobs.launchers.hf_sync"
REVIVE_SECONDS = 30.0  # between two couriers of a job
SAVE_AND_SEND_SECONDS = 900.0  # a worker that was asked to stop has so long to save, and its job to upload that
UPLOADING, SUBMITTING = "UPLOADING", "SUBMITTING"
STAGES = {UPLOADING: "Uploading", SUBMITTING: "Submitting", "SCHEDULING": "Scheduling", "RUNNING": "Running"}
"""Stages of a job that has not ended, as a person reads them."""
WAITING = (UPLOADING, SUBMITTING, "SCHEDULING")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MIN_SECONDS, MAX_SECONDS = 300, 7 * 86400


class HubTarget(Target):
    """A kind of machine on Hugging Face Jobs. Visitors pay with their own account, never with the owner's."""

    flavor: str = setting(
        "a10g-small",
        "Hardware",
        "A flavor of Hugging Face Jobs, such as t4-small or a10g-large.",
        pattern=r"[a-z0-9-]{1,40}",
    )
    timeout: str = setting(
        "2h", "Time limit", "The job ends after that time: 30m, 2h, 1d.", pattern=r"[0-9]{1,4}(\.[0-9])?[smhd]"
    )
    namespace: str = setting(
        "", "Account", "User or organization that pays. Empty: the token's own.", pattern=r"([A-Za-z0-9][\w.-]{0,95})?"
    )
    image: str = setting(
        IMAGE,
        "Docker image",
        "Needs Python 3.11 and sh. Packages that it lacks are installed.",
        min_length=1,
        max_length=300,
    )
    keep: bool = setting(False, "Keep files on the Hub", "Off: they are deleted once everything has come back.")
    prepaid: bool = setting(False, "Prepaid credits", "The account pays with credits and has no payment method.")

    @property
    def offer(self) -> Offer | None:
        try:
            return usual_offer(self.flavor, self.seconds)
        except StudioError:  # a time limit that is not possible
            return None

    @property
    def trains_only(self) -> bool:
        return True

    @property
    def ranks(self) -> int:
        """One for each GPU, whose number ends the name of a flavor with several: a10g-largex4."""
        several = re.search(r"x([1-9][0-9]?)$", self.flavor)
        return int(several[1]) if several else 1

    @property
    def device_kind(self) -> str:
        return "cpu" if self.flavor.startswith("cpu") else "cuda"

    @property
    def seconds(self) -> int:
        """The time limit. Raises `StudioError` where it is too short to install and save, or longer than a week."""
        seconds = int(float(self.timeout[:-1]) * _UNITS[self.timeout[-1]])
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise StudioError(f"The time limit {self.timeout} is not possible.", "Choose 5m to 7d.")
        return seconds


@dataclass(frozen=True, slots=True)
class Place:
    """What `place.json` holds: the terms of a job on the Hub, and what was last seen of it. Its courier writes it.

    `stage` is one of `WAITING`, or what the Hub calls it, since `since`. The job had run for `seconds` at the time
    `measured`; `spent` are dollars of earlier jobs of the same run. `trouble` is what keeps the courier from its work.
    `nonce` marks the job on the Hub, so that one whose confirmation was lost is found again. `out_of_time`: the worker
    was stopped because of the time limit. `ended`: it ended there, and everything is here.
    """

    target: str
    flavor: str
    hardware: str
    dollars_per_hour: float
    timeout: int
    image: str
    module: str
    account: str = ""
    namespace: str = ""
    own_token: bool = False
    keep: bool = False
    resume: bool = False
    nonce: str = ""
    job: str = ""
    url: str = ""
    stage: str = UPLOADING
    since: float = 0.0
    message: str = ""
    seconds: float = 0.0
    measured: float = 0.0
    spent: float = 0.0
    trouble: str = ""
    out_of_time: bool = False
    ended: bool = False
    synced: dict[str, str] = field(default_factory=dict)

    @property
    def bucket(self) -> str:
        return f"{self.namespace}/{BUCKET}"

    @property
    def charge(self) -> Charge:
        """What it costs."""
        return Charge(
            hardware=self.hardware,
            dollars_per_hour=self.dollars_per_hour,
            max_seconds=float(self.timeout),
            seconds=self.seconds,
            measured=self.measured,
            running=self.stage == "RUNNING" and not self.ended,
            spent=self.spent,
            stage=STAGES.get(self.stage, ""),
            since=self.since,
            url=self.url,
            trouble=self.trouble,
        )


def read_place(folder: JobFolder) -> Place | None:
    """What is known of a job on the Hub; None where there is none, or where its file is damaged."""
    try:
        place = Place(**read_object(folder.path / PLACE))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    numbers = (place.dollars_per_hour, place.timeout, place.seconds, place.spent)
    times = all(map(is_time, (place.since, place.measured, *numbers)))
    words = (place.target, place.stage, place.job, place.url, place.message, place.trouble, place.hardware)
    return place if times and all(isinstance(word, str) for word in words) and isinstance(place.synced, dict) else None


def write_place(folder: JobFolder, place: Place) -> None:
    write_atomically(folder.path / PLACE, json.dumps(asdict(place), indent=1))


# -- what travels to the job


def requirements() -> str:
    """The packages of a worker with their versions here, of torch whatever build the job's index offers."""
    return "".join(f"{name}=={version_of(name)}\n" for name in PACKAGES)


def version_of(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


def script(*, cpu: bool) -> str:
    """What a job runs, by sh: it unpacks this package, installs what a worker needs, and starts the other end. PyPI's
    torch is the CUDA build; a machine without a GPU gets the smaller one."""
    return SCRIPT.replace("{torch}", TORCH_FOR_CPU.format(version=version_of("torch")) if cpu else "")


def package_zip(*, demo_model: bool) -> bytes:
    """LoRA Studio's own source without the page; the built-in model only where it is trained."""
    root = Path(__file__).resolve().parents[2]
    left_out = {"ui", "__pycache__"}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and not left_out & set(parts) and (demo_model or parts[:2] != ("demo", "model")):
                archive.write(path, str(Path(root.name, *parts)))
    return content.getvalue()


def files_of_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a config that name files or folders of this machine, by their paths ("data.train_file")."""
    names = {
        "data.train_file": config.get("data", {}).get("train_file"),
        "data.validation_file": config.get("data", {}).get("validation_file"),
        "model.name": config.get("model", {}).get("name"),
        "model.adapter_name_or_path": config.get("model", {}).get("adapter_name_or_path"),
    }
    local = {path: os.path.expanduser(name) for path, name in names.items() if isinstance(name, str) and name}
    return {
        path: name
        for path, name in local.items()
        if name != DEMO_MODEL and name not in shipped_data() and (_exists(name) or _matches(name))
    }


def _exists(name: str) -> bool:
    return os.path.exists(split_sheet(name)[0])


def _matches(name: str) -> list[Path]:
    """The files of a pattern such as /data/part-*.jsonl."""
    pattern = Path(split_sheet(name)[0])
    if not set("*?[") & set(pattern.name) or not pattern.parent.is_dir():
        return []
    return sorted(path for path in pattern.parent.iterdir() if fnmatch.fnmatch(path.name, pattern.name))


def bundle(folder: RunFolder, place: Place, every: float) -> list[tuple[Path | bytes, str]]:
    """Everything that a job is given, each with its place below the mount: this package, its requirements, the run's
    folder so far, and the files and folders that its config names."""
    config = read_yaml(folder.config)
    parcels: list[tuple[Path | bytes, str]] = []
    paths: dict[str, list[str]] = {}
    for number, (path_of_setting, name) in enumerate(files_of_config(config).items()):
        path, sheet = split_sheet(name)
        source, below = Path(path), f"files/{number}"
        paths[path_of_setting] = [with_sheet(f"{below}/{_plain_name(source)}", sheet), name]
        parcels += [(path, f"{below}/{inner}") for path, inner in _contents(source)]
    order = {
        "run": folder.id,
        "here": str(folder.path),
        "module": place.module,
        "resume": place.resume,
        "timeout": place.timeout,
        "bucket": place.bucket,
        "prefix": prefix_of(folder, place),
        "every": every,
        "paths": paths,
    }
    demo = config.get("model", {}).get("name", DEMO_MODEL) == DEMO_MODEL
    parcels += [(path, f"run/{inner}") for path, inner in _run_so_far(folder)]
    return [
        *parcels,
        (json.dumps(order, indent=1).encode(), "order.json"),
        (requirements().encode(), "requirements.txt"),
        (package_zip(demo_model=demo), "package.zip"),
    ]


def _contents(source: Path) -> list[tuple[Path, str]]:
    """Every file of a file, a folder or a pattern, with its name below the folder that it travels in."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
        return [(path, str(PurePosixPath(_plain_name(source), *path.relative_to(source).parts))) for path in files]
    if source.is_file():
        return [(source, _plain_name(source))]
    return [(path, path.name) for path in _matches(str(source))]


def _plain_name(source: Path) -> str:
    """A name of plain letters, which JSON writes as it is; a pattern stays what it is."""
    return safe_name(source.name) if source.exists() else source.name


def _run_so_far(folder: RunFolder) -> list[tuple[Path, str]]:
    """What an earlier worker left that the next one goes on from: whole checkpoints, events and log."""
    torn = set(folder.checkpoints.glob("*")) - set(folder.checkpoint_folders())
    files = [path for path in folder.path.rglob("*") if path.is_file() and not torn & set(path.parents)]
    inner = [(path, str(PurePosixPath(*path.relative_to(folder.path).parts))) for path in sorted(files)]
    stays = set(STAYS) - {folder.config.name, folder.facts.name}
    return [(path, name) for path, name in inner if name not in stays and not name.startswith(".")]


def prefix_of(folder: RunFolder, place: Place) -> str:
    """The folder of a job in its bucket: each start of a run has its own."""
    return f"{folder.id}-{place.nonce}"


# -- what comes back


def may_come(name: str) -> bool:
    """Whether a file of a job may be written into the run's folder."""
    parts = PurePosixPath(name).parts
    safe = bool(parts) and not PurePosixPath(name).is_absolute() and not any(part.startswith(".") for part in parts)
    return safe and name not in STAYS


def put_in_place(incoming: Path, folder: RunFolder, names: Sequence[str]) -> None:
    """Moves files that arrived to their places, in the order in which a reader may rely on them."""
    last = [folder.complete.name, folder.log.name, folder.events.name]
    grows = (folder.log.name, folder.events.name)
    whole = {str(PurePosixPath(*PurePosixPath(name).parts[:-1])) for name in names if "/" in name}
    for below in sorted(whole, key=lambda name: name.count("/")):  # a folder that is new comes with all its files
        if (incoming / below).is_dir() and not (folder.path / below).exists():
            (folder.path / below).parent.mkdir(parents=True, exist_ok=True)
            (incoming / below).rename(folder.path / below)
    for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
        source, target = incoming / name, folder.path / name
        if not source.exists():
            continue  # it came with its folder
        if name in grows:
            mirror(target, source.read_bytes())
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    shutil.rmtree(incoming, ignore_errors=True)


def mirror(path: Path, content: bytes) -> None:
    """Makes a growing file what it is there. Readers remember how far they came, so what is new is added behind."""
    before = path.read_bytes() if path.exists() else b""
    if before.startswith(content):
        return
    if content.startswith(before):
        with path.open("ab") as file:
            file.write(content[len(before) :])
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def remove_file(root: Path, name: str) -> None:
    path = root / name
    path.unlink(missing_ok=True)
    with suppress(OSError):  # until its last file has gone
        path.parent.rmdir()


# -- the launcher


class HfJobsLauncher(LocalLauncher):
    """A `Launcher` whose workers run on Hugging Face Jobs: what is alive here is the courier of a job, or the job.

    `target_of` gives name and settings of the target of a job; `env_of` the environment that its courier gets of
    tokens, for None that of whoever asks.
    """

    def __init__(
        self,
        target_of: Callable[[JobFolder], tuple[str, Target]],
        env_of: Callable[[JobFolder | None], Mapping[str, str]],
    ) -> None:
        super().__init__(python_module(COURIER))
        self._target_of, self._env_of = target_of, env_of
        self._revived: dict[str, float] = {}

    def check(self, name: str, target: Target, paths: Iterable[Path]) -> str:
        return self._offer(target).words

    def try_out(self, name: str, target: Target, folder: Path) -> str:
        return self._offer(target).words

    def _offer(self, target: Target) -> Offer:
        assert isinstance(target, HubTarget)
        env = self._env_of(None)
        return jobs_offer(
            target.flavor,
            target.seconds,
            token_in(env),
            namespace=target.namespace,
            prepaid=target.prepaid,
            visitor=VARIABLE in env,
        )

    def start(
        self, folder: JobFolder, module: str, *, resume: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        (name, target), before = self._target_of(folder), read_place(folder)
        assert isinstance(target, HubTarget)
        env = {**(env or {}), **self._env_of(folder)}
        visitor = VARIABLE in env or folder.owner_id.startswith(VISITORS)
        if visitor and not env.get(JOBS_TOKEN):
            raise StudioError(*OWN_ACCOUNT)
        terms = Place(
            target=name,
            flavor=target.flavor,
            hardware=target.flavor,
            dollars_per_hour=0.0,
            timeout=target.seconds,
            image=target.image,
            module=module,
            namespace=target.namespace,
            own_token=visitor,
            keep=target.keep or visitor,  # a visitor has their own files on the Hub, and little room here
            resume=resume,
            nonce=secrets.token_hex(8),
            since=time.time(),
            spent=before.charge.at(time.time()) if before else 0.0,
        )
        write_place(folder, terms)
        super().start(folder, module, resume=resume, env=_courier_environment(env))

    def log_of(self, folder: JobFolder) -> Path:
        """The courier's own log: `worker.log` is that of the worker, which it brings."""
        return folder.path / "courier.log"

    def is_alive(self, folder: JobFolder) -> bool:
        return super().is_alive(folder) or self._revive(folder)

    def _revive(self, folder: JobFolder) -> bool:
        """Starts a courier where the last one died before its job was done; whether the job may still be there."""
        place, worker = read_place(folder), read_worker(folder)
        if place is None or worker is None or place.ended:
            return False
        if place.stage == UPLOADING and (worker.stop_asked or worker.killed):
            return False  # nothing was started on the Hub
        if time.monotonic() - self._revived.get(folder.id, -REVIVE_SECONDS) < REVIVE_SECONDS:
            return True
        self._revived[folder.id] = time.monotonic()
        with suppress(BlockingIOError), _alone(folder):
            if find(folder) is None:
                words = [*python_module(COURIER), str(folder.path)]
                pid, started = self.spawn(folder, words, _courier_environment(self._env_of(folder)))
                write_worker(folder, replace(read_worker(folder) or worker, pid=pid, started=started))
        return True

    def waits(self, folder: JobFolder) -> Wait | None:
        place = read_place(folder)
        if place is None or place.ended or place.stage not in WAITING:
            return None
        since = time.strftime("%H:%M", time.localtime(place.since))
        reason = f"{STAGES[place.stage].lower()} since {since} for {place.flavor}"
        return Wait(f"{reason} ({place.trouble})" if place.trouble else reason, place.since)

    def charge(self, folder: JobFolder) -> Charge | None:
        place = read_place(folder)
        return place.charge if place else None

    def kill(self, folder: JobFolder, *, cancelled: bool = False, reason: str = "") -> bool:
        """Cancels the job on the Hub: its courier does, and goes when the Hub has confirmed it.

        A worker that only takes its time to save what it has goes on.
        """
        place, worker = read_place(folder), read_worker(folder)
        if worker is None or (place is not None and place.ended):
            return False
        if place is None or (place.stage == UPLOADING and not place.job):
            return super().kill(folder, cancelled=cancelled, reason=reason)
        stop_asked = worker.stop_asked
        if not cancelled and not reason and stop_asked and time.time() - stop_asked < SAVE_AND_SEND_SECONDS:
            return True
        now = time.time()
        ends = replace(worker, stop_asked=stop_asked or now, killed=now, cancelled=cancelled, reason=reason)
        write_worker(folder, ends)
        return True

    def how_it_ended(self, folder: JobFolder) -> Exit:
        place = read_place(folder)
        reason = Reason.OUT_OF_TIME if place is not None and place.out_of_time else None
        return Exit(super().how_it_ended(folder).code, reason=reason)


def _courier_environment(env: Mapping[str, str]) -> dict[str, str]:
    """A courier's environment: it has no other token than the one that pays."""
    plain = {name: value for name, value in env.items() if name != JOBS_TOKEN}
    if env.get(JOBS_TOKEN):
        plain[VARIABLE] = env[JOBS_TOKEN]
    return {**plain, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def _alone(folder: JobFolder) -> Iterator[None]:
    """Only one process at a time starts a courier. Raises `BlockingIOError` in all others."""
    file = os.open(folder.path / ".courier.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)
