"""What our events and charts cost beside a training: seconds of each, and their share of the training's time.

One run of the demo preset is trained with a clock around everything that we do at a step (the report callback and the
line it writes); then its events are read, folded, diagnosed and drawn as the page does it, once a second of the run.

`at_50_steps_a_second_percent` is the share of our callbacks (events, TensorBoard) in a step of 20 ms, with the logging
interval of a long run. `--callbacks` prints more of it: the trainer's callbacks are called fifty times a second, as
steps of 20 ms would that compute nothing, and the CPU time is counted that ours take of the thread that trains, all of
them with transformers' own and their calling, and what all other threads take (memory, events, TensorBoard); once with
the logging interval of a long run and once with a point at each step.
`--optimizers` compares the steps of AdamW, plain and fused, on an adapter of the shape of Qwen3-0.6B's (rank 16, all
linear modules).

python -m benchmarks.overhead [--json FILE] [--callbacks | --optimizers]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.tiny_models import make_model
from lora_studio.config.parsing import parse, presets, to_yaml
from lora_studio.config.sections import Config
from lora_studio.engine.runtime import EventLog, StopSignal
from lora_studio.engine.train import program
from lora_studio.engine.train.callbacks import ReportCallback, TensorBoard
from lora_studio.jobs.events import PhaseStarted, RunState, fold, from_line
from lora_studio.runs.health import diagnose
from lora_studio.ui.curves import Curves
from lora_studio.workspace import RunFolder, Workspace

LONG_RUN = 10
"""The logging interval of a run of 500 steps and more (`tracking.logging_steps` 0)."""
STEPS, WARM_UP, STEP_SECONDS = 250, 50, 0.02


class Clock:
    """Adds up the time inside the methods that it is put around; what one of them calls of another counts once."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._now = now
        self._inside = False

    def around(self, owner: Any, name: str, *, without: "Clock | None" = None) -> None:
        """Counts the calls of a method, but for what another clock counts within them."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, begun = True, self._now() - (without.seconds if without else 0.0)
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += self._now() - (without.seconds if without else 0.0) - begun
                self._inside = False

        setattr(owner, name, timed)


def measure(folder: Path) -> dict[str, float]:
    """Trains once and draws what it left, second by second."""
    workspace = Workspace(folder)
    config = parse(presets(workspace)["demo"].values())
    run = workspace.create_run("overhead", to_yaml(config), {"created": time.time()})
    clock = Clock()
    for name in ("on_step_begin", "on_step_end", "on_log", "on_prediction_step", "on_evaluate", "on_save"):
        clock.around(ReportCallback, name)
    program.train(run, resume=False, log=EventLog(run.events), stop=StopSignal())
    training = training_seconds(run)
    drawing, ticks = draw_second_by_second(run, config)
    steps = state_of(run).total_steps
    return {
        "training_seconds": training,
        "steps": steps,
        "events_seconds": clock.seconds,
        "events_percent": 100 * clock.seconds / training,
        "looks": ticks,
        "charts_seconds": drawing,
        "charts_percent": 100 * drawing / training,
        "together_percent": 100 * (clock.seconds + drawing) / training,
    }


def callbacks(folder: Path, logging_steps: int) -> dict[str, float]:
    """CPU milliseconds a step of our callbacks, of all, and of the trainer's log without them, in the training thread;
    CPU milliseconds of all other threads in a second of training."""
    make_model("Qwen3", folder / "base")
    config = parse(
        {
            "model": {"name": str(folder / "base")},
            "data": {"train_file": "pirate", "max_length": 64, "validation_fraction": 0},
            "training": {"max_steps": STEPS, "save_strategy": "no", "per_device_train_batch_size": 1},
            "evaluation": {"eval_strategy": "no"},
        }
    )
    run = Workspace(folder / "workspace").create_run("callbacks", to_yaml(config), {"created": time.time()})
    log, stop = EventLog(run.events), StopSignal()
    context = program.begin(run, resume=False, log=log, stop=stop)
    rows = program.prepare_rows(run, config, log, resumed=False)
    model = program.build_model(config, rows, log, dtype=context.dtype, checkpoint=None)
    training = program.build_trainer(context, rows, model)
    in_callbacks, in_log, in_ours = (Clock(time.thread_time) for _ in range(3))
    in_callbacks.around(training.trainer.callback_handler, "call_event")
    in_log.around(training.trainer, "log", without=in_callbacks)
    for callback in training.trainer.callback_handler.callbacks:
        if isinstance(callback, ReportCallback | TensorBoard):
            for name in ("on_step_begin", "on_step_end", "on_log"):
                in_ours.around(callback, name)
    with training.report.watching():
        drive(training.trainer, range(WARM_UP), logging_steps)
        threads = time.process_time() - time.thread_time()
        in_callbacks.seconds = in_log.seconds = in_ours.seconds = 0.0
        begun = time.monotonic()
        drive(training.trainer, range(WARM_UP, STEPS), logging_steps)
        threads, seconds = time.process_time() - time.thread_time() - threads, time.monotonic() - begun
    own = 1000 * in_ours.seconds / (STEPS - WARM_UP)
    return {
        "ours_ms_a_step": own,
        "ours_percent_of_20_ms": own / STEP_SECONDS / 10,
        "all_callbacks_ms_a_step": 1000 * in_callbacks.seconds / (STEPS - WARM_UP),
        "trl_log_ms_a_step": 1000 * in_log.seconds / (STEPS - WARM_UP),
        "other_threads_ms_a_second": 1000 * threads / seconds,
    }


def drive(trainer: Any, steps: range, logging_steps: int) -> None:
    """What the trainer calls in these steps, each at its time; in between the thread is busy, as with real steps."""
    handler, args, state, control = trainer.callback_handler, trainer.args, trainer.state, trainer.control
    args.logging_steps, state.max_steps, state.logging_steps = logging_steps, STEPS, logging_steps
    if not steps.start:
        control = handler.on_train_begin(args, state, control)
    begun = time.monotonic()
    for step in steps:
        while time.monotonic() < begun + (step - steps.start) * STEP_SECONDS:
            pass
        control = handler.on_step_begin(args, state, control)
        control = handler.on_pre_optimizer_step(args, state, control)
        control = handler.on_optimizer_step(args, state, control)
        state.global_step, state.epoch = step + 1, (step + 1) / STEPS
        control = handler.on_step_end(args, state, control)
        trainer._metrics["train"].update({name: [0.5] for name in ("entropy", "mean_token_accuracy", "num_tokens")})
        if control.should_log:
            trainer.log({"loss": 1.2345678, "grad_norm": 0.1234567, "learning_rate": 1.23456e-4})


def state_of(run: RunFolder) -> RunState:
    """The run's state, folded from its events."""
    return fold(event for event in map(from_line, run.events.read_text(encoding="utf-8").splitlines()) if event)


def optimizers() -> dict[str, float]:
    """Milliseconds of a step of each kind of AdamW, the median of nine; the kinds take turns."""
    hidden, inner, keys, queries, layers, rank = 1024, 3072, 1024, 2048, 28, 16
    modules = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    modules += [(hidden, inner), (hidden, inner), (inner, hidden)]
    made = {}
    for name in ("adamw_torch", "adamw_torch_fused"):
        weights = []
        for inputs, outputs in modules * layers:
            weights += [torch.nn.Parameter(torch.randn(rank, inputs)), torch.nn.Parameter(torch.randn(outputs, rank))]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        made[name] = torch.optim.AdamW(weights, lr=1e-4, fused=name.endswith("fused"))
        made[name].step()
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(9):
        for name, optimizer in made.items():
            begun = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - begun)
    return {name: 1000 * median(values) for name, values in seconds.items()}


def training_seconds(run: RunFolder) -> float:
    """From the first step to the beginning of the save, measurements included."""
    events = [event for event in map(from_line, run.events.read_text(encoding="utf-8").splitlines()) if event]
    begins = next(item.time for item in events if isinstance(item, PhaseStarted) and item.phase == "train")
    ends = next(item.time for item in events if isinstance(item, PhaseStarted) and item.phase == "save")
    return ends - begins


def draw_second_by_second(run: RunFolder, config: Config) -> tuple[float, int]:
    """Seconds for reading, folding, diagnosing and drawing (as JSON) once for each second of the run."""
    lines = run.events.read_text(encoding="utf-8").splitlines()
    state, curves, spent, ticks, new, last = RunState(id=run.id), Curves(), 0.0, 0, list[str](), 0.0
    for line in lines:
        new.append(line)
        at = json.loads(line)["time"]
        if at - last < 1 and line is not lines[-1]:
            continue
        begun = time.perf_counter()
        fold((event for event in map(from_line, new) if event is not None), state)
        diagnose(state, config, at)
        json.dumps(curves.draw({run.id: state}))
        spent += time.perf_counter() - begun
        ticks, new, last = ticks + 1, [], at
    return spent, ticks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--optimizers", action="store_true")
    parser.add_argument("--callbacks", action="store_true")
    args = parser.parse_args()
    if args.callbacks:
        for logging_steps in (LONG_RUN, 1):
            with tempfile.TemporaryDirectory() as folder:
                numbers = callbacks(Path(folder), logging_steps)
            print(json.dumps({"logging_steps": logging_steps} | {name: round(at, 3) for name, at in numbers.items()}))
        return
    if args.optimizers:
        print(json.dumps({name: round(value, 1) for name, value in optimizers().items()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder))
        fast = callbacks(Path(folder) / "fast", LONG_RUN)
    measured["at_50_steps_a_second_percent"] = fast["ours_percent_of_20_ms"]
    numbers = {name: round(value, 3) for name, value in measured.items()}
    if args.json:
        args.json.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
