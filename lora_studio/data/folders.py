"""Names of files and folders to the list of data files they stand for, with what was left aside. Reads no content."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_studio.data.opening import KNOWN, kind_ending
from lora_studio.errors import StudioError

_MOST_FILES = 1000
_MOST_SEEN = 20_000
_NOT_DATA = {
    *("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json", "package.json"),
    *("readme.md", "license.md", "license.txt", "changelog.md", "requirements.txt", "contributing.md"),
}
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval|heldout)(?:$|[^a-z])")


def data_files(paths: list[Path], endings: Mapping[str, str]) -> tuple[list[Path], list[str]]:
    """The data files of some paths, folders opened, and sentences on what of a folder is not read."""
    files: list[Path] = []
    said: list[str] = []
    for path in paths:
        if os.path.isdir(path):  # and not path.is_dir(), which fails for a name that no file can bear
            found, sentences = _in_folder(path, endings)
            files += found
            said += sentences
        elif set("*?[") & set(path.name) and not os.path.exists(path):
            files += _by_pattern(path)
        else:
            files.append(path)
    return list(dict.fromkeys(files)), said


def _by_pattern(pattern: Path) -> list[Path]:
    """The files beside each other whose names fit a pattern such as part-*.jsonl."""
    found = [path for path in sorted(pattern.parent.glob(pattern.name)) if path.is_file()][: _MOST_FILES + 1]
    if not found:
        raise StudioError(f"No file fits {pattern}.", "Look at the folder and the pattern.")
    if len(found) > _MOST_FILES:
        raise StudioError(f"More than {_MOST_FILES} files fit {pattern}.", "Use a narrower pattern, or join the files.")
    return found


def _in_folder(folder: Path, endings: Mapping[str, str]) -> tuple[list[Path], list[str]]:
    found: dict[str, list[Path]] = {}
    for path in _walk(folder):
        kind = endings.get(kind_ending(path))
        if kind and path.name.lower() not in _NOT_DATA:
            found.setdefault(kind, []).append(path)
    if not found:
        raise StudioError(f"The folder {folder.name} holds no data files.", KNOWN)
    tables = [path for kind, paths in found.items() if kind != "text" for path in paths]
    files = sorted(tables or found["text"])
    said = []
    if tables and "text" in found:
        said.append(f"{len(found['text'])} text files of the folder are left aside.")
    splits: dict[str | None, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if "train" in splits and len(splits) > 1:
        others = ", ".join(path.name for name, paths in splits.items() if name != "train" for path in paths[:6])
        said.append(f"The folder's files named train are read; left aside: {others}.")
        files = splits["train"]
    if len(files) > _MOST_FILES:
        raise StudioError(
            f"The folder {folder.name} holds {len(files)} data files; at most {_MOST_FILES} are read.",
            "Choose a folder further down, or join the files.",
        )
    names = ", ".join(path.name for path in files[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "")
    return files, [f"The folder's data files are read: {names}.", *said]


def _split_of(path: Path) -> str | None:
    """The split that a file's name, or its folder's, speaks of."""
    for part in (path.name, *reversed(path.parts[:-1])):
        found = _SPLIT.search(part.lower())
        if found:
            return found.group(1)
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, hidden ones and links left out."""
    seen = 0
    try:
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                seen += 1
                if seen > _MOST_SEEN:
                    raise StudioError(
                        f"The folder {folder.name} holds more than {_MOST_SEEN} files.", "Choose a folder further down."
                    )
                path = Path(place) / name
                if not name.startswith((".", "_")) and path.is_file() and not path.is_symlink():
                    yield path
    except OSError as error:
        raise StudioError(
            f"{folder.name} can't be read: {error.strerror}.", "Check its name and permissions."
        ) from None
