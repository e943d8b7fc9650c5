"""`train`: starts a run, follows it, and turns Ctrl-C into a stop. `find-lr`: suggests a learning rate for a run by a
short sweep of rising rates."""

import argparse
import time
from collections.abc import Iterator

from lora_studio.cli.config import agree, check_first
from lora_studio.cli.following import Telling, exit_code, follow, goes_on, progress_line, step_line
from lora_studio.cli.output import print_json, say, table
from lora_studio.cli.settings import overrides, resolved
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.devices import change_processes
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import SEARCH, ending_words
from lora_studio.jobs.preflight import OK
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.rate_search import as_searched, rate_curve
from lora_studio.units import dollars, duration, figure, float_text
from lora_studio.workspace import RunFolder, Workspace

PROCESSES = "compute.processes"
# Measuring comes again and again between steps: its results are told, its beginning is not.
PHASE_WORDS = {
    "start": "starting: importing PyTorch",
    "data": "preparing data",
    "model": "loading model",
    "download": "downloading model",
    "train": "training",
    "save": "saving",
    "compare": "comparing base and adapter",
}


def train(workspace: Workspace, args: argparse.Namespace) -> int:
    """Trains or resumes a run; 0 done, 1 failed, 2 wrong input, 130 stopped."""
    supervisor = Supervisor(workspace)
    settings = overrides(args)
    if args.resume is None:
        if args.extra_epochs:
            raise StudioError("--extra-epochs requires a run to resume.", "Add --resume RUN.")
        if args.other_rows:
            raise StudioError("--other-rows requires a run to resume.", "Add --resume RUN.")
        config = resolved(args.config, args, workspace)
        memory = None
        if not args.skip_preflight:
            report = check_first(config, workspace, busy=bool(supervisor.busy(config)))
            agree(report)
            memory = report.memory if report.state == OK else None
        run_id = supervisor.launch(config, memory=memory)
    elif args.config is None and settings.keys() <= {PROCESSES}:
        run = workspace.run(args.resume)
        run_id = run.id
        if PROCESSES in settings and supervisor.state(run_id).final:
            change_processes(run, str(settings[PROCESSES]), supervisor.devices())
        supervisor.resume(run_id, args.extra_epochs, other_rows=args.other_rows)
    else:
        raise StudioError(
            f"A resumed run keeps its settings; only --{PROCESSES} may change.",
            "Remove the config and the other settings. For other settings, start a new run with "
            "--model.adapter_name_or_path RUN.",
        )
    return follow_to_end(supervisor, workspace.run(run_id), args.json)


def follow_to_end(supervisor: Supervisor, run: RunFolder, as_json: bool, *, leaves: bool = False) -> int:
    """Tells of a run until it ends. Ctrl-C stops it, a second Ctrl-C ends it without saving.

    With `leaves` Ctrl-C ends only the telling.
    """
    say(f"Run {run.id}")
    if not leaves:
        say(goes_on(run.id))
    news = RunNews(supervisor.state(run.id))
    telling = Telling(PHASE_WORDS, news.progress, "the run is saved after this step", news=news.lines)
    state = follow(supervisor, run.id, telling, leaves=leaves)
    if as_json:
        print_json(result_of(run, state))
    tell_end(state, run)
    return exit_code(state, supervisor.exit_code(run.id))


def result_of(run: RunFolder, state: RunState) -> JsonObject:
    """The run's final numbers: those of complete.json, or what is known of a run that has none."""
    last = state.steps[-1].loss if state.steps else None
    evaluated = state.evaluations[-1].loss if state.evaluations else None
    message, hint = ending_words(state)
    numbers = {
        "run": run.id,
        "state": state.state,
        "steps": state.step,
        "train_loss": last,
        "eval_loss": evaluated,
        "adapter": None,
        "reason": state.reason,
        "seconds": state.seconds,
        "folder": str(run.path),
    }
    return numbers | run.read_result() | {"message": message, "hint": hint}


class RunNews:
    """What is said of a run beside its phases. What a resumed run did before is not told again."""

    def __init__(self, before: RunState) -> None:
        self._warnings, self._evaluations = len(before.warnings), len(before.evaluations)
        self._data = before.data is not None
        self._first_step = before.step

    def lines(self, state: RunState) -> Iterator[str]:
        """Notes, measurements and how the data are read, each once."""
        yield from (f"note: {warning}" for warning in state.warnings[self._warnings :])
        for evaluation in state.evaluations[self._evaluations :]:
            yield f"step {evaluation.step}: validation loss {evaluation.loss:.4f}"
        self._warnings, self._evaluations = len(state.warnings), len(state.evaluations)
        if state.data and not self._data:
            self._data = True
            if state.data.reading:
                yield f"data: {state.data.reading}"

    def progress(self, state: RunState) -> str:
        """How far the run is, in a line; "" where there is nothing new to tell."""
        if state.phase == "train":
            return step_line(state) if state.step != self._first_step else ""
        line = progress_line(state)
        return f"evaluating: {line}" if line and state.phase == "evaluate" else line


def tell_end(state: RunState, run: RunFolder) -> None:
    """The outcome in a few lines."""
    if state.charge:
        say(f"Cost: about {dollars(state.charge.at(time.time()))} on {state.charge.hardware}")
    if state.steps:
        say(f"  {step_line(state)}")
    if state.state == "done":
        say(f"Finished in {duration(state.seconds)}: {run.adapter}")
        say(f"Try it: python -m lora_studio chat {run.id} --compare")
        return
    message, hint = ending_words(state)
    say(f"Failed: {message}" if state.state == "failed" else message or "Stopped.")
    if hint:
        say(hint)
    retry = run.read_result().get("retry")
    if retry:
        flags = " ".join(f"--{path} {str(value).lower()}" for path, value in retry["settings"].items())
        say(f"Start it like this: python -m lora_studio train {run.config} {flags}")
    if state.state == "stopped":
        say(f"Resume: python -m lora_studio train --resume {run.id}")


def find_lr(workspace: Workspace, args: argparse.Namespace) -> int:
    """Searches a learning rate for a config, and prints the suggestion with the curve."""
    supervisor = Supervisor(workspace)
    config = as_searched(resolved(args.config, args, workspace))
    job_id = supervisor.launch(config, kind=SEARCH)
    say(f"Search {job_id}")
    return tell_search(supervisor, job_id, args.json)


def tell_search(supervisor: Supervisor, job_id: str, as_json: bool, *, leaves: bool = False) -> int:
    """Follows a search and says what it suggests; the exit code. With `leaves` Ctrl-C ends only the telling."""
    telling = Telling(PHASE_WORDS, progress_line, "its results are not kept", notes=True)
    state = follow(supervisor, job_id, telling, leaves=leaves)
    curve = rate_curve(state.steps)
    message, hint = ending_words(state)
    if as_json:
        points = [{"learning_rate": rate, "loss": loss} for rate, loss in zip(curve.rates, curve.losses, strict=True)]
        suggestion = curve.suggestion if state.state == "done" else None
        ending = {"state": state.state, "message": message, "hint": hint}
        print_json({"search": job_id, **ending, "suggestion": suggestion, "rule": curve.words, "points": points})
    elif state.state == "done":
        smooth = [*map(figure, curve.smooth), *["-"] * (len(curve.rates) - len(curve.smooth))]
        rates = [float_text(float(f"{rate:.2e}")) for rate in curve.rates]
        rows = zip(rates, map(figure, curve.losses), smooth, strict=True)
        print(table(("learning rate", "loss", "smoothed"), list(rows)))
        print(curve.words)
        if curve.suggestion:
            print(f"Use it: --training.learning_rate {float_text(curve.suggestion)}")
    else:
        say(" ".join(filter(None, (message, hint))))
    return exit_code(state, supervisor.exit_code(job_id))
