"""Runs in words and markup: states, phases, times. Plain functions of a run's state; no gradio.

General words (sizes, tables, notices) are in html.py.
"""

import math
import time

from lora_studio.config.compute import LOCAL
from lora_studio.jobs.events import RunState, StepLogged
from lora_studio.jobs.kinds import STATES as STATES
from lora_studio.runs.summary import pace_of, short
from lora_studio.ui.html import count, duration, render, size
from lora_studio.units import figure as figure

PHASES = {
    "start": "starting",
    "data": "preparing data",
    "download": "downloading model",
    "model": "loading model",
    "train": "training",
    "evaluate": "evaluating on the validation rows",
    "save": "saving",
    "compare": "comparing base and adapter",
    "answer": "answering",
    "measure": "scoring answers",
}


def clock(seconds: float | None) -> str:
    """A time that is read while it passes: whole seconds; a dash where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    return f"{round(seconds)} s" if seconds < 59.5 else duration(seconds)


def ago(then: float, now: float) -> str:
    """How long ago, roughly enough that it does not change every second; the date where a clock was wrong."""
    passed = now - then
    if -60 < passed < 60:
        return "just now"
    if 0 < passed < 3600:
        return f"{int(passed // 60)} min ago"
    if 0 < passed < 86400:
        return f"{int(passed // 3600)} h ago"
    return time.strftime("%d %b %H:%M", time.localtime(then))


def name_of(run: RunState) -> str:
    return run.title or run.id


def place_of(run: RunState) -> str:
    """ " on slurm:two" for a job on a target beside this machine, else ""."""
    return "" if run.target == LOCAL else f" on {run.target}"


def restarts_of(run: RunState) -> str:
    """How often its target took a job back and began it again; "" for never."""
    return f"restarted {count(run.restarts, 'time')} by {run.target}" if run.restarts else ""


def share_done(run: RunState) -> float:
    """Share of the run's steps that are done, 0 to 1."""
    if run.state == "done":
        return 1.0
    return min(1.0, run.step / run.total_steps) if run.total_steps else 0.0


def now_doing(run: RunState) -> str:
    """The run's state in one sentence: phase with counts while it runs, the outcome afterwards."""
    if run.state == "running":
        return sentence_case(phase_words(run))
    if run.state == "done":
        steps = f"{run.step:,} step{'' if run.step == 1 else 's'}"
        return f"Finished after {steps} in {clock(elapsed(run, 0.0))}."
    if run.state == "stopped":
        at = f" at step {run.step:,} of {run.total_steps:,}" if run.total_steps else " before the first step"
        return f"Stopped{at}."
    if run.state == "failed":
        return f"Failed while {PHASES.get(run.phase, 'starting')}."
    return STATES.get(run.state, run.state) + "."


def sentence_case(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def phase_words(run: RunState) -> str:
    """training: step 30 of 120; loading the model; preparing the data: 300 of 1,000 rows."""
    words = PHASES.get(run.phase, run.phase or "starting")
    if run.phase in ("", "start"):
        return f"{words}: importing PyTorch"
    if run.phase == "train" and run.total_steps:
        return f"{words}: step {run.step:,} of {run.total_steps:,}"
    if not run.phase_total:
        return words
    text = f"{words}: {amount(run)}"
    return f"{text}, {speed}" if (speed := speed_words(run)) else text


def amount(state: RunState) -> str:
    """How far a phase is: 300 of 1,000 rows; 500 MB of 2.0 GB."""
    if state.phase_unit == "bytes":
        return f"{size(state.phase_done)} of {size(state.phase_total)}"
    return f"{state.phase_done:,} of {state.phase_total:,} {state.phase_unit}".rstrip()


def speed_words(state: RunState, before: int = 0) -> str:
    """How fast a phase goes, and how long it takes: 120 rows/s, 6 s left; "" where that is not known yet.

    `before` is what was done before this start.
    """
    going, unit = pace_of(state, before), state.phase_unit
    if going is None:
        return ""
    remaining = f"{clock(going.seconds_left)} left"
    if unit in ("", "percent"):
        return remaining
    speed = size(going.per_second) if unit == "bytes" else f"{short(going.per_second)} {unit.split()[0]}"
    return f"{speed}/s, {remaining}"


def elapsed(run: RunState, now: float) -> float | None:
    """Seconds of work from the first start to the end, or to now; the pause before a resume is none. None where it is
    not known: a worker that was killed as it began told of no end."""
    if run.started is None:
        return now - run.phase_started if run.phase_started and not run.final else None
    if run.final:
        return run.seconds if run.seconds >= 1 or run.state == "done" else None
    if run.phase == "start" and run.phase_started and run.phase_started > (run.last_event or now):
        return run.seconds_at(run.last_event or now) + now - run.phase_started  # begun again, and no word of it yet
    return run.seconds_at(now)


def status_line(
    runs: list[RunState],
    chat: bool = False,
    evaluating: bool = False,
    elses: bool = False,
    exporting: bool = False,
    other_jobs: int = 0,
) -> str:
    """One line on what this machine is doing, for the top of every tab; `chat` says that the chat holds a model.

    `elses` says that a run trains which is another visitor's; `other_jobs` wait beside the runs that do.
    """
    holders = ["model loaded for chat"] * chat + ["evaluation running"] * evaluating
    holders += ["export running"] * exporting
    held_by = ", ".join(holders)
    working = [run for run in runs if run.state in ("running", "stopping")]
    active = next(iter(working), None)
    waiting = sum(run.state == "queued" for run in runs)
    waits = count(waiting, "run") if not other_jobs else count(waiting + other_jobs, "job")
    queue = f"{waits} queued" if waiting or other_jobs else ""
    if active is None:
        idle = ("A run of another visitor is active" if elses else "No active run") + (f", {queue}" if queue else "")
        return render("runs.status", "", f"{idle}; {held_by}." if held_by else f"{idle}.")
    activity = phase_words(active) if active.state == "running" else "stopping"
    seconds_left = active.seconds_left if active.state == "running" else None
    parts = [
        f"{name_of(active)}{place_of(active)} is {activity}",
        f"{clock(seconds_left)} left" if seconds_left is not None else "",
        f"{count(len(working) - 1, 'more run')} active" if working[1:] else "",
        queue,
        held_by,
    ]
    return render("runs.status", active.state, ", ".join(part for part in parts if part))


def progress(run: RunState, tone: str = "") -> tuple[str, float]:
    """A bar of how far the run is: its colour, which is that of the state or `tone`, and the share in percent."""
    return tone or run.state, 100 * share_done(run)


def unit_of_loss(point: StepLogged | None) -> str:
    """What the loss of a run counts, by what else it measures: KTO has a KL term, DPO a margin in each batch."""
    metrics = point.metrics if point else {}
    return "per answer" if "kl" in metrics else "per pair" if "reward_margin" in metrics else "nats/token"
