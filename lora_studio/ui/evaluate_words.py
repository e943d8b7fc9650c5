"""Evaluations in words and markup: the list, how far one is, its metrics and confusion matrix. No gradio."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.evaluations import Request
from lora_studio.events import RunState
from lora_studio.jobs.ending_words import ending_words
from lora_studio.ui import job_list, run_words
from lora_studio.ui.text import count, empty, escape, notice, progress, shorten

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
    where = f' title="{escape(request.data)}"' if owned else ""
    return (
        f'<div class="run-head">{job_list.title(state)}{_progress(state)}'
        f'<div class="id"{where}>{escape(f"{columns} on {file}")}</div></div>{_buttons(state)}{_notes(state)}'
    )


def _progress(state: RunState) -> str:
    if state.final:
        return job_list.ended(state)
    label = "Stopping" if state.state == "stopping" else PHASES.get(state.phase, "Starting")
    remark = run_words.speed_words(state, state.step if state.phase == "answer" else 0)
    if state.phase == "download":
        share = 100 * state.phase_done // max(1, state.phase_total)
        return progress(f"{label}, percent", share, 100, remark=f"{run_words.amount(state)}, {remark}".rstrip(", "))
    total = state.phase_total if state.phase in ("answer", "data") else 0
    return progress(f"{label}, rows" if total else label, state.phase_done, total, remark=remark)


def _buttons(state: RunState) -> str:
    if not state.final:
        return job_list.buttons(("stop", "", "Stop"))
    return "" if state.state == "done" else job_list.buttons(("resume", "", "Resume"))


def _notes(state: RunState) -> str:
    notes = "".join(notice(words, kind="warning") for words in state.warnings)
    if state.state == "failed":
        notes = notice(*ending_words(state), "error") + notes
    elif state.state == "stopped":
        notes = notice(*ending_words(state)) + notes
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
    part = ""
    if summary["rows"] < summary["of_rows"]:
        part = notice(
            f"These are the numbers of {summary['rows']:,} of {count(summary['of_rows'], 'row')}.",
            "The longest rows are answered first: the rest may be easier or harder.",
        )
    brackets = "In brackets: where the true value lies in 95 of 100 cases."
    why = f'<p class="ls-hint">{escape(summary["task"]["why"])} {brackets}</p>'
    files = job_list.buttons(
        ("download", "predictions", "Download all answers (JSONL)"),
        ("download", "summary", "Download the metrics (JSON)"),
    )
    return (
        f'{part}<h3 class="part">Metrics over {count(summary["rows"], "row")}</h3>{why}{metrics_table(summary)}'
        f"{files}{confusions(summary)}"
    )


def metrics_table(summary: Mapping[str, Any]) -> str:
    """Base, adapters and the difference with its verdict, a row a metric."""
    columns = summary["columns"]
    base, *others = (str(column["title"]) for column in columns)
    against = [f"{title} against {base}" for title in others] if len(others) > 1 else ["Difference"] * len(others)
    apart = [("difference" + ("" if number == 1 else str(number)), name) for number, name in enumerate(against, 1)]
    verdicts = [title for name in against for title in (name, "More than chance?")]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("Metric", base, *others, *verdicts))
    body = ""
    for metric in summary["metrics"].values():
        cells = "".join(_measured(metric[column["name"]], metric["unit"], column["title"]) for column in columns)
        for name, title in apart:
            found = metric[name]
            certain = found["more_than_chance"] and found["words"] != "the same"
            kind = "" if not certain else "good" if found["words"].startswith("better") else "bad"
            verdict = escape(found["words"][:1].upper() + found["words"][1:])
            cells += _measured(found, metric["unit"], title, signed=True)
            cells += f'<td class="verdict {kind}" title="{escape(found["test"])}">{verdict}</td>'
        body += (
            f'<tr><th scope="row">{escape(metric["title"])}<small>{escape(metric["about"])}</small></th>{cells}</tr>'
        )
    return (
        '<div class="ls-table beside-table eval-metrics" role="region" tabindex="0" aria-label="Metrics"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _measured(found: Mapping[str, Any], unit: str, label: str, *, signed: bool = False) -> str:
    """A cell; on a phone, where a metric stands over its cells, each says by its label what it is."""

    def short(number: float) -> str:
        return value(number, unit, signed=signed).removesuffix(" %").removesuffix(" points")

    between = "" if found["low"] is None else f"<small>[{short(found['low'])}, {short(found['high'])}]</small>"
    return f'<td data-label="{escape(label)}"><b>{value(found["value"], unit, signed=signed)}</b>{between}</td>'


def confusions(summary: Mapping[str, Any]) -> str:
    """A confusion matrix for each column: rows are what was expected, columns what was answered."""
    if not summary["confusion"]:
        return ""
    titles = {column["name"]: column["title"] for column in summary["columns"]}
    parts = "".join(_confusion(titles[name], matrix) for name, matrix in summary["confusion"].items())
    about = "Each line is an expected label, each column what was answered; the diagonal is right."
    title = f'<h3 class="part">Confusion matrix</h3><p class="ls-hint">{about}</p>'
    return f'{title}<div class="eval-confusions">{parts}</div>'


def _confusion(title: str, matrix: Mapping[str, Any]) -> str:
    most = max((number for line in matrix["counts"] for number in line), default=0) or 1
    head = "".join(f'<th scope="col">{escape(shorten(label, 24))}</th>' for label in matrix["given"])
    body = ""
    for label, line in zip(matrix["expected"], matrix["counts"], strict=True):
        cells = "".join(
            f'<td class="{"good" if given == label else "bad"}" style="--share:{100 * number / most:.0f}%">'
            f"{number:,}</td>"
            for given, number in zip(matrix["given"], line, strict=True)
        )
        body += f'<tr><th scope="row">{escape(shorten(label, 24))}</th>{cells}</tr>'
    return (
        f'<div class="ls-table"><table class="eval-confusion" aria-label="Confusion matrix of {escape(title)}">'
        f"<caption>{escape(title)}</caption><thead><tr><td>expected \\ answered</td>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
