"""Files and folders in general: how much is in them, whether two are the same, and names that are free."""

import os
from collections.abc import Iterator
from pathlib import Path


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


def same_content(first: Path, second: Path, block: int = 1 << 20) -> bool:
    """Whether two files hold the same bytes."""
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as two:
        while chunk := one.read(block):
            if chunk != two.read(block):
                return False
    return True
