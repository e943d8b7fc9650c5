"""Adapters from the old and the new defaults on the built-in datasets: held-out loss and share of right answers.

    python -m benchmarks.defaults [--sets NAME ...] [--seeds N] [--rows N] [--results FILE]

The built-in model learns each set with the demo preset, whose learning rate suits its size; the two contenders differ
in what the defaults differ in (`OLD`), and in nothing else. Every run is followed by its held-out file: the loss over
its answers, and the share that is answered right, greedily (Yes or No by its label, else the exact text). `--results`
keeps each run as a line of a file and leaves out those that are there, so that a long comparison can be cut. The last
line is one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from transformers.utils import logging

from lora_studio.config.parsing import resolve, to_yaml
from lora_studio.engine.evaluate.answer import Voice, read_asked_file
from lora_studio.engine.evaluate.batches import answer_in_batches
from lora_studio.engine.evaluate.tasks import choose_task
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.runtime import DONE
from lora_studio.engine.train import worker
from lora_studio.jobs.events import Evaluated, from_line
from lora_studio.workspace import RunFolder, Workspace, shipped_data

SETS = ("pirate", "recommender", "alpaca")
OLD: Mapping[str, Any] = {"lora.lora_dropout": 0.05}
"""What the defaults were; the new ones are those of the schema. The learning rate of SFT is the same in both."""
CONTENDERS: Mapping[str, Mapping[str, Any]] = {"old": OLD, "new": {}}
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Outcome:
    """One run: its held-out loss in nats a token, and the share of held-out rows that it answers right."""

    dataset: str
    contender: str
    seed: int
    loss: float
    right: float


def main() -> None:
    options = arguments()
    logging.disable_progress_bar()
    earlier = list(read_outcomes(options.results)) if options.results else []
    outcomes = list(earlier)
    done = {(outcome.dataset, outcome.contender, outcome.seed) for outcome in earlier}
    for dataset in options.sets:
        for seed in range(1, options.seeds + 1):
            for contender, settings in CONTENDERS.items():
                if (dataset, contender, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    run = train(Workspace(Path(folder)), dataset, seed, options.rows, settings)
                    outcome = Outcome(
                        dataset, contender, seed, held_out_loss(run), share_right(run, dataset, options.rows)
                    )
                print(
                    f"{dataset:12} {contender:4} seed {seed}: loss {outcome.loss:.4f}, right {outcome.right:.1%}",
                    flush=True,
                )
                outcomes.append(outcome)
                if options.results:
                    with options.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
    print(json.dumps({"old": dict(OLD), "sets": summary(outcomes)}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=300, help="training rows of each set at most (default: 300)")
    parser.add_argument("--results", type=Path, help="a file that keeps each run as a line")
    return parser.parse_args()


def read_outcomes(path: Path) -> Iterator[Outcome]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield Outcome(**json.loads(line))


def train(workspace: Workspace, dataset: str, seed: int, rows: int, settings: Mapping[str, Any]) -> RunFolder:
    """A run of the demo preset on a set, with the held-out file as validation rows."""
    overrides = {
        "data.train_file": dataset,
        "data.validation_file": str(shipped_data()[dataset].heldout),
        "data.max_samples": rows,
        "data.max_eval_samples": rows,
        "training.seed": seed,
        "training.save_strategy": "no",
        **settings,
    }
    config = resolve("demo", overrides)
    run = workspace.create_run(dataset, to_yaml(config), {"seed": seed})
    output = os.dup(1)
    with (run.path / "output.log").open("w") as log:  # the worker's lines are not ours
        os.dup2(log.fileno(), 1)
        try:
            code = worker.main([str(run.path)])
        finally:
            os.dup2(output, 1)
            os.close(output)
    if code != DONE:
        sys.exit(f"{dataset} with seed {seed} ended with {code}:\n{run.events.read_text(encoding='utf-8')[-2000:]}")
    return run


def held_out_loss(run: RunFolder) -> float:
    events = map(from_line, run.events.read_text(encoding="utf-8").splitlines())
    return [event.loss for event in events if isinstance(event, Evaluated)][-1]


def share_right(run: RunFolder, dataset: str, rows: int) -> float:
    """The share of held-out rows that the adapter answers as they say."""
    loaded = load_base("demo", quantization="none", dtype="auto")
    add_adapters(loaded, {"adapter": run.adapter})
    file = read_asked_file(str(shipped_data()[dataset].heldout), loaded.tokenizer, {"adapter": Voice.of(run.adapter)})
    asked = file.rows[:rows]
    generation = resolve("demo").generation.model_copy(update={"max_new_tokens": MAX_NEW_TOKENS})
    task = choose_task([row.reference for row in asked])
    batches = answer_in_batches(loaded, asked, {"adapter": "adapter"}, task, generation, batch_size=16)
    return mean(float(row["adapter"]["right"]) for batch in batches for row in batch)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over the seeds by set and contender, and the new one's distance from the old."""
    sets: dict[str, Any] = {}
    for dataset in dict.fromkeys(outcome.dataset for outcome in outcomes):
        table = {
            contender: {
                "loss": round(mean(o.loss for o in outcomes if (o.dataset, o.contender) == (dataset, contender)), 4),
                "right": round(mean(o.right for o in outcomes if (o.dataset, o.contender) == (dataset, contender)), 4),
            }
            for contender in CONTENDERS
        }
        difference = {name: round(table["new"][name] - table["old"][name], 4) for name in ("loss", "right")}
        sets[dataset] = {**table, "new - old": difference}
    return sets


if __name__ == "__main__":
    main()
