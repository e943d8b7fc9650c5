"""How much of the disk visitors take: what they uploaded and typed, their runs, evaluations, exports and downloads."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.kinds import made_by
from lora_studio.workspace import Workspace

OF = "of-"  # before a visitor's name, the name of the folder of their downloads


def taken(whole: Workspace, whose: Callable[[str], bool], own: Path) -> int:
    """Bytes of all that the visitors of those names have; each has a folder of their own below `own`."""
    made = [folder.path for name, folder in made_by(whole) if whose(name)]
    folders = [path for path in own.iterdir() if whose(path.name)] if own.is_dir() else []
    downloads = [path for name, path in downloads_of(whole) if whose(name)]
    return sum(bytes_in(path) for path in [*made, *folders, *downloads])


def downloads_of(whole: Workspace) -> Iterator[tuple[str, Path]]:
    """Every folder of files made for downloads, with the name of whoever asked for them."""
    for path in whole.downloads_folder.glob(f"{OF}*"):
        yield path.name.removeprefix(OF), path


def no_room(taken: int, coming: int, most: int, whose: str, hint: str) -> StudioError:
    """What a visitor is told who has no room left."""
    more = f", and {coming / 1e6:,.1f} MB would come to it" if coming else ""
    return StudioError(f"{whose} {taken / 1e6:,.1f} MB of the {most / 1e6:,.0f} MB that there are{more}.", hint)
