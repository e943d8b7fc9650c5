"""The workspace as one of several visitors sees it: their own uploads and runs, and no file outside it.

Runs and evaluations of all visitors stand beside each other, because they share the machine's device; each names its
maker. What else a visitor makes is in a folder of their own. The owner's things lie where they lie without visitors;
the owner sees everybody's runs, evaluations and uploads.
"""

import copy
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.access.policy import no_room
from lora_studio.access.policy import taken as bytes_taken
from lora_studio.errors import StudioError
from lora_studio.models.hub import NO_TOKEN
from lora_studio.workspace import DEMO_MODEL, JobFolder, RunFolder, Workspace, demo_folder, shipped_data

USERS = "users"
FILES = ("train_file", "validation_file", "model", "base", "adapter")  # parameters of requests that name files
MAX_REMEMBERED = 10_000
MAX_WAITING = 10  # jobs of a visitor in the queue
UNMEASURED_BYTES, UNMEASURED_SECONDS = 100_000, 5.0  # what a visitor may write before the disk is measured again
_VISITOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DRIVE = re.compile(r"[A-Za-z]:|\\\\|[A-Za-z][A-Za-z0-9+.-]*://")  # of Windows, or of another machine
# Options only after hub: elsewhere a question mark is a pattern that fits files.
_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?|hub:[\w-][\w.-]*/[\w-][\w.-]*(\?[\w.=&%/-]*)?")
_REVISION = re.compile(r"[\w][\w./-]*")
_PATTERN = set("*?[")


class VisitedWorkspace(Workspace):
    """`visitor` says whose request is being answered; "" for nobody's, who sees nothing and finds everything empty.

    `folders` are those outside the workspace in which visitors may name files. `quota` are the bytes that each of them
    but the owner may fill.
    """

    def __init__(
        self,
        whole: Workspace,
        visitor: Callable[[], str],
        owner: str,
        folders: Sequence[Path] = (),
        quota: int | None = None,
    ) -> None:
        self._whole, self._visitor, self._owner, self._quota = whole, visitor, owner, quota
        self._folders = (demo_folder(), *folders)
        self._nobodys = tempfile.TemporaryDirectory(prefix="lora-studio-nobody-")
        self._makers: dict[Path, str] = {}
        self._growth: dict[str, tuple[int, float]] = {}
        super().__init__(whole.root)

    @property
    def whole(self) -> Workspace:
        return self._whole

    def as_now(self) -> Workspace:
        return self.seen_by(self._visitor())

    def seen_by(self, name: str) -> "VisitedWorkspace":
        """The same as that visitor sees it, whoever is answered."""
        fixed = copy.copy(self)
        fixed._visitor = lambda: name
        return fixed

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def maker(self) -> str:
        return self._visitor()

    @property
    def owned(self) -> bool:
        return self._visitor() == self._owner

    @property
    def own(self) -> Path:
        name = self._visitor()
        if name == self._owner:
            return self.root
        if name and not _VISITOR.fullmatch(name):
            raise StudioError(f"{name!r} can't be a visitor's name.", "Use letters, digits, dots and dashes.")
        folder = self.root / USERS / name if name else Path(self._nobodys.name)
        for part in ("uploads", "drafts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        return folder

    def tokens(self, maker: str) -> Mapping[str, str]:
        return {} if maker in ("", self._owner) else NO_TOKEN

    def uploads(self) -> list[Path]:
        """The visitor's uploads, newest first; the owner's own, and after them everybody's."""
        others = (self.root / USERS).glob("*/uploads/*") if self.owned else ()
        return super().uploads() + sorted(path for path in others if not path.name.startswith("."))

    # -- room on the disk

    def check_room(self, coming: int = 0) -> None:
        if self._quota is None or self.owned:
            return
        taken = self._taken(self.maker.__eq__)
        if taken + max(coming, 1) > self._quota:
            raise no_room(taken, coming, self._quota, "What you uploaded and made takes", self._way_to_room())

    def check_growth(self, octets: int) -> None:
        if self._quota is None or self.owned or octets <= 0:
            return
        grown, measured = self._growth.get(self.maker, (0, 0.0))
        now = time.monotonic()
        # To measure the disk at every word that is typed would take longer than to write it.
        if octets + grown > UNMEASURED_BYTES or now - measured > UNMEASURED_SECONDS:
            self.check_room(octets)
            grown, measured = 0, now
            if len(self._growth) > MAX_REMEMBERED:
                self._growth.clear()
        self._growth[self.maker] = grown + octets, measured

    @property
    def bounded(self) -> bool:
        return self._quota is not None

    def overdrawn(self, maker: str) -> str:
        if self._quota is None or maker in ("", self._owner):
            return ""
        taken = self._taken(maker.__eq__)
        if taken <= self._quota:
            return ""
        return (
            f"It was ended because the disk space of its maker was used up: {taken / 1e6:,.1f} MB of "
            f"{self._quota / 1e6:,.0f} MB. What it saved last, beyond that, was removed."
        )

    def _taken(self, whose: Callable[[str], bool]) -> int:
        return bytes_taken(self._whole, whose, self.root / USERS)

    def _way_to_room(self) -> str:
        return "Delete runs, evaluations or exports that you no longer need, or uploads at the foot of the Data tab."

    def clear_cache(self) -> int:
        if not self.owned:
            raise StudioError("Prepared data is shared by all visitors.", "Its owner clears it.")
        return super().clear_cache()

    def create_run(self, title: str, config_yaml: str, facts: Mapping[str, Any]) -> RunFolder:
        self.check_room()
        return super().create_run(title, config_yaml, facts)

    def save_upload(self, source: Path, name: str | None = None) -> Path:
        self.check_room(source.stat().st_size)
        return super().save_upload(source, name)

    def save_uploads(self, sources: Sequence[Path]) -> Path:
        self.check_room(sum(source.stat().st_size for source in sources))
        return super().save_uploads(sources)

    # -- runs and evaluations

    def shows(self, folder: JobFolder) -> bool:
        if self.owned:
            return True
        maker = self._makers.get(folder.path)
        if maker is None:
            try:
                maker = self._makers[folder.path] = folder.maker
            except FileNotFoundError:
                return False
        return maker != "" and maker == self._visitor()

    def runs(self) -> list[RunFolder]:
        return [run for run in self._whole.runs() if self.shows(run)]

    def _dated(self, name: str) -> tuple[int, str, RunFolder] | None:
        found = super()._dated(name)
        return found if found is not None and self.shows(found[2]) else None

    @property
    def max_waiting(self) -> int | None:
        return None if self.owned else MAX_WAITING

    def waits_with(self, maker: str) -> bool:
        return maker == self._visitor()

    # -- files

    def check_path(self, name: str) -> None:
        """Lets names of the Hub and of shipped things pass, and files of the visitor and of the named folders."""
        if not name or self._is_hub_name(name):
            return
        if "\0" in name or _DRIVE.match(name):
            raise self._refusal(name)
        path = Path(os.path.abspath(os.path.expanduser(name)))
        among = [path]
        if _PATTERN & set(path.name) and not os.path.exists(path):
            among = [path.parent, *path.parent.glob(path.name)] if self._reaches(path.parent) else [path]
        if not all(self._reaches(each) for each in among):
            raise self._refusal(name)

    def check_request(self, params: Mapping[str, Any]) -> None:
        for name in FILES:
            self.check_path(str(params.get(name) or ""))
        for folder in (params.get("adapters") or {}).values():
            self.check_path(str(folder))
        revision = str(params.get("revision") or "")
        if revision and (".." in revision or not _REVISION.fullmatch(revision)):
            raise StudioError(f"{revision!r} is no revision.", "Give a branch, tag or commit.")
        if params.get("of"):
            self.check_request(params["of"])

    def _is_hub_name(self, name: str) -> bool:
        """Whether a name is that of something on the Hub, or shipped, and of no file here."""
        if ".." in name or not _HUB.fullmatch(name):
            return False
        if name == DEMO_MODEL or name in shipped_data():
            return True
        return not os.path.lexists(name.removeprefix("hub:").partition("?")[0])

    def _reaches(self, path: Path) -> bool:
        """Whether a path, with all links followed, ends in a folder that the visitor may read."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # links that go round in a circle
            return False
        run = self.runs_folder
        if run in real.parents and self._dated(real.relative_to(run).parts[0]) is not None:
            return True
        return any(folder == real or folder in real.parents for folder in (self.own.resolve(), *self._folders))

    def _refusal(self, name: str) -> StudioError:
        named = ", ".join(str(folder) for folder in self._folders[1:])
        return StudioError(
            f"{name!r} is outside of what visitors may use.",
            f"Upload the file, or use one in {named}." if named else "Upload the file instead.",
        )
