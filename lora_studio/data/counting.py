"""A quick look at a file in a process of its own: `python -m lora_studio.data.counting FILE OPTIONS`,
where options are those of `quick_look` as a JSON object.

Prints a JSON object with the number of usable rows and how they are read; nothing, with exit code 1, for a file that
can't be read or that takes more than it may. Without a tokenizer, so that it can stand beside a form.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any

from lora_studio.data.formats import Format, Mapping, apply_mapping, convert, recognise
from lora_studio.data.messages import RowError
from lora_studio.data.records import Record, open_source
from lora_studio.data.rows import shorten
from lora_studio.errors import StudioError
from lora_studio.memory_limit import go_first, limited

CPU_SECONDS = 10.0
MAX_BYTES = 1 << 30
SAMPLE = 500  # rows by whose content the reading is recognised
SHOWN = 160  # characters of an answer


def quick_look(
    path: Path, *, goal: str = "answers", mapping: dict[str, Any] | None = None, encoding: str | None = None
) -> dict[str, Any]:
    """Rows of a file that can be read, and how they are read with their first answer, in sentences.

    Raises `StudioError` where the file can't be read, or takes too much memory.
    """
    with limited(most=MAX_BYTES):
        source = open_source(path, encoding)
        sample, rows = list[Record](), 0
        for row in source.rows():
            if isinstance(row, Record):
                rows += 1
                if len(sample) < SAMPLE:
                    sample.append(row)
        try:
            shape = apply_mapping(Mapping.from_dict(mapping), sample, goal) if mapping else recognise(sample, goal)
        except StudioError as error:
            return {"rows": rows, "reading": f"{error.message} {error.hint}"}
        parts = [f"Format: {shape.words}", *source.assumptions]
        if answer := next((said for record in sample if (said := _answer(record, shape))), ""):
            parts.append(f"The first row's answer: “{shorten(answer.strip(), SHOWN)}”.".replace("\n", "⏎"))
        return {"rows": rows, "reading": " ".join(parts)}


def _answer(record: Record, shape: Format) -> str:
    """A row's last answer (of a pair the better one), or its text; "" for a row that can't be used."""
    try:
        chat = convert(record, shape)
    except RowError:
        return ""
    said = [message.content for message in (*chat.messages, *chat.chosen) if message.role == "assistant"]
    return chat.text or (said[-1] if said else "")


def main() -> int:
    """Looks at the file that the command names and returns the exit code."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    go_first()
    name, options = sys.argv[1:]
    try:
        print(json.dumps(quick_look(Path(name), **json.loads(options))))
    except StudioError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
