"""What the Evaluate tab shows: list, progress, metrics, confusion matrix and answered rows. No gradio."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import (
    VALIDATION,
    EvaluationRequest,
    difference_name,
    elsewhere,
    evaluation,
    has_validation_rows,
    request_of,
    significance,
    value,
    verdict,
)
from lora_studio.files import JsonObject
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import EVALUATE, EvaluationFolder
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui import job_views
from lora_studio.ui import words as run_words
from lora_studio.ui.components import stat_of
from lora_studio.ui.data.choice import is_there
from lora_studio.ui.form import uploaded
from lora_studio.ui.html import bubbles, count, empty, notice, pager, render, shorten
from lora_studio.ui.words import figure
from lora_studio.workspace import RunFolder, Workspace, shipped_data

PHASES = {
    "start": "Starting",
    "data": "Reading test data",
    "model": "Loading models",
    "download": "Downloading base model",
    "vllm": "Starting vLLM and comparing its answers with transformers",
    "answer": "Answering",
    "measure": "Scoring answers",
}
UNITS = dict.fromkeys(("answer", "data"), "rows")
NOTHING = ("No evaluation yet", "Press Evaluate to compare the adapter with its base on the test data.")


def listing(states: Sequence[RunState], looked_at: str, now: float, headlines: Mapping[str, str]) -> str:
    """The earlier evaluations to choose from; `headlines` say what each came to."""
    if not states:
        return ""

    def about(state: RunState) -> tuple[str, str]:
        status = run_words.STATES[state.state]
        if state.state == "running" and state.phase_total and state.phase == "answer":
            status += f", {100 * state.phase_done / state.phase_total:.0f} %"
        return status, headlines.get(state.id, "")

    return job_views.listing(states, looked_at, now, "evaluation", about)


def headline(summary: Mapping[str, Any]) -> str:
    """The most telling metric of a summary: Accuracy 52.5 % → 95 %."""
    metric = next(iter(summary["metrics"].values()))
    names = [column["name"] for column in summary["columns"]]
    values = " → ".join(value(metric[name]["value"], metric["unit"]) for name in names)
    return f"{metric['title']} {values}"


def head(
    state: RunState, request: EvaluationRequest, summary: Mapping[str, Any] | None = None, *, owned: bool = False
) -> str:
    """The result in one sentence, or how far it is, and what can be done. Only the owner sees where the file is."""
    file = request.data if request.data.startswith("hub:") else Path(request.data).name
    where = request.data if owned else None
    act = None
    if state.state != "done":
        act = ("resume", "", "Resume") if state.final else ("stop", "", job_views.stop_label(state))
    sentences = verdict(summary) if summary else []
    also = elsewhere(summary) if summary else ""
    return render(
        "evaluate.head",
        state,
        job_views.activity(state, PHASES, UNITS),
        file,
        where,
        act,
        job_views.notes(state),
        sentences,
        also,
    )


def results(summary: Mapping[str, Any]) -> str:
    """Metrics, where columns disagree, and confusion, of a summary."""
    part: tuple[str, ...] = ()
    if summary["rows"] < summary["of_rows"]:
        words = f"Results of {summary['rows']:,} of {count(summary['of_rows'], 'row')}."
        part = (words, "The longest rows are answered first. The rest may be easier or harder.")
    files = (
        ("download", "predictions", "Download answers (JSONL)"),
        ("download", "summary", "Download metrics (JSON)"),
    )
    why = summary["task"]["why"]
    return render("evaluate.results", part, why, metrics_table(summary), files, confusions(summary))


def metrics_table(summary: Mapping[str, Any]) -> str:
    """Base, adapters and the difference with its verdict, a row a metric."""
    columns = summary["columns"]
    base, *adapters = (str(column["title"]) for column in columns)
    against = [f"{title} − {base}" for title in adapters] if len(adapters) > 1 else ["Difference"] * len(adapters)
    differences = [(difference_name(number), name) for number, name in enumerate(against, 1)]
    heads = [title for name in against for title in (name, "Verdict")]
    rows = []
    for metric in summary["metrics"].values():
        unit, compared = metric["unit"], []
        for name, title in differences:
            difference = metric[name]
            words = difference["words"][:1].upper() + difference["words"][1:]
            cell = _measured(difference, unit, title, signed=True)
            compared.append((cell, significance(difference), difference["test"], words))
        measured = [_measured(metric[column["name"]], unit, column["title"]) for column in columns]
        rows.append((metric, measured, compared))
    return render("evaluate.metrics", ("Metric", base, *adapters, *heads), rows)


def _measured(measurement: Mapping[str, Any], unit: str, label: str, *, signed: bool = False) -> tuple[str, str, str]:
    """A cell; on a phone, where a metric stands over its cells, each says by its label what it is."""

    def short(number: float) -> str:
        return value(number, unit, signed=signed).removesuffix(" %").removesuffix(" points")

    interval = "" if measurement["low"] is None else f"[{short(measurement['low'])}, {short(measurement['high'])}]"
    return label, value(measurement["value"], unit, signed=signed), interval


def confusions(summary: Mapping[str, Any]) -> str:
    """A confusion matrix for each column: rows are what was expected, columns what was answered."""
    if not summary["confusion"]:
        return ""
    titles = {column["name"]: column["title"] for column in summary["columns"]}
    return render(
        "evaluate.confusions", [_confusion(titles[name], matrix) for name, matrix in summary["confusion"].items()]
    )


def _confusion(title: str, matrix: Mapping[str, Any]) -> tuple[str, list[str], list[tuple[str, list[Any]]]]:
    """The title, the labels that were answered, and for each that was expected how often: (right, share, number)."""
    most = max((number for line in matrix["counts"] for number in line), default=0) or 1
    rows = [
        (
            shorten(label, 24),
            [
                (answered == label, f"{100 * number / most:.0f}", f"{number:,}")
                for answered, number in zip(matrix["given"], line, strict=True)
            ],
        )
        for label, line in zip(matrix["expected"], matrix["counts"], strict=True)
    ]
    return title, [shorten(label, 24) for label in matrix["given"]], rows


ROWS = 20
Row = JsonObject
"""An answered row: `row`, `prompt`, `reference`, and each column's answer by the column's name."""
FILTERS: dict[str, tuple[str, str, Callable[[bool, bool], bool]]] = {
    "all": ("All rows", "All rows", lambda first, other: True),
    "lost": ("{first} right, {other} wrong", "", lambda first, other: first and not other),
    "gained": ("{first} wrong, {other} right", "", lambda first, other: other and not first),
    "wrong": ("Both wrong", "Wrong", lambda first, other: not first and not other),
    "right": ("Both right", "Right", lambda first, other: first and other),
}
"""Of a filter its words for two columns and for one ("" where it takes two), and which rows it leaves."""
ORDERS = {
    "row": "File order",
    "worst": "Lowest score first",
    "best": "Highest score first",
    "gained": "Largest gain first",
    "lost": "Largest loss first",
}


@dataclass(frozen=True)
class RowChoice:
    """What a person chose in the table. `other` is the column that is held against the first."""

    filter: str = "all"
    order: str = "row"
    query: str = ""
    other: str = "adapter"
    page: int = 0

    def act(self, action: str, value: str) -> "RowChoice":
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


def chosen_rows(rows: Sequence[Row], columns: Sequence[str], choice: RowChoice) -> list[Row]:
    """The rows that filter and words leave, in the order asked for."""
    first, other = pair(columns, choice)
    fits = FILTERS[choice.filter][2]
    words = choice.query.casefold().split()
    matches = [
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
    return sorted(matches, key=keys[choice.order])


def pair(columns: Sequence[str], choice: RowChoice) -> tuple[str, str]:
    """The two columns that are held against each other; a single one against itself."""
    other = choice.other if choice.other in columns[1:] else columns[-1] if len(columns) < 2 else columns[1]
    return columns[0], other


def _text(row: Row, columns: Sequence[str]) -> str:
    answers = [row[column]["answer"] for column in columns]
    return " ".join(
        [*(str(message.get("content")) for message in row["prompt"]), row["reference"], *answers]
    ).casefold()


def table(rows: Sequence[Row], titles: Mapping[str, str], choice: RowChoice) -> str:
    """The rows of the page asked for, with what filters, orders and turns pages. `titles` are the columns'."""
    if not rows:
        return empty("No answers yet", "Answers appear here batch by batch.")
    columns = list(titles)
    matches = chosen_rows(rows, columns, choice)
    page = min(choice.page, max(0, (len(matches) - 1) // ROWS))
    page_rows = matches[page * ROWS : (page + 1) * ROWS]
    about = ("Prompt", "Expected") if rows[0]["prompt"] else ("Text",)
    if not page_rows:
        return controls(rows, titles, choice) + empty("No matching rows", "Choose another filter or clear the search.")
    markup = render("evaluate.table", ("Row", *about, *titles.values()), [_row(row, titles) for row in page_rows])
    return controls(rows, titles, choice) + markup + pager(len(matches), len(rows), page, ROWS, "row")


def controls(rows: Sequence[Row], titles: Mapping[str, str], choice: RowChoice) -> str:
    """Filters with how many rows each leaves, the order, a search, and with which column the first is compared."""
    columns = list(titles)
    first, other = pair(columns, choice)
    names = {"first": titles[first], "other": titles[other]}
    chips = []
    for name, (paired, alone, fits) in FILTERS.items():
        if (len(columns) < 2 and name in ("lost", "gained")) or (name != "all" and not rows[0]["prompt"]):
            continue
        matches = sum(fits(row[first]["right"], row[other]["right"]) for row in rows)
        words = paired.format(**names) if len(columns) > 1 else alone
        chips.append((name, f"{words} ({matches:,})", choice.filter == name))
    orders = [
        (name, words, name == choice.order)
        for name, words in ORDERS.items()
        if len(columns) > 1 or name not in ("gained", "lost")
    ]
    second_columns = [(name, titles[name], name == other) for name in columns[1:]] if len(columns) > 2 else ()
    return render("evaluate.controls", chips, titles[first], second_columns, orders, choice.query)


def _row(row: Row, titles: Mapping[str, str]) -> str:
    if not row["prompt"]:
        return _read(row, titles)
    question = next((message for message in reversed(row["prompt"]) if message["role"] == "user"), row["prompt"][-1])
    line = shorten(str(question.get("content") or ""), 160)
    answers = [_answer(row[column], title) for column, title in titles.items()]
    return render("evaluate.asked", row["row"], line, bubbles(row["prompt"]), row["reference"], answers)


def _read(row: Row, titles: Mapping[str, str]) -> str:
    """A row that asks nothing: its text, and how surprised each is by it."""
    surprises = [(title, _surprise(row[column])) for column, title in titles.items()]
    return render("evaluate.read", row["row"], shorten(row["reference"], 160), row["reference"], surprises)


def _surprise(answer: Mapping[str, Any]) -> str:
    if not answer["expected_tokens"]:
        return "not scored"
    return f"perplexity {figure(math.exp(min(answer['loss'] / answer['expected_tokens'], 700.0)))}"


def _answer(answer: Mapping[str, Any], title: str) -> tuple[str, bool, str, str]:
    """The column's title, whether its answer is right, the answer, and a note."""
    notes = [] if answer["right"] or not 0 < answer["score"] < 1 else [f"score {answer['score']:.2f}"]
    notes += ["truncated at max new tokens"] if answer["finish"] == "length" else []
    return title, answer["right"], answer["answer"], ", ".join(notes)


LOOKED_AT, FORM = "evaluation-looked-at", "evaluate"
PARTS = ("list", "head", "results", "rows")


@dataclass(frozen=True)
class EvaluationView:
    """The evaluation that is looked at, and what was chosen in its table.

    `warned` is the one of which a person knows that the memory will hardly do to go on with it.
    """

    evaluation: str = ""
    rows: RowChoice = field(default_factory=RowChoice)
    warned: str = ""


class EvaluationBoard:
    """Reads evaluations for the tab. What did not change on disk is not read again."""

    def __init__(self, workspace: Workspace, jobs: Supervisor) -> None:
        self.workspace, self.jobs = workspace, jobs
        self._summaries: dict[str, tuple[tuple[int, int], JsonObject]] = {}
        self._rows: tuple[str, tuple[int, int], list[Row]] = ("", (0, 0), [])

    def summary(self, folder: EvaluationFolder) -> JsonObject:
        """What the answers amount to; empty before they were measured."""
        stamp = stat_of(folder.complete)
        cached = self._summaries.get(folder.id)
        if cached is None or cached[0] != stamp:
            summary = folder.read_result()
            cached = self._summaries[folder.id] = (stamp, summary)
        return cached[1]

    def rows(self, folder: EvaluationFolder) -> list[Row]:
        """The answered rows of the one evaluation that is looked at."""
        stamp = stat_of(folder.predictions)
        if self._rows[:2] != (folder.id, stamp):
            self._rows = folder.id, stamp, list(folder.rows())
        return self._rows[2]

    def look(self, view: EvaluationView, now: float) -> dict[str, str]:
        """The markup of every part."""
        states = self.jobs.jobs(EVALUATE)
        folders = {state.id: EvaluationFolder(self.workspace.evaluations_folder / state.id) for state in states}
        visible = states[: job_views.LISTED]
        headlines = {state.id: headline(summary) for state in visible if (summary := self.summary(folders[state.id]))}
        listed = listing(states, view.evaluation, now, headlines)
        state = next((candidate for candidate in states if candidate.id == view.evaluation), None)
        if state is None:
            waiting = "" if states else empty(*NOTHING)
            return {"list": listed, "head": waiting, "results": "", "rows": ""}
        return {"list": listed, **self._looked_at(state, folders[state.id], view)}

    def _looked_at(self, state: RunState, folder: EvaluationFolder, view: EvaluationView) -> dict[str, str]:
        try:
            request = request_of(folder)
        except StudioError as error:
            return {"head": notice(error.message, error.hint, "error"), "results": "", "rows": ""}
        summary = self.summary(folder)
        titles = {column.name: column.title for column in request.columns}
        rows = self.rows(folder)
        waiting = "" if state.final else empty("Metrics appear after the last answer", "Answers so far are below.")
        title = '<h3 class="part">Answers</h3>'
        return {
            "head": head(state, request, summary, owned=self.workspace.policy.is_admin),
            "results": results(summary) if summary else waiting,
            "rows": title + table(rows, titles, view.rows) if rows or not state.final else "",
        }

    def opening(self) -> str:
        """The evaluation to look at first: the one looked at last, else the newest."""
        return job_views.opening(self.workspace, self.jobs.jobs(EVALUATE), LOOKED_AT)


def data_choices(workspace: Workspace, adapters: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Held-out data that come with the studio, and uploads, as (label, value); those of the adapter go first."""
    own = [("Validation rows of the run", VALIDATION)] if adapters and _validated(workspace, adapters[0]) else []
    shipped = [(f"{data.title}: held-out rows (built-in)", name) for name, data in shipped_data().items()]
    return own + shipped + uploaded(workspace)


def default_data(workspace: Workspace, adapter: str) -> str:
    """What an adapter is tested with unless a person chooses otherwise: rows that its training did not use.

    These are the held-out rows of a built-in data set, else the run's validation rows. "" where there is neither.
    """
    config = _config_of(workspace, adapter)
    if config and not config.data.validation_file and config.data.train_file in shipped_data():
        return config.data.train_file
    return VALIDATION if _validated(workspace, adapter) else ""


def _validated(workspace: Workspace, adapter: str) -> bool:
    config = _config_of(workspace, adapter)
    return config is not None and has_validation_rows(adapter, config)


def _config_of(workspace: Workspace, adapter: str) -> Config | None:
    """The settings of an adapter's run; None for one from elsewhere."""
    run = workspace.runs_folder / adapter.partition("/")[0]
    with contextlib.suppress(StudioError):
        if run.parent == workspace.runs_folder and run.is_dir():
            return load_config(RunFolder(run).config)
    return None


def remembered(workspace: Workspace, adapters: Sequence[tuple[str, str]], requested: Sequence[str] = ()) -> JsonObject:
    """The form of the last evaluation, as far as it is still there; adapters that are requested now replace its own.

    The data that were chosen stay until the first adapter is another one.
    """
    draft = workspace.read_draft(FORM)
    saved: Mapping[str, Any] = draft if isinstance(draft, dict) else {}
    available = [value for _, value in adapters]
    before = saved.get("adapters") or []
    first = [
        next((value for value in available if value == run or value.startswith(f"{run}/")), "") for run in requested
    ]
    wished = list(filter(None, first)) or before
    selected = [value for value in wished if value in available] or available[:1]
    data = str(saved.get("data") or "")
    names = [value for _, value in data_choices(workspace, selected)]
    if selected[:1] != before[:1] or not (data in names or is_there(data, workspace)):
        own = default_data(workspace, selected[0]) if selected else ""
        data = own or (data if data in names or is_there(data, workspace) else "pirate")
    return {**saved, "adapters": selected, "data": data}


def file_of(workspace: Workspace, name: str, which: str) -> Path:
    """One of the two files of an evaluation. Raises `StudioError` where it is not there."""
    folder = evaluation(workspace, name)
    path = folder.predictions if which == "predictions" else folder.complete
    if not path.is_file():
        raise StudioError(f"There is no {path.name} yet.", "It is written while rows are answered and scored.")
    return path
