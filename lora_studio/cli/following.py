"""Follows a job in the terminal, where Ctrl-C asks it to stop, and lists the queue."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from lora_studio.cli.output import SAY_SECONDS, print_json, say, table
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS
from lora_studio.jobs.queue import QueueEntry, is_shown
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.summary import pace_of, short
from lora_studio.units import duration

FAILED = 1
LOOK_SECONDS, EXIT_SECONDS = 0.2, 10.0


def _nothing(state: RunState) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Telling:
    """What is said of a kind of job. A phase without words is told by its progress alone.

    `progress` gives a line, "" where there is nothing to tell yet; `news` gives lines that are said at once, each time
    those that are new; `notes` says that the job's warnings are told as they come (else whoever follows tells them).
    """

    phases: Mapping[str, str]
    progress: Callable[[RunState], str]
    stopping: str
    notes: bool = False
    news: Callable[[RunState], Iterable[str]] = _nothing


def goes_on(name: str) -> str:
    """What is said of a job or a run as it begins."""
    jobs = "python -m lora_studio jobs"
    return (
        f"  The job continues if this terminal is closed: `{jobs} follow {name}` shows progress, `{jobs} stop "
        f"{name}` stops it."
    )


def follow(supervisor: Supervisor, job_id: str, telling: Telling, *, leaves: bool = False) -> RunState:
    """Tells of a job until it ends, and starts it where it waits and its turn comes.

    Ctrl-C stops it, a second one ends it at once; with `leaves` it only ends this. A worker is there for a moment after
    its last word; its exit code is known when it is gone.
    """
    supervisor.start()
    teller, heeded, ended_at = _Teller(telling), 0, 0.0
    try:
        with nullcontext(list[int]()) if leaves else interrupts() as heard:
            while True:
                state = supervisor.state(job_id)
                teller.tell(state)
                if state.final:
                    ended_at = ended_at or time.monotonic()
                    if not supervisor.is_alive(job_id) or time.monotonic() - ended_at > EXIT_SECONDS:
                        return state
                elif len(heard) > heeded:
                    heeded += 1
                    if heeded == 1:
                        say(f"Stopping: {telling.stopping}. Press Ctrl-C again to end it at once.")
                    (supervisor.stop if heeded == 1 else supervisor.cancel)(job_id)
                time.sleep(LOOK_SECONDS)
    finally:
        supervisor.close()


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """A list that grows with each Ctrl-C, which meanwhile interrupts nothing: the job is to be left in good order.

    Where the shell wants Ctrl-C ignored, as for a command in the background, it stays so.
    """
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


class _Teller:
    """Turns a job's growing state into calm lines: news at once, each phase once, progress every few seconds."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        self._phase = self._line = self._waits_for = ""
        self._said_at, self._noted = 0.0, 0

    def tell(self, state: RunState) -> None:
        """Says what is new since the last call."""
        telling = self._telling
        for note in state.warnings[self._noted :] if telling.notes else ():
            say(f"  note: {note}")
        self._noted = len(state.warnings)
        if state.state == "queued":
            self._waits_for = tell_waiting(state, self._waits_for)
            return
        for line in telling.news(state):
            say(f"  {line}")
        if state.phase != self._phase and state.phase in telling.phases:
            self._phase = state.phase
            say(telling.phases[state.phase])
            self._said_at = time.monotonic()
        line = telling.progress(state)
        if line and line != self._line and time.monotonic() - self._said_at >= SAY_SECONDS:
            self._line, self._said_at = line, time.monotonic()
            say(f"  {line}")


def tell_waiting(state: RunState, last_reason: str) -> str:
    """Says why a job waits, once for each reason; gives the one that was announced."""
    if state.waiting and state.waiting != last_reason:
        say(f"Queued: {state.waiting}")
    return state.waiting or last_reason


def step_line(state: RunState) -> str:
    """step 30/120, epoch 1.5, loss 0.4321, 1,200 tokens/s, 40 s left."""
    last = state.steps[-1]
    parts = [f"step {last.step}/{last.total_steps}", f"epoch {last.epoch:.2f}", f"loss {last.loss:.4f}"]
    if last.tokens_per_second:
        parts.append(f"{last.tokens_per_second:,.0f} tokens/s")
    if state.seconds_left is not None:
        parts.append(f"{duration(state.seconds_left)} left")
    return ", ".join(parts)


def progress_line(state: RunState, before: int = 0) -> str:
    """300 of 1,000 rows, 120 rows/s, 6 s left; "" where nothing is counted or done yet.

    `before` is what was done before this start.
    """
    if not state.phase_total or not state.phase_done:
        return ""
    going, unit = pace_of(state, before), state.phase_unit
    if unit == "bytes":
        parts = [f"{state.phase_done / 1e6:,.1f} of {state.phase_total / 1e6:,.1f} MB"]
        parts += [f"{going.per_second / 1e6:,.1f} MB/s"] if going else []
    else:
        parts = [f"{state.phase_done:,} of {state.phase_total:,} {unit}".rstrip()]
        parts += [f"{short(going.per_second)} {unit.split()[0]}/s"] if going and unit not in ("", "percent") else []
    return ", ".join([*parts, *([f"{duration(going.seconds_left)} left"] if going else [])])


def exit_code(state: RunState, child: int | None) -> int:
    """0 done, 1 failed, 2 wrong input, 130 stopped; `child` is how the child itself ended, where that is known."""
    if state.state == "done":
        return 0
    return 130 if state.state == "stopped" else 2 if child == 2 else FAILED


def list_queue(supervisor: Supervisor, as_json: bool) -> int:
    """The jobs that wait, the next one first."""
    waiting = supervisor.waiting()
    if as_json:
        working = next((job.id for job in supervisor.working() if job.devices or KINDS[job.kind].needs_device), None)
        why = {entry.job: supervisor.state(entry.job).waiting for entry in waiting}
        print_json({"running": working, "queue": [entry.job for entry in waiting], "waiting": why})
    elif not waiting:
        say("No queued jobs. Jobs are queued while others use the devices.")
    else:
        rows = [
            (
                place,
                entry.job,
                KINDS[entry.kind].noun,
                _title(supervisor, entry),
                "resumes" if entry.resume else "starts",
                _why(supervisor, entry),
            )
            for place, entry in enumerate(waiting, start=1)
        ]
        print(table(("position", "job", "kind", "name", "action", "waits for"), rows))
    return 0


def _why(supervisor: Supervisor, entry: QueueEntry) -> str:
    return supervisor.state(entry.job).waiting if is_shown(supervisor.workspace, entry) else ""


def _title(supervisor: Supervisor, entry: QueueEntry) -> str:
    return supervisor.state(entry.job).title if is_shown(supervisor.workspace, entry) else ""
