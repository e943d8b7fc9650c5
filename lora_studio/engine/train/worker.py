"""The worker that trains: `python -m lora_studio.engine.train.worker RUN_FOLDER [--resume]`.

The run's events always end with a `Finished`, and complete.json holds the final numbers. Exit codes: 0 done, 1 failed,
2 wrong input, 130 stopped.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from lora_studio.config.parsing import load_config
from lora_studio.engine import runtime
from lora_studio.engine.runtime import (
    WRONG_INPUT,
    Child,
    Ending,
    EventLog,
    Explained,
    begin,
    emit_finished,
    ending_of,
    leave,
    unexpected,
)
from lora_studio.errors import OtherRowsError
from lora_studio.files import JsonObject, finite
from lora_studio.jobs.events import Reason
from lora_studio.workspace import RunFolder, write_atomically


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a run and returns the exit code."""
    child = begin(arguments, "lora_studio.engine.train.worker", RunFolder, "run folder", lambda run: run.config)
    if child is None:
        return WRONG_INPUT
    if "LOCAL_RANK" not in os.environ:  # trl takes one GPU per process
        runtime.see_one_gpu()
    run, log, stop = child.folder, child.log, child.stop
    result: JsonObject = {}

    def work() -> None:
        log.phase("start")
        from lora_studio.engine.train.program import train  # seconds: the libraries

        try:
            result.update(train(run, resume=child.resume, log=log, stop=stop))
        except OtherRowsError:
            result["other_rows"] = True  # the page offers to go on with them
            raise

    def explain(error: Exception) -> Explained:
        explained, numbers = _explain(error, run, log)
        result.update(numbers)
        return explained

    return _finish(child, ending_of(work, stop, explain=explain), result)


def _explain(error: Exception, run: RunFolder, log: EventLog) -> tuple[Explained, JsonObject]:
    """An unexpected error in one sentence, and its further entries in complete.json.

    Running out of memory comes with the numbers and a change of settings that fits.
    """
    if runtime.is_full(error, run.path):
        runtime.make_room(run)
        return Explained(Reason.DISK_FULL, *runtime.words(run)), {}
    from lora_studio.engine.train import callbacks, memory  # torch: an error before it was loaded is none of these

    if isinstance(error, callbacks.DivergedError):
        explanation = callbacks.explain(error, load_config(run.config), log.state().dtype)
        return Explained(Reason.DIVERGED, explanation["message"], explanation["hint"]), {**explanation}
    if runtime.is_out_of_memory(error):
        numbers = memory.explain(error, load_config(run.config), log.state())
        return Explained(Reason.OUT_OF_MEMORY, numbers["message"], numbers["hint"]), {**numbers}
    return unexpected("Training", error, "See the run's log for details."), {}


def _finish(child: Child[RunFolder], ending: Ending, result: JsonObject) -> int:
    """Writes complete.json, then the last event, so that readers of the event find the file."""
    run, state = child.folder, child.log.state()
    numbers = {
        "run": run.id,
        "state": ending.state,
        "steps": state.step,
        "total_steps": state.total_steps,
        "train_loss": state.steps[-1].loss if state.steps else None,
        "eval_loss": state.evaluations[-1].loss if state.evaluations else None,
        "adapter": None,
        "reason": ending.reason,
        "message": ending.message,
        "hint": ending.hint,
        "seconds": state.seconds_at(time.time()),
        **result,
    }
    write_atomically(run.complete, json.dumps(finite(numbers), indent=2) + "\n")
    explained = replace(ending, message=numbers["message"])
    return emit_finished(child.log, explained, numbers["steps"])


if __name__ == "__main__":
    leave(main())
