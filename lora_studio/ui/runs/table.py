"""The list of runs at the left of the Runs tab and the table of all runs: search, order, selection, deletion."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import gradio as gr

from lora_studio.config.parsing import load_config
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.events import RunState
from lora_studio.jobs.groups import value_words
from lora_studio.runs.checkpoints import Deletion, deletions
from lora_studio.runs.summary import Overview, matching, overview
from lora_studio.ui import html, theme
from lora_studio.ui import words as run_words
from lora_studio.ui.components import QUIET, Components, EventOptions, Shared
from lora_studio.ui.form import in_words
from lora_studio.ui.html import Html, count, empty, pager, progress, render, shorten, size
from lora_studio.ui.runs import queue
from lora_studio.ui.studio import Studio, ViewValues
from lora_studio.workspace import RunFolder, Workspace

ROWS = 25
Entry = TypeVar("Entry")
NEWEST = "created"


@dataclass(frozen=True)
class TableChoice:
    """What a person chose in the list; `ticked` are ids of runs, `comparing` shows them beside each other.

    `whole` shows the table of all runs, with every column, in the place of the list and the run beside it. `group` is
    the id of the group whose page is shown in the place of a run, `metric` that by which its runs are sorted.
    """

    query: str = ""
    sort: str = NEWEST
    down: bool = True
    page: int = 0
    ticked: tuple[str, ...] = ()
    comparing: bool = False
    whole: bool = False
    group: str = ""
    metric: str = ""

    def act(self, action: str, value: str, listed: Sequence[str]) -> "TableChoice":
        """The choice after a click: open a run, sort, page, tick, or all (of the rows in sight).

        Two ticked runs in the list are compared at once; in the table they may be ticked for something else.
        """
        match action:
            case "open":
                return replace(self, comparing=False, whole=False, group="")
            case "group":
                return replace(self, comparing=False, whole=False, group=value)
            case "sort":
                return replace(self, sort=value, down=not self.down if value == self.sort else value in DOWN, page=0)
            case "page":
                return replace(self, page=max(0, self.page + int(value)))
            case "tick":
                ticked = tuple(run for run in self.ticked if run != value)
                ticked = ticked if value in self.ticked else (*self.ticked, value)
                return replace(self, ticked=ticked, comparing=len(ticked) > 1 and not self.whole)
            case "all":
                elsewhere = tuple(run for run in self.ticked if run not in listed)
                return replace(self, ticked=elsewhere if set(listed) <= set(self.ticked) else (*elsewhere, *listed))
            case _:
                return self


@dataclass(frozen=True)
class Row:
    """A run in the list, with what only its state and its folder hold: its size and its learning rate.

    `by` names the owner, for those who see the runs of others.
    """

    run: Overview
    state: RunState
    bytes: int | None = None
    by: str = ""
    rate: float | None = None


@dataclass(frozen=True)
class TableColumn:
    """A column that can be sorted by; runs without a value come last. `wide` is left out on a phone."""

    key: str
    title: str
    value: Callable[[Row], Any]
    text: Callable[[Row, float], str]
    wide: bool = True


def _seconds(row: Row, now: float) -> str:
    return run_words.clock(row.run.seconds or None if row.state.final else run_words.elapsed(row.state, now))


def _best(row: Row, now: float) -> str:
    if row.run.best_loss is None:
        return "–"
    return render("runs.counted", run_words.figure(row.run.best_loss), f"step {row.run.best_step:,}")


COLUMNS = (
    TableColumn("state", "State", lambda row: row.run.state, lambda row, now: _state(row)),
    TableColumn("step", "Step", lambda row: row.run.step, lambda row, now: _steps(row)),
    TableColumn("loss", "Training loss", lambda row: row.run.loss, lambda row, now: run_words.figure(row.run.loss)),
    TableColumn(
        "eval_loss",
        "Validation loss",
        lambda row: row.run.eval_loss,
        lambda row, now: run_words.figure(row.run.eval_loss),
        wide=False,
    ),
    TableColumn("best_loss", "Best", lambda row: row.run.best_loss, _best),
    TableColumn("seconds", "Time", lambda row: row.run.seconds, _seconds),
    TableColumn("bytes", "Size", lambda row: row.bytes, lambda row, now: "–" if row.bytes is None else size(row.bytes)),
    TableColumn(NEWEST, "Created", lambda row: row.run.created, lambda row, now: run_words.ago(row.run.created, now)),
)
TITLE = TableColumn("title", "Run", lambda row: row.run.title.casefold(), lambda row, now: _name(row), wide=False)
SORTED = {column.key: column for column in (TITLE, *COLUMNS)}
DOWN = ("created", "step", "seconds", "bytes")  # the first click shows the largest of these, of others the smallest


def chosen_rows(rows: Sequence[Row], choice: TableChoice) -> list[Row]:
    """The rows that the search finds, in the order asked for."""
    matches = {run.id for run in matching([row.run for row in rows], choice.query)}
    matching_rows = [row for row in rows if row.run.id in matches]
    value = SORTED.get(choice.sort, SORTED[NEWEST]).value
    present = [row for row in matching_rows if _sortable(value(row))]
    missing = [row for row in matching_rows if not _sortable(value(row))]
    return sorted(present, key=value, reverse=choice.down) + missing


def _sortable(value: Any) -> bool:
    """There, and equal to itself: a loss may be no number."""
    return value is not None and value == value


@dataclass(frozen=True)
class GroupItem:
    """A group in the list, with those of its runs that match."""

    id: str
    name: str
    rows: tuple[Row, ...]

    @property
    def state(self) -> str:
        """The state of a group: that of the run that is farthest from its end."""
        states = {row.run.state for row in self.rows}
        order = ("running", "stopping", "queued", "failed", "stopped")
        return next((state for state in order[:3] if state in states), "done" if "done" in states else order[-1])


Item = Row | GroupItem
"""An item of the list."""


def items_of(rows: Sequence[Row], choice: TableChoice) -> list[Item]:
    """The rows as items of the list: a group is one, at the place of its first row. The table has every row."""
    if choice.whole:
        return list(rows)
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        if row.run.group is not None:
            by_group.setdefault(row.run.group.id, []).append(row)
    items: list[Item] = []
    for row in rows:
        group = row.run.group
        if group is None:
            items.append(row)
        elif members := by_group.pop(group.id, None):
            items.append(GroupItem(group.id, group.name, tuple(members)))
    return items


def page_of(items: Sequence[Entry], choice: TableChoice) -> tuple[list[Entry], int]:
    """The items of the page asked for, and its number; the last page where there are not so many."""
    page = min(choice.page, max(0, (len(items) - 1) // ROWS))
    return list(items[page * ROWS : (page + 1) * ROWS]), page


def listing(matches: Sequence[Row], total: int, choice: TableChoice, selected: str, now: float) -> Html:
    """The page of the list or of the table that is asked for; `total` counts all runs, `shown` is the open one."""
    if not total:
        hint = "Runs appear here as soon as they start. The demo takes about a minute on a CPU."
        content = empty("No run yet", hint)
    elif not matches:
        content = empty("No match", f"None of {count(total, 'run')} matches. Empty the search to see them.")
    else:
        items = items_of(matches, choice)
        in_sight, page = page_of(items, choice)
        if choice.whole:
            listed = table([item for item in in_sight if isinstance(item, Row)], choice, selected, now)
        else:
            listed = rail(in_sight, choice, selected, now)
        noun = "run" if len(items) == len(matches) else "item"
        content = Html(listed + pager(len(items), total - len(matches) + len(items), page, ROWS, noun))
    return render("runs.list", selected, content)


_SHORT_PAIR = 12  # letters; a longer one may need two lines


def _member_name(values: str) -> str:
    """What a run of a group tries, as the second line of other runs has it: lr 0.002, r 16. A short value stays on one
    line with the name of its setting."""
    pairs = [pair.replace("learning_rate ", "lr ") for pair in values.split(", ")]
    return ", ".join(pair.replace(" ", "\u00a0") if len(pair) <= _SHORT_PAIR else pair for pair in pairs)


def _names_rate(run: Overview) -> bool:
    """Whether a run's name in the list has its learning rate already."""
    return run.group is not None and RATE in run.group.values


def rail(items: Sequence[Item], choice: TableChoice, selected: str, now: float) -> Html:
    """Runs as items of two lines: state and name, then learning rate, loss and how long ago. A group is an item with
    its runs under it while it is open, by the values that they try."""

    def line(row: Row) -> tuple[Any, ...]:
        current = row.run.id == selected and not choice.group
        group = row.run.group
        name = _member_name(value_words(group.values)) if group else row.run.title
        return (
            *(ICONS[row.run.state], _state_words(row), row.run, name, current, row.run.id in choice.ticked),
            *_second_line(row, now),
        )

    shown: list[tuple[tuple[Any, ...] | None, list[tuple[Any, ...]]]] = []
    for item in items:
        if isinstance(item, Row):
            shown.append((None, [line(item)]))
            continue
        current = item.id == choice.group
        opened = current or any(row.run.id == selected for row in item.rows)
        about = f"{count(len(item.rows), 'run')} · {_counts(item.rows)}"
        created = run_words.ago(min(row.run.created for row in item.rows), now)
        head = (item.id, item.name, ICONS[item.state], item.state, current, opened, about, created)
        shown.append((head, [line(row) for row in item.rows] if opened else []))
    return render("runs.rail", shown)


def _counts(rows: Sequence[Row]) -> str:
    """How many runs are done, and how many work: 3 of 8 finished, 1 running."""
    states = Counter(row.run.state for row in rows)
    working = states["running"] + states["stopping"]
    return f"{sum(row.state.final for row in rows)} ended" + (f", {working} running" if working else "")


ICONS = {"queued": "◷", "running": "▶", "stopping": "▶", "done": "✓", "stopped": "■", "failed": "✕"}


def _second_line(row: Row, now: float) -> tuple[str, str]:
    """Learning rate, loss and progress; and when the run was created."""
    run = row.run
    loss = run_words.figure(run.eval_loss if run.eval_loss is not None else run.loss)
    parts = [
        _progress(row),  # first: the end of the line may not be in sight
        row.by,
        f"lr {in_words(RATE, row.rate)}" if row.rate is not None and not _names_rate(run) else "",
        f"{'val loss' if run.eval_loss is not None else 'loss'} {loss}" if loss != "–" else "",
        "damaged" if run.damaged else "",
    ]
    return " · ".join(filter(None, parts)), run_words.ago(run.created, now)


def _progress(row: Row) -> str:
    """How far a run is; how it ended if not as planned."""
    if row.run.state == "running":
        return f"{100 * run_words.share_done(row.state):.0f} %"
    return "" if row.run.state == "done" else _state_words(row)


RATE = "training.learning_rate"


def table(rows: Sequence[Row], choice: TableChoice, selected: str, now: float) -> Html:
    """The rows with every column, whose heads sort."""
    heads = [(column.key, column.title, *_order(column, choice), _kind(column)) for column in (TITLE, *COLUMNS)]
    cells = [
        (
            row.run,
            row.run.id == selected,
            row.run.id in choice.ticked,
            _name(row),
            [(_kind(column), column.text(row, now)) for column in COLUMNS],
        )
        for row in rows
    ]
    all_ticked = all(row.run.id in choice.ticked for row in rows)
    return render("runs.table", all_ticked, heads, cells)


def _order(column: TableColumn, choice: TableChoice) -> tuple[str, str]:
    """How the table is sorted by the column, in the words of HTML, and an arrow for it."""
    if column.key != choice.sort:
        return "none", ""
    return ("descending", " ↓") if choice.down else ("ascending", " ↑")


def _kind(column: TableColumn) -> str:
    return " ".join(filter(None, ("wide" if column.wide else "", "name" if column is TITLE else column.key)))


def _name(row: Row) -> Html:
    run = row.run
    model, data = in_words("model.name", run.model), in_words("data.train_file", run.data)
    about = " · ".join(shorten(part, 40) for part in (row.by, model, data) if part not in ("", "–"))
    damaged = f"{' and '.join(run.damaged)}: damaged" if run.damaged else ""
    return render("runs.name", run, about, _state_words(row), (shorten(run.labels.note, 90), damaged))


def _state(row: Row) -> Html:
    return render("runs.state", _state_words(row), None if row.state.final else run_words.progress(row.state))


def _state_words(row: Row) -> str:
    words = run_words.STATES.get(row.run.state, row.run.state)
    return f"{words}, {100 * run_words.share_done(row.state):.0f} %" if row.run.state == "running" else words


def _steps(row: Row) -> Html:
    total = row.run.total_steps
    return render("runs.counted", f"{row.run.step:,}", f"of {total:,}" if total and total != row.run.step else "")


MOST_KEPT = 5000


class RunBoard:
    """Overviews and sizes by run. A run whose state is the same object, with untouched labels, is not read again."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._rows: dict[str, tuple[int, Row]] = {}
        self._sizes: dict[str, tuple[tuple[object, ...], int]] = {}
        self._rates: dict[str, float | None] = {}

    def rows(self, states: list[RunState]) -> list[Row]:
        """A row for each run, without its size."""
        cached, current = self._rows, {}
        for state in states:
            run = RunFolder(self._workspace.runs_folder / state.id)
            touched = _touched(str(run.labels))
            before = cached.get(state.id)
            if before is not None and before[0] == touched and before[1].state is state:
                current[state.id] = before
            else:
                current[state.id] = (touched, Row(overview(run, state), state))
        # Visitors see different runs: rows of others are kept, until they are very many.
        self._rows = {**cached, **current} if len(cached) < MOST_KEPT else current
        self._sizes = {run_id: size for run_id, size in self._sizes.items() if run_id in self._rows}
        self._rates = {run_id: rate for run_id, rate in self._rates.items() if run_id in self._rows}
        return [row for _, row in current.values()]

    def size(self, state: RunState) -> int:
        """Bytes of the run's folder; of one that goes on, as of its last checkpoint."""
        run = RunFolder(self._workspace.runs_folder / state.id)
        mark = (state.state, state.events if state.final else 0, _touched(str(run.checkpoints)))
        cached = self._sizes.get(state.id)
        if cached is None or cached[0] != mark:
            cached = self._sizes[state.id] = (mark, bytes_in(run.path))
        return cached[1]

    def rate(self, state: RunState) -> float | None:
        """The learning rate of the run's settings; None for settings of another version."""
        if state.id not in self._rates:
            run = RunFolder(self._workspace.runs_folder / state.id)
            try:
                self._rates[state.id] = load_config(run.config).training.learning_rate
            except StudioError:
                self._rates[state.id] = None
        return self._rates[state.id]


def _touched(path: str) -> int:
    """When a file or folder was changed; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def deletion_question(studio: Studio, run_ids: Sequence[str]) -> str:
    """What deleting these runs would take away, as a question."""
    return deletion_words(deletions(studio.workspace, run_ids, studio.supervisor.runs()))


def deletion_words(items: Sequence[Deletion]) -> str:
    """The question in words; what can't be deleted, and what goes on with an adapter that would be gone, is said."""
    going = [item for item in items if not item.against]
    blocked = [f"“{item.title}” stays. {item.against}" for item in items if item.against]
    if not going:
        return html.notice("None of these can be deleted now.", "\n".join(blocked), "warning")
    subject = f"“{going[0].title}” with its adapter" if len(going) == 1 else f"{len(going)} runs with their adapters"
    total = html.size(sum(item.bytes for item in going))
    after = [
        f"“{item.title}” is what {' and '.join(f'“{name}”' for name in item.continued_by)} began with; the newer run "
        "keeps its own adapter, but can't be made again from here."
        for item in going
        if item.continued_by
    ]
    return html.notice(f"Delete {subject} and checkpoints, {total} in all?", "\n".join([*after, *blocked]), "warning")


def delete_runs(studio: Studio, run_ids: Sequence[str]) -> str:
    """Deletes what can be deleted, and says what could not; nothing to say is an empty text."""
    problems = []
    for run_id in run_ids:
        try:
            studio.supervisor.delete(run_id)
        except StudioError as error:
            problems.append(html.problem(error))
    return "".join(problems)


SELECTION, ORDER = "selected-run", "runs-order"
# Of two boxes ticked one right after the other neither click is left out, and the second knows of the first.
IN_TURN: EventOptions = {"trigger_mode": "multiple", "concurrency_id": "runs-list", "concurrency_limit": 1}


def build(studio: Studio, shared: Shared) -> tuple[Components, gr.State]:
    """Search, the queue, the list and what is done with ticked runs; what was chosen is the state."""
    choice = gr.State(TableChoice())
    with gr.Row(elem_classes="runs-top"):
        search = gr.Textbox(
            label="Search runs",
            placeholder="Name, data, tag, note",
            elem_id="run-search",
            min_width=120,
            max_lines=1,
        )
        whole = gr.Button("All runs", elem_id="runs-all", size="md", scale=0, min_width=0, visible=False)
    with gr.Row(elem_classes="runs-ticked"):
        compare = gr.Button("Compare", visible=False, elem_id="runs-compare", scale=0, min_width=0, size="sm")
        delete = gr.Button("Delete…", visible=False, elem_id="runs-delete", size="sm", scale=0, min_width=0)
        clear = gr.Button("Clear selection", visible=False, elem_id="runs-clear", size="sm", scale=0, min_width=0)
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=200)
        yes = gr.Button("Delete for good", variant="stop", elem_id="runs-delete-yes", size="md", scale=0, min_width=0)
        no = gr.Button("Keep runs", elem_id="runs-delete-no", size="md", scale=0, min_width=0)
    error_box = gr.HTML(visible=False)
    waiting = queue.build_queue(studio, shared)
    listed = gr.HTML(progress("Reading the runs"), js_on_load=theme.on_load("runList"), elem_id="run-list")

    _wire_list(studio, shared, choice, listed, error_box)
    whole.click(lambda before: replace(before, whole=not before.whole, page=0), choice, choice, **QUIET)
    search.input(
        lambda query, before: replace(before, query=query, page=0),
        [search, choice],
        choice,
        trigger_mode="always_last",
        **QUIET,
    )
    compare.click(lambda before: replace(before, comparing=not before.comparing, whole=False), choice, choice, **QUIET)
    clear.click(lambda before: replace(before, ticked=(), comparing=False), choice, choice, **QUIET)
    _wire_deletion(studio, shared, choice, [delete, confirm, question, yes, no], error_box)
    return {"list": listed, "all": whole, "compare": compare, "delete": delete, "clear": clear, **waiting}, choice


def _wire_list(studio: Studio, shared: Shared, choice: gr.State, listed: gr.HTML, error_box: gr.HTML) -> None:
    """Clicks in the list or the table."""

    def act(event: gr.EventData, before: TableChoice) -> tuple[Any, Any, Any]:
        now = before.act(str(event.act), str(event.value), [str(run) for run in event.listed])
        if event.act == "open":
            if missing := missing_run(studio, str(event.value)):  # a link, or a run deleted elsewhere
                return gr.skip(), gr.skip(), gr.HTML(missing, visible=True)
            studio.workspace.write_draft(SELECTION, event.value)
            return event.value, now, gr.HTML(visible=False)
        if event.act == "sort":
            studio.workspace.write_draft(ORDER, [now.sort, now.down])
        return gr.skip(), now, gr.HTML(visible=False)

    listed.click(act, choice, [shared.run, choice, error_box], **IN_TURN, **QUIET)


def _wire_deletion(studio: Studio, shared: Shared, choice: gr.State, asking: list[Any], error_box: gr.HTML) -> None:
    """The question before ticked runs are deleted; `asking` are the button, the row, its text and the two answers."""
    delete, confirm, question, yes, no = asking

    def remove(before: TableChoice, selected: str) -> tuple[Any, ...]:
        problems = delete_runs(studio, before.ticked)
        remaining = {run.id for run in studio.supervisor.runs()}
        ticked = tuple(run for run in before.ticked if run in remaining)
        errors = gr.HTML(problems, visible=bool(problems))
        now = replace(before, ticked=ticked, comparing=False)
        return now, selected if selected in remaining else "", gr.Row(visible=False), errors

    delete.click(
        lambda before: (gr.Row(visible=True), deletion_question(studio, before.ticked)),
        choice,
        [confirm, question],
        **QUIET,
    )
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(remove, [choice, shared.run], [choice, shared.run, confirm, error_box], **QUIET)
    choice.change(lambda: gr.Row(visible=False), None, confirm, **QUIET)


def missing_run(studio: Studio, run_id: str) -> Html | None:
    """A notice for the id of a run that is not there, or that the caller may not see."""
    if any(run.id == run_id for run in studio.supervisor.runs()):
        return None
    return html.notice(f"There is no run `{shorten(run_id, 60)}`.", "It may have been deleted.", "warning")


def opening_choice(studio: Studio) -> TableChoice:
    """The order chosen last; everything else begins anew."""
    draft = studio.workspace.read_draft(ORDER)
    if isinstance(draft, list) and len(draft) == 2 and isinstance(draft[0], str) and isinstance(draft[1], bool):
        return TableChoice(sort=draft[0], down=draft[1])
    return TableChoice()


def view(
    board: RunBoard, runs: list[RunState], choice: TableChoice, selected: str, now: float, owner: str = ""
) -> ViewValues:
    """What list and buttons show; `owner` is the name of the viewer if runs of others are among them."""
    rows = board.rows(runs)
    if choice.sort == "bytes":
        rows = [replace(row, bytes=board.size(row.state)) for row in rows]
    matches = chosen_rows(rows, choice)
    in_sight = {
        row.run.id: replace(
            row,
            bytes=board.size(row.state) if choice.whole else None,
            by=_whose(row.run.maker, owner),
            rate=board.rate(row.state),
        )
        for item in page_of(items_of(matches, choice), choice)[0]
        for row in (item.rows if isinstance(item, GroupItem) else (item,))
    }
    ticked = len(set(choice.ticked) & {run.id for run in runs})
    return {
        "list": listing([in_sight.get(row.run.id, row) for row in matches], len(runs), choice, selected, now),
        "all": gr.update(value="Close table" if choice.whole else "All runs", visible=bool(runs)),
        "compare": gr.update(
            value="Close comparison" if choice.comparing else f"Compare {count(ticked, 'run')}", visible=ticked > 1
        ),
        "delete": gr.update(value=f"Delete {count(ticked, 'run')}…", visible=ticked > 0),
        "clear": ticked > 0,
    }


def _whose(maker: str, owner: str) -> str:
    if not owner:
        return ""
    return "yours" if maker in ("", owner) else f"by {maker}"


def opening_run(studio: Studio, linked: str = "") -> str:
    """The run that is open when the page opens: the linked one, else the active, the last selected or the newest."""
    runs = studio.supervisor.runs()
    if any(run.id == linked for run in runs):
        return linked
    active = next((run.id for run in runs if run.state in ("running", "stopping")), None)
    last = studio.workspace.read_draft(SELECTION)
    ids = {run.id for run in studio.workspace.runs()}
    return active or (last if last in ids else None) or (runs[0].id if runs else "")
