"""What the tabs of jobs with folders of their own (evaluations, exports) share: list, states, buttons. No gradio."""

from collections.abc import Callable, Sequence

from lora_studio.events import RunState
from lora_studio.ui import run_words
from lora_studio.ui.text import Html, count, render
from lora_studio.workspace import Workspace

LISTED = 30
BESIDE = (
    "A job that finds the device taken waits for its turn. Ticked, it begins at once: both share the memory, and are "
    "slower."
)
STATES = {
    "queued": "Waiting for its turn",
    "running": "Running",
    "stopping": "Stopping",
    "done": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}


def opening(workspace: Workspace, states: Sequence[RunState], draft: str) -> str:
    """The job to look at first: the one looked at last, whose id is the draft of that name, else the newest."""
    last = workspace.read_draft(draft)
    known = [state.id for state in states]
    return str(last) if last in known else next(iter(known), "")


def listing(
    states: Sequence[RunState], looked_at: str, now: float, noun: str, about: Callable[[RunState], tuple[str, str]]
) -> Html:
    """The earlier ones to choose from; `about` gives what is said before and after the time of each."""
    rows = []
    for state in states[:LISTED]:
        before, after = about(state)
        words = " · ".join(filter(None, (before, run_words.ago(state.created, now), after)))
        rows.append((state, state.id == looked_at, words))
    left = len(states) - LISTED
    return render("jobs.listing", rows, noun, count(left, f"older {noun}") if left > 0 else "")


def title(state: RunState) -> Html:
    """What stands above the one that is looked at."""
    return render("jobs.title", state)


def ended(state: RunState, said: str = "") -> Html:
    """Finished after 12 s; `said` stands in the place of the state's own word."""
    seconds = run_words.elapsed(state, 0.0)
    after = "before it began" if seconds is None else f"after {run_words.clock(seconds)}"
    return render("jobs.ended", f"{said or STATES[state.state]} {after}.")


def waits() -> Html:
    """What is said of a job in the queue."""
    return render("jobs.ended", "Waiting for its turn: another job holds the device. The Runs tab shows its place.")


def stop_label(state: RunState) -> str:
    """The words on the button that ends a job."""
    return "Take out of the queue" if state.state == "queued" else "Stop"


def buttons(*acts: tuple[str, str, str]) -> Html:
    """Buttons beside each other: what a click asks for, with which value, and the words on it."""
    return render("jobs.buttons", acts)
