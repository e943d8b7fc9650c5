"""The table of all runs: which of them are shown, in what order, and the markup. Plain functions; no gradio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_studio.events import RunState
from lora_studio.overview import Overview, matching
from lora_studio.ui import run_words
from lora_studio.ui.text import Html, count, empty, pager, render, shorten, size

ROWS = 25
NEWEST = "created"


@dataclass(frozen=True)
class Choice:
    """What a person chose in the table; `ticked` are ids of runs, `comparing` shows them beside each other."""

    query: str = ""
    sort: str = NEWEST
    down: bool = True
    page: int = 0
    ticked: tuple[str, ...] = ()
    comparing: bool = False

    def act(self, action: str, value: str, listed: Sequence[str]) -> "Choice":
        """The choice after a click in the table: sort, page, tick, or all (of the rows in sight)."""
        match action:
            case "sort":
                return replace(self, sort=value, down=not self.down if value == self.sort else value in DOWN, page=0)
            case "page":
                return replace(self, page=max(0, self.page + int(value)))
            case "tick":
                left = tuple(run for run in self.ticked if run != value)
                return replace(self, ticked=left if value in self.ticked else (*self.ticked, value))
            case "all":
                others = tuple(run for run in self.ticked if run not in listed)
                return replace(self, ticked=others if set(listed) <= set(self.ticked) else (*others, *listed))
            case _:
                return self


@dataclass(frozen=True)
class Row:
    """A run in the table, with what only its state and its folder know; `by` says whose it is, to who sees others'."""

    run: Overview
    state: RunState
    bytes: int | None = None
    by: str = ""


@dataclass(frozen=True)
class Column:
    """A column that can be sorted by; runs without a value come last. `wide` is left out on a phone."""

    key: str
    title: str
    value: Callable[[Row], Any]
    shown: Callable[[Row, float], str]
    wide: bool = True


def _seconds(row: Row, now: float) -> str:
    return run_words.clock(row.run.seconds if row.state.final else run_words.elapsed(row.state, now))


def _best(row: Row, now: float) -> str:
    if row.run.best_loss is None:
        return "–"
    return render("runs.counted", run_words.figure(row.run.best_loss), f"step {row.run.best_step:,}")


COLUMNS = (
    Column("state", "State", lambda row: row.run.state, lambda row, now: _state(row)),
    Column("step", "Step", lambda row: row.run.step, lambda row, now: _steps(row)),
    Column("loss", "Training loss", lambda row: row.run.loss, lambda row, now: run_words.figure(row.run.loss)),
    Column(
        "eval_loss",
        "Validation loss",
        lambda row: row.run.eval_loss,
        lambda row, now: run_words.figure(row.run.eval_loss),
        wide=False,
    ),
    Column("best_loss", "Best", lambda row: row.run.best_loss, _best),
    Column("seconds", "Time", lambda row: row.run.seconds, _seconds),
    Column("bytes", "On disk", lambda row: row.bytes, lambda row, now: "–" if row.bytes is None else size(row.bytes)),
    Column(NEWEST, "Made", lambda row: row.run.created, lambda row, now: run_words.ago(row.run.created, now)),
)
TITLE = Column("title", "Run", lambda row: row.run.title.casefold(), lambda row, now: _name(row), wide=False)
SORTED = {column.key: column for column in (TITLE, *COLUMNS)}
DOWN = ("created", "step", "seconds", "bytes")  # the first click shows the largest of these, of others the smallest


def chosen_rows(rows: Sequence[Row], choice: Choice) -> list[Row]:
    """The rows that the search finds, in the order asked for."""
    found = {run.id for run in matching([row.run for row in rows], choice.query)}
    kept = [row for row in rows if row.run.id in found]
    value = SORTED.get(choice.sort, SORTED[NEWEST]).value
    there = [row for row in kept if _sortable(value(row))]
    missing = [row for row in kept if not _sortable(value(row))]
    return sorted(there, key=value, reverse=choice.down) + missing


def _sortable(value: Any) -> bool:
    """There, and equal to itself: a loss may be no number."""
    return value is not None and value == value


def page_of(rows: Sequence[Row], choice: Choice) -> tuple[list[Row], int]:
    """The rows of the page asked for, and its number; the last page where there are not so many."""
    page = min(choice.page, max(0, (len(rows) - 1) // ROWS))
    return list(rows[page * ROWS : (page + 1) * ROWS]), page


def table(found: Sequence[Row], of: int, choice: Choice, looked_at: str, now: float) -> str:
    """The page of the table that is asked for; `of` is how many runs there are."""
    if not of:
        return empty(
            "No run yet",
            "Press “Start training” on the Train tab: its settings already fit the built-in model and data.",
        )
    if not found:
        return empty(
            "No run is found", f"None of {count(of, 'run')} has all these words. Empty the search to see them."
        )
    rows, page = page_of(found, choice)
    heads = [(column.key, column.title, *_order(column, choice), _kind(column)) for column in (TITLE, *COLUMNS)]
    drawn = [
        (
            row.run,
            row.run.id == looked_at,
            row.run.id in choice.ticked,
            _name(row),
            [(_kind(column), column.shown(row, now)) for column in COLUMNS],
        )
        for row in rows
    ]
    all_ticked = all(row.run.id in choice.ticked for row in rows)
    return render("runs.table", all_ticked, heads, drawn) + pager(len(found), of, page, ROWS, "run")


def _order(column: Column, choice: Choice) -> tuple[str, str]:
    """How the table is sorted by the column, in the words of HTML, and an arrow for it."""
    if column.key != choice.sort:
        return "none", ""
    return ("descending", " ↓") if choice.down else ("ascending", " ↑")


def _kind(column: Column) -> str:
    return " ".join(filter(None, ("wide" if column.wide else "", "name" if column is TITLE else column.key)))


def _name(row: Row) -> Html:
    run = row.run
    about = " · ".join(shorten(part, 40) for part in (row.by, run.model, run.data) if part)
    damaged = f"{' and '.join(run.damaged)}: damaged" if run.damaged else ""
    return render("runs.name", run, about, _state_words(row), (shorten(run.labels.note, 90), damaged))


def _state(row: Row) -> Html:
    return render("runs.state", _state_words(row), None if row.state.final else run_words.progress(row.state))


def _state_words(row: Row) -> str:
    words = run_words.SHORT_STATES.get(row.run.state, row.run.state)
    return f"{words}, {100 * run_words.share_done(row.state):.0f} %" if row.run.state == "running" else words


def _steps(row: Row) -> Html:
    total = row.run.total_steps
    return render("runs.counted", f"{row.run.step:,}", f"of {total:,}" if total and total != row.run.step else "")
