"""Files and folders in general: how much is in them, whether two are the same, and names that are free.

Which run a person means: the beginning of an id or a title, where only one run has it.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError

JsonObject = dict[str, Any]
"""An object of JSON with any keys."""

SHEET = "?sheet="
"""What stands between a workbook's name and that of its sheet, which may hold none of the characters \\ / ? * [ ] :"""


def split_sheet(name: str | Path) -> tuple[str, str]:
    """The file of a data source, and the sheet that is named behind it (book.xlsx?sheet=Answers); "" for none."""
    path, _, sheet = str(name).partition(SHEET)
    return path, sheet.strip()


def with_sheet(path: str, sheet: str) -> str:
    """The data source that is a sheet of a file, or the file as it is."""
    return f"{path}{SHEET}{sheet}" if sheet else path


def source_title(name: str) -> str:
    """What people call a data source: the name of its file, with the sheet."""
    path, sheet = split_sheet(name)
    return f"{Path(path).name or path}, sheet {sheet}" if sheet else Path(path).name or path


def absolute(name: str) -> str:
    """A data source by its whole path, its sheet included; a name that no file bears stays as it is."""
    path, sheet = split_sheet(name)
    place = Path(path).expanduser()
    return with_sheet(str(place.resolve()), sheet) if os.path.exists(place) else name


MAX_TIME = 1e11
"""Seconds: later than any time that a file of ours can name."""


def read_object(path: Path) -> JsonObject:
    """The JSON object in a file. Raises `FileNotFoundError` where there is none, `ValueError` for one that is damaged:
    cut, no text, nested without end, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def is_time(value: Any) -> bool:
    """Whether a value out of a file is a time in seconds that a clock can show."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < MAX_TIME


def fits(values: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> bool:
    """Whether each value that is there is of one of its kinds."""
    return all(isinstance(value, kinds[name]) for name, value in values.items() if name in kinds)


def end_last_line(path: Path) -> None:
    """Ends a line that a killed worker left torn, so that the next line written does not become part of it."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder; what is deleted while it is counted does not count."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def numbered(path: Path) -> Iterator[Path]:
    """The path, then the same with -2, -3 and so on behind its name, without end."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


BLOCK_BYTES = 1 << 20


def same_content(first: Path, second: Path) -> bool:
    """Whether two files hold the same bytes."""
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as two:
        while chunk := one.read(BLOCK_BYTES):
            if chunk != two.read(BLOCK_BYTES):
                return False
    return True


def finite(value: Any) -> Any:
    """A value whose numbers are all finite: what is none (NaN, infinity) is left empty, however deep it lies."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NAMED = 10  # runs that a message names at most


def meant(name: str, ids: Sequence[str], title_of: Callable[[str], str], noun: str = "run") -> str:
    """The id of the only run whose id begins so, or else whose title this is, large or small letters alike.

    Raises `StudioError` where there is none, or more than one; `noun` is what the caller looked for.
    """
    matches, problem = [run for run in ids if name and run.startswith(name)], "several runs match"
    if not matches:
        title, problem = name.strip().casefold(), "several runs have this name"
        matches = [run for run in ids if title and title_of(run).strip().casefold() == title]
    if not matches:
        every = f"`python -m lora_studio {noun}s list` shows all ids."
        raise StudioError(f"There is no {noun} {name!r}.", every)
    if len(matches) > 1:
        listed = ", ".join(matches[:_NAMED]) + (", …" if len(matches) > _NAMED else "")
        raise StudioError(f"Run {name!r}: {problem}.", f"Use an id: {listed}.")
    return matches[0]
