"""Plain text and Markdown to rows: paragraphs where blank lines divide the text, else one row a line."""

from lora_studio.data.decoding import is_broken
from lora_studio.data.json_files import BROKEN_BYTES
from lora_studio.data.rows import BadRow, Reading, Record, shorten

TEXT_FIELD = "text"


def read_text(text: str) -> Reading:
    """Each row is `{"text": ...}`; its number is the line on which it begins."""
    blocks = _blocks(text)
    if any("\n" in block for _, block in blocks) and len(blocks) > 1:
        return Reading([_row(number, block) for number, block in blocks], ["Blank lines divide the text into rows."])
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return Reading([_row(number, line) for number, line in lines], ["Each line of the text is one row."])


def _blocks(text: str) -> list[tuple[int, str]]:
    blocks: list[tuple[int, str]] = []
    start, lines = 0, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            start = start if lines else number
            lines.append(line.rstrip())
        elif lines:
            blocks.append((start, "\n".join(lines)))
            lines = []
    return blocks


def _row(number: int, text: str) -> Record | BadRow:
    if is_broken(text):
        return BadRow(number, BROKEN_BYTES, shorten(text))
    return Record(number, {TEXT_FIELD: text})
