"""Starts a training in several processes of this machine and watches over them, by torch.distributed.run:
`python -m lora_studio.engine.train.processes COUNT RUN_FOLDER [--resume]`.

It stands for all of them: it lives as long as they do, hands a stop on to each, and says how the run ended where the
first process could not, because another one died. A configuration of accelerate is followed for GPUs.
"""

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil

from lora_studio.engine.accelerator import device_kind
from lora_studio.engine.ranks import STOP, WATCHED, last_words
from lora_studio.engine.runtime import FAILED, STOPPED, WRONG_INPUT, Ending, EventLog, finish_run, leave
from lora_studio.files import JsonObject, read_object
from lora_studio.jobs.events import Reason, reason_named
from lora_studio.jobs.launchers.local import oom_kills
from lora_studio.models.accelerators import DEVICE_KINDS
from lora_studio.workspace import RunFolder

WORKER = "lora_studio.engine.train.worker"
CODES = {"done": 0, "stopped": STOPPED}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a run in several processes and returns the exit code of the first."""
    parser = argparse.ArgumentParser(prog="lora_studio.engine.train.processes")
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(arguments)
    run, before = RunFolder(args.folder.resolve()), oom_kills()
    signal.signal(signal.SIGTERM, _hand_on)
    signal.signal(signal.SIGINT, _hand_on)
    prepare_environment(args.count)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch(args.count, [str(run.path), *(["--resume"] if args.resume else [])])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if _unsaid(run):
            out_of_memory = before is not None and (oom_kills() or 0) > before
            ending, details = ending_of_other(run, rank, args.count, failure.exitcode, out_of_memory=out_of_memory)
            return finish_run(run, EventLog(run.events), ending, details)
    return exit_code(run)


def _hand_on(number: int, frame: FrameType | None) -> None:
    """A stop reaches each of the processes, which agree on the step that they stop after."""
    for child in psutil.Process().children():
        child.send_signal(STOP)


def prepare_environment(count: int) -> None:
    """For torch.distributed.run, which must not end the processes at a stop, and for the processes."""
    os.environ.update({WATCHED: "1", "PET_SIGNALS_TO_HANDLE": "SIGUSR2", "PYTHONSAFEPATH": "1"})
    on_gpu = DEVICE_KINDS[device_kind()].is_gpu
    threads = max(1, len(os.sched_getaffinity(0)) // count) if hasattr(os, "sched_getaffinity") else 1
    os.environ.setdefault("OMP_NUM_THREADS", "1" if on_gpu else str(threads))


def launch(count: int, arguments: Sequence[str]) -> None:
    """Runs the worker in `count` processes until all have ended; raises torch's `ChildFailedError` if one fails."""
    from accelerate.commands.config import default_config_file

    if DEVICE_KINDS[device_kind()].is_gpu and os.path.isfile(default_config_file):
        from accelerate.commands.launch import launch_command, launch_command_parser

        print(f"Following the configuration of accelerate: {default_config_file}", flush=True)
        own = ["--multi_gpu", "--num_processes", str(count), "--num_machines", "1", "--main_process_port", "0"]
        launch_command(launch_command_parser().parse_args([*own, "--module", WORKER, *arguments]))
        return
    from torch.distributed.run import parse_args, run

    run(parse_args(["--standalone", "--nproc-per-node", str(count), "-m", WORKER, *arguments]))


def _unsaid(run: RunFolder) -> bool:
    """Whether the first process ended without its last words."""
    return not run.complete.exists() or not EventLog(run.events, writes=False).state().final


def ending_of_other(
    run: RunFolder, rank: int, count: int, code: int, *, out_of_memory: bool
) -> tuple[Ending, JsonObject]:
    """How the run ended because the process of that rank did with that code (negative: by that signal): in its own last
    words, where it left some."""
    words = last_words(run, rank)
    said = read_object(words) if words.is_file() else {}
    name = f"Process {rank + 1} of {count}"
    hint = "Resume continues from the last checkpoint." if run.checkpoint_folders() else "Resume starts over."
    reason = reason_named(said.get("reason"))
    if said.get("message") and reason is not None:
        ending = Ending(FAILED, "failed", reason, f"{name}: {said['message']}", str(said.get("hint") or hint))
        return ending, {**said, "message": ending.message, "hint": ending.hint}
    how = f"ended without a message (exit code {code})"
    if code < 0:
        how = f"was killed: {signal.strsignal(-code) or 'unknown signal'} (signal {-code})"
    reason = Reason.MEMORY_KILL if out_of_memory else Reason.KILLED if code == -signal.SIGKILL else Reason.CRASHED
    why = "; the system killed it: out of memory" if out_of_memory else ""
    message = f"{name} {how}{why}. The {'other' if count == 2 else 'others'} could not go on without it."
    return Ending(FAILED, "failed", reason, message, hint), {}


def exit_code(run: RunFolder) -> int:
    """That of the first process, by the result that it wrote."""
    result = run.read_result()
    if result.get("reason") == Reason.REFUSED:
        return WRONG_INPUT
    return CODES.get(str(result.get("state")), FAILED)


if __name__ == "__main__":
    leave(main())
