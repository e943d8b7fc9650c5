"""The question before runs are deleted, and the deletion. Words and actions; the buttons stand where they are used."""

from collections.abc import Sequence

from lora_studio.deletion import Deletion, deletions
from lora_studio.errors import StudioError
from lora_studio.ui import text
from lora_studio.ui.studio import Studio


def question(studio: Studio, wanted: Sequence[str]) -> str:
    """What deleting these runs would take away, as a question."""
    return words(deletions(studio.workspace, wanted, studio.supervisor.runs()))


def words(found: Sequence[Deletion]) -> str:
    """The question in words; what can't be deleted, and what goes on with an adapter that would be gone, is said."""
    going = [item for item in found if not item.against]
    kept = [f"“{item.title}” stays. {item.against}" for item in found if item.against]
    if not going:
        return text.notice("None of these can be deleted now.", "\n".join(kept), "warning")
    what = f"“{going[0].title}” with its adapter" if len(going) == 1 else f"{len(going)} runs with their adapters"
    total = text.size(sum(item.bytes for item in going))
    after = [
        f"“{item.title}” is what {' and '.join(f'“{name}”' for name in item.continued_by)} began with; the newer run "
        "keeps its own adapter, but can't be made again from here."
        for item in going
        if item.continued_by
    ]
    return text.notice(f"Delete {what} and checkpoints, {total} in all?", "\n".join([*after, *kept]), "warning")


def delete(studio: Studio, wanted: Sequence[str]) -> str:
    """Deletes what can be deleted, and says what could not; nothing to say is an empty text."""
    problems = []
    for run_id in wanted:
        try:
            studio.supervisor.delete(run_id)
        except StudioError as error:
            problems.append(text.problem(error))
    return "".join(problems)
