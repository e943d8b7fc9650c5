"""Named flat arrays in a folder: written piece by piece, read memory-mapped, checked for damage. Knows no meaning.

A folder without its `entry.json`, which is written last, was never finished and counts as absent.
"""

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_ENTRY = "entry.json"
_PIECE = 1 << 22
_TELL = 1 << 25  # bytes, a multiple of the piece


class DamagedError(Exception):
    """A folder of arrays is not what was written."""


class ArrayWriter:
    """Appends to arrays of a folder; `finish` makes it readable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._about: dict[str, dict[str, Any]] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        """Appends to the array of that name; its first piece decides the type."""
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.bin").open("wb")
            self._about[name] = {"dtype": values.dtype.str, "bytes": 0, "crc": 0}
        about, data = self._about[name], np.ascontiguousarray(values).tobytes()
        assert values.dtype.str == about["dtype"]
        self._files[name].write(data)
        about["bytes"] += len(data)
        about["crc"] = zlib.crc32(data, about["crc"])

    def finish(self, facts: dict[str, Any]) -> None:
        """Closes the arrays and writes down what they are, with JSON-able facts beside them."""
        self.close()
        written = json.dumps({"arrays": self._about, "facts": facts}, ensure_ascii=False)
        whole = json.dumps({"crc": zlib.crc32(written.encode("utf-8", "surrogatepass")), "entry": written})
        (self._folder / _ENTRY).write_text(whole, encoding="utf-8")

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Arrays:
    """The arrays of a finished folder, memory-mapped, and the facts written beside them.

    `place` is set where the folder is temporary: it goes when nothing holds the arrays any more.
    """

    def __init__(self, folder: Path) -> None:
        about, self.facts = _read_entry(folder)
        self._folder = folder
        self.place: tempfile.TemporaryDirectory[str] | None = None
        self._arrays: dict[str, np.ndarray] = {}
        for name, array in about.items():
            path, dtype = folder / f"{name}.bin", np.dtype(array["dtype"])
            if array["bytes"]:
                self._arrays[name] = np.memmap(path, dtype, "r")
            else:
                self._arrays[name] = np.empty(0, dtype)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def path(self, name: str) -> Path:
        """The file of an array, for reading pieces of it without mapping them into memory."""
        return self._folder / f"{name}.bin"


def check(folder: Path, tell: Callable[[], None] = lambda: None) -> None:
    """Reads every byte; raises DamagedError where one is not as it was written. `tell` is called now and then."""
    for name, array in _read_entry(folder)[0].items():
        crc = size = 0
        try:
            with (folder / f"{name}.bin").open("rb") as file:
                while piece := file.read(_PIECE):
                    crc, size = zlib.crc32(piece, crc), size + len(piece)
                    if size % _TELL == 0:
                        tell()
        except OSError as error:
            raise DamagedError(str(error)) from None
        if (crc, size) != (array["crc"], array["bytes"]):
            raise DamagedError(f"{name} is not as it was written")


def _read_entry(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    try:
        whole = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
        written = whole["entry"]
        if zlib.crc32(written.encode("utf-8", "surrogatepass")) != whole["crc"]:
            raise DamagedError(f"{_ENTRY} is not as it was written")
        entry = json.loads(written)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(str(error)) from None
    return entry["arrays"], entry["facts"]
