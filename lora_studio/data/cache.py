"""Keeps prepared data on disk between starts, as folders of numpy arrays under a fingerprint of their inputs.

An entry is written beside its place and renamed, and checked for damage when it is read.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np

_ENTRY = "entry.json"
_CHUNK_BYTES = 1 << 22
_TELL = 1 << 25  # bytes, a multiple of the piece
Facts = dict[str, Any]
"""Metadata stored with the arrays of a folder: any JSON values."""


class ArrayInfo(TypedDict):
    """An array as the folder's entry describes it."""

    dtype: str
    bytes: int
    crc: int


class DamagedError(Exception):
    """A folder of arrays fails its checksums or is incomplete."""


class ArrayWriter:
    """Appends to arrays of a folder; `finish` makes it readable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._about: dict[str, ArrayInfo] = {}

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

    def finish(self, facts: Facts) -> None:
        """Closes the arrays and writes the entry file with their types, sizes, checksums and `facts`."""
        self.close()
        written = json.dumps({"arrays": self._about, "facts": facts}, ensure_ascii=False)
        whole = json.dumps({"crc": zlib.crc32(written.encode("utf-8", "surrogatepass")), "entry": written})
        (self._folder / _ENTRY).write_text(whole, encoding="utf-8")

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Arrays:
    """The memory-mapped arrays of a finished folder, and its facts.

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

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return list(self._arrays)

    def path(self, name: str) -> Path:
        """The file of an array, for reading pieces of it without mapping them into memory."""
        return self._folder / f"{name}.bin"


def check(folder: Path, tell: Callable[[], None] = lambda: None) -> None:
    """Verifies the checksums of all arrays. Raises DamagedError. `tell` is called about every 32 MiB."""
    for name, array in _read_entry(folder)[0].items():
        crc = size = 0
        try:
            with (folder / f"{name}.bin").open("rb") as file:
                while piece := file.read(_CHUNK_BYTES):
                    crc, size = zlib.crc32(piece, crc), size + len(piece)
                    if size % _TELL == 0:
                        tell()
        except OSError as error:
            raise DamagedError(str(error)) from None
        if (crc, size) != (array["crc"], array["bytes"]):
            raise DamagedError(f"{name} has changed since it was written")


def _read_entry(folder: Path) -> tuple[dict[str, ArrayInfo], Facts]:
    try:
        whole = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
        written = whole["entry"]
        if zlib.crc32(written.encode("utf-8", "surrogatepass")) != whole["crc"]:
            raise DamagedError(f"{_ENTRY} has changed since it was written")
        entry = json.loads(written)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(str(error)) from None
    return entry["arrays"], entry["facts"]


CACHE_LIMIT = 10 * 1024**3  # bytes
_HASH_CHUNK = 1 << 24
_SETTLED_SECONDS = 2.0
_STALE_SECONDS = 24 * 3600  # leftovers of a crash are removed after a day
Build = Callable[[ArrayWriter], Facts]


def key_of(*parts: Any) -> str:
    """A fingerprint of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@once
def code_version() -> str:
    """A fingerprint of this package's code and of the libraries that render and tokenise."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".jinja"):
            whole.update(path.name.encode() + path.read_bytes())
    for library in ("tokenizers", "transformers", "jinja2"):
        whole.update(importlib.metadata.version(library).encode())
    return whole.hexdigest()


def digest(path: Path, cache: "Cache", tell: Callable[[], None] = lambda: None) -> str:
    """A fingerprint of a file's content, remembered for as long as the file is not touched.

    A file touched just now may be written again within the same tick of the file system's clock: it is not remembered.
    """
    about = path.stat()
    settled = time.time() - max(about.st_mtime, about.st_ctime) > _SETTLED_SECONDS
    stamp = (str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    cached = (cache if settled else Cache(None)).get(
        key_of("digest", *stamp), lambda _: {"sha256": _sha256(path, tell)}
    )
    return str(cached.facts["sha256"])


def _sha256(path: Path, tell: Callable[[], None]) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_CHUNK):
            whole.update(piece)
            if len(piece) == _HASH_CHUNK:
                tell()
    return whole.hexdigest()


class Cache:
    """The entries of one folder; without a folder, entries live in a temporary directory."""

    def __init__(self, folder: Path | None, limit: int = CACHE_LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self._in_use: set[str] = set()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        """Whether a finished entry exists; its checksums are not verified."""
        return self.folder is not None and (self.folder / key / "entry.json").is_file()

    def find(self, key: str, tell: Callable[[], None] = lambda: None) -> Arrays | None:
        """The entry of a key, or None; `tell` is called as by `get`."""
        return self._find(self.folder / key, tell) if self.folder else None

    def get(self, key: str, build: Build, tell: Callable[[], None] = lambda: None) -> Arrays:
        """The entry of a key, built first if it is missing; `build` writes the arrays and returns the facts.

        `tell` is called now and then while a large entry is read for damage; what it raises ends the work.
        """
        if self.folder is None:
            place = tempfile.TemporaryDirectory(prefix="lora-studio-")
            arrays = self._make(Path(place.name), build)
            arrays.place = place
            return arrays
        self._in_use.add(key)
        cached = self._find(self.folder / key, tell)
        if cached is None:
            making = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
            try:
                self._make(making, build)
                self._put(making, self.folder / key)
            finally:
                shutil.rmtree(making, ignore_errors=True)
            self.shrink()
            cached = Arrays(self.folder / key)
        return cached

    def _make(self, folder: Path, build: Build) -> Arrays:
        writer = ArrayWriter(folder)
        try:
            writer.finish(build(writer))
        finally:
            writer.close()
        return Arrays(folder)

    def _find(self, entry: Path, tell: Callable[[], None]) -> Arrays | None:
        if not entry.is_dir():
            return None
        try:
            check(entry, tell)
            arrays = Arrays(entry)
        except DamagedError:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry)
        return arrays

    def _put(self, folder: Path, entry: Path) -> None:
        """Moves a finished entry to its place, unless another process has built it meanwhile."""
        try:
            folder.rename(entry)
        except OSError:
            if not (entry / "entry.json").is_file():
                raise

    def shrink(self) -> None:
        """Removes entries, the longest unused first, until the rest fits the limit; those in use here stay."""
        assert self.folder
        entries = []
        for path in self.folder.iterdir():
            age = time.time() - path.stat().st_mtime
            if path.name.startswith(".making-") and age > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir() and not path.name.startswith("."):
                entries.append((path.stat().st_mtime_ns, sum(file.stat().st_size for file in path.iterdir()), path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total > self.limit and path.name not in self._in_use:
                shutil.rmtree(path, ignore_errors=True)
                total -= size
