"""`find-lr`: suggests a learning rate by a short sweep of rising rates."""

import argparse

from lora_studio.cli.following import Telling, exit_code, follow, progress_line
from lora_studio.cli.output import print_json, say, table
from lora_studio.cli.settings import resolved
from lora_studio.cli.train import PHASE_WORDS
from lora_studio.jobs.kinds import SEARCH, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.rate_search import as_searched, rate_curve
from lora_studio.units import figure, float_text
from lora_studio.workspace import Workspace


def find_lr(workspace: Workspace, args: argparse.Namespace) -> int:
    """Searches a learning rate for a config, and prints the suggestion with the curve."""
    supervisor = Supervisor(workspace)
    config = as_searched(resolved(args.config, args, workspace))
    job_id = supervisor.launch(config, kind=SEARCH)
    say(f"Search {job_id}")
    telling = Telling(PHASE_WORDS, progress_line, "its results are not kept", notes=True)
    state = follow(supervisor, job_id, telling)
    curve = rate_curve(state.steps)
    message, hint = ending_words(state)
    if args.json:
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
