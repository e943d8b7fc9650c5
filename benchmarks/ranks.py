"""Whether a run in several processes learns what one process with the same effective batch learns.

    python -m benchmarks.ranks [--processes 2] [--steps 60] [--only NAME ...]

Each case trains the built-in model twice: in several processes (gloo on the CPU, a GPU each where there are some), and
in one that accumulates as much. All without dropout. Compared are the losses of every step, tokens, evaluations, the
best checkpoint, and the final adapter; the cases `kill`, `stop` and `fewer` end a run in the middle and resume it. The
last line is one JSON object: the largest difference of each case, and whether it is below 1e-4.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from lora_studio.config.parsing import merge, nest, parse, to_yaml
from lora_studio.jobs.events import RunState, read_state
from lora_studio.jobs.launchers.local import child_environment, worker_command
from lora_studio.workspace import RunFolder, Workspace

GOAL = 1e-4
KILL_SECONDS = 30.0
COMMON = {
    "model.name": "demo",
    "data.train_file": "pirate",
    "data.max_samples": 83,  # the last batch of an epoch is partial, and some process has none
    "data.max_eval_samples": 13,
    "data.max_length": 128,
    "lora.lora_dropout": 0.0,
    "training.per_device_train_batch_size": 4,
    "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 1e-3,
    "training.save_strategy": "steps",
    "training.save_steps": 20,
    "evaluation.eval_strategy": "steps",
    "evaluation.eval_steps": 20,
    "evaluation.per_device_eval_batch_size": 3,
    "evaluation.load_best_model_at_end": True,
    "evaluation.gen_eval_samples": 2,
    "generation.max_new_tokens": 12,
    "tracking.logging_steps": 1,
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "random": {},
    "accumulated": {"training.gradient_accumulation_steps": 3},
    "grouped": {"training.train_sampling_strategy": "group_by_length"},
    "packed": {"training.packing": True, "data.max_samples": 400},
    "dpo": {
        "training.method": "dpo",
        "data.train_file": "preference",
        "training.learning_rate": 1e-4,
        "training.gradient_accumulation_steps": 2,
    },
    "kto": {
        "training.method": "kto",
        "data.train_file": "feedback",
        "training.learning_rate": 1e-4,
        "training.gradient_accumulation_steps": 2,
    },
    "kto-fsdp": {
        "training.method": "kto",
        "data.train_file": "feedback",
        "training.learning_rate": 1e-4,
        "compute.strategy": "fsdp",
        "evaluation.gen_eval_samples": 0,
    },
    "qlora": {"model.quantization": "4bit"},
    "labels": {"data.train_file": "recommender", "evaluation.labels": "Yes, No"},
    "smoothed": {"training.label_smoothing_factor": 0.1},
    "fsdp": {"compute.strategy": "fsdp", "evaluation.gen_eval_samples": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", nargs="*", choices=[*CASES, *INTERRUPTED])
    parser.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="settings of every run")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Workspace(Path(folder)), args.processes, args.steps, dict(item.split("=", 1) for item in args.set)
        )
        for name in args.only or [*CASES, *INTERRUPTED]:
            results[name] = INTERRUPTED[name](bench) if name in INTERRUPTED else bench.compare(name, CASES[name])
    good = all(result["largest"] <= GOAL for result in results.values())
    print(json.dumps({"processes": args.processes, "steps": args.steps, "good": good, "cases": results}))


class Bench:
    """Makes, starts and compares the runs."""

    def __init__(self, workspace: Workspace, processes: int, steps: int, extra: Mapping[str, Any]) -> None:
        self.workspace, self.processes, self.steps, self.extra = workspace, processes, steps, extra
        self._alone: dict[str, RunFolder] = {}

    def create(self, settings: Mapping[str, Any], processes: int) -> RunFolder:
        values = {**COMMON, **settings, **self.extra, "training.max_steps": self.steps}
        accumulation = values["training.gradient_accumulation_steps"] * (1 if processes > 1 else self.processes)
        values |= {"training.gradient_accumulation_steps": accumulation, "compute.processes": processes}
        if processes == 1:
            values.pop("compute.strategy", None)
        facts = {"model": "demo", "data": values["data.train_file"], "seed": 0}
        return self.workspace.create_run(f"{processes}", to_yaml(parse(merge({}, nest(values)))), facts)

    def start(self, run: RunFolder, *flags: str) -> "subprocess.Popen[bytes]":
        command = [*worker_command(run, "lora_studio.engine.train.worker"), str(run.path), *flags]
        with run.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=child_environment(), cwd=run.path
            )

    def finish(self, run: RunFolder, *flags: str) -> RunState:
        began = time.monotonic()
        code = self.start(run, *flags).wait()
        state = read_state(run.events)
        if code or state.state != "done":
            sys.exit(f"{run.path.name}: exit code {code}, {state.message}\n{run.log.read_text()[-3000:]}")
        print(f"    {state.processes} process(es): {time.monotonic() - began:.1f} s", flush=True)
        return state

    def alone(self, name: str, settings: Mapping[str, Any]) -> RunFolder:
        if name not in self._alone:
            self._alone[name] = self.create(settings, 1)
            self.finish(self._alone[name])
        return self._alone[name]

    def compare(self, name: str, settings: Mapping[str, Any], shared: RunFolder | None = None) -> dict[str, Any]:
        """The largest differences between the run in several processes and that in one."""
        print(name, flush=True)
        alone = self.alone(name, settings)
        if shared is None:
            shared = self.create(settings, self.processes)
            self.finish(shared)
        result = differences(alone, shared)
        print(f"    largest difference {result['largest']:.2e}", {key: f"{value:.1e}" for key, value in result.items()})
        return result


def differences(alone: RunFolder, shared: RunFolder) -> dict[str, Any]:
    one, several = read_state(alone.events), read_state(shared.events)
    losses = [abs(first.loss - second.loss) for first, second in zip(one.steps, several.steps, strict=True)]
    norms = [abs((a.grad_norm or 0) - (b.grad_norm or 0)) for a, b in zip(one.steps, several.steps, strict=True)]
    measured = [
        abs(value - other)
        for first, second in zip(one.evaluations, several.evaluations, strict=True)
        for value, other in [
            (first.loss, second.loss),
            *((first.metrics[key], second.metrics[key]) for key in first.metrics | second.metrics),
        ]
    ]
    tokens = [abs(first.tokens - second.tokens) for first, second in zip(one.steps, several.steps, strict=True)]
    best = (
        one.state == several.state and alone.read_result()["best_checkpoint"] == shared.read_result()["best_checkpoint"]
    )
    weights = [load_file(run.adapter / "adapter_model.safetensors") for run in (alone, shared)]
    adapter = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    answers = [item.answers for item in one.answers] == [item.answers for item in several.answers]
    result = {
        "steps": len(losses),
        "losses": max(losses),
        "grad_norms": max(norms),
        "evaluations": max(measured, default=0.0),
        "tokens": max(tokens),
        "adapter": adapter,
        "other_best": float(not best),
        "other_answers": float(not answers),
    }
    return {"largest": max(result["losses"], result["evaluations"], result["tokens"], result["other_best"]), **result}


def wait_for_step(run: RunFolder, step: int) -> None:
    while read_state(run.events).step < step:
        time.sleep(0.05)


def children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The processes that train, in the order of their ranks."""
    workers = [child for child in psutil.Process(process.pid).children() if "worker" in " ".join(child.cmdline())]
    return sorted(workers, key=lambda child: int(child.environ()["RANK"]))


def kill(bench: Bench) -> dict[str, Any]:
    """SIGKILL to the last process in the middle; the run ends, says so, and resumes."""
    run = bench.create({}, bench.processes)
    process = bench.start(run)
    wait_for_step(run, bench.steps // 2)
    began = time.monotonic()
    children(process)[-1].send_signal(signal.SIGKILL)
    code, seconds = process.wait(), time.monotonic() - began
    state = read_state(run.events)
    print(f"kill\n    ended after {seconds:.1f} s, exit code {code}: {state.message} {state.hint}")
    if code != 1 or seconds > KILL_SECONDS or "killed" not in state.message:
        sys.exit("A process that was killed did not end the run as it should")
    bench.finish(run, "--resume")
    return {"seconds": seconds, **bench.compare("random", {}, run)}


def stop(bench: Bench) -> dict[str, Any]:
    """SIGTERM in the middle; all save after the same step, and the run resumes."""
    run = bench.create({}, bench.processes)
    process = bench.start(run)
    wait_for_step(run, bench.steps // 3 + 1)
    process.terminate()
    code, state = process.wait(), read_state(run.events)
    print(f"stop\n    exit code {code} at step {state.step}, {[folder.name for folder in run.checkpoint_folders()]}")
    if code != 130 or state.state != "stopped" or run.checkpoint_folders()[-1].name != f"checkpoint-{state.step}":
        sys.exit("A stop did not save what there was")
    bench.finish(run, "--resume")
    return bench.compare("random", {}, run)


def fewer(bench: Bench) -> dict[str, Any]:
    """A run that was stopped goes on in one process, with the same batches."""
    run = bench.create({}, bench.processes)
    process = bench.start(run)
    wait_for_step(run, bench.steps // 2)
    process.terminate()
    process.wait()
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace(f"processes: '{bench.processes}'", "processes: '1'"), encoding="utf-8")
    state = bench.finish(run, "--resume")
    print(f"fewer\n    {[words for words in state.warnings if 'goes on with' in words]}")
    return bench.compare("random", {}, run)


INTERRUPTED: Mapping[str, Callable[[Bench], dict[str, Any]]] = {"kill": kill, "stop": stop, "fewer": fewer}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
