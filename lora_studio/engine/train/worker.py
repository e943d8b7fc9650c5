"""The worker that trains: `python -m lora_studio.engine.train.worker RUN_FOLDER [--resume]`.

The run's events always end with a `Finished`, and complete.json holds the final numbers. Exit codes: 0 done, 1 failed,
2 wrong input, 130 stopped. Started as one of several processes (by the variables of torch's rendezvous, see
`engine.ranks`), the first of them writes; another one that fails leaves its last words in the run's folder.
"""

import json
import time
from collections.abc import Sequence

from lora_studio.config.compute import BALANCED
from lora_studio.config.parsing import load_config
from lora_studio.engine import ranks, runtime
from lora_studio.engine.runtime import (
    DONE,
    WRONG_INPUT,
    Ending,
    EventLog,
    Explained,
    begin,
    ending_of,
    finish_run,
    leave,
    unexpected,
)
from lora_studio.errors import OtherRowsError
from lora_studio.files import JsonObject, finite, read_object
from lora_studio.jobs.events import Reason, reason_named
from lora_studio.workspace import RunFolder, write_atomically

SECONDS_TO_SPEAK = 3.0
"""How long a process that failed waits for the first one to say why the run ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a run and returns the exit code."""
    world = ranks.world()
    child = begin(
        arguments,
        "lora_studio.engine.train.worker",
        RunFolder,
        "run folder",
        lambda run: run.config,
        writes=world.is_first,
    )
    if child is None:
        return WRONG_INPUT
    run, log, stop = child.folder, child.log, child.stop
    ranks.take_part(stop)
    ranks.last_words(run, world.rank).unlink(missing_ok=True)
    result: JsonObject = {}

    def work() -> None:
        log.phase("start")
        if not world.is_shared and load_config(run.config).compute.strategy != BALANCED:
            runtime.see_one_gpu()  # trl takes one GPU per process
        from lora_studio.engine.train.program import train  # seconds: the libraries

        try:
            result.update(train(run, resume=child.resume, log=log, stop=stop))
        except OtherRowsError:
            result["other_rows"] = True  # the page offers to go on with them
            raise

    def explain(error: Exception) -> Explained:
        explained, numbers = explain_error(error, run, log)
        result.update(numbers)
        return explained

    ending = ending_of(work, stop, explain=explain)
    if world.is_first:
        return finish_run(run, log, ending, result)
    return leave_word(run, world.rank, ending, result)


def leave_word(run: RunFolder, rank: int, ending: Ending, result: JsonObject) -> int:
    """The end of a process that is not the first, and its exit code: of an end in good order the first one tells."""
    if ending.state != "failed":
        return DONE
    words = {"reason": ending.reason, "message": ending.message, "hint": ending.hint, **result, "state": "failed"}
    write_atomically(ranks.last_words(run, rank), json.dumps(finite(words)) + "\n")
    time.sleep(SECONDS_TO_SPEAK)  # mostly the first one has met the same error, and says so
    return ending.code


def explain_error(error: Exception, run: RunFolder, log: EventLog) -> tuple[Explained, JsonObject]:
    """An unexpected error in one sentence, and its further entries in complete.json.

    Running out of memory comes with the numbers and a change of settings that fits.
    """
    if runtime.is_full(error, run.path):
        runtime.make_room(run)
        return Explained(Reason.DISK_FULL, *runtime.words(run)), {}
    if ranks.lost_others(error):
        return _explain_loss(error, run), {}
    from lora_studio.engine.train import callbacks, memory  # torch: an error before it was loaded is none of these

    if isinstance(error, callbacks.DivergedError):
        explanation = callbacks.explain(error, load_config(run.config), log.state().dtype)
        return Explained(Reason.DIVERGED, explanation["message"], explanation["hint"]), {**explanation}
    if runtime.is_out_of_memory(error):
        numbers = memory.explain(error, load_config(run.config), log.state())
        return Explained(Reason.OUT_OF_MEMORY, numbers["message"], numbers["hint"]), {**numbers}
    return unexpected("Training", error, "See the run's log for details."), {}


def _explain_loss(error: Exception, run: RunFolder) -> Explained:
    """Why this process could not go on: another one ended, or did not answer. Whoever watches over all of them ends
    this one meanwhile, and knows more."""
    time.sleep(2 * SECONDS_TO_SPEAK)
    others = (ranks.last_words(run, rank) for rank in range(ranks.world().size))
    words = next((read_object(path) for path in others if path.is_file()), {})
    reason, hint = reason_named(words.get("reason")), "Resume continues from the last checkpoint, if there is one."
    if words.get("message") and reason is not None:
        return Explained(reason, f"Another process of the run failed: {words['message']}", str(words.get("hint", "")))
    first = str(error).strip().partition("\n")[0][:200]
    return Explained(
        Reason.INTERNAL_ERROR,
        f"Another process of the run died, or did not answer for {ranks.TIMEOUT_MINUTES} minutes ({first}).",
        hint,
    )


if __name__ == "__main__":
    leave(main())
