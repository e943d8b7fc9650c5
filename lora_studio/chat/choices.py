"""Who can answer in the chat: finished adapters, checkpoints and adapters from elsewhere; and which go together.

An adapter that was not trained here comes from an uploaded zip, a folder or the Hub. Nothing that can run code gets in:
only safetensors, JSON and text files with known names are taken, and every path and size in an archive is checked
before anything is written. No gradio, no model.
"""

import contextlib
import errno
import math
import os
import re
import secrets
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from lora_studio.chat.conversation import BASE, ChatState
from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.events import RunState
from lora_studio.jobs.protocol import Mix as MixRequest
from lora_studio.jobs.protocol import ModelSelection
from lora_studio.models.adapter_files import ADAPTER_FILES, PICKLES, SETTINGS_FILE, WEIGHTS_FILE, read_studio_card
from lora_studio.models.adapters import AdapterCard, check_fit, read_card, read_header, together
from lora_studio.models.mixing import Mix, recipe_of, recipe_words
from lora_studio.workspace import DEMO_MODEL, RunFolder, Workspace, safe_name, step_of

MAX_ADAPTERS = 3
"""Adapters beside the base."""
FOLDER = "folder:"
EXTERNAL, MIXES = "External adapters", "Mixes"


@dataclass(frozen=True)
class Choice:
    """An adapter that can be talked to; `run` is the run it comes from, None for an external one.

    `short` names it among those of its `group`, a run with its date. `best` marks a run's checkpoint with the lowest
    validation loss. Its card is read when it is first asked for, and once.
    """

    value: str
    label: str
    name: str
    folder: Path
    run: RunFolder | None = None
    group: str = ""
    short: str = ""
    best: bool = False

    def card(self) -> AdapterCard:
        return self._card

    @cached_property
    def _card(self) -> AdapterCard:
        return read_card(self.folder)

    def config(self) -> Config | None:
        """What its run was trained with."""
        return load_config(self.run.config) if self.run else None


def base_of(columns: Sequence[Choice]) -> str:
    """The base of the first adapter whose files can be read; "" where there is none."""
    for choice in columns:
        with contextlib.suppress(StudioError):
            return choice.card().base
    return ""


def choices(
    workspace: Workspace, runs: Sequence[RunState], folders: Sequence[str] = (), *, elsewhere: bool = True
) -> list[Choice]:
    """Every adapter of these runs, newest run first; within a run the finished one, then its checkpoints from the last.

    After them those from elsewhere, unless they are not asked for; `folders` are folders of this machine that a person
    named.
    """
    run_ids = {run.id: run for run in workspace.runs()} if runs else {}
    result = []
    for state in runs:
        run = run_ids.get(state.id)
        if run is None:
            continue
        title = state.title or state.id
        group = f"{title} · {_when(state.id)}"
        if state.final and run.adapter.is_dir():
            ended = "finished" if state.state == "done" else state.state
            label, short = f"{title} ({ended}, {_when(state.id)})", f"Final adapter ({ended})"
            result.append(Choice(run.id, label, title, run.adapter, run, group, short))
        losses = {saved.name: saved.loss for saved in state.checkpoints}
        checkpoints = run.checkpoint_folders()
        best = _lowest({folder.name: losses.get(folder.name) for folder in checkpoints})
        for folder in reversed(checkpoints):
            step = step_of(folder.name)
            loss = losses.get(folder.name)
            measured = "" if loss is None else f", validation loss {loss:.3g}"
            label, short = f"{title}, checkpoint at step {step}{measured}", f"Step {step}{measured}"
            value, name = f"{run.id}/{folder.name}", f"{title}, step {step}"
            result.append(Choice(value, label, name, folder, run, group, short, folder.name == best))
    brought = [*imported(workspace), *map(Path, folders)] if elsewhere else []
    return result + [_brought(folder) for folder in dict.fromkeys(brought) if folder.is_dir()]


def _brought(folder: Path) -> Choice:
    """An adapter from elsewhere, or a mix; one that was not saved yet is named by its recipe."""
    value, name = f"{FOLDER}{folder}", folder.name
    try:
        recipe = recipe_of(read_studio_card(folder))
    except StudioError:
        recipe = None  # whoever chooses it is told what is damaged
    if recipe is None:
        return Choice(value, f"{name} (external)", name, folder, group=EXTERNAL, short=name)
    name = recipe_words(recipe) if is_unsaved(folder) else name
    return Choice(value, f"{name} (mix)", name, folder, group=MIXES, short=name)


def _lowest(losses: Mapping[str, float | None]) -> str:
    """The checkpoint with the lowest loss; "" where fewer than two have one, as there is nothing to choose from."""
    measured = {name: loss for name, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(measured, key=lambda name: measured[name]) if len(measured) > 1 else ""


@dataclass(frozen=True, slots=True)
class Option:
    """An adapter in the list of a column; `reason` says why it can't be chosen there, "" where it can.

    `label` names it among those of its group, `name` by itself.
    """

    value: str
    label: str
    name: str
    best: bool = False
    reason: str = ""


def options(available: Sequence[Choice], adapters: Sequence[str], column: str) -> list[tuple[str, list[Option]]]:
    """What a column's list offers, by run: everything there is, with the reason why some can't answer there.

    The other columns decide the base: an adapter of another base can't answer beside them.
    """
    neighbours = [choice for choice in available if choice.value in adapters and choice.value != column]
    groups: dict[str, tuple[str, list[Option]]] = {}
    for choice, reason in zip(available, _reasons(available, neighbours), strict=True):
        key = choice.run.id if choice.run else choice.group
        _, offered = groups.setdefault(key, (choice.group, []))
        offered.append(Option(choice.value, choice.short, choice.name, choice.best, reason))
    return list(groups.values())


def next_choice(available: Sequence[Choice], adapters: Sequence[str]) -> Choice | None:
    """The adapter that gets the next column: the final adapter, or last checkpoint, of the newest run without a column.

    Where every run has one, their other checkpoints: the best ones first (the last is mostly the final adapter once
    more), then the newest.
    """
    neighbours = [choice for choice in available if choice.value in adapters]
    free = [
        choice
        for choice, reason in zip(available, _reasons(available, neighbours), strict=True)
        if not reason and choice.value not in adapters
    ]
    runs = {choice.run.id for choice in neighbours if choice.run}

    def rank(choice: Choice) -> tuple[bool, bool]:
        again = choice.run is not None and choice.run.id in runs
        return again, again and not choice.best

    return min(free, key=rank, default=None)


def _reasons(available: Sequence[Choice], neighbours: Sequence[Choice]) -> list[str]:
    """Why each can't answer beside the `neighbours`; "" where it can, and for all where there are none."""
    values = {choice.value for choice in neighbours}
    first = next((card for choice in neighbours if (card := _base_card(choice)) is not None), None)
    reason_of: dict[Hashable, str] = {}  # the same for all adapters of one base, of which a workspace has many
    of_group: dict[str, AdapterCard | None] = {}  # a run's checkpoints share its base
    reasons = []
    for choice in available:
        if choice.value in values:
            reasons.append("in another column")
            continue
        if first is None:
            reasons.append("")
            continue
        place = choice.run.id if choice.run else choice.value
        if place not in of_group:
            of_group[place] = _base_card(choice)
        card = of_group[place]
        if card is None:
            reasons.append("its files can't be read")
            continue
        key = (card.base, card.revision, card.base_fingerprint)
        if key not in reason_of:
            reason_of[key] = _other_base(first, card)
        reasons.append(reason_of[key])
    return reasons


def _other_base(first: AdapterCard, card: AdapterCard) -> str:
    """Which other base an adapter was trained on; "" where both can answer together."""
    try:
        together([first, card])
    except StudioError:
        revision = f" at {card.revision}" if card.base == first.base and card.revision else ""
        return f"other base: {card.base}{revision}"
    return ""


def _base_card(choice: Choice) -> AdapterCard | None:
    """A choice's card; None where its files can't be read."""
    try:
        return choice.card()
    except StudioError:
        return None


def adapter_choices(workspace: Workspace, runs: Sequence[RunState]) -> list[tuple[str, str]]:
    """Every adapter as (label, what an evaluation or an export takes), in the same order."""
    return [(choice.label, choice.value if choice.run else str(choice.folder)) for choice in choices(workspace, runs)]


def _when(run_id: str) -> str:
    """Day and time out of a run's id, which begins with them."""
    day, _, clock = run_id.partition("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}"


def preferred(available: Sequence[Choice], run_id: str) -> Choice | None:
    """The adapter of that value, else the first of its run (finished, or newest checkpoint), else the newest of all."""
    return named(available, run_id) or next(iter(available), None)


def named(available: Sequence[Choice], run_id: str) -> Choice | None:
    """The adapter of that value, else the first of its run; None if it has none."""
    exact = [choice for choice in available if choice.value == run_id]
    of_run = [choice for choice in available if choice.run and choice.run.id == run_id.partition("/")[0]]
    return next(iter([*exact, *of_run]), None)


def follow(available: Sequence[Choice], talk: ChatState) -> str:
    """Puts what a run has now in the place of its adapters that are gone: it deletes older checkpoints as it goes on.

    Says so in words; empty where all are there, or where nothing can take their place.
    """
    values = {choice.value for choice in available}
    newest = {choice.run.id: choice for choice in reversed(available) if choice.run}
    sentences = []
    for value in talk.adapters:
        run, _, checkpoint = value.partition("/")
        if value not in values and run in newest:
            talk.succeed(value, newest[run].value)
            gone = f"The checkpoint at step {step_of(checkpoint)}" if checkpoint else "The final adapter"
            sentences.append(f"{gone} no longer exists: {newest[run].label} answers instead.")
    return "\n".join(sentences)


def require(available: Sequence[Choice], values: Sequence[str]) -> list[Choice]:
    """The choices of these values, all of one base. Raises `StudioError` where one is gone or does not go with them."""
    if not values:
        raise StudioError("No adapter is selected.", "Choose one to three adapters. The base always answers too.")
    if len(values) > MAX_ADAPTERS:
        raise StudioError(
            f"{len(values)} adapters are selected; at most {MAX_ADAPTERS} can answer next to the base.", "Remove one."
        )
    by_value = {choice.value: choice for choice in available}
    if any(value not in by_value for value in values):
        raise StudioError("A selected adapter no longer exists.", "Choose another one.")
    selected = [by_value[value] for value in values]
    together([replace(choice.card(), name=choice.name) for choice in selected])
    return selected


def runs_of(values: Sequence[str]) -> Collection[str]:
    """Ids of the runs that these adapters come from."""
    return {value.partition("/")[0] for value in values if not value.startswith(FOLDER)}


def from_elsewhere(values: Sequence[str]) -> bool:
    """Whether an adapter among these was not trained here."""
    return any(value.startswith(FOLDER) for value in values)


@dataclass(frozen=True)
class Columns:
    """The adapters beside the base in a chat as they are at one moment: what a question needs to know of them.

    `found` are all those that may be meant by `adapters`, the values chosen. Everything is read at most once, so that
    what is drawn for each piece of an answer reads no file.
    """

    found: Sequence[Choice]
    adapters: Sequence[str]

    @property
    def chosen(self) -> list[Choice]:
        """All of them. Raises `StudioError` where one is gone, or where they can't answer together."""
        return require(self.found, self.adapters)

    @cached_property
    def shown(self) -> list[Choice]:
        """Those that are there."""
        by_value = {choice.value: choice for choice in self.found}
        return [by_value[value] for value in self.adapters if value in by_value]

    @cached_property
    def titles(self) -> dict[str, str]:
        """What stands above each column."""
        base = f"Base: {base_of(self.shown)}" if self.shown else "Base"
        return {choice.value: choice.name for choice in self.shown} | {BASE: base}


def select_models(selected: Sequence[Choice]) -> ModelSelection:
    """What the engine has to hold so that these columns, and the base, can answer."""
    card = selected[0].card()
    adapters = tuple((choice.value, choice.folder) for choice in selected)
    return ModelSelection(card.base, card.revision, card.quantization, adapters)


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


UNSAVED = ".mix-"
MAX_UNSAVED = 4
"""Mixes that were not saved: older ones go, as each takes as much room as an adapter."""


def mix_request(mix: Mix, out: Path) -> MixRequest:
    """The request that writes a mix into a new folder. The adapters were checked to be of one base."""
    card = read_card(mix.parents[0].folder)
    return MixRequest(
        base=card.base or DEMO_MODEL,
        revision=card.revision,
        adapters={parent.name: str(parent.folder) for parent in mix.parents},
        weights=[parent.weight for parent in mix.parents],
        runs=[parent.run for parent in mix.parents],
        combination_type=mix.method,
        density=mix.density,
        seed=mix.seed,
        out=str(out),
    )


def new_mix(workspace: Workspace) -> Path:
    """A place for a mix that is tried before it is saved; the oldest of them are deleted."""
    workspace.policy.check_room()
    unsaved = sorted(workspace.adapters_folder.glob(f"{UNSAVED}*"), key=lambda path: path.stat().st_mtime)
    for folder in unsaved[: max(0, len(unsaved) + 1 - MAX_UNSAVED)]:
        shutil.rmtree(folder, ignore_errors=True)
    return workspace.adapters_folder / f"{UNSAVED}{secrets.token_hex(6)}"


def is_unsaved(folder: Path) -> bool:
    """Whether a folder is that of a mix that was not saved."""
    return folder.name.startswith(UNSAVED)


def save_mix(folder: Path, workspace: Workspace, name: str) -> Path:
    """Copies a mix to the external adapters under a name; returns the new folder. A taken name gets a number."""
    if not safe_name(name, ""):
        raise StudioError("The adapter has no name yet.", "Type a name, such as pirate-mix.")
    workspace.policy.check_room(bytes_in(folder))
    try:
        with incoming(workspace) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            return _named(place, workspace, name)
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(workspace) from None
        raise


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
