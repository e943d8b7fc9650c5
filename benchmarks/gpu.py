"""One prepared run on a GPU: smoke, speed, chat and memory in at most eight minutes, without a network.

    python -m benchmarks.gpu [--out DIR] [--only PART ...] [--dry]
    python -m benchmarks.gpu --pack DIR

Models have random weights of real shapes. Each part is a process of its own with a deadline of its own, and writes each
case when it has it. A case that takes too long, kills its process or leaves the GPU in an error costs itself alone:
another process goes on behind it. What matters most comes first in each part. The results are gpu.json and gpu.md in
`--out`, written anew after each part, and the end says what is missing. `--dry` does the same with tiny shapes in
this process, on the CPU too: what needs a GPU is refused there with the studio's own words. `--pack` makes the wheels
that such a machine lacks (`benchmarks.gpu_pack`).
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
SECONDS = {"smoke": 140, "speed": 150, "chat": 40, "memory": 140}
"""The time of each part, in seconds; together under eight minutes. What a part leaves, the later ones have."""
CASE_SECONDS = 75.0
"""The longest that a case may take."""
LEAST_SECONDS = 15.0
"""A process takes so long to import the libraries; with less, none is started."""
LOOK_SECONDS = 0.2
BROKEN = ("CUDA error", "cudaError", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert")
"""Parts of messages after which a process can use its GPU no more."""
AGAIN = 3
"""The exit code of a part that goes on in another process."""
ROOM = 40 * 2**30
"""Bytes that the models take on a disk or in memory."""
SWITCHES: dict[str, Mapping[str, Any]] = {
    "ours": {},
    "ours, packed": {"training.packing": True, "training.per_device_train_batch_size": 4},
    "ours, padding-free": {"training.padding_free": True},
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
    "ours, torch.compile": {"training.torch_compile": True},
}
ROWS, STEPS, WARM = 16, 18, 4
"""Of the measured trainings: rows of a batch, so many that the GPU is what takes the time; steps; and those of them
before the clock starts, in which Triton compiles kernels and cuBLAS chooses its own."""
THRICE = ("ours", "ours, packed", "ours, padding-free")
"""Measured three times; the others once, since the spread of these says what a difference is worth."""
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
            begun = target.with_suffix(".part")  # whoever is killed here leaves no half model
            shutil.rmtree(begun, ignore_errors=True)
            model.save_pretrained(begun)
            AutoTokenizer.from_pretrained(model_source("demo")).save_pretrained(begun)
            begun.rename(target)
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
    entry = {name: result[name] for name in kept if result.get(name) is not None}
    return entry if result["state"] == "done" else {**entry, "message": result.get("message", "")}


def smoke(world: World) -> Iterator[Case]:
    """Whether each way of training, a stop, a resume, a lack of memory and the chat work at all."""

    def run(steps: int, **settings: Any) -> Callable[[], Result]:
        return lambda: outcome(world.train(world.short(world.model("0.6B"), steps, **settings)))

    yield "LoRA", run(5)
    yield "QLoRA", run(5, **{"model.quantization": "4bit"})
    yield "chat, three columns", lambda: chat_of(world, columns=3)
    yield "DPO", run(3, **{"training.method": "dpo", "data.train_file": "preference"})
    yield "stop and resume", lambda: stop_and_resume(world, world.model("0.6B"))
    yield "waits of a step", lambda: waits_of_a_step(world, world.model("0.6B"))
    yield "waits of a step, padding-free", lambda: waits_of_a_step(world, world.model("0.6B"), padding_free=True)
    yield "out of memory and retry", lambda: out_of_memory(world, world.model("0.6B"))
    yield "float16", run(3, **{"model.dtype": "float16"})
    yield "float32 with TF32", run(3, **{"model.dtype": "float32", "training.tf32": not world.dry})
    yield "paged 8-bit optimizer", run(3, **{"training.optim": "paged_adamw_8bit"})
    for name in ATTENTION:
        yield f"attention {name}", run(3, **{"model.attn_implementation": name})
    yield "chat, static cache", lambda: chat_of(world, batches=[[None, "a"]], cache="static")
    if not world.dry:
        yield "demo preset", lambda: outcome(world.train(preset("demo")))


def preset(name: str) -> Mapping[str, Any]:
    from lora_studio.config.parsing import presets

    return {
        f"{part}.{leaf}": value for part, values in presets()[name].values().items() for leaf, value in values.items()
    }


def stop_and_resume(world: World, model: str) -> Result:
    """A run that is stopped in the middle goes on from its checkpoint to its last step."""
    steps = 120  # logged points are in the file half a second later: a tiny model makes forty steps in that
    settings = {**world.short(model, steps), "training.max_steps": steps}
    first = world.train(settings, stop_at=3)
    if first.get("state") != "stopped" or not first["steps"]:
        return {"state": "failed", "message": f"it ended {first.get('state')} at step {first.get('steps')}"}
    second = world.train({}, resume=first["folder"])
    return {**outcome(second), "stopped_at": first["steps"]}


def waits_of_a_step(world: World, model: str, *, padding_free: bool = False) -> Result:
    """How often a step that is not logged waits for the GPU, and where: PyTorch warns of each time. Of every two steps
    one is logged, so what happens in each step is seen at least as often as there are steps."""
    import torch

    if not torch.cuda.is_available():
        return {"refused": "PyTorch tells of a CUDA GPU alone where it is waited for"}
    steps = 40
    settings = world.short(model, steps, **{"tracking.logging_steps": 2, "training.padding_free": padding_free})
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as entry:
            warnings.simplefilter("always")
            result = world.train(settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {**outcome(result), **waits_in(entry, steps)}


def waits_in(entry: Sequence[Any], steps: int) -> Result:
    """Of PyTorch's warnings those that came at least once a step: how many a step, and the lines that caused them."""
    lines = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in entry
        if "synchronizing CUDA operation" in str(warning.message)
    )
    often = {line: count for line, count in lines.most_common() if count >= steps}
    places = ", ".join(f"{line} ({count})" for line, count in often.items())
    return {"waits_a_step": round(sum(often.values()) / steps, 2), "places": places or "none"}


def out_of_memory(world: World, model: str) -> Result:
    """A run in too little memory says what would fit, and fits with it: the one click of the page. Another process
    holds the rest of the GPU: a limit of PyTorch's own would not show in what the driver says is free."""
    import torch

    if not torch.cuda.is_available():
        return {"refused": "the memory of a CPU has no limit that PyTorch sets"}
    settings = world.short(model, 2, **{"training.per_device_train_batch_size": 64, "data.max_length": 4096})
    with ballast(16 * 2**30):
        failed = world.train({**settings, "training.packing": True, "training.gradient_checkpointing": False})
        retry = failed.get("retry") or {}
        if not retry:
            return {"state": "failed", "message": f"no retry was offered: {failed.get('message')}"}
        free_memory()
        again = world.train({**settings, "training.packing": True, **retry["settings"]})
        return {**outcome(again), "retry": retry["title"], "first": failed.get("message")}


BALLAST = """
import sys, torch
held = torch.empty(max(0, torch.cuda.mem_get_info()[0] - int(sys.argv[1])), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def ballast(left: int) -> Iterator[None]:
    """Inside, another process holds the GPU's memory but for so many bytes."""
    words = [sys.executable, "-c", BALLAST, str(left)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline().strip() != "held":
            raise RuntimeError("No other process can hold memory of this GPU.")
        try:
            yield
        finally:
            holder.kill()


def memory(world: World) -> Iterator[Case]:
    """The peak of PyTorch's allocator beside the estimate; of what each shape can show the most telling first."""
    every = list(product(("none", "4bit"), (False, True), (False, True)))
    padded = [case for case in every if not case[2]]
    order = [(shape, case) for shape in ("0.6B", "8B", "4B") for case in (padded[0], padded[3])]
    order += [("0.6B", case) for case in every if ("0.6B", case) not in order]
    order += [(shape, case) for shape in ("8B", "4B") for case in padded if (shape, case) not in order]
    if world.dry:
        order = [("0.6B", ("none", False, False)), ("0.6B", ("4bit", True, True))]
    for shape, (quantization, checkpointing, packing) in order:
        settings = {
            "model.quantization": quantization,
            "training.gradient_checkpointing": checkpointing,
            "training.packing": packing,
            "training.per_device_train_batch_size": 2 if packing else 8,
        }
        kind, state = "LoRA" if quantization == "none" else "QLoRA", "on" if checkpointing else "off"
        name = f"{shape}, {kind}, checkpointing {state}, {'packed' if packing else 'padded'}"
        yield (
            name,
            lambda shape=shape, settings=settings: peak_of(world, world.short(world.model(shape), 3, **settings)),
        )


def peak_of(world: World, settings: Mapping[str, Any]) -> Result:
    """A run's measured and estimated peak. The peak of a process is counted anew."""
    import torch

    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = outcome(world.train(settings))
    if result.get("peak_memory_bytes") and result.get("estimated_memory_bytes"):
        result["ratio"] = round(result["estimated_memory_bytes"] / result["peak_memory_bytes"], 3)
    return result


def speed(world: World) -> Iterator[Case]:
    """Real tokens a second: trl's defaults, ours, and ours with each switch. What is compared first is measured three
    times, at both sizes; then come the switches."""
    rates: list[float] = []

    def rate() -> float:
        from benchmarks.train import matrix_rate

        if not rates:
            rates.append(matrix_rate(*((256, 0.1) if world.dry else (8192, 0.5))))
        return rates[0]

    def trl(shape: str) -> Callable[[], Result]:
        return lambda: speed_of(world, lambda: trl_speed(world, world.model(shape)), rate(), world.model(shape), 3)

    def ours(shape: str, name: str) -> Callable[[], Result]:
        def run() -> Result:
            rows = {} if world.dry else {"training.per_device_train_batch_size": ROWS}
            result = world.train(world.short(world.model(shape), STEPS, **{**rows, **SWITCHES[name]}))
            if result.get("state") != "done":
                return outcome(result)
            return {"tokens_per_second": settled_speed(Path(result["folder"]), 0 if world.dry else WARM)}

        return lambda: speed_of(world, run, rate(), world.model(shape), 3 if name in THRICE else 1)

    yield "matrix rate", lambda: {"operations_per_second": rate()}
    shapes = ("tiny",) if world.dry else ("0.6B", "4B")
    for shape in shapes:
        yield f"{shape}, trl's defaults", trl(shape)
        for name in THRICE[:1] if world.dry else THRICE:
            yield f"{shape}, {name}", ours(shape, name)
    for shape in shapes:
        for name in ("ours, activations offloaded",) if world.dry else SWITCHES:
            if name not in THRICE:
                yield f"{shape}, {name}", ours(shape, name)


def speed_of(world: World, run: Callable[[], Result], rate: float, model: str, times: int) -> Result:
    """The median of so many runs, and its share of the card's matrix rate: four operations a weight and token."""
    results: list[Result] = []
    for _ in range(1 if world.dry else times):
        result = run()
        free_memory()
        if "tokens_per_second" not in result:
            return result
        results.append(result)
    speeds = [result["tokens_per_second"] for result in results]
    tokens = median(speeds)
    share = tokens * 4 * parameters_of(model) / rate
    spread = {"spread": round(max(speeds) / min(speeds), 3)} if len(speeds) > 1 else {}
    return {"tokens_per_second": round(tokens, 1), "share_of_matrix_rate": round(share, 4), **spread}


def settled_speed(folder: Path, warm: int) -> float:
    """Tokens a second from the end of one step of a run to that of its last, as `benchmarks.train` counts those of trl;
    so many steps before that one are left out."""
    from lora_studio.jobs.events import fold_lines
    from lora_studio.workspace import RunFolder

    points = fold_lines(RunFolder(folder).events.read_text(encoding="utf-8").split("\n")).steps[warm:]
    return (points[-1].tokens - points[0].tokens) / max(points[-1].time - points[0].time, 1e-9)


def parameters_of(model: str) -> int:
    from lora_studio.models.shape import architecture, read_config

    numbers = architecture(read_config(model) or {})
    assert numbers is not None
    return numbers.parameters


def trl_speed(world: World, model: str) -> Result:
    """trl's trainer with its own defaults on our rows (`benchmarks.train`)."""
    from benchmarks.train import trl

    args = argparse.Namespace(
        data="alpaca",
        model=model,
        shape=None,
        steps=3 if world.dry else STEPS,
        warm=0 if world.dry else WARM,
        max_length=64 if world.dry else 512,
        contender=None,
    )
    rows = {} if world.dry else {"per_device_train_batch_size": ROWS}
    (began, before), (ended, after) = trl(args, gradient_accumulation_steps=1, **rows)["marks"]
    return {"tokens_per_second": (after - before) / max(ended - began, 1e-9)}


def chat(world: World) -> Iterator[Case]:
    """Tokens a second of the answers: one column, base and adapter in a batch, and in turn."""
    for name, batches in {
        "one column": [[None]],
        "two in a batch": [[None, "a"]],
        "two in turn": [[None], ["a"]],
    }.items():
        yield name, lambda batches=batches: chat_of(world, batches=batches)


def chat_of(
    world: World, *, columns: int = 0, batches: list[list[str | None]] | None = None, cache: str = "dynamic"
) -> Result:
    """All columns at once, or these batches one after the other; answers of a fixed length, greedy."""
    import torch
    from peft import LoraConfig, get_peft_model

    from benchmarks.chat import ask
    from lora_studio.engine.models.multi_adapter import add_adapters, load_base

    model = world.model("0.6B")
    tokens = 4 if world.dry else 128
    args = argparse.Namespace(tokens=tokens, prompt=8 if world.dry else 64, cache=cache)
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
        ask(loaded, args, batch)
    seconds = []
    for _ in range(1 if world.dry else 3):
        began = time.perf_counter()
        answers = [answer for batch in asked for answer in ask(loaded, args, batch)]
        seconds.append(time.perf_counter() - began)
    written = sum(answer.tokens for answer in answers)
    return {"state": "done", "columns": len(answers), "tokens_per_second": round(written / median(seconds), 1)}


PARTS: dict[str, Callable[[World], Iterator[Case]]] = {"smoke": smoke, "speed": speed, "chat": chat, "memory": memory}


def run_part(
    name: str, world: World, seconds: float, write: Callable[[str, Result], None], *, done: Collection[str] = ()
) -> bool:
    """Does the cases of a part that are not done, one after the other, until its time is over; a case that fails is one
    result. False where the process can do no more."""
    until = time.monotonic() + seconds
    for case, work in PARTS[name](world):
        if case in done:
            continue
        if time.monotonic() > until:
            write(case, {"missing": "no time was left"})
            continue
        began = time.monotonic()
        write(case, BEGUN)
        try:
            result = work()
        except Exception as error:  # the next case has to run
            result = {"state": "failed", "message": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        write(case, {**result, "seconds": round(time.monotonic() - began, 2)})
        if not world.dry and any(words in str(result.get("message")) for words in BROKEN):
            return False
        free_memory()
    return True


BEGUN: Result = {"state": "begun"}


def free_memory() -> None:
    """Frees what the last run held."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def child(name: str, out: Path, folder: Path, until: float) -> str:
    """A part in a process of its own, and in another one behind each case that ends it; why it ended early, or ""."""
    results = out / f"{name}.jsonl"
    while (left := until - time.monotonic()) > LEAST_SECONDS:
        words = ["--part", name, "--out", str(out), "--folder", str(folder), "--seconds", str(left - LEAST_SECONDS)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *words], start_new_session=True, env=environment
        )
        why = watch(process, results, until)
        if not why:
            return ""
        begun = [case for case, result in lines_of(results).items() if result == BEGUN]
        for case in begun:
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps([case, {"state": "failed", "message": why}]) + "\n")
        if not begun and process.returncode != AGAIN:
            return why
    return "no time was left"


def watch(process: "subprocess.Popen[bytes]", results: Path, until: float) -> str:
    """Waits for a part's process, and ends it where a case takes too long or its time is over: why, "" for the end of
    all cases."""
    known, since = b"", time.monotonic()
    why = ""
    while process.poll() is None and not why:
        time.sleep(LOOK_SECONDS)
        now, written = time.monotonic(), results.read_bytes() if results.is_file() else b""
        known, since = (known, since) if written == known else (written, now)
        if now > until:
            why = "the part's time was over"
        elif now - since > CASE_SECONDS:
            why = f"it took more than {CASE_SECONDS:.0f} seconds"
    with contextlib.suppress(ProcessLookupError):  # also what a process that ended has left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return why or ("" if process.returncode == 0 else f"its process ended with code {process.returncode}")


def machine() -> Result:
    from importlib.metadata import version

    import torch

    from lora_studio.engine.accelerator import device_name

    libraries = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    return {"device": device_name(), "cuda": torch.version.cuda, **{name: version(name) for name in libraries}}


def table(report: Mapping[str, Any]) -> str:
    """The results as Markdown: the machine, a table for each part, and what is missing."""
    lines = ["# On a GPU", "", ", ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    for part, cases in report["parts"].items():
        lines += [f"## {part.capitalize()}", "", "| case | result |", "|---|---|"]
        for case, result in cases.items():
            cells = ", ".join(f"{name} {shown(name, value)}" for name, value in result.items())
            lines.append(f"| {case} | {cells.replace('|', '/')} |")
        lines.append("")
    lines += ["## Missing", "", *(f"- {line}" for line in report["missing"] or ["nothing"])]
    return "\n".join(lines) + "\n"


def shown(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.2f} GiB"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def missing(report: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    """The parts that ended early, and the cases that failed, were refused or found no time."""
    lines = [f"{part}: {reason}" for part, reason in reasons.items() if reason]
    for part, cases in report["parts"].items():
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


def everything(args: argparse.Namespace, out: Path, began: float) -> Result:
    """All parts, each as far as it comes, and the two files, which are written anew after each. The time runs since
    `began` on the monotonic clock."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = began
    reasons, report = dict[str, str](), Result()
    about = machine()
    with tempfile.TemporaryDirectory(dir=None if args.dry else roomy()) as folder:
        for name in args.only:
            (out / f"{name}.jsonl").unlink(missing_ok=True)
            deadline += SECONDS[name]
            if args.dry:
                part(name, out, Path(folder), 3600.0, dry=True)
            else:
                reasons[name] = child(name, out, Path(folder), deadline)
            report = {"machine": about, "parts": {part: lines_of(out / f"{part}.jsonl") for part in args.only}}
            report |= {"seconds": round(time.monotonic() - began, 1), "missing": missing(report, reasons)}
            (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (out / "gpu.md").write_text(table(report), encoding="utf-8")
    return report


def roomy() -> str | None:
    """A folder in memory where there is enough of it: models of 27 GB are written and read there in seconds. None for
    the disk."""
    place = Path("/dev/shm")
    return str(place) if place.is_dir() and shutil.disk_usage(place).free > ROOM else None


def part(name: str, out: Path, folder: Path, seconds: float, *, dry: bool) -> bool:
    """One part in this process, whose cases go to a file of lines as they come; False where another one has to go on.
    Models lie in the folder."""
    results = out / f"{name}.jsonl"
    done = lines_of(results)
    with results.open("a", encoding="utf-8") as file:

        def write(case: str, result: Result) -> None:
            file.write(json.dumps([case, result]) + "\n")
            file.flush()
            if result != BEGUN:
                print(f"{name}, {case}: {result}", file=sys.stderr, flush=True)

        return run_part(name, World(folder, dry), seconds, write, done=done)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="some of the parts")
    parser.add_argument("--dry", action="store_true", help="tiny shapes, in this process, on the CPU too")
    parser.add_argument("--pack", type=Path, help="write the wheels that the GPU machine lacks to this folder")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args, began = parser.parse_args(), time.monotonic()
    if args.pack:
        from benchmarks.gpu_pack import pack

        return pack(args.pack)
    if args.part:
        return 0 if part(args.part, args.out, args.folder, args.seconds, dry=args.dry) else AGAIN
    import torch

    if not args.dry and not torch.cuda.is_available():
        print("This machine shows no CUDA GPU. --dry tries the script with tiny shapes.", file=sys.stderr)
        return 2
    report = everything(args, args.out, began)
    for line in report["missing"]:
        print(f"missing: {line}")
    print(json.dumps({"seconds": report["seconds"], "missing": len(report["missing"]), "out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
