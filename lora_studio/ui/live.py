"""A run's numbers and phases as the runs tab shows them while it goes on. Plain functions of a run's state; no gradio.

Every number has its place from the start, with a dash where it is not known yet, so that nothing moves while it fills.
"""

from lora_studio.events import RunState, StepLogged
from lora_studio.ui.run_words import clock, elapsed, figure
from lora_studio.ui.text import render

GIB = 1024**3
NOTHING = "\u00a0"  # keeps a line's height
# The phases that every run goes through, by what a person calls them; downloads and measurements come in between.
STATIONS = (
    ("start", "Start"),
    ("data", "Data"),
    ("model", "Model"),
    ("train", "Training"),
    ("save", "Save"),
    ("compare", "Compare"),
)
WITHIN = {"download": "model", "evaluate": "train"}
MARKS = {"done": "✓", "now": "●", "next": "○", "ended": "✕"}


def numbers(run: RunState, now: float) -> list[tuple[str, str, str]]:
    """What a run comes to so far: (value, what it is, remark) each."""
    last = run.steps[-1] if run.steps else None
    evaluated = run.evaluations[-1] if run.evaluations else None
    best = run.best
    unit = "of a pair" if last and "reward_margin" in last.metrics else "nats a token"
    tiles = [
        (f"{run.step:,}" if run.total_steps else "–", "Step", f"of {run.total_steps:,}" if run.total_steps else ""),
        (f"{run.epoch:.2f}" if run.total_steps else "–", "Epoch", ""),
        (figure(last.loss if last else None), "Training loss", unit),
        (
            figure(evaluated.loss if evaluated else None),
            "Validation loss",
            f"best {figure(best.loss)} at step {best.step:,}" if best else unit,
        ),
        (_percent(last.token_accuracy if last else None), "Right tokens", "of the answers"),
        (figure(last.learning_rate if last else None), "Learning rate", ""),
        (figure(last.grad_norm if last else None), "Gradient norm", "0.2 to 2 is usual"),
        (f"{last.tokens_per_second:,.0f}" if last else "–", "Tokens a second", ""),
        (_memory(last), "Memory", _peak(last)),
        (f"{last.device_load:.0f} %" if last and last.device_load is not None else "–", "Load", _heat(last)),
        (clock(elapsed(run, now)), "Elapsed", ""),
    ]
    if not run.final:
        tiles.append((clock(run.seconds_left), "Left", ""))
    if run.model:
        share = 100 * run.model.trainable_parameters / max(1, run.model.parameters)
        tiles.append((f"{run.model.trainable_parameters:,}", "Trained parameters", f"{share:.2f} % of the model"))
    if run.data:
        tiles.append((f"{run.data.train_rows:,}", "Training rows", f"{run.data.validation_rows:,} to measure on"))
    return [(value, label, remark or NOTHING) for value, label, remark in tiles]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _memory(last: StepLogged | None) -> str:
    return f"{last.memory_bytes / GIB:.2f} GiB" if last and last.memory_bytes else "–"


def _peak(last: StepLogged | None) -> str:
    if last is None or not last.memory_peak_bytes:
        return ""
    there = f" of {last.memory_available_bytes / GIB:.1f}" if last.memory_available_bytes else ""
    return f"at most {last.memory_peak_bytes / GIB:.2f}{there} GiB"


def _heat(last: StepLogged | None) -> str:
    return f"{last.device_celsius:.0f} °C" if last and last.device_celsius is not None else "of the device"


def stations(run: RunState) -> list[tuple[str, str]]:
    """The phases as (what it is called; done, now, next or ended)."""
    order = [name for name, _ in STATIONS]
    phase = WITHIN.get(run.phase, run.phase)
    at = order.index(phase) if phase in order else -1
    if run.state == "done":
        at = len(order)
    found = []
    for number, (_, label) in enumerate(STATIONS):
        state = "done" if number < at else "next" if number > at else "ended" if run.final else "now"
        found.append((label, state))
    return found


def phases(run: RunState) -> str:
    """The phases in one line; what goes on in the present one stands beside the run's name."""
    return render("runs.phases", [(state, MARKS[state], label) for label, state in stations(run)])
