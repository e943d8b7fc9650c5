"""The child that evaluates: what it leaves in its folder, how it goes on, and that its numbers are true."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.engine.evaluate import worker
from lora_studio.evaluate.job import NAMED, OF_RUN, EvaluationRequest, create, make_request
from lora_studio.jobs.events import DataPrepared, Finished, RowsRead, Warned, fold, from_line
from lora_studio.jobs.kinds import EvaluationFolder
from lora_studio.workspace import RunFolder, Workspace
from tests.conftest import Say

from .conftest import COLOURS, events

Evaluate = Callable[..., EvaluationFolder]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Sixteen rows of the trained kind, answered by a colour: one of eight labels."""
    rows = [
        {"prompt": f"Paint the {thing} {colour}, please.", "completion": f"Now the {thing} is {colour}."}
        for thing in ("sky", "rose", "snow")
        for colour in COLOURS
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def request_for(workspace: Workspace, run: RunFolder, data: Path, **settings: Any) -> EvaluationRequest:
    generation = {"max_new_tokens": 10}
    measuring = {"batch_size": 10, **settings}
    names = ", ".join(COLOURS)
    return make_request(
        workspace, [str(run.adapter)], str(data), labels=names, measuring=measuring, generation=generation
    )


def run_evaluator(folder: EvaluationFolder, *flags: str) -> int:
    """The child's program in this process; its signal handlers are taken back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return worker.main([str(folder.path), *flags])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def last_event(folder: EvaluationFolder) -> Finished:
    event = from_line(folder.events.read_text(encoding="utf-8").splitlines()[-1])
    assert isinstance(event, Finished)
    return event


def independent_numbers(predictions: Path) -> dict[str, dict[str, float]]:
    """Accuracy, macro F1 and exact match with nothing of the studio: plain Python over the lines of the file."""
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, float]] = {}
    for column in ("base", "adapter"):
        pairs = []
        for row in rows:
            wanted = next(colour for colour in COLOURS if colour in row["reference"])
            words = re.findall(r"[^\W_]+", row[column]["answer"].lower())
            said = {word for word in words if word in COLOURS}
            first = words[0] if words and words[0] in COLOURS else None
            pairs.append((wanted, first or (said.pop() if len(said) == 1 else None)))
        scores = []
        for label in COLOURS:
            right = sum(wanted == said == label for wanted, said in pairs)
            wanted_times = sum(wanted == label for wanted, _ in pairs)
            said_times = sum(said == label for _, said in pairs)
            if wanted_times + said_times:
                scores.append(2 * right / (wanted_times + said_times))
        exact = [" ".join(row[column]["answer"].split()) == " ".join(row["reference"].split()) for row in rows]
        found[column] = {
            "accuracy": sum(wanted == said for wanted, said in pairs) / len(pairs),
            "f1": sum(scores) / len(scores),
            "exact_match": sum(exact) / len(exact),
        }
    return found


@pytest.mark.slow
def test_numbers_are_true_and_an_evaluation_that_was_killed_goes_on_where_it_was(
    workspace: Workspace, trained: RunFolder, labelled: Path
) -> None:
    folder = create(workspace, request_for(workspace, trained, labelled))
    assert run_evaluator(folder) == 0
    assert last_event(folder).state == "done"
    summary = json.loads(folder.complete.read_text(encoding="utf-8"))
    assert (summary["rows"], summary["state"], summary["task"]["kind"]) == (24, "done", "labels")
    for column, numbers in independent_numbers(folder.predictions).items():
        for name, value in numbers.items():
            assert summary["metrics"][name][column]["value"] == pytest.approx(value)
    metric = summary["metrics"]["accuracy"]
    assert metric["difference"]["value"] == pytest.approx(metric["adapter"]["value"] - metric["base"]["value"])

    whole = {row["row"]: row for row in folder.rows()}
    lines = folder.predictions.read_text(encoding="utf-8").splitlines(keepends=True)
    folder.predictions.write_text("".join(lines[:10]) + lines[10][:30], encoding="utf-8")  # killed in mid-line
    folder.complete.unlink()
    assert run_evaluator(folder, "--resume") == 0
    again = list(folder.rows())
    assert sorted(row["row"] for row in again) == sorted(whole)
    assert [row["adapter"]["answer"] for row in again] == [whole[row["row"]]["adapter"]["answer"] for row in again]
    assert json.loads(folder.complete.read_text(encoding="utf-8"))["metrics"]["accuracy"] == metric
    assert fold(events(folder)).step == 10  # rows that were there at the second start

    labelled.write_text(labelled.read_text(encoding="utf-8").replace("please", "now"), encoding="utf-8")
    folder.predictions.write_text("".join(lines[:10]), encoding="utf-8")
    assert run_evaluator(folder, "--resume") == 2
    assert "has changed since" in last_event(folder).message
    assert json.loads(folder.complete.read_text(encoding="utf-8"))["rows"] == 10  # what was answered is measured


def test_what_an_earlier_evaluation_told_of_its_rows_is_read_as_rows_to_ask() -> None:
    earlier = fold([DataPrepared(1.0, 24, 0, 1, 2, 0, 0, "fingerprint", "chat")])
    assert worker.rows_asked(earlier) == RowsRead(1.0, 24, 1, 2, "fingerprint", "chat")
    today = RowsRead(2.0, 9, 0, 0, "other", "chat")
    assert worker.rows_asked(fold([today])) == today
    assert worker.rows_asked(fold([])) is None


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_stops_with_130_and_resume_ends_with_both_files(
    workspace: Workspace, trained: RunFolder, labelled: Path, tmp_path: Path, say: Say
) -> None:
    out = tmp_path / "out"
    asked = ["--compare", "--batch-size", "1", "--max-new-tokens", "40", "--out", str(out), "--json"]
    # It listens to Ctrl-C also where the tests themselves run in the background, which hands an ignored SIGINT down.
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = listening + "from lora_studio.cli import main; sys.exit(main())"
    given = ["evaluate", str(trained.adapter), str(labelled), *asked, "--labels", ", ".join(COLOURS)]
    command = [sys.executable, "-c", program, *given, "--workspace", str(workspace.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 400
    found = workspace.root.glob
    while not any(path.stat().st_size for path in found("evaluations/*/predictions.jsonl")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    told = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    assert process.returncode == 130
    assert told["state"] == "stopped"
    assert 0 < told["rows"] < 24

    code, printed, said = say(*given, "--resume")
    assert code == 0, said
    result = json.loads(printed.splitlines()[-1])
    assert (result["state"], result["rows"]) == ("done", 24)
    assert result["evaluation"] == told["evaluation"]
    assert {result["predictions"], result["summary"]} == {
        str(out / "predictions.jsonl"),
        str(out / "metrics_summary.json"),
    }
    for column, numbers in independent_numbers(out / "predictions.jsonl").items():
        for name, value in numbers.items():
            assert result["metrics"][name][column]["value"] == pytest.approx(value)
    assert result["metrics"]["f1"]["difference"]["words"]


@pytest.mark.slow
def test_rows_that_the_adapter_was_trained_on_are_counted_and_told(
    trained: RunFolder, data_file: Path, labelled: Path
) -> None:
    workspace = Workspace(trained.path.parent.parent)
    train_rows = next(event for event in events(trained, DataPrepared)).train_rows
    asked = make_request(workspace, [trained.id], str(data_file), compare=False, generation={"max_new_tokens": 1})
    folder = create(workspace, asked)
    assert run_evaluator(folder) == 0
    summary = json.loads(folder.complete.read_text(encoding="utf-8"))
    (warning,) = summary["warnings"]
    assert warning.startswith(f"test was trained on {train_rows} of these {summary['rows']} rows.")
    assert [event.message for event in events(folder, Warned)] == [warning]

    new = create(workspace, make_request(workspace, [trained.id], str(labelled), generation={"max_new_tokens": 1}))
    labelled.write_text(labelled.read_text(encoding="utf-8").replace("please", "now"), encoding="utf-8")
    assert run_evaluator(new) == 0
    assert json.loads(new.complete.read_text(encoding="utf-8"))["warnings"] == []


def test_a_file_that_is_like_the_runs_is_read_as_the_runs_and_another_as_it_is_recognised(
    workspace: Workspace, trained: RunFolder, tmp_path: Path
) -> None:
    path, alike = tmp_path / "test.jsonl", {"user": "answer", "assistant": "question"}  # the names say the opposite
    path.write_text(json.dumps({"answer": "Paint the sky red.", "question": "Now it is red."}) + "\n", encoding="utf-8")
    asked = make_request(workspace, [str(trained.adapter)], str(path), compare=False, generation={"max_new_tokens": 1})
    as_the_run = replace(asked, mapping=alike, mapping_from=OF_RUN)
    unlike = replace(as_the_run, mapping={**alike, "system": "Rolle"})
    found = []
    for request in (asked, replace(asked, mapping=alike, mapping_from=NAMED), as_the_run, unlike):
        folder = create(workspace, request)
        assert run_evaluator(folder) == 0
        (row,) = folder.rows()
        found.append((row["reference"], json.loads(folder.complete.read_text(encoding="utf-8"))["warnings"]))
    assert [reference for reference, _ in found] == [
        "Paint the sky red.",
        "Now it is red.",
        "Now it is red.",
        "Paint the sky red.",
    ]
    assert [len(told) for _, told in found] == [0, 0, 1, 1]
    assert found[2][1][0].startswith("The columns are mapped as in the adapter's training: `answer`")
    assert "rows with `Rolle`, which this file lacks" in found[3][1][0]
