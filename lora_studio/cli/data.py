"""`inspect`: how a data file is read, rendered, cut and trained on, in numbers and row by row.

`cache`: how much room prepared data take, and how to get it back.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_studio.cli.output import PhaseLines, print_json, say, table
from lora_studio.cli.settings import overrides
from lora_studio.config.parsing import nest, parse
from lora_studio.data.cache import CACHE_LIMIT
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import Inspect, SaveBadRows
from lora_studio.jobs.session import Session
from lora_studio.units import count
from lora_studio.workspace import Workspace

if TYPE_CHECKING:
    from lora_studio.data.preview import CharacterReport
    from lora_studio.data.report import Analysis, RowView, Token, TokenView

_LISTED_BAD_ROWS = 10
COMPARED = {
    "preference": "Rows are pairs (training.method dpo): lengths are those of the longer answer.",
    "kto": "Answers are labelled good or bad (training.method kto).",
}
"""What is to be known of rows that are compared."""


def inspect(workspace: Workspace, args: argparse.Namespace) -> int:
    """Prints a report of the file, or the whole of what is known as JSON."""
    if args.show_examples < 0:
        raise StudioError(f"--show-examples cannot be {args.show_examples}.", "Give 0 or more.")
    settings = parse(nest(overrides(args))).data.model_dump(exclude={"train_file", "validation_file"})
    if args.char_only:
        from lora_studio.data.preview import inspect_characters

        characters = inspect_characters(
            args.data,
            mapping=settings["mapping"],
            encoding=settings["encoding"],
            percentiles=_percentiles(args.percentiles),
        )
        if args.json:
            print_json(characters)
        else:
            print(_reading(characters))
            print(table(("characters per row", *characters["characters"]), [("", *characters["characters"].values())]))
        return 0
    with Session(workspace.logs_folder / "cli-inspect.log") as session:
        request = Inspect(
            model=args.model,
            train_file=args.data,
            validation_file=args.validation_file,
            show_examples=args.show_examples,
            percentiles=_percentiles(args.percentiles),
            cache_folder=str(workspace.cache_folder),
            **settings,
        )
        analysis = session.call(request, on_progress=PhaseLines().show).report
        if args.save_bad_rows:
            saved = session.call(SaveBadRows(path=str(_new_file(args.save_bad_rows)))).rows
            verb = "is" if saved == 1 else "are"
            say(f"{count(saved, 'invalid row')} {verb} written to {args.save_bad_rows}.")
    if args.json:
        print_json(analysis)
    else:
        print(report(cast("Analysis", analysis)))
    return 0


def _new_file(name: str) -> Path:
    path = Path(name).expanduser().resolve()
    if path.exists() or not path.parent.is_dir():
        why = "already exists" if path.exists() else "is in a folder that does not exist"
        raise StudioError(f"{name} {why}.", "Name a new file in an existing folder with --save-bad-rows.")
    return path


def _percentiles(text: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise StudioError(
            f"--percentiles cannot be {text!r}.", "Give numbers from 0 to 100, such as 50,90,99.9."
        ) from None


def report(analysis: "Analysis") -> str:
    """The result of an inspection as text: reading, lengths, what the cut costs, and rows step by step."""
    rows, cut, hygiene = analysis["train_rows"], analysis["truncated_rows"], analysis["hygiene"]
    lines = [
        _reading(analysis),
        f"Prompt style: {analysis['prompt_style']}. {analysis['template_origin']}",
        "",
        table(("tokens per row", *analysis["tokens"]), [("", *analysis["tokens"].values())]),
        "",
        f"Max length {analysis['max_length']:,} tokens ({analysis['truncation']}): {count(cut, 'row')} "
        f"{'is' if cut == 1 else 'are'} truncated, {analysis['dropped_rows']:,} dropped, "
        f"{count(analysis['lost_trained_tokens'], 'trained token')} lost.",
        f"Trained tokens: {analysis['trained_tokens']:,} of {analysis['total_tokens']:,} "
        f"({analysis['trained_tokens'] / max(analysis['total_tokens'], 1):.0%}).",
        f"{count(rows, 'training row')}, {count(analysis['validation_rows'], 'validation row')}.",
        *_advice(analysis),
        *(hygiene["sentences"] if hygiene else []),
    ]
    for example in analysis["examples"]:
        lines += ["", *steps_of(example, analysis)]
    return "\n".join(lines)


def _advice(analysis: "Analysis") -> list[str]:
    """A better length, and what packing would do."""
    suggested, packing, steps = analysis["suggested"], analysis["packing"], analysis["steps"]
    batch = f"{steps['per_device_train_batch_size']} x {steps['gradient_accumulation_steps']} rows per step"
    lines = [f"Suggested max_length: {suggested['max_length']}. {suggested['reason']}"]
    if analysis["split_rows"]:
        verb = "is" if analysis["split_rows"] == 1 else "are"
        lines.append(f"{count(analysis['split_rows'], 'long text')} {verb} split into windows without losing tokens.")
    if analysis["format"] in COMPARED:
        return [*lines, COMPARED[analysis["format"]], f"An epoch has {count(steps['per_epoch'], 'step')} ({batch})."]
    lines.append(
        f"Packing: {count(packing['packs'], 'sequence')} from {count(packing['rows'], 'row')}, "
        f"{packing['padding_packed']:.0%} padding (about {packing['padding_alone']:.0%} without packing)."
    )
    lines.append(
        f"An epoch has {count(steps['per_epoch'], 'step')}, {steps['per_epoch_packed']:,} with packing ({batch})."
    )
    return lines


def _reading(analysis: "Analysis | CharacterReport") -> str:
    lines = [
        f"{analysis['file']}: {analysis['file_kind']}, {analysis['format']}",
        analysis["words"],
        *analysis["assumptions"],
        f"{count(analysis['rows'], 'valid row')}, {count(analysis['bad_rows'], 'invalid row')}",
    ]
    for bad in analysis["bad_row_list"][:_LISTED_BAD_ROWS]:
        where = f" ({bad['field']})" if bad.get("field") else ""
        row = f"{bad['file']}, row {bad['row']}" if "file" in bad else f"row {bad['row']}"
        lines.append(f"  {row}: {bad['reason']}{where}" + (f": {bad['found']}" if bad.get("found") else ""))
    if analysis["bad_rows"] > _LISTED_BAD_ROWS:
        lines.append(f"  ... and {analysis['bad_rows'] - _LISTED_BAD_ROWS:,} more (--save-bad-rows FILE writes all)")
    return "\n".join(lines)


def steps_of(example: "RowView", analysis: "Analysis") -> list[str]:
    """One row's way from the file to the labels, in six steps; of a pair, the better side, then the worse one's."""
    lines = [
        f"--- {Path(analysis['file']).name}, row {example['row']} ---",
        "1 record",
        "  " + json.dumps(example["record"], ensure_ascii=False),
        "2 messages",
        *(f"  {message['role']}: {message.get('content') or ''}" for message in example["messages"]),
        *(f"  chosen {turn['role']}: {turn.get('content') or ''}" for turn in example.get("chosen", [])),
        *(f"  rejected {turn['role']}: {turn.get('content') or ''}" for turn in example.get("worse", [])),
        *_encoding(example),
    ]
    if "rejected" in example:
        lines += ["--- rejected answer ---", *_encoding(example["rejected"])]
    return lines


def _encoding(example: "TokenView") -> list[str]:
    """From a conversation's text to its labels."""
    tokens, kept_tokens = example["tokens"], example["kept_tokens"]
    part = f" (here part {example['window'] + 1} of {example['windows']})" if example["windows"] > 1 else ""
    cut = f"5 truncation: {count(example['removed_tokens'], 'token')} removed, {kept_tokens} kept"
    if example["lost_trained_tokens"]:
        cut += f"; {example['lost_trained_tokens']} of the removed tokens are trained tokens"
    return [
        f"3 text{part}",
        *(f"  {line}" for line in example["text"].splitlines()),
        f"4 tokens: {example['full_length']}{part}",
        "  " + " ".join(f"{token['id']}:{token['text']!r}" for token in tokens),
        cut + (f"; the row is dropped: {example['left_out']}" if example["left_out"] else ""),
        *(f"  x {text!r}" for kind, text in _stretches(tokens) if kind == "x"),
        f"6 loss mask: {example['trained_tokens']} of {kept_tokens} tokens are trained "
        f"({example['trained_tokens'] / max(kept_tokens, 1):.0%})",
        *(f"  {kind} {text!r}" for kind, text in _stretches(tokens) if kind != "x"),
    ]


def _stretches(tokens: list["Token"]) -> list[tuple[str, str]]:
    """Stretches of tokens that are trained (+), only read (-) or removed (x)."""
    stretches: list[tuple[str, str]] = []
    for token in tokens:
        kind = "x" if not token["kept"] else "+" if token["trained"] else "-"
        before = stretches.pop()[1] if stretches and stretches[-1][0] == kind else ""
        stretches.append((kind, before + token["text"]))
    return stretches


def cache(workspace: Workspace, args: argparse.Namespace) -> int:
    """Shows the cache's size and limit, or clears it."""
    folder = str(workspace.cache_folder)
    if args.action == "clear":
        freed = workspace.clear_cache()
        if args.json:
            print_json({"folder": folder, "freed_bytes": freed})
        else:
            print(f"Freed {freed / 1e6:,.1f} MB in {folder}.")
        return 0
    size = workspace.cache_size()
    if args.json:
        print_json({"folder": folder, "bytes": size, "limit_bytes": CACHE_LIMIT})
    else:
        print(f"{size / 1e6:,.1f} MB of prepared data in {folder} (at most {CACHE_LIMIT / 1e9:,.1f} GB are kept).")
    return 0
