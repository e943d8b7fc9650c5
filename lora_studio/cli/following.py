"""Follows a job in the terminal, where Ctrl-C asks it to stop, and lists the queue."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lora_studio.cli.output import print_json, say, table
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS
from lora_studio.jobs.queue import QueueEntry, is_shown
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.summary import pace_of, short
from lora_studio.units import duration

FAILED = 1
LOOK_SECONDS, SAY_SECONDS = 0.2, 3.0


@dataclass(frozen=True, slots=True)
class Telling:
    """What is said of a kind of job. A phase without words is told by its progress alone.

    `progress` gives a line, "" where there is nothing to tell yet; `notes` says that the job's warnings are told as
    they come (else whoever follows tells them).
    """

    phases: Mapping[str, str]
    progress: Callable[[RunState], str]
    stopping: str
    notes: bool = False


def goes_on(name: str) -> str:
    """What is said of a job or a run as it begins."""
    jobs = "python -m lora_studio jobs"
    return (
        f"  The job continues if this terminal is closed: `{jobs} follow {name}` shows progress, `{jobs} stop "
        f"{name}` stops it."
    )


def follow(supervisor: Supervisor, job_id: str, telling: Telling, *, leaves: bool = False) -> RunState:
    """Tells of a job until it ends, and starts it where it waits and its turn comes.

    Ctrl-C stops it, a second one ends it at once; with `leaves` it only ends this.
    """
    supervisor.start()
    try:
        return _follow(supervisor, job_id, telling, leaves)
    finally:
        supervisor.close()


def _follow(supervisor: Supervisor, job_id: str, telling: Telling, leaves: bool) -> RunState:
    told_at, phase, interrupted, noted, waits_for = 0.0, "", 0, 0, ""
    while True:
        try:
            state = supervisor.state(job_id)
            for note in state.warnings[noted:] if telling.notes else ():
                say(f"  note: {note}")
            noted = len(state.warnings)
            if state.final and not supervisor.is_alive(job_id):
                return state
            if state.state == "queued":
                waits_for = tell_waiting(state, waits_for)
            elif state.phase != phase:
                phase, words = state.phase, telling.phases.get(state.phase, "")
                if words:
                    say(words)
                told_at = time.monotonic() if words else 0.0
            line = telling.progress(state) if state.state != "queued" else ""
            if line and time.monotonic() - told_at >= SAY_SECONDS:
                told_at = time.monotonic()
                say(f"  {line}")
            time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            if leaves:
                raise
            interrupted += 1
            if interrupted == 1:
                say(f"Stopping; {telling.stopping}. Press Ctrl-C again to end it at once.")
                supervisor.stop(job_id)
            else:
                supervisor.cancel(job_id)


def tell_waiting(state: RunState, last_reason: str) -> str:
    """Says why a job waits, once for each reason; gives the one that was announced."""
    if state.waiting and state.waiting != last_reason:
        say(f"Queued: {state.waiting}")
    return state.waiting or last_reason


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
