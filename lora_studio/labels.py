"""Tags and the note that a person gives a run, kept beside what the run wrote itself. They change nothing about it."""

import json
from dataclasses import asdict, dataclass

from lora_studio.errors import StudioError
from lora_studio.files import read_object
from lora_studio.workspace import RunFolder, write_atomically

MOST_TAGS, LONGEST_TAG, LONGEST_NOTE = 20, 40, 10_000


@dataclass(frozen=True, slots=True)
class Labels:
    """What a person wrote on a run."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read_labels(run: RunFolder) -> Labels:
    """The run's labels; none where nothing was written yet."""
    try:
        found = read_object(run.labels)
        return Labels(tuple(str(tag) for tag in found["tags"]), str(found["note"]))
    except FileNotFoundError:
        return Labels()
    except (ValueError, KeyError, TypeError) as error:
        raise StudioError(f"{run.labels} can't be read: {error}.", "Mend the file, or delete it.") from None


def write_labels(run: RunFolder, labels: Labels) -> None:
    """Replaces the run's labels. Raises `StudioError` for what is too much."""
    check(labels)
    write_atomically(run.labels, json.dumps(asdict(labels), ensure_ascii=False, indent=2) + "\n")


def check(labels: Labels) -> None:
    if len(labels.tags) > MOST_TAGS:
        raise StudioError(f"{len(labels.tags)} tags are too many.", f"A run may have {MOST_TAGS}.")
    for tag in labels.tags:
        if len(tag) > LONGEST_TAG:
            raise StudioError(f"The tag {tag[:20]}… is too long.", f"A tag has at most {LONGEST_TAG} characters.")
    if len(labels.note) > LONGEST_NOTE:
        raise StudioError(
            f"The note has {len(labels.note):,} characters.", f"There is room for {LONGEST_NOTE:,}: shorten it."
        )


def tags_of(text: str) -> tuple[str, ...]:
    """Tags typed with commas between them, each once."""
    return tuple(dict.fromkeys(tag for part in text.split(",") if (tag := " ".join(part.split()))))
