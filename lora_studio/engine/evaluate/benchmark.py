"""The child that asks public benchmarks: `python -m lora_studio.engine.evaluate.benchmark FOLDER`.

It runs lm-evaluation-harness inside of itself, so that the job lives and ends as every other does. What that package
measured lies in the folder's `results`, and in short in complete.json. Exit codes: 0 done, 1 failed, 2 wrong input, 130
stopped.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Sequence

from lora_studio.engine.runtime import WRONG_INPUT, Explained, begin, emit_finished, ending_of, leave, unexpected
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, finite, read_object
from lora_studio.jobs.events import RunStarted
from lora_studio.jobs.kinds import BenchmarkFolder, damaged_request
from lora_studio.workspace import write_atomically


class HarnessError(RuntimeError):
    """The package ended with an exit code of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks and returns the exit code."""
    module = "lora_studio.engine.evaluate.benchmark"
    child = begin(arguments, module, BenchmarkFolder, "benchmark", lambda folder: folder.facts, resumes=False)
    if child is None:
        return WRONG_INPUT
    folder, log = child.folder, child.log

    def work() -> None:
        log.phase("start")
        words = folder.read_facts().get("words")
        if not isinstance(words, list) or not words:
            raise damaged_request(folder)
        log.emit(RunStarted(time.time(), os.getpid(), "", ""))
        log.phase("answer")
        run(words)
        log.phase("measure")
        keep_results(folder)

    return emit_finished(log, ending_of(work, child.stop, explain=explain))


def run(words: Sequence[str]) -> None:
    """What typing the command does. Raises `HarnessError` for an exit code other than 0."""
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise HarnessError(f"{words[0]} ended with exit code {end.code}") from None


def keep_results(folder: BenchmarkFolder) -> None:
    """The measured numbers of each task, in complete.json. Raises `StudioError` where the package left none."""
    measured: JsonObject = {}
    for path in sorted(folder.results.rglob("results_*.json")):
        measured |= read_object(path).get("results", {})
    if not measured:
        raise StudioError("lm-evaluation-harness left no results.", "Its log says why.")
    done = {"benchmark": folder.id, "state": "done", "results": finite(measured)}
    write_atomically(folder.complete, json.dumps(done, indent=2) + "\n")


def explain(error: Exception) -> Explained:
    """An error that nobody foresaw, in one sentence."""
    return unexpected("The benchmark", error, "Its log has the details.")


if __name__ == "__main__":
    leave(main())
