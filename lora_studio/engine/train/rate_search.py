"""The worker that searches for a learning rate: `python -m lora_studio.engine.train.rate_search FOLDER`.

The folder is like a run's; the events hold the steps, complete.json the suggestion. Exit codes: 0 done, 1 failed, 2
wrong input, 130 stopped.
"""

from collections.abc import Sequence

from lora_studio.config.compute import BALANCED
from lora_studio.config.parsing import load_config
from lora_studio.engine import runtime
from lora_studio.engine.runtime import WRONG_INPUT, Explained, begin, ending_of, leave
from lora_studio.engine.train.worker import explain_error, finish
from lora_studio.files import JsonObject
from lora_studio.workspace import RunFolder

MODULE = "lora_studio.engine.train.rate_search"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the search and returns the exit code."""
    child = begin(arguments, MODULE, RunFolder, "learning-rate search", lambda run: run.config, resumes=False)
    if child is None:
        return WRONG_INPUT
    run, log, stop = child.folder, child.log, child.stop
    result: JsonObject = {}

    def work() -> None:
        log.phase("start")
        if load_config(run.config).compute.strategy != BALANCED:
            runtime.see_one_gpu()
        from lora_studio.engine.train.sweep import sweep  # seconds: the libraries

        result.update(sweep(run, log, stop))

    def explain(error: Exception) -> Explained:
        explained, numbers = explain_error(error, run, log)
        result.update(numbers)
        return explained

    return finish(run, log, ending_of(work, stop, explain=explain), result)


if __name__ == "__main__":
    leave(main())
