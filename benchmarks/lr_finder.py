"""Whether the suggested learning rate trains as well as the best of a grid of five.

    python -m benchmarks.lr_finder [--seeds N] [--results FILE]

For each seed it searches a rate for the demo recipe, then trains the recipe with the suggestion and with each rate of
the grid, and prints the losses on the held-out rows. With `--results` each outcome is kept as a line, and what is
there is not measured again. The last line is one JSON object; its ratio is the suggestion's loss divided by that of
the best of the grid.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from lora_studio.config.parsing import resolve, to_yaml
from lora_studio.engine.runtime import DONE
from lora_studio.engine.train import rate_search, worker
from lora_studio.jobs.events import RunState, StepLogged, read_state
from lora_studio.runs.rate_search import rate_curve
from lora_studio.workspace import Workspace, shipped_data

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DATASET = "pirate"
Outcome = dict[str, Any]


class Results:
    """Outcomes by seed and name, kept as lines of a file where there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.is_file() else []
        self.outcomes: list[Outcome] = [json.loads(line) for line in lines]

    def of(self, seed: int, name: str, measure: Callable[[], Outcome]) -> Outcome:
        for outcome in self.outcomes:
            if (outcome["seed"], outcome["name"]) == (seed, name):
                return outcome
        outcome = {"seed": seed, "name": name, **measure()}
        self.outcomes.append(outcome)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome) + "\n")
        print(f"seed {seed}, {name}: {outcome.get('loss', '')}", flush=True)
        return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, help="a file that keeps each outcome as a line")
    options = parser.parse_args()
    results, seeds = Results(options.results), []
    for seed in range(1, options.seeds + 1):
        result = results.of(seed, "search", lambda seed=seed: search(seed))  # type: ignore[misc]
        points = [StepLogged(0.0, n, 0, 0.0, loss, rate) for n, (rate, loss) in enumerate(result["points"])]
        suggestion = rate_curve(points).suggestion
        if suggestion is None:
            sys.exit(f"Nothing is suggested for seed {seed}.")
        losses = {
            f"{rate:g}": results.of(seed, f"{rate:g}", lambda seed=seed, rate=rate: train(seed, rate))["loss"]  # type: ignore[misc]
            for rate in (*GRID, suggestion)
        }
        seeds.append({"seed": seed, "suggestion": suggestion, "losses": losses})
    grid = [f"{rate:g}" for rate in GRID]
    ratios = [one["losses"][f"{one['suggestion']:g}"] / min(one["losses"][rate] for rate in grid) for one in seeds]
    print(json.dumps({"dataset": DATASET, "seeds": seeds, "suggestion / best of the grid": round(mean(ratios), 3)}))


def search(seed: int) -> Outcome:
    """The rates and losses of a search."""
    state = ended(seed, 1e-3, rate_search.main)
    return {"points": [(point.learning_rate, point.loss) for point in state.steps]}


def train(seed: int, rate: float) -> Outcome:
    """The held-out loss of the demo recipe with a rate."""
    return {"loss": ended(seed, rate, worker.main).evaluations[-1].loss}


def ended(seed: int, rate: float, program: Callable[[list[str]], int]) -> RunState:
    """The state of a run of the demo recipe after a program went through it."""
    overrides = {
        "data.train_file": DATASET,
        "data.validation_file": str(shipped_data()[DATASET].heldout),
        "data.max_eval_samples": 100,
        "training.seed": seed,
        "training.learning_rate": rate,
        "training.save_strategy": "no",
        "evaluation.eval_strategy": "no",
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Workspace(Path(folder)).create_run("benchmark", to_yaml(resolve("demo", overrides)), {"seed": seed})
        output = os.dup(1)
        with (run.path / "output.log").open("w") as log:  # the worker's lines are not ours
            os.dup2(log.fileno(), 1)
            try:
                code = program([str(run.path)])
            finally:
                os.dup2(output, 1)
                os.close(output)
        if code != DONE:
            sys.exit(f"Rate {rate:g} with seed {seed} ended with {code}:\n{run.events.read_text()[-2000:]}")
        return read_state(run.events)


if __name__ == "__main__":
    main()
