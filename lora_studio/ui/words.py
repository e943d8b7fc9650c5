"""Runs in words and markup: durations, states, phases, cards. Plain functions of a run's state; no gradio.

Gradio runs JavaScript found between `${` and `}` in markup, so every piece of data goes through `escape`.
"""

import html
import math
import time

from lora_studio.events import RunState

STATES = {
    "queued": "waiting for its turn",
    "running": "running",
    "stopping": "stopping: the step ends, then it saves",
    "done": "finished",
    "stopped": "stopped",
    "failed": "failed",
}
PHASES = {
    "start": "starting",
    "data": "preparing the data",
    "model": "loading the model",
    "train": "training",
    "evaluate": "measuring on the validation rows",
    "save": "saving",
}


def escape(text: object) -> str:
    """Text that neither HTML nor Gradio's templates read as anything but text."""
    return html.escape(str(text)).replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


def tag(name: str, text: object, css: str = "") -> str:
    return f"<{name}{f' class={css!r}' if css else ''}>{escape(text)}</{name}>"


def duration(seconds: float | None) -> str:
    """42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h; a dash where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    for size, name, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def number(value: float | None, digits: int = 4) -> str:
    """A number short enough to read: 0.0123, 2e-04, 12,345."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}" if 1e-4 <= abs(value) < 1e4 else f"{value:.2e}" if abs(value) < 1 else f"{value:,.0f}"


def size(amount: float) -> str:
    """Bytes as 12 KB, 3.4 MB, 5.6 GB."""
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit in ("B", "KB") else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def ago(then: float, now: float) -> str:
    """How long ago, roughly enough that it does not change every second."""
    passed = now - then
    if passed < 60:
        return "just now"
    if passed < 3600:
        return f"{int(passed // 60)} min ago"
    if passed < 86400:
        return f"{int(passed // 3600)} h ago"
    return time.strftime("%d %b %H:%M", time.localtime(then))


def name_of(run: RunState) -> str:
    return run.title or run.id


def progress(run: RunState) -> float:
    """Share of the run's steps that are done, 0 to 1."""
    if run.state == "done":
        return 1.0
    return min(1.0, run.step / run.total_steps) if run.total_steps else 0.0


def now_doing(run: RunState) -> str:
    """The run's state in one sentence: phase with counts while it runs, the outcome afterwards."""
    if run.state == "running":
        return phase_words(run).capitalize() + "."
    if run.state == "done":
        return f"Finished after {run.step:,} steps in {duration(elapsed(run, 0.0))}."
    if run.state == "stopped":
        at = f" at step {run.step:,} of {run.total_steps:,}" if run.total_steps else ""
        return f"Stopped{at}. It can be resumed where a checkpoint was saved."
    if run.state == "failed":
        return f"Failed while {PHASES.get(run.phase, 'starting')}."
    words = STATES.get(run.state, run.state)
    return words[:1].upper() + words[1:] + "."


def phase_words(run: RunState) -> str:
    """Training: step 30 of 120, epoch 1.5; loading the model; preparing the data: 300 of 1,000 rows."""
    words = PHASES.get(run.phase, run.phase or "starting")
    if run.phase == "train" and run.total_steps:
        return f"{words}: step {run.step:,} of {run.total_steps:,}"
    if run.phase_total:
        return f"{words}: {run.phase_done:,} of {run.phase_total:,} {run.phase_unit}".rstrip()
    return words


def status_line(runs: list[RunState]) -> str:
    """One line on what this machine is doing, for the top of every tab."""
    active = [run for run in runs if run.state in ("running", "stopping")]
    waiting = sum(run.state == "queued" for run in runs)
    if not active:
        text = f"{waiting} waiting to start." if waiting else "No training is running."
        return f'<div class="studio-status"><span class="dot"></span><span>{escape(text)}</span></div>'
    run = active[0]
    what = phase_words(run) if run.state == "running" else STATES["stopping"]
    left = f", {duration(run.seconds_left)} left" if run.state == "running" and run.seconds_left is not None else ""
    more = f" · {waiting} waiting" if waiting else ""
    text = f"{name_of(run)}: {what}{left}{more}"
    return f'<div class="studio-status"><span class="dot {run.state}"></span><span>{escape(text)}</span></div>'


def elapsed(run: RunState, now: float) -> float | None:
    """Seconds from the first start to the end, or to now."""
    if run.started is None:
        return None
    if run.final:
        return run.seconds or (run.finished or run.last_event or run.started) - run.started
    return now - run.started
