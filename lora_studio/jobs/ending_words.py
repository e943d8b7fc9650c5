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
        return "Resume continues from the last checkpoint."
    return "No checkpoint was saved yet, so Resume starts over."


def _always(sentence: str) -> Callable[[RunState], str]:
    return lambda state: sentence


STATES = {
    "queued": "Queued",
    "running": "Running",
    "stopping": "Stopping",
    "done": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}
"""The states of a job as a person reads them."""
_AGAIN = "Start it again: incomplete results are not kept."
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
        interrupted=_always("Resume answers the remaining rows."),
        stopped="Resume answers the remaining rows.",
        cancelled="answers so far were kept",
        begin="Resume starts it.",
        early="to answer",
    ),
    "export": KindWords(
        worker="export process",
        interrupted=_always(_AGAIN),
        stopped="Incomplete results are not kept. Start it again at any time.",
        cancelled="incomplete results were not kept",
        begin="Start it again.",
        early="to write",
    ),
    "benchmark": KindWords(
        worker="worker",
        interrupted=_always(_AGAIN),
        stopped="Start it again at any time.",
        cancelled="incomplete results were not kept",
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
            return "Stopped on request.", kind.stopped
        case Reason.DEQUEUED:
            return "Removed from the queue.", ""
        case Reason.NEVER_STARTED:
            return f"The {noun} was never started.", kind.begin
        case Reason.RECORD_DAMAGED:
            return f"worker.json is damaged, so how the {noun} ended is unknown.", early
        case Reason.CANCELLED:
            return f"Cancelled at once; {kind.cancelled}.", early
        case Reason.OVER_QUOTA:
            return "The disk quota is used up.", (
                "Delete it, or other things that you no longer need. A lower rank, fewer checkpoints and no "
                "modules saved in full make runs smaller."
            )
        case Reason.ENDED_BY_FORCE:
            return f"The {worker} did not stop in time and was killed.", early
        case Reason.STOPPED_EARLY:
            return f"Stopped before the {worker} was ready {kind.early}.", early
        case Reason.STOPPED_SILENTLY:
            return f"The {worker} ended while stopping.", early
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
        case Reason.ADAPTER_GONE:
            return "The adapter was deleted."
    return "It failed. See the log for details."
