"""report.md: what a finished run was trained from, on and with, and what came out, in words and one table each."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from lora_studio.config import Config
from lora_studio.data.dataset import Prepared
from lora_studio.events import RunState
from lora_studio.settings import flatten
from lora_studio.workspace import RunFolder, write_atomically


def write_report(
    run: RunFolder, config: Config, prepared: Prepared, state: RunState, result: Mapping[str, Any]
) -> None:
    """Writes the report of a run that is done."""
    default = flatten(Config())
    changed = {path: value for path, value in flatten(config).items() if value != default[path] and path != "title"}
    bad, dropped = len(prepared.bad_rows), len(prepared.dropped)
    lines = [
        f"# {config.title or run.id}",
        "",
        f"Trained on {time.strftime('%Y-%m-%d')} with LoRA Studio, in {result['seconds']:.0f} s on {state.device}.",
        "",
        "## Model",
        f"{config.model.name}{f' at {config.model.revision}' if config.model.revision else ''}, "
        f"quantization {config.model.quantization}, {state.dtype}. "
        f"{result['trainable_parameters']:,} of {result['parameters']:,} parameters were trained.",
        "",
        "## Data",
        f"{config.data.train_file}: {prepared.format.words}",
        "",
        f"{len(prepared.train):,} rows to train on, {len(prepared.validation):,} to measure on; {bad:,} rows could not "
        f"be read and {dropped:,} kept no trained token. Prompt style: {prepared.template.name} "
        f"({prepared.template.origin}).",
        "",
        f"Fingerprint of data, template and settings: `{prepared.fingerprint}`",
        "",
        "## Settings",
        "Everything that is not here is at its default.",
        "",
        *_table(("setting", "value"), changed.items()),
        "",
        "## Results",
        *_table(("", ""), _results(result)),
        "",
    ]
    if state.evaluations:
        rows = [(item.step, f"{item.epoch:.2f}", f"{item.loss:.4f}") for item in state.evaluations]
        lines += ["", *_table(("step", "epoch", "validation loss"), rows), ""]
    write_atomically(run.report, "\n".join(lines))


def _results(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("steps", f"{result['steps']:,}"), ("training loss, mean", _number(result["train_loss"]))]
    rows.append(("training loss at the end", _number(result["last_loss"])))
    rows.append(("validation loss", _number(result["eval_loss"])))
    rows.append(("tokens seen", f"{result['tokens']:,}"))
    rows.append(("most memory", f"{result['peak_memory_bytes'] / 1024**3:.2f} GiB"))
    return rows


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """A Markdown table; signs that would end a cell are written out."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]
