"""Real tokens a second of a training run: ours, trl with its defaults, trl with our settings, and a bare loop.

    python -m benchmarks.train [--data FILE] [--model FOLDER | --shape CONFIG_JSON] [--steps N]

All train the same adapter on the same rows, each in a process of its own. On a CPU, whose speed drifts within minutes,
they take turns of a few seconds, the others held meanwhile, so that all meet the same machine; only the time in which
one runs counts for it. On a GPU, whose memory they would share, each runs to its end before the next starts.
Ours is the whole program: worker, events, TensorBoard. The bare loop runs model and LoRA over the very batches that
ours sees. Padding is not counted, nor is the first step, in which memory is still being claimed. `--shape` makes a
model with random weights of that shape. The last line is one JSON object; `share_of_matrix_rate` sets the arithmetic of
a token (four operations a weight: forward, and back to the inputs) against what large matrix products reach here.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lora_studio.config.parsing import merge, parse, to_yaml
from lora_studio.config.sections import Config
from lora_studio.data.dataset import prepare
from lora_studio.engine.models.load import memory_bytes
from lora_studio.engine.train_script import EpochOrder
from lora_studio.jobs.events import StepLogged, from_line
from lora_studio.workspace import RunFolder, Workspace, model_source

TURN_SECONDS = 5.0
GOALS = {"trl_defaults": 2.3, "bare_loop": 1.05}


def main() -> None:
    args = arguments()
    if args.contender:
        print(json.dumps(CONTENDERS[args.contender](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            args.model = random_model(args.shape, Path(folder))
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    results = one_by_one(args, folder) if torch.cuda.is_available() else in_turns(args, folder)
    for name, result in results.items():
        print(f"{name:22} {result['tokens_per_second']:9,.0f} tokens/s")
    speed = {name: round(result["tokens_per_second"], 1) for name, result in results.items()}
    ratios = {name: round(speed["ours"] / speed[name], 3) for name in GOALS}
    print(
        f"ours is {ratios['trl_defaults']:.2f} x trl's defaults (goal {GOALS['trl_defaults']}), "
        f"{ratios['bare_loop']:.2f} x a bare loop (goal {GOALS['bare_loop']})"
    )
    parameters = AutoModelForCausalLM.from_pretrained(args.model).num_parameters()
    share = speed["ours"] * 4 * parameters / matrix_rate()
    machine = {"device": device_name(), "parameters": parameters, "share_of_matrix_rate": share}
    print(json.dumps({**machine, "contenders": results, "ours_to": ratios, "goals": GOALS}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="alpaca", help="a file or the name of a shipped dataset")
    parser.add_argument("--model", default=model_source("demo"), help="a folder with a model")
    parser.add_argument("--shape", type=Path, help="a config.json; its model gets random weights")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm", type=int, default=0, help="steps of trl's trainer before the first mark")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    return parser.parse_args()


class Contender:
    """One contender in a process group of its own, which can be held and let go on."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path) -> None:
        self.name = name
        self.turns: list[tuple[float, float]] = []
        self._output = folder / f"{name}.txt"
        command = [sys.executable, "-m", "benchmarks.train", "--contender", name, "--data", args.data]
        command += ["--model", str(args.model), "--steps", str(args.steps), "--max-length", str(args.max_length)]
        # All wait for their threads in the same way, which on few cores decides the speed.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        with self._output.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def run(self, seconds: float | None) -> bool:
        """Runs for so long, or to its end; False once it has ended."""
        os.killpg(self._process.pid, signal.SIGCONT)
        began = time.time()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGSTOP)
        self.turns.append((began, time.time()))
        return self._process.returncode is None

    def result(self) -> dict[str, float]:
        output = self._output.read_text(encoding="utf-8")
        if self._process.returncode:
            sys.exit(f"{self.name} failed:\n{output[-3000:]}")
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        (began, before), (ended, after) = result.pop("marks")
        seconds = sum(max(0.0, min(stop, ended) - max(start, began)) for start, stop in self.turns)
        return {"tokens_per_second": (after - before) / seconds, **result}

    def end(self) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def one_by_one(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    results = {}
    for name in CONTENDERS:
        contender = Contender(name, args, folder)
        contender.run(None)
        results[name] = contender.result()
    return results


def in_turns(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    contenders = list[Contender]()
    try:
        for name in CONTENDERS:
            contenders.append(Contender(name, args, folder))
            contenders[-1].run(TURN_SECONDS)
        waiting = contenders
        while waiting:
            waiting = [each for each in waiting if each.run(TURN_SECONDS)]
        return {each.name: each.result() for each in contenders}
    finally:
        for each in contenders:
            each.end()


def random_model(shape: Path, folder: Path) -> str:
    """A model of a config's shape with random weights, and the built-in tokenizer, in `folder`."""
    config = AutoConfig.from_pretrained(shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_source("demo")).save_pretrained(folder)
    return str(folder)


def matrix_rate(size: int = 4096, seconds: float = 1.0) -> float:
    """Operations a second of a large matrix product in the precision of training."""
    gpu = torch.cuda.is_available()
    matrix = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=precision())
    done, began = 0, 0.0
    while done < 2 or time.perf_counter() - began < seconds:
        float((matrix @ matrix)[0, 0])  # reading a value waits for the GPU
        done, began = (done + 1, began) if began else (0, time.perf_counter())
    return done * 2 * size**3 / (time.perf_counter() - began)


def precision() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def our_config(args: argparse.Namespace, **training: Any) -> Config:
    """Our defaults on the data and model that were named, for so many steps, without evaluation and saving."""
    return parse(
        merge(
            {
                "model": {"name": args.model},
                "data": {"train_file": args.data, "max_length": args.max_length, "validation_fraction": 0},
                "training": {"max_steps": args.steps, "save_strategy": "no"},
                "evaluation": {"eval_strategy": "no"},
            },
            {"training": training},
        )
    )


def ours(args: argparse.Namespace, **training: Any) -> dict[str, Any]:
    """The worker on a run folder, as page and terminal start it; its own events tell the time."""
    with tempfile.TemporaryDirectory() as folder:
        run = Workspace(Path(folder)).create_run("speed", to_yaml(our_config(args, **training)), {})
        subprocess.run(
            [sys.executable, "-m", "lora_studio.engine.train.worker", str(run.path)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        steps = list(logged(run))
        return measured([(step.time, step.tokens) for step in steps], steps[-1].grad_norm, steps[-1].memory_bytes)


def logged(run: RunFolder) -> Iterator[StepLogged]:
    with run.events.open(encoding="utf-8") as lines:
        yield from (event for event in map(from_line, lines) if isinstance(event, StepLogged))


def measured(marks: list[tuple[float, int]], grad_norm: float | None, peak: int) -> dict[str, Any]:
    """What a contender measured: time and tokens at its first mark and its last."""
    return {"marks": (marks[0], marks[-1]), "grad_norm": grad_norm or 0.0, "peak_bytes": peak}


class Clock(TrainerCallback):
    """When each step ended and how many real tokens it and those before it had."""

    def __init__(self) -> None:
        self.tokens = 0
        self.marks: list[tuple[float, int]] = []
        self.grad_norm = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append((time.time(), self.tokens))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.grad_norm = (logs or {}).get("grad_norm", self.grad_norm)


def trl(args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """trl's trainer on our rows; `settings` are what differs from its defaults."""
    model, tokenizer, rows = world(args)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "per_device_train_batch_size": Config().training.per_device_train_batch_size,
            "gradient_accumulation_steps": Config().training.gradient_accumulation_steps,
            "max_steps": args.steps,
            "max_length": args.max_length,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": not torch.cuda.is_available(),
            "bf16": torch.cuda.is_available(),
            "disable_tqdm": True,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=folder, **(options | settings)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(),
            callbacks=[clock],
        )
        inner = trainer.data_collator

        def counted(examples: list[dict[str, Any]]) -> Any:
            clock.tokens += sum(len(example["input_ids"]) for example in examples)
            return inner(examples)

        trainer.data_collator = counted
        trainer.train()
    return measured(clock.marks[args.warm :], clock.grad_norm, memory_bytes())


def trl_with_ours(args: argparse.Namespace) -> dict[str, Any]:
    return trl(
        args,
        gradient_checkpointing=torch.cuda.is_available(),
        train_sampling_strategy=Config().training.train_sampling_strategy,
    )


def bare_loop(args: argparse.Namespace) -> dict[str, Any]:
    """Model, LoRA and AdamW over the batches of our order, nothing else."""
    gpu = torch.cuda.is_available()
    model, tokenizer, rows = world(args)
    model = get_peft_model(model.to("cuda" if gpu else "cpu"), lora_config()).train()
    training = Config().training
    size, accumulate = training.per_device_train_batch_size, training.gradient_accumulation_steps
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=training.learning_rate)
    collate = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    marks, tokens, norm = list[tuple[float, int]](), 0, 0.0
    batches = endless_batches([len(row["input_ids"]) for row in rows], size, training.seed)
    for _ in range(args.steps):
        for _ in range(accumulate):
            chosen = [rows[row] for row in next(batches)]
            tokens += sum(len(row["input_ids"]) for row in chosen)
            batch = {name: value.to(model.device) for name, value in collate(chosen).items()}
            (model(**batch).loss / accumulate).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        marks.append((time.time(), tokens))
    return measured(marks, norm, memory_bytes())


def endless_batches(lengths: list[int], size: int, seed: int) -> Iterator[list[int]]:
    order = EpochOrder(len(lengths), size, seed, lengths)
    epoch = 0
    while True:
        order.set_epoch(epoch)
        rows = list(order)
        yield from (rows[at : at + size] for at in range(0, len(rows) - size + 1, size))
        epoch += 1


def world(args: argparse.Namespace) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The base, its tokenizer and the rows, as ours prepares them."""
    torch.manual_seed(Config().training.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prepared = prepare(args.data, tokenizer, validation_fraction=0, max_length=args.max_length)
    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in prepared.train]
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=precision()), tokenizer, rows


def lora_config() -> LoraConfig:
    lora = Config().lora
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear",
    )


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "ours_packed": lambda args: ours(args, packing=True, per_device_train_batch_size=1, gradient_accumulation_steps=16),
    "trl_defaults": trl,
    "trl_with_our_settings": trl_with_ours,
    "bare_loop": bare_loop,
}

if __name__ == "__main__":
    main()
