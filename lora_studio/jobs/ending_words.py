"""Endings in words: what a person is told of why a job ended, and what helps. For page, terminal and api alone.

A job's state holds a reason and what only its worker knew (`events.RunState`); here it becomes two sentences.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass

from lora_studio.jobs.events import Reason, RunState
from lora_studio.jobs.kinds import KINDS


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
        return "Resume goes on from the last checkpoint."
    return "No checkpoint was saved yet: Resume begins again."


def _always(sentence: str) -> Callable[[RunState], str]:
    return lambda state: sentence


_AGAIN = "Start it again: nothing half-finished is kept."
_WORDS = {
    "train": KindWords(
        worker="worker",
        interrupted=_checkpoint_hint,
        stopped="",
        cancelled="nothing more was saved",
        begin="Resume starts it.",
        early="to train",
    ),
    "evaluate": KindWords(
        worker="worker",
        interrupted=_always("Resume answers the rows that are left."),
        stopped="Resume answers the rest.",
        cancelled="what was answered is kept",
        begin="Resume starts it.",
        early="to answer",
    ),
    "export": KindWords(
        worker="export's process",
        interrupted=_always(_AGAIN),
        stopped="Nothing half-finished is kept. Start it again when you like.",
        cancelled="nothing half-finished is kept",
        begin="Start it again.",
        early="to write",
    ),
    "benchmark": KindWords(
        worker="worker",
        interrupted=_always(_AGAIN),
        stopped="Start it again when you like.",
        cancelled="nothing half-finished is kept",
        begin="Start it again.",
        early="to ask",
    ),
}


def ending_words(state: RunState) -> tuple[str, str]:
    """Why a job ended and what helps, "" for what needs no words; what the worker said itself goes first."""
    if state.reason is None:
        return state.message, state.hint
    message, hint = _of_reason(state, state.reason, _WORDS[state.kind])
    if state.message:
        message, hint = state.message, state.hint or (hint if state.reason is Reason.OVER_QUOTA else "")
    if state.last_output:
        hint += f" The log ends with:\n{state.last_output}"
    return message, hint.strip()


def _of_reason(state: RunState, reason: Reason, kind: KindWords) -> tuple[str, str]:
    worker, early, noun = kind.worker, kind.interrupted(state), KINDS[state.kind].noun
    match reason:
        case Reason.COMPLETED:
            return "", ""
        case Reason.STOPPED:
            return "Stopped when asked to.", kind.stopped
        case Reason.DEQUEUED:
            return "Taken out of the queue.", ""
        case Reason.NEVER_STARTED:
            return f"The {noun} was never started.", kind.begin
        case Reason.RECORD_DAMAGED:
            return f"worker.json is damaged: how the {noun} ended is not known.", early
        case Reason.CANCELLED:
            return f"Cancelled: it was ended at once, and {kind.cancelled}.", early
        case Reason.OVER_QUOTA:
            return "The disk space was used up.", (
                "Delete it, or other things that you no longer need. A run takes less with a smaller rank, fewer "
                "checkpoints, and no module saved whole."
            )
        case Reason.ENDED_BY_FORCE:
            return f"The {worker} did not stop in time and was ended by force.", early
        case Reason.STOPPED_EARLY:
            return f"Stopped before the {worker} was ready {kind.early}.", early
        case Reason.STOPPED_SILENTLY:
            return f"The {worker} ended while it was asked to stop.", early
        case _:
            return _of_failure(state, reason, worker), early


def _of_failure(state: RunState, reason: Reason, worker: str) -> str:
    """One sentence on a worker that failed, or vanished without a word."""
    match reason:
        case Reason.DISK_FULL:
            return f"The disk is full: the {worker} could not even write down that it ended."
        case Reason.MEMORY_KILL:
            return f"The memory ran out: the system killed the {worker}, as its count of such kills shows."
        case Reason.KILLED:
            return f"The {worker} was killed: the system does that when memory runs out."
        case Reason.VANISHED:
            return f"The {worker} vanished: it was killed, or the machine ran out of memory or was restarted."
        case Reason.CRASHED if state.exit_code is not None:
            named = signal.strsignal(-state.exit_code) or "unknown signal"
            return f"The {worker} crashed: {named} (signal {-state.exit_code})."
        case Reason.EXITED:
            return f"The {worker} ended without saying why (exit code {state.exit_code})."
        case Reason.OUT_OF_MEMORY:
            return "The memory was not enough."
        case Reason.ADAPTER_GONE:
            return "The adapter was deleted meanwhile."
    return "It failed; the log has the details."
