"""Search over the settings by title, key and hint, and by the names that other programs use."""

import difflib
import re
from functools import cache

from lora_studio.config.settings import AS_VALUES, BY_VALUE, OTHER_NAMES, Setting, settings

_EXACT, _START, _WORD, _INSIDE, _HINT = 100.0, 60.0, 40.0, 20.0, 5.0
_NAME_OF_ANOTHER = 0.8
"""What a match with another program's name counts, against one with our own."""
_CLOSE = 0.75
"""Similarity (difflib's ratio) from which a word counts as a typing error of another."""
_SPLIT = re.compile(r"[\s_.\-/]+")


@cache
def aliases() -> dict[str, tuple[str, ...]]:
    """What LLaMA-Factory, axolotl, Unsloth and trl call each setting, by its path."""
    names: dict[str, list[str]] = {setting.path: [] for setting in settings()}
    for name, path in OTHER_NAMES.items():
        names[path].append(name)
    for name, (path, _) in AS_VALUES.items():
        names[path].append(name)
    for name, values in BY_VALUE.items():
        for path, _ in values.values():
            names[path].append(name)
    return {path: tuple(dict.fromkeys(found)) for path, found in names.items()}


def search(query: str) -> list[Setting]:
    """The settings that a query means, the best match first; [] for none. Every word of the query has to match.

    Only if nothing matches, words are compared for typing errors.
    """
    words = [word for word in _SPLIT.split(query.casefold().strip()) if word]
    if not words:
        return []
    scores = [(_score(setting, words), setting) for setting in settings()]
    if not any(score for score, _ in scores):
        scores = [(_likeness(setting, words), setting) for setting in settings()]
    ranked = sorted(scores, key=lambda entry: -entry[0])  # stable: equals stay in the schema's order
    return [setting for score, setting in ranked if score]


def _score(setting: Setting, words: list[str]) -> float:
    """How well a setting matches all words; 0 if one of them is nowhere in it."""
    own = (setting.title, setting.key, setting.path)
    total = 0.0
    for word in words:
        best = max(
            *(_match(name, word) for name in own),
            *(_NAME_OF_ANOTHER * _match(name, word) for name in aliases()[setting.path]),
            _HINT if word in f"{setting.help} {' '.join(map(str, setting.choices))}".casefold() else 0.0,
        )
        if not best:
            return 0.0
        total += best
    together = "_".join(words)
    return total + max(_exact(name, together) for name in (*own, *aliases()[setting.path])) + setting.basic


def _match(name: str, word: str) -> float:
    parts = [part for part in _SPLIT.split(name.casefold()) if part]
    if word in parts:
        return _START if parts[0] == word else _WORD
    if any(part.startswith(word) for part in parts):
        return _WORD - 1
    return _INSIDE if any(word in part for part in parts) else 0.0


def _exact(name: str, query: str) -> float:
    return _EXACT if "_".join(_SPLIT.split(name.casefold())) == query else 0.0


def _likeness(setting: Setting, words: list[str]) -> float:
    """How close the words come to words of the title and the names; 0 if one of them is far from all."""
    parts = {
        part
        for name in (setting.title, setting.key, *aliases()[setting.path])
        for part in _SPLIT.split(name.casefold())
    }
    closest = [max(difflib.SequenceMatcher(None, word, part).ratio() for part in parts) for word in words]
    return sum(closest) + setting.basic / 10 if min(closest) >= _CLOSE else 0.0
