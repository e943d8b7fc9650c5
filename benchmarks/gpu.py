"""One prepared run on a GPU: smoke, memory, speed and chat in at most eight minutes, without a network.

    python -m benchmarks.gpu [--out DIR] [--only PART ...] [--dry]
    python -m benchmarks.gpu --pack DIR

Models have random weights of real shapes. Each part is a process of its own with a limit of its own, and writes each
case when it has it: a part that fails or runs out of time loses what it had not done yet, and the next one begins. The
results are gpu.json and gpu.md in `--out`, and the end says what is missing. `--dry` does the same with tiny shapes in
this process, on the CPU too: what needs a GPU is refused there with the studio's own words. `--pack` makes the wheels
that such a machine lacks (`benchmarks.gpu_pack`).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

Result = dict[str, Any]
Case = tuple[str, Callable[[], Result]]
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 2048,
    },
}
"""Qwen3 of 0.6, 4 and 8 billion parameters by their config.json; the two small ones tie their embeddings."""
SECONDS = {"smoke": 130, "memory": 140, "speed": 140, "chat": 60}
"""The limit of each part, in seconds; together under eight minutes."""
SWITCHES: dict[str, Mapping[str, Any]] = {
    "ours": {},
    "ours, packed": {"training.packing": True, "training.per_device_train_batch_size": 1},
    "ours, padding-free": {"training.padding_free": True},
    "ours, torch.compile": {"training.torch_compile": True},
    "ours, Liger": {"training.use_liger_kernel": True},
    "ours, checkpointing": {"training.gradient_checkpointing": True},
    "ours, every second layer": {
        "training.gradient_checkpointing": True,
        "training.gradient_checkpointing_every_n_layers": 2,
    },
    "ours, checkpoints offloaded": {
        "training.gradient_checkpointing": True,
        "training.gradient_checkpointing_offload": True,
    },
    "ours, activations offloaded": {"training.activation_offloading": True},
    "ours, adamw_torch": {"training.optim": "adamw_torch"},
    "ours, 2 workers": {"training.dataloader_num_workers": 2},
}
ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")


@dataclass
class World:
    """Where a part works: a folder for models and runs, and whether everything is tiny."""

    folder: Path
    dry: bool

    def model(self, shape: str) -> str:
        """The folder of a model of that shape with random weights, made once; the tokenizer is the built-in one."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from lora_studio.workspace import model_source

        shape = "tiny" if self.dry else shape
        target = self.folder / f"model-{shape}"
        if not target.is_dir():
            numbers = {**QWEN3, "tie_word_embeddings": shape != "8B", **SHAPES[shape]}
            config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(target)
            AutoTokenizer.from_pretrained(model_source("demo")).save_pretrained(target)
            del model
        return str(target)

    def train(self, settings: Mapping[str, Any], *, resume: str = "", stop_at: int = 0) -> Result:
        """A run of the studio's own worker with these settings by path: its complete.json and folder. After so many
        logged points it is asked to stop."""
        from lora_studio.config.parsing import machine_conflicts, nest, parse, to_yaml
        from lora_studio.engine.accelerator import device_kind
        from lora_studio.engine.train import worker
        from lora_studio.workspace import RunFolder, Workspace

        if resume:
            run = RunFolder(Path(resume))
        else:
            config = parse(nest(settings))
            if problems := list(machine_conflicts(config, device_kind())):
                return {"refused": "; ".join(map(str, problems))}
            run = Workspace(self.folder / "workspace").create_run("gpu", to_yaml(config), {})
        over = threading.Event()
        if stop_at:
            threading.Thread(target=stop_run, args=(run.events, stop_at, over), daemon=True).start()
        began = time.monotonic()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            worker.main([str(run.path), *(["--resume"] if resume else [])])
        finally:
            over.set()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        result: Result = json.loads(run.complete.read_text(encoding="utf-8"))
        return {**result, "folder": str(run.path), "wall_seconds": round(time.monotonic() - began, 2)}

    def short(self, model: str, steps: int, **settings: Any) -> dict[str, Any]:
        """Settings of a short run on built-in rows, without evaluation and checkpoints."""
        return {
            "model.name": model,
            "data.train_file": "alpaca",
            "data.max_length": 64 if self.dry else 512,
            "data.validation_fraction": 0.0,
            "evaluation.eval_strategy": "no",
            "training.save_strategy": "no",
            "training.num_train_epochs": 1000.0,
            "training.max_steps": 2 if self.dry else steps,
            "training.gradient_accumulation_steps": 1,
            "tracking.logging_steps": 1,
            **settings,
        }


def stop_run(events: Path, points: int, over: threading.Event) -> None:
    """Asks this process to stop once a run has logged so many points."""
    while not over.wait(0.02):
        if events.is_file() and events.read_text(encoding="utf-8").count('"tokens_per_second"') >= points:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def outcome(result: Result) -> Result:
    """What the table keeps of a run: how it ended, its loss, speed and memory."""
    if "refused" in result:
        return result
    kept = ("state", "steps", "last_loss", "tokens_per_second", "peak_memory_bytes", "estimated_memory_bytes")
    told = {name: result[name] for name in kept if result.get(name) is not None}
    return told if result["state"] == "done" else {**told, "message": result.get("message", "")}


def smoke(world: World) -> Iterator[Case]:
    """Whether each way of training, a stop, a resume, a lack of memory and the chat work at all."""
    model = world.model("0.6B")
    yield "LoRA", lambda: outcome(world.train(world.short(model, 5)))
    yield "QLoRA", lambda: outcome(world.train(world.short(model, 5, **{"model.quantization": "4bit"})))
    preference = {"training.method": "dpo", "data.train_file": "preference"}
    yield "DPO", lambda: outcome(world.train(world.short(model, 3, **preference)))
    yield "float16", lambda: outcome(world.train(world.short(model, 3, **{"model.dtype": "float16"})))
    for name in ATTENTION:
        settings = world.short(model, 3, **{"model.attn_implementation": name})
        yield f"attention {name}", lambda settings=settings: outcome(world.train(settings))
    yield "stop and resume", lambda: stop_and_resume(world, model)
    yield "out of memory and retry", lambda: out_of_memory(world, model)
    yield "chat, three columns", lambda: chat_of(world, columns=3)
    if not world.dry:
        yield "demo preset", lambda: outcome(world.train(preset("demo")))


def preset(name: str) -> Mapping[str, Any]:
    from lora_studio.config.parsing import presets

    return {
        f"{part}.{leaf}": value for part, values in presets()[name].values().items() for leaf, value in values.items()
    }


def stop_and_resume(world: World, model: str) -> Result:
    """A run that is stopped in the middle goes on from its checkpoint to its last step."""
    steps = 40 if world.dry else 60
    settings = {**world.short(model, steps), "training.max_steps": steps}
    first = world.train(settings, stop_at=3)
    if first.get("state") != "stopped" or not first["steps"]:
        return {"state": "failed", "message": f"it ended {first.get('state')} at step {first.get('steps')}"}
    second = world.train({}, resume=first["folder"])
    return {**outcome(second), "stopped_at": first["steps"]}


def out_of_memory(world: World, model: str) -> Result:
    """A run in too little memory says what would fit, and fits with it: the one click of the page."""
    import torch

    if not torch.cuda.is_available():
        return {"refused": "the memory of a CPU has no limit that PyTorch sets"}
    settings = world.short(model, 2, **{"training.per_device_train_batch_size": 64, "data.max_length": 4096})
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(6 * 2**30 / total)
    try:
        failed = world.train({**settings, "training.packing": True, "training.gradient_checkpointing": False})
        retry = failed.get("retry") or {}
        if not retry:
            return {"state": "failed", "message": f"no retry was offered: {failed.get('message')}"}
        again = world.train({**settings, "training.packing": True, **retry["settings"]})
        return {**outcome(again), "retry": retry["title"]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def memory(world: World) -> Iterator[Case]:
    """The peak of PyTorch's allocator beside the estimate, each case in a process of its own on a GPU."""
    for shape in ("0.6B", "8B", "4B"):
        model = world.model(shape)
        cases = product(("none", "4bit"), (False, True), (False, True) if shape == "0.6B" else (False,))
        if world.dry:
            cases = iter([("none", False, False), ("4bit", True, True)])
        for quantization, checkpointing, packing in cases:
            settings = world.short(
                model,
                3,
                **{
                    "model.quantization": quantization,
                    "training.gradient_checkpointing": checkpointing,
                    "training.packing": packing,
                    "training.per_device_train_batch_size": 2 if packing else 8,
                },
            )
            kind, state = "LoRA" if quantization == "none" else "QLoRA", "on" if checkpointing else "off"
            name = f"{shape}, {kind}, checkpointing {state}, {'packed' if packing else 'padded'}"
            yield name, lambda settings=settings: peak_of(world, settings)
        if world.dry:
            return


def peak_of(world: World, settings: Mapping[str, Any]) -> Result:
    """A run's measured and estimated peak. The peak of a process is counted anew."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = outcome(world.train(settings))
    if result.get("peak_memory_bytes") and result.get("estimated_memory_bytes"):
        result["ratio"] = round(result["estimated_memory_bytes"] / result["peak_memory_bytes"], 3)
    return result


def speed(world: World) -> Iterator[Case]:
    """Real tokens a second, the median of three: trl's defaults, ours, and ours with each switch."""
    from benchmarks.train import matrix_rate

    rate = matrix_rate(*((256, 0.1) if world.dry else ()))
    yield "matrix rate", lambda: {"operations_per_second": rate}
    for shape in ("tiny",) if world.dry else ("0.6B", "4B"):
        model = world.model(shape)
        yield (
            f"{shape}, trl's defaults",
            lambda model=model: thrice(world, lambda: trl_speed(world, model), rate, model),
        )
        for name, switch in SWITCHES.items():
            if world.dry and name not in ("ours", "ours, activations offloaded"):
                continue
            settings = world.short(model, 14, **switch)
            yield (
                f"{shape}, {name}",
                lambda settings=settings, model=model: thrice(
                    world, lambda: outcome(world.train(settings)), rate, model
                ),
            )


def thrice(world: World, run: Callable[[], Result], rate: float, model: str) -> Result:
    """The median of three runs, and its share of the card's matrix rate: four operations a weight and token."""
    results: list[Result] = []
    for _ in range(1 if world.dry else 3):
        result = run()
        if "tokens_per_second" not in result:
            return result
        results.append(result)
    tokens = median(result["tokens_per_second"] for result in results)
    spread = max(result["tokens_per_second"] for result in results) / min(
        result["tokens_per_second"] for result in results
    )
    share = tokens * 4 * parameters_of(model) / rate
    return {"tokens_per_second": round(tokens, 1), "share_of_matrix_rate": round(share, 4), "spread": round(spread, 3)}


def parameters_of(model: str) -> int:
    from lora_studio.models.shape import architecture, read_config

    numbers = architecture(read_config(model) or {})
    assert numbers is not None
    return numbers.parameters


def trl_speed(world: World, model: str) -> Result:
    """trl's trainer with its own defaults on our rows (`benchmarks.train`)."""
    from benchmarks.train import trl

    steps = 3 if world.dry else 14
    given = argparse.Namespace(
        data="alpaca", model=model, shape=None, steps=steps, max_length=64 if world.dry else 512, contender=None
    )
    (began, before), (ended, after) = trl(given, gradient_accumulation_steps=1)["marks"]
    return {"tokens_per_second": (after - before) / max(ended - began, 1e-9)}


def chat(world: World) -> Iterator[Case]:
    """Tokens a second of the answers: one column, base and adapter in a batch, and in turn."""
    for name, batches in {
        "one column": [[None]],
        "two in a batch": [[None, "a"]],
        "two in turn": [[None], ["a"]],
    }.items():
        yield name, lambda batches=batches: chat_of(world, batches=batches)


def chat_of(world: World, *, columns: int = 0, batches: list[list[str | None]] | None = None) -> Result:
    """All columns at once, or these batches one after the other; answers of a fixed length, greedy."""
    import torch
    from peft import LoraConfig, get_peft_model

    from benchmarks.chat import ask
    from lora_studio.engine.models.multi_adapter import add_adapters, load_base

    model = world.model("0.6B")
    tokens = 4 if world.dry else 128
    given = argparse.Namespace(tokens=tokens, prompt=8 if world.dry else 64)
    loaded = load_base(model, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    names = ["a", "b"][: max(1, columns - 1)]
    for name in names:
        if not (world.folder / name).is_dir():
            torch.manual_seed(ord(name))
            lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
            get_peft_model(load_base(model).model, lora).save_pretrained(world.folder / name)
    add_adapters(loaded, {name: world.folder / name for name in names})
    asked = batches or [[None, *names]]
    for batch in asked:
        ask(loaded, given, batch)
    seconds = []
    for _ in range(1 if world.dry else 3):
        began = time.perf_counter()
        answers = [answer for batch in asked for answer in ask(loaded, given, batch)]
        seconds.append(time.perf_counter() - began)
    written = sum(answer.tokens for answer in answers)
    return {"state": "done", "columns": len(answers), "tokens_per_second": round(written / median(seconds), 1)}


PARTS: dict[str, Callable[[World], Iterator[Case]]] = {"smoke": smoke, "memory": memory, "speed": speed, "chat": chat}


def run_part(name: str, world: World, seconds: float, write: Callable[[str, Result], None]) -> None:
    """Does the cases of a part one after the other until its time is over; a case that fails is one result."""
    until = time.monotonic() + seconds
    for case, work in PARTS[name](world):
        if time.monotonic() > until:
            write(case, {"missing": "no time was left"})
            continue
        began = time.monotonic()
        try:
            result = work()
        except Exception as error:  # the next case has to run
            result = {"state": "failed", "message": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        write(case, {**result, "seconds": round(time.monotonic() - began, 2)})


def child(name: str, out: Path, given: argparse.Namespace) -> str:
    """A part in a process of its own; why it ended early, or ""."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(out)]
    try:
        done = subprocess.run([*command, *(["--dry"] if given.dry else [])], timeout=SECONDS[name] + 20)
    except subprocess.TimeoutExpired:
        return f"the part took more than {SECONDS[name] + 20} seconds"
    return "" if done.returncode == 0 else f"its process ended with code {done.returncode}"


def machine() -> Result:
    from importlib.metadata import version

    import torch

    from lora_studio.engine.accelerator import device_name

    libraries = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    return {"device": device_name(), "cuda": torch.version.cuda, **{name: version(name) for name in libraries}}


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown: the machine, a table for each part, and what is missing."""
    lines = ["# On a GPU", "", ", ".join(f"{name} {value}" for name, value in found["machine"].items()), ""]
    for part, cases in found["parts"].items():
        lines += [f"## {part.capitalize()}", "", "| case | result |", "|---|---|"]
        for case, result in cases.items():
            cells = ", ".join(f"{name} {shown(name, value)}" for name, value in result.items())
            lines.append(f"| {case} | {cells.replace('|', '/')} |")
        lines.append("")
    lines += ["## Missing", "", *(f"- {line}" for line in found["missing"] or ["nothing"])]
    return "\n".join(lines) + "\n"


def shown(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.2f} GiB"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def missing(found: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    """The parts that ended early, and the cases that failed, were refused or found no time."""
    lines = [f"{part}: {reason}" for part, reason in reasons.items() if reason]
    for part, cases in found["parts"].items():
        for case, result in cases.items():
            reason = result.get("missing") or result.get("refused")
            if not reason and result.get("state") not in (None, "done"):
                reason = f"{result['state']}: {result.get('message', '')}"
            lines += [f"{part}, {case}: {reason}"] if reason else []
    return lines


def lines_of(path: Path) -> dict[str, Result]:
    """The cases that a part wrote so far."""
    if not path.is_file():
        return {}
    return dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)


def everything(given: argparse.Namespace, out: Path) -> Result:
    """All parts, each as far as it comes, and the two files."""
    out.mkdir(parents=True, exist_ok=True)
    began, reasons = time.monotonic(), {}
    for name in given.only:
        (out / f"{name}.jsonl").unlink(missing_ok=True)
        reasons[name] = "" if given.dry else child(name, out, given)
        if given.dry:
            part(name, out, dry=True)
    found: Result = {"machine": machine(), "parts": {name: lines_of(out / f"{name}.jsonl") for name in given.only}}
    found |= {"seconds": round(time.monotonic() - began, 1), "missing": missing(found, reasons)}
    (out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(table(found), encoding="utf-8")
    return found


def part(name: str, out: Path, *, dry: bool) -> None:
    """One part in this process; its cases go to a file of lines as they come."""
    with tempfile.TemporaryDirectory() as folder, (out / f"{name}.jsonl").open("a", encoding="utf-8") as file:

        def write(case: str, result: Result) -> None:
            file.write(json.dumps([case, result]) + "\n")
            file.flush()
            print(f"{name}, {case}: {result}", file=sys.stderr, flush=True)

        run_part(name, World(Path(folder), dry), 3600.0 if dry else SECONDS[name], write)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="some of the parts")
    parser.add_argument("--dry", action="store_true", help="tiny shapes, in this process, on the CPU too")
    parser.add_argument("--pack", type=Path, help="write the wheels that the GPU machine lacks to this folder")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pack:
        from benchmarks.gpu_pack import pack

        return pack(given.pack)
    if given.part:
        part(given.part, given.out, dry=given.dry)
        return 0
    import torch

    if not given.dry and not torch.cuda.is_available():
        print("This machine shows no CUDA GPU. --dry tries the script with tiny shapes.", file=sys.stderr)
        return 2
    found = everything(given, given.out)
    for line in found["missing"]:
        print(f"missing: {line}")
    print(json.dumps({"seconds": found["seconds"], "missing": len(found["missing"]), "out": str(given.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
