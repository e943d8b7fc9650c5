"""Base and adapter in one batch against one after the other: seconds, first tokens, memory.

    python -m benchmarks.chat [--shape CONFIG_JSON | --model FOLDER] [--prompt N] [--tokens N] [--rounds N]

Random weights of the shape of Qwen3-0.6B unless told otherwise, in bfloat16, with a random LoRA adapter on all linear
modules; greedy, and no end token: every column writes all its tokens. Both ways take turns in one process, after
a warm-up that does not count, and the median of the rounds' ratios counts: a machine that others use as well changes
its speed from one round to the next, and less within one. Memory of one and of two columns is the peak of
processes of their own while they answer, adapter included; how the weights were read before does not count. Of the same
program one process takes up to a hundredth more than the next, so each runs twice and the lower peak counts. The last
line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lora_studio.engine.chat.generate import Answer, Column, generate, greedy
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.workspace import model_source

QWEN3_06B = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}
ADAPTER, BOTH = "adapter", (None, "adapter")
GPU = torch.cuda.is_available()
GOALS = {"together": 0.6 if GPU else 0.8, "last_first_token": 0.3, "further_column_memory": 0.05}


def main() -> None:
    args = arguments()
    if args.columns:
        print(json.dumps(memory(args, Path(args.world))))
        return
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        make_world(args, world)
        print(json.dumps(compare(args, world)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=Path, help="a config.json; its model gets random weights")
    parser.add_argument("--model", type=model_source, help="a folder with a model, instead of random weights")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt (default: 64)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each column (default: 64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--columns", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--world", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_world(args: argparse.Namespace, world: Path) -> None:
    """A base (unless one is given) and a random adapter on it."""
    torch.manual_seed(0)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    else:
        config = AutoConfig.from_pretrained(args.shape) if args.shape else AutoConfig.for_model(**QWEN3_06B)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(world / "base")
        AutoTokenizer.from_pretrained(model_source("demo")).save_pretrained(world / "base")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(world / ADAPTER)


def load(args: argparse.Namespace, world: Path, columns: int) -> LoadedModel:
    loaded = load_base(args.model or str(world / "base"), dtype="bfloat16")
    if columns > 1:
        add_adapters(loaded, {ADAPTER: world / ADAPTER})
    return loaded


def ask(loaded: LoadedModel, args: argparse.Namespace, names: Sequence[str | None]) -> list[Answer]:
    """Answers of so many tokens to a prompt of so many tokens; a column can't end before."""
    settings = greedy(loaded, args.tokens, getattr(args, "cache", "dynamic"))
    settings.min_new_tokens = args.tokens
    loaded.templates[None] = "{{ messages[0].content }}"
    loaded.templates |= dict.fromkeys(loaded.adapters, "{{ messages[0].content }}")
    piece = str(loaded.tokenizer.decode(loaded.tokenizer.encode(" the", add_special_tokens=False)[:1]))
    columns = [Column(name, [{"role": "user", "content": piece * args.prompt}]) for name in names]
    return generate(loaded, columns, settings)


def compare(args: argparse.Namespace, world: Path) -> dict[str, Any]:
    loaded = load(args, world, 2)
    ask(loaded, args, BOTH)
    rounds: list[dict[str, float]] = []
    for round_ in range(args.rounds):
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        first, second = (ask(loaded, args, [name])[0] for name in BOTH)
        seconds["apart_seconds"] = time.perf_counter() - began
        seconds["apart_last_first_token"] = first.seconds + second.first_token_seconds
        began = time.perf_counter()
        answers = ask(loaded, args, BOTH)
        seconds["together_seconds"] = time.perf_counter() - began
        seconds["together_last_first_token"] = max(answer.first_token_seconds for answer in answers)
        assert {answer.tokens for answer in (first, second, *answers)} == {args.tokens}
        print(
            f"round {round_ + 1}: " + ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items()), flush=True
        )
        rounds.append(seconds)
    peaks = [[in_a_process(args, world, columns) for _ in range(2)] for columns in (1, 2)]
    one, two = (min(same, key=lambda result: result["peak_bytes"]) for same in peaks)
    ratios = {
        "together": median(each["together_seconds"] / each["apart_seconds"] for each in rounds),
        "last_first_token": median(
            each["together_last_first_token"] / each["apart_last_first_token"] for each in rounds
        ),
        "further_column_memory": (two["peak_bytes"] - one["peak_bytes"]) / one["base_bytes"],
    }
    for name, value in ratios.items():
        print(f"{name}: {value:.3f} (goal: at most {GOALS[name]})")
    device = {"device": torch.cuda.get_device_name(0) if GPU else f"CPU, {torch.get_num_threads()} threads"}
    sizes = {"prompt": args.prompt, "tokens": args.tokens, "parameters": loaded.model.num_parameters()}
    return {
        **device,
        **sizes,
        "rounds": rounds,
        "one_column": one,
        "two_columns": two,
        "ratios": ratios,
        "goals": GOALS,
    }


def in_a_process(args: argparse.Namespace, world: Path, columns: int) -> dict[str, int]:
    """Peak memory of a process that loads and answers with so many columns."""
    command = [sys.executable, "-m", "benchmarks.chat", "--columns", str(columns), "--world", str(world)]
    command += ["--prompt", str(args.prompt), "--tokens", str(args.tokens)]
    command += ["--model", args.model] if args.model else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ.copy())
    if done.returncode:
        sys.exit(f"{columns} columns failed:\n{done.stderr[-3000:]}")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def memory(args: argparse.Namespace, world: Path) -> dict[str, int]:
    loaded = load(args, world, args.columns)
    base = sum(each.nbytes for name, each in loaded.model.named_parameters() if ".lora_" not in name)
    forget_peak()
    ask(loaded, args, BOTH[: args.columns])
    return {"peak_bytes": peak_bytes(), "base_bytes": base}


def forget_peak() -> None:
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: begins VmHWM anew


def peak_bytes() -> int:
    """Since `forget_peak`. Not `ru_maxrss`, in which a process begins with the size of the one that started it."""
    if GPU:
        return torch.cuda.max_memory_reserved()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
