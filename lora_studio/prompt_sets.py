"""Prompts that a person keeps to ask again and again, each set a file of the workspace."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.errors import StudioError
from lora_studio.metrics_csv import cell
from lora_studio.text_limits import LINE, TEST_PROMPT, check_length
from lora_studio.workspace import Workspace, safe_name, write_atomically

MOST = 1000


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with what each column said to it, in the columns' order."""

    prompt: str
    answers: tuple[str, ...]


def prompts_of(lines: str) -> list[str]:
    """The prompts of a text, one a line."""
    found = [line.strip() for line in lines.splitlines() if line.strip()]
    if not found:
        raise StudioError("There is no prompt yet.", "Write one a line.")
    if len(found) > MOST:
        raise StudioError(f"These are {len(found):,} prompts; a set has at most {MOST:,}.", "Use the Evaluate tab.")
    for prompt in found:
        check_length("A prompt", prompt, TEST_PROMPT)
    return found


def names(workspace: Workspace) -> list[str]:
    """The sets there are."""
    return sorted(path.stem for path in workspace.prompt_sets_folder.glob("*.json"))


def save(workspace: Workspace, name: str, prompts: Sequence[str]) -> str:
    """Keeps a set under a name, in place of one of that name; gives the name it got."""
    if not name.strip():
        raise StudioError("The set has no name.", "Give it a short one.")
    check_length("The set's name", name, LINE)
    kept = safe_name(name.strip(), "prompts")
    text = json.dumps(list(prompts), ensure_ascii=False)
    workspace.check_growth(len(text))
    write_atomically(workspace.prompt_sets_folder / f"{kept}.json", text)
    return kept


def read(workspace: Workspace, name: str) -> list[str]:
    """The prompts of a set. Raises `StudioError` where there is none of that name."""
    if name not in names(workspace):
        raise StudioError(f"There is no set of prompts called {name!r}.", "Choose another one.")
    found: list[str] = json.loads((workspace.prompt_sets_folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def delete(workspace: Workspace, name: str) -> None:
    """Removes a set; nothing where there is none."""
    if name in names(workspace):
        (workspace.prompt_sets_folder / f"{name}.json").unlink()


def as_csv(columns: Sequence[str], rows: Sequence[Answered]) -> str:
    """A table with a column for the prompt and one for each who answered; no text in it is taken for a formula."""
    target = io.StringIO()
    writer = csv.writer(target)
    writer.writerow(["prompt", *map(cell, columns)])
    writer.writerows(map(cell, [row.prompt, *row.answers]) for row in rows)
    return target.getvalue()


def as_jsonl(columns: Sequence[str], rows: Sequence[Answered]) -> str:
    """One JSON object a prompt, with the answers by who gave them."""
    lines = [{"prompt": row.prompt, "answers": dict(zip(columns, row.answers, strict=False))} for row in rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
