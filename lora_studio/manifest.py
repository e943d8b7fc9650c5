"""The manifest of a checkpoint: size and checksum of every file, written last, so that damage is seen before a resume.

Checkpoints of earlier versions have none: of these, what can be seen without one is looked at.
"""

import hashlib
import json
import zipfile
from pathlib import Path

from lora_studio.adapter_files import WEIGHTS_FILE
from lora_studio.adapter_fit import read_header
from lora_studio.errors import StudioError
from lora_studio.workspace import write_atomically

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
TORCH_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_BLOCK = 1 << 20


def write_manifest(checkpoint: Path) -> None:
    """Notes what the checkpoint holds now."""
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "blake2b": _checksum(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomically(checkpoint / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, in words; "" where it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        noted = {str(name): (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _damage_seen(checkpoint)
    for name, (size, checksum) in noted.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
        if _checksum(path) != checksum:
            return f"{name} is not what was saved"
    return ""


def _checksum(path: Path) -> str:
    sum_ = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sum_.update(block)
    return sum_.hexdigest()


def _damage_seen(checkpoint: Path) -> str:
    """What shows without a manifest: a state that is none, weights that are cut, archives whose sums are wrong."""
    try:
        if not isinstance(json.loads((checkpoint / STATE).read_text(encoding="utf-8")), dict):
            return f"{STATE} holds no state"
    except FileNotFoundError:
        return f"{STATE} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{STATE} can't be read"
    if not (checkpoint / WEIGHTS_FILE).is_file():
        return f"{WEIGHTS_FILE} is missing"
    try:
        read_header(checkpoint / WEIGHTS_FILE)
    except StudioError:
        return f"{WEIGHTS_FILE} is not whole"
    for name in TORCH_FILES:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return f"{name} is not what was saved"
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError):
            return f"{name} is not whole"
    return ""
