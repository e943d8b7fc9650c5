"""`train --try` and `groups`: several runs instead of one, and what came out of them."""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext

from lora_studio.cli.config import agree, check_first
from lora_studio.cli.following import interrupts
from lora_studio.cli.output import confirm_deletion, print_json, say, table
from lora_studio.cli.settings import resolved
from lora_studio.cli.train import train as train_one
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.groups import as_text, check_group, heaviest, read_tries, rename, start_group, variants
from lora_studio.jobs.kinds import STATES, ending_words
from lora_studio.jobs.preflight import OK
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.groups import GroupResult, GroupRow, groups_of, is_share, meant_group, metric_title, result_of
from lora_studio.runs.summary import overview
from lora_studio.units import duration, figure
from lora_studio.workspace import Workspace

LOOK_SECONDS = 0.5


def train(workspace: Workspace, args: argparse.Namespace) -> int:
    """One run, or several with `--try`."""
    if not args.tries:
        if args.stop_weak or args.group_name:
            raise StudioError("--stop-weak and --group-name are for several runs.", "Add --try SETTING=VALUES.")
        return train_one(workspace, args)
    if args.resume is not None:
        raise StudioError("A resumed run keeps its settings.", "Remove --try, or --resume.")
    return train_group(workspace, args)


def train_group(workspace: Workspace, args: argparse.Namespace) -> int:
    """Starts the runs of `--try`, follows them to their ends, and prints the best; 0 if one of them finished."""
    supervisor = Supervisor(workspace)
    made = variants(resolved(args.config, args, workspace), read_tries(args.tries))
    check_group(supervisor, made, args.group_name, stop_weak=args.stop_weak)
    memory = None
    if not args.skip_preflight:
        config = heaviest(made)
        say("Checked with the settings that need most memory:")
        report = check_first(config, workspace, busy=bool(supervisor.busy(config)))
        agree(report)
        memory = report.memory if report.state == OK else None
    group_id, runs = start_group(supervisor, made, name=args.group_name, stop_weak=args.stop_weak, memory=memory)
    say(f"Group {group_id}: {len(runs)} runs. They continue if this terminal is closed.")
    groups = "python -m lora_studio groups"
    say(f"  `{groups} show {group_id}` shows results, `{groups} stop {group_id}` stops all.")
    return follow(supervisor, group_id, args.json)


def follow(supervisor: Supervisor, group_id: str, as_json: bool, *, leaves: bool = False) -> int:
    """Tells of each run that ends. Ctrl-C stops all, a second one ends them at once; with `leaves` it only ends
    this."""
    heeded, ended = 0, set[str]()
    supervisor.start()
    try:
        with nullcontext(list[int]()) if leaves else interrupts() as heard:
            while True:
                result = look(supervisor, group_id)
                for row in result.rows:
                    if row.state.final and row.run.id not in ended:
                        ended.add(row.run.id)
                        say(f"  {row.run.title}: {outcome(result, row)}")
                if not result.open and not any(supervisor.is_alive(row.run.id) for row in result.rows):
                    break
                if len(heard) > heeded:
                    heeded += 1
                    say("Stopping all runs of the group. Press Ctrl-C again to end them at once.")
                    end_all(supervisor, result, at_once=heeded > 1)
                time.sleep(LOOK_SECONDS)
    finally:
        supervisor.close()
    result = look(supervisor, group_id)
    print_result(result, as_json)
    states = [row.state.state for row in result.rows]
    return 0 if "done" in states else 130 if "stopped" in states else 1


def outcome(result: GroupResult, row: GroupRow) -> str:
    """How a run ended, and its metric."""
    message, _ = ending_words(row.state)
    words = message or STATES[row.state.state].lower()
    return words if row.value is None else f"{words.rstrip('.')}; {metric_title(result.metric)} {shown(result, row)}"


def end_all(supervisor: Supervisor, result: GroupResult, *, at_once: bool = False) -> None:
    """Stops what works or waits of a group: what waits first, so that nothing begins meanwhile."""
    for row in sorted(result.open, key=lambda row: row.state.state != "queued"):
        (supervisor.cancel if at_once else supervisor.stop)(row.run.id)


def all_groups(supervisor: Supervisor, metric: str = "") -> dict[str, GroupResult]:
    """Every group by id, the newest first."""
    states = supervisor.runs()
    members = [(overview(supervisor.workspace.run(state.id), state), state) for state in states]
    return {group_id: result_of(runs, metric) for group_id, runs in groups_of(members).items()}


def look(supervisor: Supervisor, group_id: str) -> GroupResult:
    """A group as it is now. Raises `StudioError` for one whose runs are all deleted."""
    groups = all_groups(supervisor)
    if group_id not in groups:
        raise StudioError(f"The group {group_id} was deleted.", "Start another one.")
    return groups[group_id]


def groups(workspace: Workspace, args: argparse.Namespace) -> int:
    """The list of groups, or one of the actions on a group."""
    supervisor = Supervisor(workspace)
    found = all_groups(supervisor, args.metric)
    if args.action == "list":
        _list(list(found.values()), args.json)
        return 0
    if args.group is None:
        raise StudioError(f"`groups {args.action}` needs a group.", "Give its id, or `last`.")
    members = groups_of(
        (overview(workspace.run(row.run.id), row.state), row.state) for group in found.values() for row in group.rows
    )
    result = found[meant_group(members, args.group)]
    if args.action == "rename":
        rename(workspace, result.id, " ".join(args.name))
        say(f"Renamed group {result.id}.")
        return 0
    if args.action == "stop":
        end_all(supervisor, result)
        say(f"{len(result.open)} runs of {result.name} are stopping; finished runs stay.")
        return 0
    if args.action == "delete":
        return _delete(supervisor, result, sure=args.yes)
    if args.action == "follow":
        return follow(supervisor, result.id, args.json, leaves=True)
    print_result(result, args.json)
    return 0


def _delete(supervisor: Supervisor, result: GroupResult, *, sure: bool) -> int:
    if result.open:
        raise StudioError(f"{len(result.open)} runs of this group are not finished.", "Stop them first.")
    if not sure:
        confirm_deletion(f"the group {result.name} with its {len(result.rows)} runs, their adapters and checkpoints")
    for row in result.rows:
        supervisor.delete(row.run.id)
    say(f"Deleted group {result.id} with {len(result.rows)} runs.")
    return 0


def _list(found: Sequence[GroupResult], as_json: bool) -> None:
    if as_json:
        print_json({"groups": [as_object(result) for result in found]})
        return
    if not found:
        say("There are no groups yet. Start one: `python -m lora_studio train demo --try lora.r=4,8,16`")
        return
    rows = [
        (
            result.id,
            result.name,
            result.in_words,
            ", ".join(result.paths),
            result.best.run.title if result.best else "-",
            shown(result, result.best) if result.best else "-",
        )
        for result in found
    ]
    print(table(("group", "name", "runs", "settings", "best", "metric"), rows))


def print_result(result: GroupResult, as_json: bool) -> None:
    """A group's runs, the best first."""
    if as_json:
        print_json(as_object(result))
        return
    head = (
        "",
        *(path.rpartition(".")[2] for path in result.paths),
        metric_title(result.metric),
        "step",
        "state",
        "time",
        "run",
    )
    rows = [
        (
            "best" if row.best else "",
            *(as_text(row.values.get(path)) for path in result.paths),
            shown(result, row),
            f"{row.run.step}/{row.run.total_steps}",
            STATES[row.state.state].lower(),
            duration(row.run.seconds) if row.run.seconds else "-",
            row.run.id,
        )
        for row in result.rows
    ]
    print(f"{result.name}: {result.in_words}")
    print(table(head, rows))


def shown(result: GroupResult, row: GroupRow) -> str:
    """A run's metric in words."""
    if row.value is None:
        return "-"
    return f"{100 * row.value:.1f} %" if is_share(result.metric) else figure(row.value)


def as_object(result: GroupResult) -> JsonObject:
    """A group for a script."""
    runs = [{**row.run.row(), "values": dict(row.values), "value": row.value, "best": row.best} for row in result.rows]
    best = result.best.run.id if result.best else None
    return {"group": result.id, "name": result.name, "metric": result.metric, "best": best, "runs": runs}
