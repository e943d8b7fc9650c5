"""The answered rows of an evaluation as a table: which of them are shown, in what order, and the markup. No gradio."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_studio.ui.run_words import figure
from lora_studio.ui.text import bubbles, empty, pager, render, shorten

ROWS = 20
BASE = "base"
Row = dict[str, Any]

FILTERS: dict[str, tuple[str, str, Callable[[bool, bool], bool]]] = {
    "all": ("All rows", "All rows", lambda first, other: True),
    "lost": ("{first} right, {other} wrong", "", lambda first, other: first and not other),
    "gained": ("{first} wrong, {other} right", "", lambda first, other: other and not first),
    "wrong": ("Both wrong", "Wrong", lambda first, other: not first and not other),
    "right": ("Both right", "Right", lambda first, other: first and other),
}
"""Of a filter its words for two columns and for one ("" where it takes two), and which rows it leaves."""
ORDERS = {
    "row": "in the file's order",
    "worst": "worst answers first",
    "best": "best answers first",
    "gained": "what the adapter gained most first",
    "lost": "what the adapter lost most first",
}


@dataclass(frozen=True)
class Choice:
    """What a person chose in the table. `other` is the column that is held against the first."""

    filter: str = "all"
    order: str = "row"
    query: str = ""
    other: str = "adapter"
    page: int = 0

    def act(self, action: str, value: str) -> "Choice":
        """The choice after a click or typed words."""
        match action:
            case "filter" if value in FILTERS:
                return replace(self, filter=value, page=0)
            case "order" if value in ORDERS:
                return replace(self, order=value, page=0)
            case "query":
                return replace(self, query=value[:200], page=0)
            case "other":
                return replace(self, other=value, page=0)
            case "page":
                return replace(self, page=max(0, self.page + int(value)))
            case _:
                return self


def chosen_rows(rows: Sequence[Row], columns: Sequence[str], choice: Choice) -> list[Row]:
    """The rows that filter and words leave, in the order asked for."""
    first, other = pair(columns, choice)
    fits = FILTERS[choice.filter][2]
    words = choice.query.casefold().split()
    kept = [
        row
        for row in rows
        if fits(row[first]["right"], row[other]["right"]) and all(word in _text(row, columns) for word in words)
    ]
    keys: dict[str, Callable[[Row], Any]] = {
        "row": lambda row: row["row"],
        "worst": lambda row: (row[other]["score"], row["row"]),
        "best": lambda row: (-row[other]["score"], row["row"]),
        "gained": lambda row: (row[first]["score"] - row[other]["score"], row["row"]),
        "lost": lambda row: (row[other]["score"] - row[first]["score"], row["row"]),
    }
    return sorted(kept, key=keys[choice.order])


def pair(columns: Sequence[str], choice: Choice) -> tuple[str, str]:
    """The two columns that are held against each other; a single one against itself."""
    other = choice.other if choice.other in columns[1:] else columns[-1] if len(columns) < 2 else columns[1]
    return columns[0], other


def _text(row: Row, columns: Sequence[str]) -> str:
    said = [row[column]["answer"] for column in columns]
    return " ".join([*(str(message.get("content")) for message in row["prompt"]), row["reference"], *said]).casefold()


def table(rows: Sequence[Row], titles: Mapping[str, str], choice: Choice) -> str:
    """The rows of the page asked for, with what filters, orders and turns pages. `titles` are the columns'."""
    if not rows:
        return empty("No row is answered yet", "Rows appear here batch by batch.")
    columns = list(titles)
    found = chosen_rows(rows, columns, choice)
    page = min(choice.page, max(0, (len(found) - 1) // ROWS))
    shown = found[page * ROWS : (page + 1) * ROWS]
    about = ("Asked", "Expected") if rows[0]["prompt"] else ("Read",)
    if not shown:
        return controls(rows, titles, choice) + empty("No such row", "Choose another filter, or empty the search.")
    drawn = render("evaluate.table", ("Row", *about, *titles.values()), [_row(row, titles) for row in shown])
    return controls(rows, titles, choice) + drawn + pager(len(found), len(rows), page, ROWS, "row")


def controls(rows: Sequence[Row], titles: Mapping[str, str], choice: Choice) -> str:
    """Filters with how many rows each leaves, the order, a search, and with which column the first is compared."""
    columns = list(titles)
    first, other = pair(columns, choice)
    names = {"first": titles[first], "other": titles[other]}
    chips = []
    for name, (beside, alone, fits) in FILTERS.items():
        if (len(columns) < 2 and name in ("lost", "gained")) or (name != "all" and not rows[0]["prompt"]):
            continue
        left = sum(fits(row[first]["right"], row[other]["right"]) for row in rows)
        words = beside.format(**names) if len(columns) > 1 else alone
        chips.append((name, f"{words} ({left:,})", choice.filter == name))
    orders = [
        (name, words, name == choice.order)
        for name, words in ORDERS.items()
        if len(columns) > 1 or name not in ("gained", "lost")
    ]
    others = [(name, titles[name], name == other) for name in columns[1:]] if len(columns) > 2 else ()
    return render("evaluate.controls", chips, titles[first], others, orders, choice.query)


def _row(row: Row, titles: Mapping[str, str]) -> str:
    if not row["prompt"]:
        return _read(row, titles)
    asked = next((message for message in reversed(row["prompt"]) if message["role"] == "user"), row["prompt"][-1])
    line = shorten(str(asked.get("content") or ""), 160)
    answers = [_answer(row[column], title) for column, title in titles.items()]
    return render("evaluate.asked", row["row"], line, bubbles(row["prompt"]), row["reference"], answers)


def _read(row: Row, titles: Mapping[str, str]) -> str:
    """A row that asks nothing: its text, and how surprised each is by it."""
    surprises = [(title, _surprise(row[column])) for column, title in titles.items()]
    return render("evaluate.read", row["row"], shorten(row["reference"], 160), row["reference"], surprises)


def _surprise(said: Mapping[str, Any]) -> str:
    if not said["expected_tokens"]:
        return "not measured"
    return f"perplexity {figure(math.exp(min(said['loss'] / said['expected_tokens'], 700.0)))}"


def _answer(said: Mapping[str, Any], title: str) -> tuple[str, bool, str, str]:
    """The column's title, whether its answer is right, the answer, and a note."""
    notes = [] if said["right"] or not 0 < said["score"] < 1 else [f"score {said['score']:.2f}"]
    notes += ["cut at the longest answer"] if said["finish"] == "length" else []
    return title, said["right"], said["answer"], ", ".join(notes)
