"""`evaluate`: answers a test file with adapters and their base, and prints the metrics."""

import argparse
import contextlib
import shutil
from pathlib import Path

from lora_studio.cli.following import Telling, exit_code, follow, goes_on, progress_line
from lora_studio.cli.output import print_json, say, table
from lora_studio.cli.settings import overrides
from lora_studio.config.parsing import nest, parse
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate.job import (
    EvaluationRequest,
    elsewhere,
    evaluation,
    evaluations,
    make_request,
    request_of,
    verdict,
)
from lora_studio.files import JsonObject
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import EvaluationFolder, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace

_PHASE_WORDS = {
    "data": "reading file",
    "model": "loading model",
    "download": "downloading base model",
    "vllm": "starting vLLM and comparing its answers",
    "answer": "answering",
    "measure": "scoring",
}


def evaluate(workspace: Workspace, args: argparse.Namespace) -> int:
    """Starts or resumes an evaluation and follows it; 0 done, 1 failed, 2 wrong input, 130 stopped."""
    request = make_request(
        workspace,
        [args.adapter, *(args.beside or [])],
        args.data,
        compare=args.compare,
        labels=args.labels,
        mapping=args.mapping,
        encoding=args.encoding,
        measuring={"batch_size": args.batch_size, "max_samples": args.max_samples, "engine": args.engine},
        generation=parse(nest(overrides(args))).generation.model_dump(),
        compute_target=args.compute_target,
        compute_device=args.compute_device,
    )
    jobs = Supervisor(workspace)
    memory = evaluating.memory_for(request, jobs.allocation().for_session(choice=request.compute_device))
    if args.at_once and jobs.busy(request.wanted) is not None:
        evaluating.check_beside(memory)
    if args.resume:
        name = _unfinished(workspace, jobs, request).id
        jobs.resume(name, at_once=args.at_once)
    else:
        name = evaluating.start(jobs, request, at_once=args.at_once, memory=memory.need, offered=jobs.devices())
    folder = evaluation(workspace, name)
    say(f"Evaluation {name}: {request.title}")
    say(goes_on(name))
    return tell_to_end(jobs, folder, args.json, out=args.out)


def tell_to_end(
    jobs: Supervisor, folder: EvaluationFolder, as_json: bool, *, out: str | None = None, leaves: bool = False
) -> int:
    """Follows an evaluation and says what came out; the exit code. With `leaves` Ctrl-C ends only the telling."""
    telling = Telling(_PHASE_WORDS, answered_line, "answers so far are kept", notes=True)
    state = follow(jobs, folder.id, telling, leaves=leaves)
    files = _files(folder, out)
    if as_json:
        print_json(_result(folder, state, files))
    _tell(folder, state, files, show=not as_json)
    return exit_code(state, jobs.exit_code(folder.id))


def _unfinished(workspace: Workspace, jobs: Supervisor, request: EvaluationRequest) -> EvaluationFolder:
    """The newest evaluation that was asked for in the same words and ended early."""
    for folder in evaluations(workspace):
        state = jobs.state(folder.id)
        with contextlib.suppress(StudioError):  # a damaged one is none to go on with
            if request_of(folder) == request and state.final and state.state != "done":
                return folder
    raise StudioError(
        "There is no such evaluation to resume.", "Give the same adapter, data and settings as at the start."
    )


def answered_line(state: RunState) -> str:
    """120 of 400 rows, 8.1 rows/s, 35 s left; rows answered before a resume have no part in the speed."""
    return progress_line(state, state.step if state.phase == "answer" else 0)


def _files(folder: EvaluationFolder, out: str | None) -> dict[str, str]:
    """Paths of both files, copied to a folder of the person's own where one is named."""
    files = {"predictions": folder.predictions, "summary": folder.complete}
    if out is not None:
        place = Path(out).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            if path.is_file():
                files[name] = Path(shutil.copyfile(path, place / path.name))
    return {name: str(path.resolve()) for name, path in files.items() if path.is_file()}


def _result(folder: EvaluationFolder, state: RunState, files: dict[str, str]) -> JsonObject:
    summary = folder.read_result()
    results = {
        name: summary[name] for name in ("rows", "of_rows", "task", "metrics", "confusion", "disagreements") if summary
    }
    words = dict(zip(("message", "hint"), ending_words(state), strict=True)) if state.state != "done" else {}
    columns = [
        {"name": column.name, "title": column.title, "folder": column.folder} for column in request_of(folder).columns
    ]
    return {
        "evaluation": folder.id,
        "state": state.state,
        "reason": state.reason,
        **words,
        "warnings": state.warnings,
        "columns": columns,
        **results,
        **files,
    }


def _tell(folder: EvaluationFolder, state: RunState, files: dict[str, str], *, show: bool) -> None:
    summary = folder.read_result()
    if summary and show:
        print_metrics(summary)
    message, hint = ending_words(state)
    if state.state == "failed":
        say(f"Failed: {message}")
    if state.state != "done":
        say(hint)
        if state.state == "stopped" or summary:
            say(f"Resume: python -m lora_studio jobs resume {folder.id}")
    for path in files.values():
        say(path)


def print_metrics(summary: JsonObject) -> None:
    """The result in one sentence, and the metrics as a table: each column, and the difference with its verdict."""
    for sentence in verdict(summary):
        print(sentence.words)
    if also := elsewhere(summary):
        print(also)
    print(f"{summary['rows']:,} of {summary['of_rows']:,} rows. {summary['task']['why']}\n")
    names = [column["name"] for column in summary["columns"]]
    differences = ["difference" + ("" if number == 1 else str(number)) for number in range(1, len(names))]
    rows = []
    for metric in summary["metrics"].values():
        values = [_value(metric[name], metric["unit"]) for name in names]
        for name in differences:
            values += [_value(metric[name], metric["unit"], signed=True), metric[name]["words"]]
        rows.append([metric["title"], *values])
    heads = [head for name in differences for head in (name, "significant?")]
    print(table(["metric", *names, *heads], rows))


def _value(measured: JsonObject, unit: str, *, signed: bool = False) -> str:
    """A value with its interval: 83.3 % [71.0, 91.2]; shares differ by points."""

    def number(value: float | None, sign: str = "") -> str:
        if value is None:
            return "–"
        return f"{100 * value:{sign}.1f}" if unit == "share" else f"{value:{sign}.4g}"

    bounds = "" if measured["low"] is None else f" [{number(measured['low'])}, {number(measured['high'])}]"
    percent = "" if unit != "share" else " points" if signed else " %"
    return f"{number(measured['value'], '+' if signed else '')}{percent}{bounds}"
