"""Which run a person means: the beginning of an id or a title, where only one run has it."""

from collections.abc import Callable, Sequence

from lora_studio.errors import StudioError

_NAMED = 10  # runs that a message names at most


def meant(name: str, ids: Sequence[str], title_of: Callable[[str], str]) -> str:
    """The id of the only run whose id begins so, or else whose title this is, large or small letters alike.

    Raises `StudioError` where there is none, or more than one.
    """
    matches, found = [run for run in ids if name and run.startswith(name)], "several runs begin so"
    if not matches:
        wanted, found = name.strip().casefold(), "several runs have that title"
        matches = [run for run in ids if wanted and title_of(run).strip().casefold() == wanted]
    if not matches:
        every = "`python -m lora_studio runs list` shows every run's id."
        raise StudioError(f"Run {name!r}: there is no such run.", every)
    if len(matches) > 1:
        listed = ", ".join(matches[:_NAMED]) + (", …" if len(matches) > _NAMED else "")
        raise StudioError(f"Run {name!r}: {found}.", f"Name one by its id: {listed}.")
    return matches[0]
