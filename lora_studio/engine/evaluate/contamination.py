"""Which rows of a test file an adapter was trained on: told before anybody takes its numbers for those of new rows.

Rows are compared by what they say, with those that the run trained on; its own rows to measure on are not among them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared, prepare, resolve_source
from lora_studio.data.quality import group_of
from lora_studio.data.readers.hub import is_hub_name
from lora_studio.errors import StudioError
from lora_studio.evaluate.request import Request
from lora_studio.jobs.events import read_state
from lora_studio.jobs.folder import EvaluationFolder
from lora_studio.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from lora_studio.engine.evaluate.answer import AskedFile

MEANING = "What it scores on rows that it was trained on says how well it remembers them, not how it answers new ones."


class SlowError(Exception):
    """Reading the training data again would take long."""


def warnings_of(folder: EvaluationFolder, request: Request, file: "AskedFile") -> list[str]:
    """A sentence for each adapter that was trained on some of the rows that are to be answered."""
    numbers = {row.row for row in file.rows}
    groups = [group_of(chat) for chat in file.prepared.conversations if chat.row in numbers]
    tested = np.array(groups, dtype=np.uint64)
    warnings = []
    for column in request.adapters:
        if not column.run:
            continue
        sure, same_file = np.zeros(len(tested), dtype=bool), False
        for config, run in _trainings(Workspace(folder.path.parent.parent).runs_folder, column.run):
            trained = _trained_on(config, run)
            if trained is not None:
                sure |= np.isin(tested, trained)
            else:
                same_file |= _same_file(config.data.train_file, request.data)
        if sure.any():
            warnings.append(_in_words(column.title, int(sure.sum()), len(tested)))
        elif same_file:
            warnings.append(
                f"{column.title} was trained on this very file, or on what it was then: which of these rows it saw "
                f"could not be looked up quickly. {MEANING}"
            )
    return warnings


def _in_words(title: str, trained: int, of: int) -> str:
    if trained == of:
        rows = "This row was" if of == 1 else f"All {of:,} rows were"
        return f"{rows} trained on: {title} has seen the answers. {MEANING}"
    was = "was" if trained == 1 else "were"
    return f"{trained:,} of these {of:,} rows {was} trained on by {title}; the others were not. {MEANING}"


def _trainings(runs: Path, name: str) -> Iterator[tuple[Config, RunFolder]]:
    """The run of that id, and those that it goes on from."""
    visited: set[str] = set()
    while name and name not in visited and (run := RunFolder(runs / name)).config.is_file():
        visited.add(name)
        config = parse(read_yaml(run.config))
        yield config, run
        before = Path(config.model.adapter_name_or_path or "")
        name = next((part.name for part in before.parents if part.parent == runs), "")


def _trained_on(config: Config, run: RunFolder) -> np.ndarray | None:
    """Numbers that stand for the rows of a training; None where they are not in hand or changed since."""
    from lora_studio.engine.models.tokenizer import load_tokenizer

    if is_hub_name(config.data.train_file):
        return None
    try:
        prepared = prepare(
            **config.data.model_dump(),
            tokenizer=load_tokenizer(config.model.name, config.model.revision),
            goal=config.training.goal,
            cache_folder=run.cache,
            on_sample=_give_up,
        )
    except (StudioError, SlowError, OSError):
        return None
    data = read_state(run.events).data
    same = data is not None and data.fingerprint == prepared.fingerprint
    if not same and not prepared.template.writes_date:  # such a template changes the fingerprint every day
        return None
    part = prepared.part
    positions = np.asarray(part.rows.position)[prepared.selected[0]]
    return part.all_groups[np.searchsorted(part.all_positions, positions)].astype(np.uint64)


def _give_up(first: Prepared) -> None:
    """`prepare` shows its first look at a large file before what takes long."""
    raise SlowError


def _same_file(trained: str, tested: str) -> bool:
    if is_hub_name(trained) or is_hub_name(tested):
        return trained == tested
    try:
        return os.path.samefile(resolve_source(trained), tested)
    except (OSError, StudioError):
        return False
