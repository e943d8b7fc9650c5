"""Evaluations in words and markup: the list, how far one is, its metrics and confusion matrix. No gradio."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.evaluations import Request
from lora_studio.events import RunState
from lora_studio.jobs.ending_words import ending_words
from lora_studio.ui import job_list, run_words
from lora_studio.ui.text import count, empty, progress, render, shorten

PHASES = {
    "start": "Starting",
    "data": "Reading the test file",
    "model": "Loading base and adapters",
    "download": "Downloading the base model",
    "answer": "Answering",
    "measure": "Measuring the answers",
}


def listing(states: Sequence[RunState], looked_at: str, now: float, headlines: Mapping[str, str]) -> str:
    """The earlier evaluations to choose from; `headlines` say what each came to."""
    if not states:
        return empty(
            "No evaluation yet",
            "Choose an adapter and a test file above and press Evaluate: the file's answers stay hidden.",
        )

    def about(state: RunState) -> tuple[str, str]:
        said = job_list.STATES[state.state]
        if state.state == "running" and state.phase_total and state.phase == "answer":
            said += f", {100 * state.phase_done / state.phase_total:.0f} %"
        return said, headlines.get(state.id, "")

    return job_list.listing(states, looked_at, now, "evaluation", about)


def headline(summary: Mapping[str, Any]) -> str:
    """The most telling metric of a summary: Accuracy 52.5 % → 95 %."""
    metric = next(iter(summary["metrics"].values()))
    names = [column["name"] for column in summary["columns"]]
    values = " → ".join(value(metric[name]["value"], metric["unit"]) for name in names)
    return f"{metric['title']} {values}"


def head(state: RunState, request: Request, *, owned: bool = False) -> str:
    """What is evaluated, how far it is, and what can be done with it. Where the file lies is for the owner alone."""
    columns = ", ".join(column.title for column in request.columns)
    file = request.data if request.data.startswith("hub:") else Path(request.data).name
    where = request.data if owned else None
    act = (
        ("stop", "", job_list.stop_label(state))
        if not state.final
        else ("resume", "", "Resume")
        if state.state != "done"
        else None
    )
    return render("evaluate.head", state, _progress(state), f"{columns} on {file}", where, act, _notes(state))


def _progress(state: RunState) -> str:
    if state.final:
        return job_list.ended(state)
    if state.state == "queued":
        return job_list.waits()
    label = "Stopping" if state.state == "stopping" else PHASES.get(state.phase, "Starting")
    remark = run_words.speed_words(state, state.step if state.phase == "answer" else 0)
    if state.phase == "download":
        share = 100 * state.phase_done // max(1, state.phase_total)
        return progress(f"{label}, percent", share, 100, remark=f"{run_words.amount(state)}, {remark}".rstrip(", "))
    total = state.phase_total if state.phase in ("answer", "data") else 0
    return progress(f"{label}, rows" if total else label, state.phase_done, total, remark=remark)


def _notes(state: RunState) -> list[tuple[str, str, str]]:
    notes = [(words, "", "warning") for words in state.warnings]
    if state.state in ("failed", "stopped"):
        notes.insert(0, (*ending_words(state), "error" if state.state == "failed" else "info"))
    return notes


def value(number: float | None, unit: str, *, signed: bool = False) -> str:
    """A metric's value: 95 % for a share, four digits for others. Shares differ by points: 2 % more of 50 % are 51."""
    if number is None:
        return "–"
    sign = "+" if signed and number > 0 else "−" if number < 0 else ""
    if unit == "share":
        return f"{sign}{100 * abs(number):.1f}".removesuffix(".0") + (" points" if signed else " %")
    return f"{sign}{run_words.figure(abs(number))}"


def results(summary: Mapping[str, Any]) -> str:
    """Metrics, where columns disagree, and confusion, of a summary."""
    part: tuple[str, ...] = ()
    if summary["rows"] < summary["of_rows"]:
        words = f"These are the numbers of {summary['rows']:,} of {count(summary['of_rows'], 'row')}."
        part = (words, "The longest rows are answered first: the rest may be easier or harder.")
    files = (
        ("download", "predictions", "Download all answers (JSONL)"),
        ("download", "summary", "Download the metrics (JSON)"),
    )
    rows, why = count(summary["rows"], "row"), summary["task"]["why"]
    return render("evaluate.results", part, rows, why, metrics_table(summary), files, confusions(summary))


def metrics_table(summary: Mapping[str, Any]) -> str:
    """Base, adapters and the difference with its verdict, a row a metric."""
    columns = summary["columns"]
    base, *others = (str(column["title"]) for column in columns)
    against = [f"{title} against {base}" for title in others] if len(others) > 1 else ["Difference"] * len(others)
    apart = [("difference" + ("" if number == 1 else str(number)), name) for number, name in enumerate(against, 1)]
    verdicts = [title for name in against for title in (name, "More than chance?")]
    rows = []
    for metric in summary["metrics"].values():
        unit, apart_cells = metric["unit"], []
        for name, title in apart:
            found = metric[name]
            certain = found["more_than_chance"] and found["words"] != "the same"
            kind = "" if not certain else "good" if found["words"].startswith("better") else "bad"
            verdict = found["words"][:1].upper() + found["words"][1:]
            apart_cells.append((_measured(found, unit, title, signed=True), kind, found["test"], verdict))
        measured = [_measured(metric[column["name"]], unit, column["title"]) for column in columns]
        rows.append((metric, measured, apart_cells))
    return render("evaluate.metrics", ("Metric", base, *others, *verdicts), rows)


def _measured(found: Mapping[str, Any], unit: str, label: str, *, signed: bool = False) -> tuple[str, str, str]:
    """A cell; on a phone, where a metric stands over its cells, each says by its label what it is."""

    def short(number: float) -> str:
        return value(number, unit, signed=signed).removesuffix(" %").removesuffix(" points")

    interval = "" if found["low"] is None else f"[{short(found['low'])}, {short(found['high'])}]"
    return label, value(found["value"], unit, signed=signed), interval


def confusions(summary: Mapping[str, Any]) -> str:
    """A confusion matrix for each column: rows are what was expected, columns what was answered."""
    if not summary["confusion"]:
        return ""
    titles = {column["name"]: column["title"] for column in summary["columns"]}
    return render(
        "evaluate.confusions", [_confusion(titles[name], each) for name, each in summary["confusion"].items()]
    )


def _confusion(title: str, matrix: Mapping[str, Any]) -> tuple[str, list[str], list[tuple[str, list[Any]]]]:
    """The title, the labels that were answered, and for each that was expected how often: (right, share, number)."""
    most = max((number for line in matrix["counts"] for number in line), default=0) or 1
    rows = [
        (
            shorten(label, 24),
            [
                (given == label, f"{100 * number / most:.0f}", f"{number:,}")
                for given, number in zip(matrix["given"], line, strict=True)
            ],
        )
        for label, line in zip(matrix["expected"], matrix["counts"], strict=True)
    ]
    return title, [shorten(label, 24) for label in matrix["given"]], rows
