"""Workers on a Slurm cluster, by its own commands: sbatch, squeue, sacct and scancel.

A job's folder lies on a file system that the nodes share, so events, log and checkpoints need no copying. The folder
gets a `job.slurm` that a person can read and submit as well; worker.json records the number of the Slurm job and what
the cluster last said of it.
"""

import contextlib
import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lora_studio import __version__
from lora_studio.errors import StudioError
from lora_studio.files import end_last_line, is_time, read_object
from lora_studio.jobs.events import Reason
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.launchers import Exit, SlurmTarget, Target, Wait, Worker, last_lines
from lora_studio.jobs.launchers.local import child_environment, python_module
from lora_studio.models.hardware import CPU_ONLY, VISIBLE
from lora_studio.models.hub import Charge
from lora_studio.workspace import JobFolder, write_atomically

SAVE_SECONDS = 120
"""Time before the end of its time limit at which a worker is asked to save."""
EARLY_SECONDS = 70
"""Slurm may ask so much earlier than that: it looks at the limits once a minute."""
PACKAGE_PARENT = Path(__file__).resolve().parents[3]
NOT_THERE = 78
"""The exit code of a job whose folder the node does not have."""
SCRIPT = "job.slurm"
"""The file in a job's folder that the cluster is given."""
STOPPED = 130
LAST_WORDS_SECONDS = 15
"""How long the end of another rank waits for that of the first."""
POLL_SECONDS, FIRST_ANSWER_SECONDS, ANSWER_SECONDS, TRIAL_SECONDS = 3.0, 3.0, 30.0, 20
"""Time between two looks at the cluster's queue; how long the first one is waited for; the time within which any other
command has to answer, and within which a node has to be free for a trial."""


_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_ALIVE = (*_WAITING, "SUSPENDED", "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")
_REASONS: Mapping[str, Reason] = {
    "CANCELLED": Reason.CANCELLED_ELSEWHERE,
    "REVOKED": Reason.CANCELLED_ELSEWHERE,
    "TIMEOUT": Reason.OUT_OF_TIME,
    "DEADLINE": Reason.OUT_OF_TIME,
    "NODE_FAIL": Reason.NODE_FAILED,
    "BOOT_FAIL": Reason.NODE_FAILED,
    "PREEMPTED": Reason.PREEMPTED,
    "OUT_OF_MEMORY": Reason.MEMORY_KILL,
}
"""Slurm's words for ends that the worker had no part in."""
_WAITS: Mapping[str, str] = {
    "Resources": "no free nodes",
    "Priority": "other jobs come first",
    "Dependency": "its earlier job is still ending",
    "BeginTime": "it begins again shortly",
    "ReqNodeNotAvail": "its nodes are down or reserved",
    "Nodes required for job are DOWN": "its nodes are down, or kept for jobs that come first",
}
"""Slurm's most frequent reasons in words."""
_GONE = "GONE"
"""The state of a Slurm job that the cluster has forgotten."""


@dataclass(frozen=True, slots=True)
class SlurmWorker:
    """What `worker.json` holds: the Slurm job, what was asked of it, and what the cluster last said of it.

    `launched` is when it was submitted, later when its latest start began: the cluster may start a job several times.
    `state` is Slurm's word for it, "" before the first look. `wait` says since `since` why it waits, `expected` when it
    is to start. `at_limit`: its time was as good as over when it ended.
    """

    slurm_job: str
    launched: float
    stop_asked: float | None = None
    killed: float | None = None
    cancelled: bool = False
    reason: str = ""
    state: str = ""
    wait: str = ""
    since: float = 0.0
    expected: float | None = None
    restarts: int = 0
    nodes: str = ""
    code: int | None = None
    at_limit: bool = False

    @property
    def alive(self) -> bool:
        return not self.state or self.state in _ALIVE


def read_worker(folder: JobFolder) -> SlurmWorker | None:
    """The job's latest worker, alive or not; None where none was ever started, or where its file is damaged."""
    try:
        worker = SlurmWorker(**read_object(folder.worker))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    times = (worker.launched, worker.since, worker.stop_asked or 0.0, worker.killed or 0.0, worker.expected or 0.0)
    words = (worker.reason, worker.state, worker.wait, worker.nodes)
    numbered = isinstance(worker.slurm_job, str) and worker.slurm_job.isdecimal()
    return worker if numbered and all(map(is_time, times)) and all(isinstance(word, str) for word in words) else None


def _write(folder: JobFolder, worker: SlurmWorker) -> None:
    write_atomically(folder.worker, json.dumps(asdict(worker)))


# -- the commands


def _run(command: Sequence[str], *, text: str = "", env: Mapping[str, str] | None = None) -> str:
    """What a command of Slurm prints, notes included. Raises `StudioError` in a sentence for what it refuses."""
    try:
        ended = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=_environment(env)
        )
    except FileNotFoundError:
        raise StudioError(
            f"{command[0]} is not installed on this machine.",
            "Install Slurm's commands, or start LoRA Studio on a login node of the cluster.",
        ) from None
    except subprocess.TimeoutExpired:
        raise _no_answer() from None
    if ended.returncode:
        raise _refusal(ended.stderr or ended.stdout)
    return ended.stdout + ended.stderr


def _no_answer() -> StudioError:
    return StudioError("The cluster's controller (slurmctld) does not answer.", "Try again when `sinfo` answers.")


def _refusal(words: str) -> StudioError:
    """What Slurm says in its own way, as a sentence."""
    lowered = words.lower()
    if "munge" in lowered or "authentication" in lowered:
        return StudioError(
            "Slurm cannot prove who you are: munge does not run on this machine.", "Start munged, and try again."
        )
    if "unable to contact slurm controller" in lowered or "connect failure" in lowered or "timed out" in lowered:
        return _no_answer()
    lines = [line.rpartition("error: ")[2].strip() for line in words.splitlines() if line.strip()]
    last = (lines or ["no reason given"])[-1].removeprefix("Batch job submission failed: ")
    return StudioError(f"Slurm refuses the job: {last.removeprefix('allocation failure: ').rstrip('.')}.")


_NOT_THERE = ("PYTHONPATH", *CPU_ONLY, *(name for choices in VISIBLE.values() for names in choices for name in names))
"""What holds for processes of this machine alone."""


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of Slurm's commands, which a job inherits; they write times as seconds."""
    own = {name: value for name, value in child_environment().items() if name not in _NOT_THERE}
    return {**own, **(extra or {}), "SLURM_TIME_FORMAT": "%s"}


# -- the script


def script(
    name: str,
    target: SlurmTarget,
    folder: JobFolder,
    module: str,
    *,
    resume: bool,
    command: Sequence[str] | None = None,
) -> str:
    """The `job.slurm` of a job: it starts the worker once for each device, as ranks of torch.distributed where there
    are several, and goes on from what was saved when the cluster starts it again."""
    kind = next(kind for kind in KINDS.values() if kind.module == module)
    path, record = shlex.quote(str(folder.path)), folder.worker.name
    several = kind is TRAIN and target.ranks > 1
    begins = f"bash -c '{_RANK}' rank " if several else ""
    worker = shlex.join(command or (["python", *_OPTIONS, module] if target.environment else python_module(module)))
    lines = [
        "#!/usr/bin/env bash",
        f"# LoRA Studio: {folder.id} on {name}. To submit it by hand: sbatch {SCRIPT}",
        *(f"#SBATCH {option}" for option in [*_of_folder(folder), *_resources(target, trains=kind is TRAIN)]),
        "",
        "# A node without the folder shares no file system with the studio.",
        f"cd {path} && [ -f {folder.facts.name} ] || exit {NOT_THERE}",
        "# The record of the Slurm job that does the work.",
        f'if ! grep -qs "\\"slurm_job\\": \\"$SLURM_JOB_ID\\"" {record}; then',
        f'  echo "{{\\"slurm_job\\": \\"$SLURM_JOB_ID\\", \\"launched\\": $(date +%s)}}" > .{record}',
        f"  mv .{record} {record}",
        "fi",
        "",
        "export PYTHONUNBUFFERED=1",
        *_python_lines(target),
        *(_RENDEZVOUS if several else ()),
        *_resume_lines(kind.resumes, resume=resume, checkpoints=kind is TRAIN),
        "code=0",
        f"srun --kill-on-bad-exit=1 {begins}{worker} {path} $resume || code=$?",
        *(_again(target, record) if kind.resumes else ()),
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


_OPTIONS = ("-P", "-m")
_RANK = f"""
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  trap : TERM
  "$@"
  code=$?
  # The end of one rank ends all: the first one, which writes what happened, comes before the others.
  if [ "$RANK" -gt 0 ] && [ $code = {STOPPED} ]; then code=0; fi
  if [ "$RANK" -gt 0 ] && [ $code != 0 ]; then sleep {LAST_WORDS_SECONDS}; fi
  exit $code"""
_RENDEZVOUS = (
    "# Each task is a rank of torch.distributed; this node is where they meet.",
    "export MASTER_ADDR=$(hostname)",
    "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
)


def _of_folder(folder: JobFolder) -> list[str]:
    """The options that name the job and its files. Of jobs of a name and a user one works at a time."""
    output = str(folder.log).replace("%", "%%")
    return [
        f"--job-name={folder.id}",
        "--dependency=singleton",
        f"--chdir={shlex.quote(str(folder.path))}",
        f"--output={shlex.quote(output)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{SAVE_SECONDS}",
    ]


def _resources(target: SlurmTarget, *, trains: bool) -> list[str]:
    """The options that say what the job gets; what trains gets all of the target, other jobs one process of it."""
    words = {name: str(getattr(target, name)) for name in ("partition", "account", "qos", "time", "mem")}
    gpus = target.gpus_per_node if trains else min(1, target.gpus_per_node)
    return [
        *(f"--{name}={value}" for name, value in words.items() if value),
        f"--nodes={target.nodes if trains else 1}",
        f"--ntasks-per-node={max(1, gpus)}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        *target.extra.splitlines(),
    ]


def _python_lines(target: SlurmTarget) -> list[str]:
    """What makes python find the package: the target's own command, else this installation."""
    if target.environment:
        return [target.environment]
    return [f"export PYTHONPATH={shlex.quote(str(PACKAGE_PARENT))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _resume_lines(resumes: bool, *, resume: bool, checkpoints: bool) -> list[str]:
    if resume or not resumes:
        return [f"resume={'--resume' if resume else ''}"]
    saved = " && compgen -G 'checkpoints/checkpoint-*' > /dev/null" if checkpoints else ""
    return [
        "# Started again by the cluster, it goes on from what was saved.",
        "resume=",
        f'if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ]{saved}; then resume=--resume; fi',
    ]


def _again(target: SlurmTarget, record: str) -> list[str]:
    """Puts a job back in the queue that the cluster asked to stop, and not a person in the studio or by scancel."""
    over = ["preempted"]
    if target.resume_at_time_limit:
        over.append(f'[ "$((end - $(date +%s)))" -lt {SAVE_SECONDS + EARLY_SECONDS} ]')
    return [
        "# Stopped by the cluster to make room, or as its time is over: it goes on when there is room again.",
        f"if [ $code = {STOPPED} ] && ! grep -qs '\"stop_asked\": [0-9]' {record}; then",
        '  read -r state end < <(SLURM_TIME_FORMAT=%s squeue --noheader --jobs="$SLURM_JOB_ID" --format="%T %e")',
        '  preempted() { scontrol show job "$SLURM_JOB_ID" | grep -q "PreemptTime=[0-9]"; }',
        f'  if [ "$state" = RUNNING ] && {{ {" || ".join(over)}; }}; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "fi",
    ]


# -- what the cluster says


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A line of squeue or sacct: times in seconds, None where there is none; `code` as a process ends with it."""

    id: str
    state: str
    reason: str = ""
    submitted: float | None = None
    start: float | None = None
    end: float | None = None
    limit: float | None = None
    restarts: int = 0
    nodes: str = ""
    code: int | None = None


_COLUMNS = ("JobID", "State", "Reason", "SubmitTime", "StartTime", "EndTime", "TimeLimit", "RestartCnt", "exit_code")
WIDTH = 128
SQUEUE = (
    "squeue",
    "--me",
    "--noheader",
    "--states=all",
    f"--Format={','.join(f'{name}:{WIDTH}' for name in (*_COLUMNS, 'NodeList'))}",
)
SACCT = ("sacct", "-X", "-n", "-P", "-o", "JobID,State,Submit,Start,End,TimelimitRaw,ExitCode,NodeList")


def read_squeue(text: str) -> dict[str, ClusterJob]:
    """The jobs of `SQUEUE`'s output by their numbers."""
    jobs = {}
    for line in text.splitlines():
        values = [line[at : at + WIDTH].strip() for at in range(0, WIDTH * (len(_COLUMNS) + 1), WIDTH)]
        number, state, reason, submitted, start, end, limit, restarts, code, nodes = values
        if number.isdecimal():
            at, begun, over = map(_seconds, (submitted, start, end))
            jobs[number] = ClusterJob(
                number, state, reason, at, begun, over, _duration(limit), int(restarts or 0), nodes, _exit_code(code)
            )
    return jobs


def read_sacct(text: str) -> ClusterJob | None:
    """The job of the last line of `SACCT`'s output; None for no line."""
    line = text.strip().rpartition("\n")[2]
    if line.count("|") != 7:
        return None
    number, state, submitted, start, end, minutes, code, nodes = line.split("|")
    limit = 60.0 * int(minutes) if minutes.isdecimal() else None
    at, begun, over = map(_seconds, (submitted, start, end))
    return ClusterJob(number, state.split()[0], "", at, begun, over, limit, 0, nodes, _exit_code(code))


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() and int(text) else None


def _duration(text: str) -> float | None:
    """1-02:03:04, 2:03:04 or 3:04 in seconds; None for UNLIMITED and the like."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in parts) or (days and not days.isdecimal()):
        return None
    seconds = sum(int(part) * 60**place for place, part in enumerate(reversed(parts)))
    return float(seconds + 86400 * int(days or 0))


def _exit_code(text: str) -> int | None:
    """Slurm's "code:signal", negative for a signal; squeue gives the code of wait(2) alone."""
    code, colon, number = text.partition(":")
    if not code.isdecimal() or (colon and not number.isdecimal()):
        return None
    if not colon:
        return -(int(code) & 0x7F) if int(code) & 0x7F else int(code) >> 8
    return -int(number) if int(number) else int(code)


def updated(worker: SlurmWorker, job: ClusterJob, now: float) -> SlurmWorker:
    """The record of a worker with what the cluster says of its job now."""
    waits = job.state in (*_WAITING, "SUSPENDED")
    if not waits:
        started = job.start if job.start and job.state in _ALIVE else 0.0
        at_limit = bool(job.start and job.end and job.limit) and _at_limit(job)
        return replace(
            worker,
            launched=max(worker.launched, started),  # Slurm's times are whole seconds
            state=job.state,
            wait="",
            expected=None,
            restarts=max(worker.restarts, job.restarts),
            nodes=job.nodes,
            code=None if job.state in _ALIVE else job.code,
            at_limit=at_limit and job.state not in _ALIVE,
        )
    reason = job.reason
    if reason in ("", "None", "(null)"):
        reason = "BeginTime" if job.restarts else job.state.capitalize()
    since = worker.since if worker.wait else job.submitted or now
    return replace(
        worker, state=job.state, wait=reason, since=since, expected=job.start, restarts=job.restarts, nodes=""
    )


def _at_limit(job: ClusterJob) -> bool:
    return (job.end or 0) - (job.start or 0) >= (job.limit or 0) - SAVE_SECONDS - EARLY_SECONDS


class SlurmLauncher:
    """A `RemoteLauncher` for Slurm. `target_of` gives a job's target with its name; `command` takes the place of the
    module that a kind of job is done by. The queue is asked once for all jobs, at most every `poll_seconds`, by a
    thread of its own: a controller that hangs must not hold the studio.
    """

    def __init__(
        self,
        target_of: Callable[[JobFolder], tuple[str, Target]],
        command: Sequence[str] | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._target_of, self._command, self._poll_seconds = target_of, command, poll_seconds
        self._asking: threading.Thread | None = None
        self._asked = self._answered = 0.0
        self._jobs: dict[str, ClusterJob] | None = None

    def start(
        self, folder: JobFolder, module: str, *, resume: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        name, target = self._target_of(folder)
        assert isinstance(target, SlurmTarget)
        folder.complete.unlink(missing_ok=True)
        end_last_line(folder.events)
        path = folder.path / SCRIPT
        write_atomically(path, script(name, target, folder, module, resume=resume, command=self._command))
        launched = time.time()
        answer = _run(["sbatch", "--parsable", str(path)], env=env)
        number = answer.strip().split("\n")[0].partition(";")[0]
        _write(folder, SlurmWorker(number, launched, state="PENDING", wait="Submitted", since=launched))
        self._asked = 0.0

    def worker(self, folder: JobFolder) -> Worker | None:
        record = read_worker(folder)
        if record is None:
            return None
        return Worker(
            record.launched, record.stop_asked, record.killed, record.cancelled, record.reason, record.restarts
        )

    def is_alive(self, folder: JobFolder) -> bool:
        worker = read_worker(folder)
        if worker is None or not worker.alive:
            return False
        self.collect()
        if self._jobs is None:
            return True
        job = self._jobs.get(worker.slurm_job)
        if job is None and self._answered > worker.launched + 1:  # not of before it was submitted
            job = _from_accounts(worker.slurm_job)
        if job is not None and updated(worker, job, time.time()) != worker:
            worker = updated(read_worker(folder) or worker, job, time.time())
            _write(folder, worker)
        return worker.alive

    def waits(self, folder: JobFolder) -> Wait | None:
        worker = read_worker(folder)
        if worker is None or not worker.alive or not worker.wait:
            return None
        word = worker.wait.partition(",")[0]
        reason = _WAITS.get(word, word)
        return Wait(reason if " " in word or reason == word else f"{reason} ({word})", worker.since, worker.expected)

    def charge(self, folder: JobFolder) -> Charge | None:
        return None

    def ask_to_stop(self, folder: JobFolder) -> bool:
        """SIGTERM to every process of the worker; a job that waits leaves the cluster's queue."""
        worker = read_worker(folder)
        if worker is None or not self.is_alive(folder):
            return False
        worker = read_worker(folder) or worker
        if worker.stop_asked is None:
            _write(folder, replace(worker, stop_asked=time.time()))
        _run(["scancel", *([] if worker.wait else ["--signal=TERM"]), worker.slurm_job])
        self._asked = 0.0
        return True

    def kill(self, folder: JobFolder, *, cancelled: bool = False, reason: str = "") -> bool:
        worker = read_worker(folder)
        if worker is None or not worker.alive:
            return False
        _write(folder, replace(worker, killed=time.time(), cancelled=cancelled, reason=reason))
        _run(["scancel", *([] if worker.wait else ["--signal=KILL", "--full"]), worker.slurm_job])
        self._asked = 0.0
        return True

    def collect(self) -> None:
        """Asks for the queue when it is time to. Only the first answer is waited for."""
        asking = self._asking is not None and self._asking.is_alive()
        if asking or time.time() - self._asked < self._poll_seconds:
            return
        self._asked = time.time()
        self._asking = threading.Thread(target=self._ask, args=[self._asked], name="squeue", daemon=True)
        self._asking.start()
        if self._jobs is None:
            self._asking.join(FIRST_ANSWER_SECONDS)

    def _ask(self, now: float) -> None:
        with contextlib.suppress(StudioError):  # what is known of the jobs stays as it is
            self._jobs, self._answered = read_squeue(_run(SQUEUE)), now

    def how_it_ended(self, folder: JobFolder) -> Exit:
        worker = read_worker(folder)
        if worker is None:
            return Exit()
        reason = _REASONS.get(worker.state)
        if worker.code == NOT_THERE:
            reason = Reason.NOT_SHARED
        elif worker.code == STOPPED and worker.at_limit:
            reason = reason or Reason.OUT_OF_TIME
        return Exit(worker.code, worker.state == "OUT_OF_MEMORY", reason)

    def log(self, folder: JobFolder, lines: int) -> str:
        return last_lines(folder.log, lines)

    def check(self, name: str, target: Target, paths: Iterable[Path]) -> str:
        assert isinstance(target, SlurmTarget)
        _check_shared(name, target, paths)
        options = "\n".join(f"#SBATCH {option}" for option in _resources(target, trains=True))
        try:
            _run(["sbatch", "--test-only"], text=f"#!/bin/sh\n{options}\n")
        except StudioError as error:
            if "invalid partition" not in error.message.lower():
                raise StudioError(f"{name}: {error.message}", error.hint) from None
            names = ", ".join(dict.fromkeys(_run(["sinfo", "--noheader", "--format=%R"]).split()))
            raise StudioError(
                f"{name}: the cluster takes no job in the partition {target.partition or 'of its default'!r}.",
                f"Its partitions: {names}. Slurm says: {error.message}",
            ) from None
        return ""

    def try_out(self, name: str, target: Target, folder: Path) -> str:
        assert isinstance(target, SlurmTarget)
        options = [option for option in _resources(target, trains=True) if not option.startswith("--ntasks")]
        python = "python" if target.environment else python_module("x")[0]
        asks = shlex.join([python, "-P", "-c", "import lora_studio; print(lora_studio.__version__)"])
        look = [
            *_python_lines(target),
            f"test -d {shlex.quote(str(folder))} && there=yes || there=no",
            f"version=$({asks} 2>&1 | tail -n 1)",
            'echo "node=$SLURMD_NODENAME folder=$there version=$version"',
        ]
        command = ["srun", *options, "--ntasks-per-node=1", f"--immediate={TRIAL_SECONDS}", "--chdir=/", "bash", "-c"]
        try:
            answer = _run([*command, "\n".join(look)])
        except StudioError as error:
            if "immediate" in error.message.lower() or "unable to allocate" in error.message.lower():
                return f"{name} takes jobs. No node was free to look at the folder and the environment."
            raise
        nodes = sorted(re.findall(r"^node=(\S+) folder=(yes|no) version=(.*)$", answer, re.MULTILINE))
        if blind := [node for node, visible, _ in nodes if visible == "no"]:
            raise StudioError(f"{name}: {folder} does not exist on {', '.join(blind)}.", _MOVE)
        if lacking := [(node, version) for node, _, version in nodes if version != __version__]:
            node, version = lacking[0]
            raise StudioError(
                f"{name}: python on {node} does not find LoRA Studio {__version__}: {version}.",
                "Set the command that makes the environment.",
            )
        return (
            f"{name} works: {', '.join(node for node, _, _ in nodes)} see the workspace and LoRA Studio {__version__}."
        )


_MOVE = "Put it on a file system that the nodes share, and name that folder in the target."


def _check_shared(name: str, target: SlurmTarget, paths: Iterable[Path]) -> None:
    """Raises `StudioError` for a file outside the folder that the nodes see. This installation they see as well, where
    no other one is named."""
    if not target.shared_folder:
        return
    shared = Path(target.shared_folder).resolve()
    if not shared.is_dir():
        raise StudioError(f"{name}: its shared folder {shared} does not exist on this machine.", _MOVE)
    folders = (shared,) if target.environment else (shared, PACKAGE_PARENT)
    for path in paths:
        if not any(path.resolve().is_relative_to(folder) for folder in folders):
            raise StudioError(
                f"{name}: {path} is outside the shared folder {shared}, so the nodes cannot see it.", _MOVE
            )


def _from_accounts(number: str) -> ClusterJob:
    """What the accounting knows of a job that the queue no longer lists; many clusters keep no accounts."""
    try:
        return read_sacct(_run([*SACCT, "-j", number])) or ClusterJob(number, _GONE)
    except StudioError:
        return ClusterJob(number, _GONE)
