"""The child that trains: `python -m lora_studio.engine.worker RUN_FOLDER [--resume]`.

Whatever happens, the run's events end with one `Finished` in plain words, and complete.json holds the final numbers.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_studio.engine import full_disk
from lora_studio.engine.event_log import EventLog
from lora_studio.engine.stopping import Stop, Stopped
from lora_studio.errors import StudioError
from lora_studio.events import Finished
from lora_studio.parsing import parse, read_yaml
from lora_studio.workspace import RunFolder, write_atomically

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 130
STOPPED_RESULT = {"state": "stopped", "message": "Stopped when asked to."}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a run and returns the exit code."""
    parser = argparse.ArgumentParser(prog="lora_studio.engine.worker")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    stop = Stop()
    stop.listen()
    if "LOCAL_RANK" not in os.environ:  # trl takes one GPU per process
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    run = RunFolder(options.run_folder.resolve())
    if not run.config.is_file():
        print(f"{run.path} is no run folder: it has no {run.config.name}.", file=sys.stderr)
        return WRONG_INPUT
    run.complete.unlink(missing_ok=True)
    log = EventLog(run.events)
    began = time.time()
    try:
        log.phase("start")
        from lora_studio.engine.train import train  # seconds: the libraries

        result = train(run, resume=options.resume, log=log, stop=stop)
        return _finish(run, log, began, DONE, result)
    except Stopped:
        return _finish(run, log, began, STOPPED, STOPPED_RESULT)
    except StudioError as error:
        return _finish(run, log, began, WRONG_INPUT, _failure(error.message, error.hint))
    except Exception as error:  # the end of the process: nothing else can say what happened
        if stop.cut_short:
            traceback.print_exc()
            return _finish(run, log, began, STOPPED, STOPPED_RESULT)
        if full_disk.is_full(error, run.path):
            full_disk.make_room(run)  # first: nothing can be said before
            traceback.print_exc()
            return _finish(run, log, began, FAILED, _failure(*full_disk.words(run)))
        traceback.print_exc()
        return _finish(run, log, began, FAILED, _explain(error, run, log))


def _explain(error: Exception, run: RunFolder, log: EventLog) -> dict[str, Any]:
    """An unexpected error in one sentence; running out of memory with the numbers and the change that fits."""
    from lora_studio.engine import memory_plan  # torch: an error before it was loaded is no question of memory

    if memory_plan.is_out_of_memory(error):
        return memory_plan.explain(error, parse(read_yaml(run.config)), log.state())
    first = str(error).strip().partition("\n")[0][:300]
    return _failure(f"Training ended with an error: {type(error).__name__}: {first}", "The run's log has the details.")


def _failure(message: str, hint: str) -> dict[str, Any]:
    return {"state": "failed", "message": message, "hint": hint}


def _finish(run: RunFolder, log: EventLog, began: float, code: int, result: dict[str, Any]) -> int:
    """Writes complete.json, then the last event: whoever reads the event finds the file."""
    state = log.state()
    loss = state.steps[-1].loss if state.steps else None
    eval_loss = state.evaluations[-1].loss if state.evaluations else None
    numbers = {
        "run": run.id,
        "steps": state.step,
        "total_steps": state.total_steps,
        "train_loss": loss,
        "eval_loss": eval_loss,
        "adapter": None,
        "message": "",
        "hint": "",
        "seconds": time.time() - began,
        **result,
    }
    write_atomically(run.complete, json.dumps(numbers, indent=2) + "\n")
    log.emit(
        Finished(
            time.time(), numbers["state"], numbers["steps"], numbers["message"], numbers["hint"], numbers["seconds"]
        )
    )
    print(f"{numbers['state']}: {numbers['message']} {numbers['hint']}".strip(": "), flush=True)
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of a library that is still loading must not hold a stopped worker
