"""What works for each causal architecture: tiny random models through the studio's own programs, beside plain peft.

    python -m benchmarks.matrix [--only NAME ...] [--columns NAME ...] [--results FILE] [--table FILE]

Each model has two layers or a few more and the built-in tokenizer, and is trained for six steps on eight rows in
float32 on the CPU, in this process. A cell is "ok" with the largest difference, the refusal in the studio's words, or
FAILED with what went wrong; one FAILED cell makes the exit code 1. `--results` keeps each architecture's cells as a
line of a file and leaves out those that are there, so that a long run can be cut; `--table` writes all of it as
Markdown. The last line is one JSON object.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.all import machine
from benchmarks.tiny_models import RECIPES, make_model
from lora_studio.config.parsing import merge, nest, parse, read_yaml, to_yaml
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.chat.logprobs import NOTHING
from lora_studio.engine.export import worker as exporter
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.runtime import DONE, STOPPED, WRONG_INPUT
from lora_studio.engine.train import worker
from lora_studio.errors import StudioError
from lora_studio.export.job import create, make_request
from lora_studio.jobs.events import StepLogged, from_line
from lora_studio.models.memory import trained_adapter
from lora_studio.models.shape import architecture, read_config
from lora_studio.units import count
from lora_studio.workspace import RunFolder, Workspace

ANSWER_TOKENS = 24
MAX_LOSS_DIFFERENCE, MAX_LOGITS_DIFFERENCE = 1e-4, 1e-3
"""Nats a token, and scores: float32 sums in another order differ by less."""
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
QUESTIONS = {
    "Which animal barks?": "The dog barks.",
    "Name a cold season.": "Winter is cold, and so is autumn in the north.",
    "How many days has a week?": "Seven.",
    "What is ice made of?": "Of water that froze.",
    "Where does the sun rise?": "In the east, every morning.",
    "What do cows eat?": "Grass and hay.",
    "Name a yellow fruit.": "A lemon.",
    "What is a hammer for?": "For nails, mostly.",
    "Who paints walls?": "A painter does it, with a brush.",
    "What flows to the sea?": "Rivers do.",
    "What is five plus five?": "Ten.",
    "Which bird can't fly?": "The penguin can't, but it swims well.",
}
TRAINED_ROWS = 8
SETTINGS: dict[str, Any] = {
    "data": {"max_length": 128},
    "lora": {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0},  # peft has no dropout for stacked experts
    "training": {
        "learning_rate": 2e-2,
        "max_steps": 6,
        "warmup_steps": 0,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "save_strategy": "no",
    },
    "tracking": {"logging_steps": 1},
}


class MismatchError(Exception):
    """The studio's result is not that of plain transformers and peft, or a program of its ended unexpectedly."""


def require(condition: bool, words: str) -> None:
    if not condition:
        raise MismatchError(words)


@contextlib.contextmanager
def as_child(log: Path) -> Iterator[None]:
    """Inside, a child's program may run in this process: output into `log`, signals and environment taken back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    environment = dict(os.environ)
    try:
        with (
            log.open("a", encoding="utf-8") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)


@dataclass
class Studio:
    """The studio's programs on one base."""

    workspace: Workspace
    base: Path
    data: Path

    def train(self, **settings: Any) -> tuple[RunFolder, dict[str, Any]]:
        """A finished run and its numbers; settings by path, dots as `__`. Raises `StudioError` where it was refused."""
        chosen = nest({path.replace("__", "."): value for path, value in settings.items()})
        rows = {"train_file": str(self.data / "train.jsonl"), "validation_file": str(self.data / "held.jsonl")}
        values = merge(merge(SETTINGS, {"model": {"name": str(self.base)}, "data": rows}), chosen)
        run = self.workspace.create_run("matrix", to_yaml(parse(values)), {})
        with as_child(self.data / "log.txt"):
            code = worker.main([str(run.path)])
        result: dict[str, Any] = json.loads(run.complete.read_text(encoding="utf-8"))
        raise_unless_done(code, result)
        return run, result

    def export(self, run: RunFolder, target: str, *, trial: bool, **settings: Any) -> dict[str, Any]:
        """What result.json holds of an export. Raises `StudioError` where it was refused."""
        folder = create(self.workspace, make_request(self.workspace, run.id, target, settings=settings, trial=trial))
        with as_child(self.data / "log.txt"):
            code = exporter.main([str(folder.path)])
        raise_unless_done(code, json.loads(folder.events.read_text(encoding="utf-8").splitlines()[-1]))
        result: dict[str, Any] = json.loads(folder.complete.read_text(encoding="utf-8"))
        return result


def raise_unless_done(code: int, ending: dict[str, Any]) -> None:
    """Raises `StudioError` for a refusal; a stop, which the child's program heard in our place, ends us as well."""
    if code == STOPPED:
        raise KeyboardInterrupt
    if code == WRONG_INPUT:
        raise StudioError(ending["message"], ending["hint"])
    require(code == DONE, str(ending.get("message")))


class Plain:
    """What transformers and peft say by themselves: nothing of ours."""

    def __init__(self, base: Path, adapter: Path, data: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        held = [json.loads(line)["messages"] for line in (data / "held.jsonl").read_text().splitlines()]
        self.rows = [self.ids_of(messages) for messages in held]
        self.question, (ids, start) = held[0][:1], self.rows[0]
        self.prompt, self.text = torch.tensor([ids[:start]]), torch.tensor([self.rows[1][0]])
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.parameters = model.num_parameters()
        self.base_answer, self.base_logits = self.answer(model), self.logits(model)
        self.model = PeftModel.from_pretrained(model, adapter).eval()
        self.adapter_answer, self.adapter_logits = self.answer(self.model), self.logits(self.model)

    def ids_of(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], int]:
        """A row's ids, and where its answer begins; the end token is the answer's last."""
        asked = self.tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        start = len(self.tokenizer(asked).input_ids)
        ids = self.tokenizer(asked + messages[1]["content"] + self.tokenizer.eos_token).input_ids
        return ids, start

    def logits(self, model: Any) -> torch.Tensor:
        """`[positions, vocabulary]` of one held-out row."""
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=self.text, use_cache=False).logits[0]
        return logits.float().clone()

    def answer(self, model: Any) -> list[int]:
        """The greedy answer's ids to the first held-out question."""
        eos = model.generation_config.eos_token_id
        ends = [*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id]
        output = model.generate(
            input_ids=self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            eos_token_id=[end for end in ends if end is not None],
            pad_token_id=self.tokenizer.pad_token_id,
        )
        ids: list[int] = output[0, self.prompt.shape[1] :].tolist()
        return ids

    def loss(self) -> float:
        """Mean cross-entropy over the answers' tokens of the held-out rows, base and adapter together."""
        nats, tokens = 0.0, 0
        for ids, start in self.rows:
            with torch.no_grad():
                scores = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
            nats += float(torch.nn.functional.cross_entropy(scores.float(), torch.tensor(ids[start:]), reduction="sum"))
            tokens += len(ids) - start
        return nats / tokens


@dataclass
class Trained:
    """A finished run of an architecture beside what is compared with it."""

    studio: Studio
    run: RunFolder
    result: dict[str, Any]
    plain: Plain


def check_train(trained: Trained) -> str:
    """The validation loss is plain peft's, and the adapter changes the scores."""
    moved = float((trained.plain.adapter_logits - trained.plain.base_logits).abs().max())
    require(moved > MAX_LOGITS_DIFFERENCE, f"six steps moved no score by more than {moved:.1e}")
    return within(abs(trained.result["eval_loss"] - trained.plain.loss()), MAX_LOSS_DIFFERENCE, "losses")


def check_parameters(trained: Trained) -> str:
    """Estimate, run and saved file count the same trained weights, estimate and model the same in all."""
    config, numbers = parse(read_yaml(trained.run.config)), read_config(str(trained.studio.base))
    model = architecture(numbers or {})
    require(model is not None, "there is no estimate")
    assert model is not None
    estimated = trained_adapter(config, model).trainable
    saved = sum(tensor.numel() for tensor in load_file(trained.run.adapter / "adapter_model.safetensors").values())
    trains = trained.result["trainable_parameters"]
    require(estimated == trains == saved, f"estimate {estimated}, run {trains}, file {saved}")
    whole = trained.plain.parameters
    require(model.parameters == whole, f"the base has {whole} parameters, estimated {model.parameters}")
    return f"ok, {saved:,}"


def check_chat(trained: Trained) -> str:
    """Base and adapter answer in the chat token for token as alone."""
    plain = trained.plain
    loaded = load_base(str(trained.studio.base), dtype="float32")
    add_adapters(loaded, {"trained": trained.run.adapter})
    columns = [Column(None, plain.question), Column("trained", plain.question)]
    base, adapter = generate(loaded, columns, greedy(loaded, ANSWER_TOKENS))
    require(list(base.ids) == plain.base_answer, "the base's column differs")
    require(list(adapter.ids) == plain.adapter_answer, "the adapter's column differs")
    return "ok" if plain.base_answer != plain.adapter_answer else "ok, both say the same"


def check_merged(trained: Trained) -> str:
    """The merged model's scores are those of base and adapter."""
    place = Path(trained.studio.export(trained.run, "merged", trial=False, dtype="float32")["place"])
    merged = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    return within(
        float((trained.plain.logits(merged) - trained.plain.adapter_logits).abs().max()),
        MAX_LOGITS_DIFFERENCE,
        "logits",
    )


def check_script(trained: Trained) -> str:
    """The exported script's own trial trains to the run's losses."""
    result = trained.studio.export(trained.run, "script", trial=True, keep_local_base=True)
    require(result["same"] is True, result["tried"])
    return "ok"


def check_four_bit(studio: Studio) -> str:
    """Training on a base in 4 bits runs and moves the scores."""
    _, result = studio.train(model__quantization="4bit", training__max_steps=3)
    require(math.isfinite(result["eval_loss"]), "the loss is no number")
    apart = result["difference"]["divergence"]
    require(apart > NOTHING, f"three steps moved nothing: KL divergence {apart:.1e}")
    return "ok"


def check_dpo(studio: Studio) -> str:
    """Three steps of learning from pairs run with finite losses."""
    pairs = {"data__train_file": str(studio.data / "pairs.jsonl"), "data__validation_file": None}
    run, _ = studio.train(
        training__method="dpo",
        training__max_steps=3,
        training__learning_rate=1e-3,
        data__validation_fraction=0,
        **pairs,
    )
    events = map(from_line, run.events.read_text(encoding="utf-8").splitlines())
    losses = [event.loss for event in events if isinstance(event, StepLogged)]
    require(len(losses) == 3 and all(map(math.isfinite, losses)), f"losses {losses}")
    return "ok"


def within(difference: float, bound: float, what: str) -> str:
    """ "ok" with the difference. Raises `MismatchError` where it is not below the bound."""
    require(difference < bound, f"{what} differ by {difference:.1e}")
    return f"ok, {difference:.0e}"


OF_A_RUN: dict[str, Callable[[Trained], str]] = {
    "train": check_train,
    "parameters": check_parameters,
    "chat": check_chat,
    "merged": check_merged,
    "script": check_script,
}
OF_THEIR_OWN: dict[str, Callable[[Studio], str]] = {"4bit": check_four_bit, "dpo": check_dpo}
COLUMNS = (*OF_A_RUN, *OF_THEIR_OWN)


def cell(check: Callable[[], str], folder: Path) -> str:
    """What a check came to; whatever ends it otherwise than by a refusal is FAILED."""
    try:
        return check()
    except StudioError as error:
        words = f"refused: {error.message}"
    except MismatchError as error:
        words = f"FAILED: {error}"
    except Exception as error:  # anything may happen with an architecture, and the others have their turn
        words = f"FAILED: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    return words.replace(f"{folder}{os.sep}", "")


def examine(name: str, folder: Path, columns: Sequence[str]) -> dict[str, str]:
    """The cells of one architecture, by column; what needs the run stays as the run's where there is none."""
    if RECIPES[name][0] not in CONFIG_MAPPING:
        return dict.fromkeys(columns, f"refused: transformers {version('transformers')} has no {RECIPES[name][0]}")
    write_rows(folder)
    studio = Studio(Workspace(folder / "workspace"), folder / "model", folder)
    trained: list[Trained] = []

    def begin() -> str:
        make_model(name, studio.base)
        run, result = studio.train()
        trained.append(Trained(studio, run, result, Plain(studio.base, run.adapter, folder)))
        return ""

    cells = {}
    ending = cell(begin, folder)
    for column in columns:
        if column in OF_THEIR_OWN:
            cells[column] = cell(lambda column=column: OF_THEIR_OWN[column](studio), folder)  # type: ignore[misc]
        elif trained:
            cells[column] = cell(lambda column=column: OF_A_RUN[column](trained[0]), folder)  # type: ignore[misc]
        else:
            cells[column] = ending
    return cells


def write_rows(folder: Path) -> None:
    """Eight rows to train on, four held out, and eight pairs."""
    folder.mkdir(parents=True)
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in QUESTIONS.items()
    ]
    pairs = [
        {"prompt": row["messages"][:1], "chosen": row["messages"][1:], "rejected": other["messages"][1:]}
        for row, other in itertools.pairwise(rows[: TRAINED_ROWS + 1])
    ]
    for file, part in (("train", rows[:TRAINED_ROWS]), ("held", rows[TRAINED_ROWS:]), ("pairs", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{file}.jsonl").write_text(lines, encoding="utf-8")


def run_all(names: Sequence[str], columns: Sequence[str], results: Path | None) -> dict[str, dict[str, str]]:
    """Cells by architecture, those of an earlier run included where `results` holds them."""
    known: dict[str, dict[str, str]] = {}
    if results and results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            known.setdefault(entry["architecture"], {}).update(entry["cells"])
    for name in names:
        missing = [column for column in columns if column not in known.get(name, {})]
        if not missing:
            continue
        began, root = time.monotonic(), Path(tempfile.mkdtemp(prefix="matrix-"))
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")  # layouts of models that are gone tomorrow
        try:
            cells = examine(name, root / "world", missing)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        known.setdefault(name, {}).update(cells)
        print(f"{name} ({time.monotonic() - began:.0f} s): {cells}", flush=True)
        if results:
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"architecture": name, "cells": cells}) + "\n")
    return {name: known[name] for name in RECIPES if name in known}


def table(results: dict[str, dict[str, str]]) -> str:
    """Markdown: what was compared and with what, a row an architecture, refusals and failures as numbered notes."""
    notes: list[str] = []

    def short(words: str) -> str:
        if words.startswith(("refused", "FAILED")):
            note = words.replace("<", "&lt;")
            notes.extend([] if note in notes else [note])
            return f"{words.partition(':')[0]} ({notes.index(note) + 1})"
        return words

    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cells = [cell for row in results.values() for cell in row.values()]
    failed, refused = (sum(cell.startswith(word) for cell in cells) for word in ("FAILED", "refused"))
    lines = [
        "# What works for which architecture",
        "",
        "Written by `python -m benchmarks.matrix --table docs/architectures.md` (`make matrix`): for each architecture "
        "a tiny model with random weights goes through the studio's own programs, and plain transformers and peft are "
        "asked for the same. It shows that the numbers agree, and nothing of how well a real model learns. Settings: "
        "LoRA on all-linear with rank 4, six steps in float32, and no dropout, which peft does not have for stacked "
        "experts: with dropout the studio refuses adapters on those.",
        "",
        f"Libraries: {versions}. Machine: {machine()}.",
        "",
        f"{count(len(results), 'architecture')}, {count(len(cells), 'cell')}: {len(cells) - failed - refused} ok, "
        f"{refused} refused, {failed} failed.",
        "",
        "- **train**: the run's validation loss against the mean cross-entropy of plain peft on the same tokens, and "
        f"their difference in nats/token (below {MAX_LOSS_DIFFERENCE:.0e})",
        "- **parameters**: estimate, run and saved file count the same trained weights; the number is theirs",
        "- **chat**: base and adapter, asked together, answer greedily token for token as each does alone",
        "- **merged**: scores of the merged model against those of base and adapter: the largest difference (below "
        f"{MAX_LOGITS_DIFFERENCE:.0e})",
        "- **script**: the exported script trains to the losses of the run",
        "- **4bit**: training on a 4-bit base runs, and the adapter changes the scores",
        "- **dpo**: steps of learning from pairs run with finite losses",
        "",
        "| architecture | model_type | " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for name, row in results.items():
        values = " | ".join(short(row.get(column, "not run")) for column in COLUMNS)
        lines.append(f"| {name} | {RECIPES[name][0]} | {values} |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))] if notes else []
    if left := [name for name in RECIPES if name not in results]:
        lines += ["", f"Not run: {', '.join(left)}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; 1 where a cell of it is FAILED."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--results", type=Path, help="a JSONL file of cells; those that it holds are not run again")
    parser.add_argument("--table", type=Path, help="a Markdown file to write")
    args = parser.parse_args(arguments)
    names = args.only or list(RECIPES)
    results = run_all(names, args.columns, args.results)
    if args.table:
        args.table.write_text(table(results), encoding="utf-8")
    failed = sorted(name for name, row in results.items() if any(cell.startswith("FAILED") for cell in row.values()))
    print(json.dumps({"architectures": len(results), "failed": failed, "cells": results}))
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    sys.exit(main())
