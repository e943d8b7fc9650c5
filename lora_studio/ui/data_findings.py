"""What follows from an inspected file, in words: its faults as a whole, a length that fits, packing, steps, progress.

Functions from the inspector's answers, and from what lies on the disk, to HTML; no gradio. The file's shape and its
single rows are data_view.py's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.files import bytes_in
from lora_studio.ui import text
from lora_studio.workspace import Workspace

Result = Mapping[str, Any]

PHASES = {
    "tokenizer": "Loading the tokenizer",
    "lookup": "Looking for what is kept of this file",
    "read": "Reading rows",
    "convert": "Converting rows",
    "encode": "Making tokens",
    "first": "Looking at the first rows",
    "split": "Setting rows apart to measure on, and cutting long ones",
    "measure": "Counting what each length would cut",
    "check": "Looking for repeated and contradictory rows",
    "rows": "Looking at the rows",
    "sample": "Reading the whole file",
}
GROUPS = 5  # examples of a finding that are named


def step(answer: Mapping[str, Any]) -> str:
    """How far the reader is; while a file is read its number of rows is a guess."""
    phase = str(answer.get("phase", ""))
    remarks = []
    if answer.get("rows_per_second") and answer.get("done"):
        remarks.append(f"{answer['rows_per_second']:,.0f} rows a second")
    if answer.get("seconds_left"):
        left = round(answer["seconds_left"])
        remarks.append(f"about {text.duration(left) if left > 9 else f'{max(1, left)} s'} left")
    label = PHASES.get(phase, phase.capitalize() or "Working")
    done = 0 if phase == "sample" else answer.get("done", 0)
    return text.progress(label, done, answer.get("total", 0), remark=", ".join(remarks), guessed=phase == "read")


def first_look(result: Result) -> str:
    """That what is shown comes from the first rows only; nothing when it is the whole file."""
    rows = result.get("sampled")
    if rows is None:
        return ""
    return text.notice(
        f"First look: {text.count(rows, 'row')} from the start of the file.",
        "Every number here is of these rows alone, until the whole file is read.",
        "warning",
    )


def hygiene(result: Result) -> str:
    """Duplicates, leaks, contradictions and lopsided answers: a line each where there are any."""
    found = result["hygiene"]
    if found is None:
        return text.notice("Duplicates and contradictions are looked for once the whole file is read.")
    lines = [line for line in (*_repeats(found), *_leaks(found), *_unlike(found), *_specials(found)) if line]
    body = text.render("data.findings", lines) if lines else text.notice(CLEAN, kind="good")
    return body + _labels(found["labels"]) + _looked_at(found)


CLEAN = "No duplicates, no row in both parts, no contradictory answers, no special tokens in the texts."


Finding = tuple[str, str, str]
"""Title, words and examples."""


def _finding(title: str, words: str, examples: Sequence[str]) -> Finding:
    return title, words, " · ".join(examples[:GROUPS])


def _groups(examples: Sequence[Sequence[int]]) -> list[str]:
    return ["rows " + ", ".join(f"{row:,}" for row in group) for group in examples]


def _pairs(examples: Sequence[Sequence[int]]) -> list[str]:
    return [f"row {train:,} and validation row {held:,}" for train, held in examples]


def _repeats(found: Result) -> list[Finding]:
    exact, near = found["exact_duplicates"], found["near_duplicates"]
    lines = []
    if exact["rows"]:
        verb = "repeats" if exact["rows"] == 1 else "repeat"
        words = f"{text.count(exact['rows'], 'row')} {verb} an earlier row, in {text.count(exact['groups'], 'group')}."
        lines.append(_finding("Duplicates", words, _groups(exact["examples"])))
    if near["rows"]:
        verb = "says" if near["rows"] == 1 else "say"
        among = f" Looked for among {near['sampled']:,} rows." if near["sampled"] else ""
        words = f"{text.count(near['rows'], 'row')} {verb} almost what an earlier row says.{among}"
        lines.append(_finding("Near duplicates", words, _groups(near["examples"])))
    return lines


def _leaks(found: Result) -> list[Finding]:
    shared = found["shared_with_validation"]
    lines = []
    if shared["rows"]:
        verb = "is" if shared["rows"] == 1 else "are"
        words = (
            f"{text.count(shared['rows'], 'validation row')} {verb} trained on too: the validation loss will flatter."
        )
        lines.append(_finding("In both parts", words, _pairs(shared["examples"])))
    if shared["prompts"]:
        verb = "asks" if shared["prompts"] == 1 else "ask"
        words = (
            f"{text.count(shared['prompts'], 'validation row')} {verb} what a training row asks, answered otherwise."
        )
        lines.append(_finding("Same question in both parts", words, _pairs(shared["prompt_examples"])))
    return lines


def _unlike(found: Result) -> list[Finding]:
    unlike = found["contradictions"]
    if not unlike["prompts"]:
        return []
    verb = "has" if unlike["prompts"] == 1 else "have"
    words = (
        f"{text.count(unlike['prompts'], 'prompt')} {verb} different answers, in {text.count(unlike['rows'], 'row')}."
    )
    return [_finding("Contradictory answers", words, _groups(unlike["examples"]))]


def _specials(found: Result) -> list[Finding]:
    hidden = found["special_tokens"]
    if not hidden["rows"]:
        return []
    verb = "holds" if hidden["rows"] == 1 else "hold"
    tokens = text.shorten(", ".join(hidden["counts"]), 120)
    words = f"{text.count(hidden['rows'], 'row')} {verb} {tokens} as text: the model takes them for real ones. "
    words += (
        "Take them out of the texts, unless they are meant as such, as an end mark after each document is: inside a "
        "text they teach the model to stop or change roles there."
    )
    places = [f"row {row:,} ({role}): {token}" for row, role, token in hidden["examples"]]
    return [_finding("Special tokens in the texts", words, places)]


def _labels(labels: Result | None) -> str:
    """How the answers are spread, where there are only a few."""
    if not labels:
        return ""
    total, (most, times) = sum(labels["counts"].values()), next(iter(labels["counts"].items()))
    words = (
        f"{text.count(labels['distinct'], 'different answer')}; “{text.shorten(most, 40)}” is given most: "
        f"{times:,} times ({text.percent(times, total)})."
    )
    rows = [(answer, f"{count:,}", text.percent(count, total)) for answer, count in labels["counts"].items()]
    table = text.table(("Answer", "Rows", "Share"), rows, "Answers")
    return text.render("data.labels", words, table)


def _looked_at(found: Result) -> str:
    if found["looked_at"] >= found["of_rows"]:
        return ""
    words = f"Looked at {found['looked_at']:,} of {found['of_rows']:,} rows, taken evenly from the whole."
    return text.hint(words)


def suggestion(result: Result) -> str:
    """The longest row that suits the data, and why."""
    wanted = result["suggested"]
    words = f"Suggested longest row: {text.count(wanted['max_length'], 'token')}"
    words += ", the one in use." if wanted["max_length"] == result["max_length"] else "."
    return text.notice(words, wanted["reason"])


def percentiles(result: Result) -> str:
    """Shortest, mean, every percentile asked for, longest."""
    names = {"min": "shortest", "mean": "on average", "max": "longest"}
    cells = [
        (text.number(value), names[name], "")
        if name in names
        else (f"≤ {text.number(value)}", f"{name.removeprefix('p')} % of the rows", "")
        for name, value in result["tokens"].items()
    ]
    return text.tiles(cells)


def forecast(result: Result) -> str:
    """What packing and windows would do to the training rows, and how many steps an epoch has."""
    pack, steps = result["packing"], result["steps"]
    lines = []
    compared = result["format"] == "preference"
    if pack["rows"] and not compared:
        verb = "fits" if pack["rows"] == 1 else "fit"
        lines.append(
            f"Packing: {text.count(pack['rows'], 'row')} {verb} into {text.count(pack['packs'], 'pack')} of "
            f"{text.count(pack['max_length'], 'token')}; padding is {_share(pack['padding_packed'])} then. "
            f"Without packing it is about {_share(pack['padding_alone'])}: a batch is filled up to its longest row."
        )
    batch, accumulation = steps["per_device_train_batch_size"], steps["gradient_accumulation_steps"]
    rows = text.count(batch * accumulation, "row")
    lines.append(
        f"An epoch has {text.count(steps['per_epoch'], 'step')} of {rows} ({batch} × {accumulation})"
        + ("; pairs are not packed." if compared else f"; packed {text.number(steps['per_epoch_packed'])}.")
    )
    if result["split_rows"]:
        verb = "is" if result["split_rows"] == 1 else "are"
        lines.append(
            f"{text.count(result['split_rows'], 'long text')} {verb} split into windows of at most "
            f"{text.count(result['max_length'], 'token')}, so that nothing is lost: "
            f"{text.count(result['windows'], 'example')} in all."
        )
    return text.render("data.lines", lines)


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def uploads(workspace: Workspace) -> str:
    """The files that were uploaded, each with its size and a way to delete it."""
    if not (found := workspace.uploads()):
        return text.hint("Nothing that you uploaded is kept.")
    return text.render("data.uploads", [(path, _size_of(path)) for path in found])


def _size_of(path: Path) -> str:
    return text.size(bytes_in(path) if path.is_dir() else path.stat().st_size)


def cache(octets: int, *, owned: bool = True) -> str:
    """What prepared data takes on the disk; `owned` says that the reader may clear it."""
    if not octets:
        return text.hint("Nothing is kept at the moment.")
    words = f"{text.size(octets)} of prepared rows are kept, so that the next start of the same data takes no time."
    words += (
        " Clearing them loses no file of yours." if owned else " All visitors share them, and the owner clears them."
    )
    return text.hint(words)
