"""Lists and objects that a cell holds as text: JSON, or Python's own form, as pandas writes them into a CSV."""

import ast
import json
from typing import Any

WITHOUT_COMMAS = "the turns are written as numpy prints them, without commas between them"
_MAX_LENGTH = 1 << 20  # characters; Python's parser takes about a hundred times as many bytes
_MAX_DEPTH = 64
_OPEN, _CLOSE = "[{(", "]})"


def read_value(text: str) -> Any:
    """The value that a text stands for. Raises ValueError where it is neither JSON nor a Python list or dict."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None
    except ValueError as error:
        if not _may_be_python(text):
            raise error from None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise ValueError(WITHOUT_COMMAS if lacks_commas(text) else "the text is neither JSON nor Python") from None


def lacks_commas(text: str) -> bool:
    """Whether a list's objects stand beside each other without commas, as numpy prints an array of them."""
    depth, before, quote, at = 0, "", "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[at - 1] != "\\" else quote
        elif letter in "'\"":
            quote, before = letter, letter
        elif letter == "{" and depth == 1 and before == "}":
            return True
        elif not letter.isspace():
            depth += (letter in _OPEN) - (letter in _CLOSE)
            before = letter
    return False


def _may_be_python(text: str) -> bool:
    """Whether a text begins as a list or dict with a quoted text in it, and is small enough to be looked at closer."""
    start = text.lstrip()[:200]
    inside = start.lstrip("[{( \t\r\n")
    if start[:1] not in ("[", "{") or inside[:1] not in ("'", '"') or len(text) > _MAX_LENGTH:
        return False
    depth = most = 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        most = max(most, depth)
    return most <= _MAX_DEPTH
