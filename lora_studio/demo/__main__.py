"""`python -m lora_studio.demo`: the main job without a browser. Trains the persona and compares base and adapter.

Nothing is downloaded. The run lands in the workspace like any other and can be looked at in the page afterwards.
"""

import subprocess
import sys
import time
import warnings

from lora_studio.config.parsing import resolve, to_yaml
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import ADAPTER, BASE
from lora_studio.jobs.events import RunState, read_state
from lora_studio.workspace import RunFolder, Workspace, shipped_data

SHOWN = 5
MAX_NEW_TOKENS = 128


def main() -> int:
    """Trains, evaluates on the held-out file, prints five questions with both answers, and both scores."""
    began = time.monotonic()
    config = resolve("demo")
    workspace = Workspace.find()
    run = workspace.create_run(config.title, to_yaml(config), {"seed": config.training.seed})
    print(f"Training {config.model.name} on {config.data.train_file} in {run.path}", flush=True)
    try:
        train(run)
        compare(config, run)
    except StudioError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - began:.0f} s. Open it on the page: python -m lora_studio ui")
    return 0


def train(run: RunFolder) -> None:
    """The run's worker as a child process, with a line of progress every five seconds."""
    with run.log.open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "lora_studio.engine.train.worker", str(run.path)], stdout=log, stderr=log
        )
        said = 0.0
        while worker.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                print(f"  {progress(read_state(run.events))}", flush=True)
    state = read_state(run.events)
    if state.state != "done":
        vanished = f"The training process ended without a message (exit code {worker.returncode})."
        raise StudioError(state.message or vanished, state.hint or f"See {run.log}.")
    print(f"  {progress(state)}; finished after {state.seconds:.0f} s", flush=True)


def progress(state: RunState) -> str:
    """One line on where a run is."""
    if not state.steps:
        return state.phase or "starting"
    last = state.steps[-1]
    return f"step {state.step}/{state.total_steps}, loss {last.loss:.3f}, {last.tokens_per_second:,.0f} tokens/s"


def compare(config: Config, run: RunFolder) -> None:
    """Base and adapter on the held-out file, in one model."""
    from transformers.utils import logging

    from lora_studio.engine.evaluate.answer import Voice, read_asked_file
    from lora_studio.engine.evaluate.batches import answer_in_batches
    from lora_studio.engine.evaluate.tasks import Task
    from lora_studio.engine.models.multi_adapter import add_adapters, load_base

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    loaded = load_base(config.model.name, quantization=config.model.quantization, dtype=config.model.dtype)
    add_adapters(loaded, {ADAPTER: run.adapter})
    voice = Voice.of(run.adapter)
    heldout = str(shipped_data()[config.data.train_file].heldout)
    file = read_asked_file(heldout, loaded.tokenizer, {BASE: voice, ADAPTER: voice})
    columns = {BASE: None, ADAPTER: ADAPTER}
    task = Task("text", "The answers are free text.")
    settings = config.generation.model_copy(update={"max_new_tokens": MAX_NEW_TOKENS})
    batches = answer_in_batches(loaded, file.rows, columns, task, settings, batch_size=16)
    answered = sorted((row for batch in batches for row in batch), key=lambda row: row["row"])
    for row in answered[:SHOWN]:
        print()
        said = {"Question": row["prompt"][-1]["content"], **{name: row[name]["answer"] for name in columns}}
        for name, text in said.items():
            print(f"  {name.capitalize():<10}{' '.join(text.split())}")
    base_score, adapter_score = (sum(row[name]["right"] for row in answered) / len(answered) for name in columns)
    print(f"\nExact matches on {len(answered)} validation prompts: base {base_score:.0%}, adapter {adapter_score:.0%}")


if __name__ == "__main__":
    sys.exit(main())
