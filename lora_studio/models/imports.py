"""Adapters that were not trained here: from an uploaded zip, a folder or the Hugging Face Hub.

Nothing that can run code gets in. Only safetensors, JSON and text files with known names are taken, and every path and
size in an archive is checked before anything is written.
"""

import errno
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import ADAPTER_FILES, PICKLES, SETTINGS_FILE, WEIGHTS_FILE
from lora_studio.models.adapters import check_fit, read_card, read_header
from lora_studio.workspace import Workspace, safe_name

HUB = "hub:"
TAKEN = (*ADAPTER_FILES, "README.md", "generation_config.json")
MAX_FILES, MAX_BYTES, MAX_TEXT = 500, 8 * 1000**3, 200 * 1000**2
MAX_RATIO = 200
"""How much smaller an archive may make a large file; weights hardly shrink at all."""
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError)
"""What reading a damaged archive raises."""
MAX_DIRECTORY_BYTES, _END_BYTES = 1_000_000, 70_000
FULL = (errno.ENOSPC, errno.EDQUOT)
INCOMING = ".incoming-"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_on_hub(name: str) -> bool:
    """Whether a name means an adapter of the Hub."""
    return name.startswith(HUB)


def from_zip(archive: Path, workspace: Workspace, name: str, base: str | None = None) -> Path:
    """Takes an adapter out of a zip into the workspace. Raises `StudioError` where it is unsafe or does not fit."""
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            members = _checked(opened.infolist())
            root = _root(members)
            inside = [(member, PurePosixPath(member.filename)) for member in members]
            files = [(member, path.name) for member, path in inside if path.parent == root and path.name in TAKEN]
            workspace.policy.check_room(sum(member.file_size for member, _ in files))
            with incoming(workspace) as folder:
                for member, file in files:
                    _copy(opened, member, folder / file)
                check_fit(folder, base, workspace.policy.check_path)
                read_header(folder / WEIGHTS_FILE)
                return _named(folder, workspace, Path(name).stem)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise full_disk(workspace) from None
        raise StudioError(f"{name} is not a valid zip file: {error}", "Zip the adapter's folder again.") from None


def _check_directory(archive: Path) -> None:
    """Refuses a zip whose list of files is too long, before it is read: each entry costs ten times its bytes."""
    with archive.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        tail = file.read(_END_BYTES)
        end, place = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
        if end < 0 or len(tail) < end + 22:
            return  # no zip, which the reader says
        (length,) = struct.unpack_from("<I", tail, end + 12)
        if tail[max(0, end - 20) : end].startswith(b"PK\x06\x07") and 0 <= place <= len(tail) - 48:
            (length,) = struct.unpack_from("<Q", tail, place + 40)
    if length > MAX_DIRECTORY_BYTES:
        raise StudioError("The zip lists too many files for an adapter.", "Zip only the adapter's folder.")


@contextmanager
def incoming(workspace: Workspace) -> Iterator[Path]:
    """A folder out of sight to put an adapter together in; what is left of it afterwards goes."""
    workspace.adapters_folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=INCOMING, dir=workspace.adapters_folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def full_disk(workspace: Workspace) -> StudioError:
    """What to say where there was no room for a file that came in."""
    return StudioError(
        f"The disk of {workspace.root} is full: the adapter was not imported.", "Free some space, and try again."
    )


def _checked(members: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The files of an archive, all of whose names and sizes are harmless."""
    files = [member for member in members if not member.is_dir()]
    if len(files) > MAX_FILES:
        raise StudioError(
            f"The zip contains {len(files):,} files; an adapter has a few.", "Zip only the adapter's folder."
        )
    for member in files:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in path.parts[0]:
            raise StudioError(
                f"The zip contains a file outside of its folder: {member.filename}", "It was not imported."
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise StudioError(f"The zip contains a link: {member.filename}", "Zip the files themselves.")
        if member.flag_bits & 1:
            raise StudioError("The zip is protected by a password.", "Zip it without a password.")
        large = member.file_size > 1000**2
        if large and member.file_size > MAX_RATIO * max(1, member.compress_size):
            raise StudioError(
                f"{member.filename} would decompress to {member.file_size:,} bytes, which is not plausible."
            )
        if path.name != WEIGHTS_FILE and path.name in TAKEN and member.file_size > MAX_TEXT:
            raise StudioError(f"{member.filename} has {member.file_size:,} bytes, which is too large.")
    if sum(member.file_size for member in files) > MAX_BYTES:
        raise StudioError(
            "The zip contains more than 8 GB.", "Copy the adapter's folder to this machine and give its path."
        )
    return files


def _root(members: Sequence[zipfile.ZipInfo]) -> PurePosixPath:
    """The folder of the archive in which the adapter is."""
    paths = [PurePosixPath(member.filename) for member in members]
    roots = sorted({path.parent for path in paths if path.name == SETTINGS_FILE}, key=lambda root: len(root.parts))
    if not roots:
        raise StudioError(f"The zip contains no {SETTINGS_FILE}.", "Zip the folder of a LoRA adapter.")
    if len(roots) > 1 and len(roots[0].parts) == len(roots[1].parts):
        raise StudioError("The zip contains several adapters.", "Zip a single adapter.")
    root = roots[0]
    if root / WEIGHTS_FILE not in paths:
        pickled = [path.name for path in paths if path.parent == root and path.suffix in PICKLES]
        contents = f"only {pickled[0]}, which can run code when loaded" if pickled else "no weights"
        raise StudioError(f"The zip has no {WEIGHTS_FILE}, {contents}.", "Save the adapter as safetensors.")
    return root


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Writes a member, never more bytes than it was announced with."""
    remaining = member.file_size
    with archive.open(member) as source, target.open("wb") as file:
        while chunk := source.read(min(1 << 20, remaining + 1)):
            remaining -= len(chunk)
            if remaining < 0:
                raise StudioError(f"{member.filename} is larger than stated in the zip.", "It was not imported.")
            file.write(chunk)


def _named(folder: Path, workspace: Workspace, name: str) -> Path:
    """Gives a whole adapter its name, or the first with a number behind it that is free."""
    stem = safe_name(name, "adapter")
    for number in range(1, 1000):
        target = workspace.adapters_folder / (stem if number == 1 else f"{stem}-{number}")
        try:
            target.mkdir()  # that it is free and taken is one step; a rename takes the place of an empty folder
        except FileExistsError:
            continue
        return folder.rename(target)
    raise StudioError(f"There are too many adapters named {stem}.", "Use another name.")


def from_folder(name: str, workspace: Workspace, base: str | None = None) -> Path:
    """An adapter's folder on this machine, checked."""
    workspace.policy.check_path(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise StudioError(f"The folder {name} does not exist.", "Give the folder with the adapter's files.")
    check_fit(folder, base, workspace.policy.check_path)
    return folder.resolve()


def from_hub(name: str, workspace: Workspace, base: str | None = None) -> Path:
    """Fetches an adapter of the Hub (hub:owner/name) into the workspace; nothing but safetensors, JSON and text."""
    workspace.policy.check_may("download adapters from the Hub")
    workspace.policy.check_room()
    plain = name.removeprefix(HUB)
    if not _NAME.fullmatch(plain):
        raise StudioError(f"{name} is not a valid name of an adapter on the Hub.", f"Write it as {HUB}owner/name.")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise StudioError(
            f"{plain} cannot be downloaded: HF_HUB_OFFLINE disables access to the Hub.",
            "Unset it, or give the adapter's folder or zip.",
        )
    import huggingface_hub
    from huggingface_hub.utils import httpx

    target = workspace.adapters_folder / safe_name(plain.replace("/", "--"))
    token = None if workspace.policy.is_admin else False  # the owner's opens what is theirs alone
    with incoming(workspace) as folder:
        try:
            huggingface_hub.snapshot_download(plain, allow_patterns=list(TAKEN), local_dir=folder, token=token)
        except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise full_disk(workspace) from None
            why = str(error).partition("\n")[0][:300] or type(error).__name__
            raise StudioError(
                f"The adapter {plain} cannot be downloaded from the Hub: {why}",
                "Check the name and the network. Private and gated adapters need HF_TOKEN in the environment.",
            ) from None
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        check_fit(folder, base, workspace.policy.check_path)
        if target.exists():  # fetched before: the new one takes its place whole
            shutil.rmtree(target.rename(folder.with_name(f"{folder.name}-old")))
        return folder.rename(target)


def imported(workspace: Workspace) -> list[Path]:
    """Adapters that were uploaded or fetched, newest first."""
    here = workspace.adapters_folder.glob("*")
    folders = [path for path in here if not path.name.startswith(".") and (path / SETTINGS_FILE).is_file()]
    return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)


def remove(folder: Path, workspace: Workspace) -> None:
    """Deletes an adapter that was brought in. Raises `StudioError` for any other folder."""
    if folder not in imported(workspace):
        raise StudioError(f"{folder.name} is not among the imported adapters.", "Choose an adapter from the list.")
    shutil.rmtree(folder.rename(folder.with_name(f"{INCOMING}{folder.name}-gone")))


def about(folder: Path) -> str:
    """An adapter in a line: its kind, rank and base."""
    card = read_card(folder)
    return f"{card.kind}{f' of rank {card.r}' if card.r else ''} on {card.base or 'an unknown base'}"
