"""Whether two names stand for one base model: the same folder or Hub id, or the same config and weights.

A fingerprint is over the config and a sample of every tensor, so that a copy elsewhere, or in other shards, has the
same one. Nothing is fetched: of a Hub model only what is in this machine's cache is read.
"""

import functools
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lora_studio.architecture import model_folder
from lora_studio.workspace import model_source

SAMPLE_BYTES = 4096
"""Read at the start, in the middle and at the end of each tensor."""
MAX_HEADER_BYTES = 256 * 1024**2
VOLATILE = ("_name_or_path", "_commit_hash", "transformers_version")
"""What a config.json says of who wrote it, and not of the model."""


def same_base(first: str, second: str, recorded: str = "") -> bool | None:
    """Whether both names load the same model; None where that can't be seen on this machine.

    `recorded` is the fingerprint that the first base had when its adapter was trained, "" where nothing noted it: it
    counts before that of what stands there now.
    """
    if same_place(first, second):
        return True
    one, other = recorded or fingerprint(first), fingerprint(second)
    return one == other if one and other else None


def same_place(first: str, second: str) -> bool:
    """Whether both are one Hub id, or one folder, by whatever path."""
    one, other = model_source(first), model_source(second)
    if one.rstrip("/") == other.rstrip("/"):
        return True
    return os.path.isdir(one) and os.path.isdir(other) and os.path.realpath(one) == os.path.realpath(other)


def fingerprint(name: str, revision: str | None = None) -> str:
    """Of a model's config and weights; "" where they are not on this machine, or can't be read."""
    folder = model_folder(name, revision)
    if folder is None:
        return ""
    files = [folder / "config.json", *_weights(folder)]
    try:
        stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return _fingerprint(stamps) if len(files) > 1 else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _weights(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.safetensors")) if path.name != "adapter_model.safetensors"]
    return found or sorted(folder.glob("pytorch_model*.bin"))


@functools.lru_cache(maxsize=64)
def _fingerprint(stamps: tuple[tuple[str, int, int], ...]) -> str:
    config, *weights = [Path(path) for path, _, _ in stamps]
    digest = hashlib.sha256()
    values = json.loads(config.read_text(encoding="utf-8"))
    digest.update(json.dumps({key: values[key] for key in values if key not in VOLATILE}, sort_keys=True).encode())
    sampled: list[tuple[str, bytes]] = []
    for path in weights:
        sampled += _tensors(path) if path.suffix == ".safetensors" else [(path.name, _whole(path))]
    for name, sample in sorted(sampled):
        digest.update(name.encode())
        digest.update(sample)
    return digest.hexdigest()[:32]


def _tensors(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each tensor of a safetensors file: its name, and what tells its type, shape and numbers."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            about = json.dumps([tensor["dtype"], tensor["shape"]]).encode()
            yield name, about + _sample(file, 8 + length + begin, end - begin)


def _whole(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        return struct.pack("<Q", size) + b"".join(
            _sample(file, at, min(size - at, 1 << 20)) for at in range(0, size, 1 << 20)
        )


def _sample(file: BinaryIO, begin: int, size: int) -> bytes:
    """A digest of the start, the middle and the end of a stretch of a file."""
    digest = hashlib.sha256()
    for at in dict.fromkeys((0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES))):
        file.seek(begin + at)
        digest.update(file.read(min(SAMPLE_BYTES, size - at)))
    return digest.digest()
