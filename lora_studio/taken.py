"""How much of the disk visitors take: what they uploaded, their runs, evaluations and exports."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_studio import evaluations, exports
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.workspace import RunFolder, Workspace


def taken(whole: Workspace, whose: Callable[[str], bool], own: Path) -> int:
    """Bytes of all that the visitors of those names have; each has a folder of their own below `own`."""
    made = [folder.path for name, folder in made_by(whole) if whose(name)]
    folders = [path for path in own.iterdir() if whose(path.name)] if own.is_dir() else []
    return sum(bytes_in(path) for path in [*made, *folders])


def made_by(whole: Workspace) -> Iterator[tuple[str, RunFolder]]:
    """Every run, evaluation and export, with the name of whoever made it."""
    jobs = (*evaluations.folders(whole).everybodys(), *exports.folders(whole).everybodys())
    for folder in (*whole.runs(), *jobs):
        try:
            yield folder.maker, folder
        except FileNotFoundError:  # deleted meanwhile
            continue


def no_room(taken: int, coming: int, most: int, whose: str, hint: str) -> StudioError:
    """What a visitor is told who has no room left."""
    more = f", and {coming / 1e6:,.1f} MB would come to it" if coming else ""
    return StudioError(f"{whose} {taken / 1e6:,.1f} MB of the {most / 1e6:,.0f} MB that there are{more}.", hint)
