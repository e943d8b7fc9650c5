"""The worker that runs public benchmarks: `python -m lora_studio.engine.evaluate.benchmark FOLDER`.

It runs lm-evaluation-harness in its own process, so that the job starts, stops and ends like every other. The full
results are in the folder's `results`, a summary in complete.json. Exit codes: 0 done, 1 failed, 2 wrong input, 130
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
    """The package ended with a non-zero exit code."""


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
    """Runs a module as the command line would. Raises `HarnessError` for a non-zero exit code."""
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise HarnessError(f"{words[0]} ended with exit code {end.code}") from None


def keep_results(folder: BenchmarkFolder) -> None:
    """Writes the metrics of each task to complete.json. Raises `StudioError` if the package left no results."""
    measured: JsonObject = {}
    for path in sorted(folder.results.rglob("results_*.json")):
        measured |= read_object(path).get("results", {})
    if not measured:
        raise StudioError("lm-evaluation-harness wrote no results.", "See its log for the reason.")
    done = {"benchmark": folder.id, "state": "done", "results": finite(measured)}
    write_atomically(folder.complete, json.dumps(done, indent=2) + "\n")


def explain(error: Exception) -> Explained:
    """An unexpected error in one sentence."""
    return unexpected("The benchmark", error, "See its log for details.")


if __name__ == "__main__":
    leave(main())
