"""Why a job ended is a typed reason; words are made of it at the edge, and lines of earlier versions get theirs."""

import ast
import json
from dataclasses import replace

import pytest

from lora_studio.jobs.events import Finished, ModelLoaded, Reason, RunStarted, RunState, fold, from_line, to_line
from lora_studio.jobs.kinds import KINDS, ending_words
from tests.source import MODULES, PACKAGE, nodes_of

EARLIER = [
    ("done", "", Reason.COMPLETED),
    ("stopped", "Stopped when asked to.", Reason.STOPPED),
    ("stopped", "Taken out of the queue.", Reason.DEQUEUED),
    ("failed", "The file holds no usable row.", Reason.REFUSED),
    ("failed", "The machine ran out of memory; asked for 20.00 GiB more.", Reason.OUT_OF_MEMORY),
    ("failed", "The memory is not enough for this many answers at once.", Reason.OUT_OF_MEMORY),
    ("failed", "The disk that holds /runs is full: the run could not write on.", Reason.DISK_FULL),
    ("failed", "The loss is infinite at step 6. Probably. The training ended there: nothing.", Reason.DIVERGED),
    ("failed", "Training ended with an error: ValueError: no", Reason.INTERNAL_ERROR),
    ("failed", "The adapter was deleted while it was exported.", Reason.ADAPTER_GONE),
]


@pytest.mark.parametrize(("state", "message", "reason"), EARLIER)
def test_an_ending_that_an_earlier_version_wrote_gets_its_reason(state: str, message: str, reason: Reason) -> None:
    line = json.dumps({"event": "Finished", "time": 1.0, "state": state, "step": 3, "message": message, "hint": "Do."})
    folded = fold([event for event in [from_line(line)] if event])
    assert (folded.state, folded.reason, folded.message, folded.hint) == (state, reason, message, "Do.")


def test_a_reason_is_kept_in_its_line_and_one_of_a_newer_version_is_read_as_its_state_says() -> None:
    ended = Finished(1.0, "stopped", reason=Reason.DEQUEUED)
    assert json.loads(to_line(ended))["reason"] == "dequeued"
    assert from_line(to_line(ended)) == ended
    newer = from_line(to_line(ended).replace("dequeued", "eaten by a shark"))
    assert isinstance(newer, Finished)
    assert newer.reason is Reason.STOPPED


def test_what_earlier_events_held_in_words_alone_is_typed_once_they_are_read() -> None:
    started = from_line('{"event": "RunStarted", "time": 1, "pid": 1, "device": "CPU, 2 threads", "dtype": "float32"}')
    assert isinstance(started, RunStarted)
    assert started.device_kind == "cpu"
    told = {"sdpa: no FlashAttention 2, for float32": "sdpa", "eager, as chosen": "eager", "sdpa": "sdpa", "": ""}
    for words, name in told.items():
        line = json.dumps({"event": "ModelLoaded", "time": 1, "parameters": 1, "trainable_parameters": 1})
        loaded = from_line(json.dumps({**json.loads(line), "memory_bytes": 0, "attention": words}))
        assert isinstance(loaded, ModelLoaded)
        assert loaded.attn_implementation == name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", Reason)
def test_every_ending_of_every_kind_of_job_has_words_of_its_own(kind: str, reason: Reason) -> None:
    state = RunState(kind=kind, state="failed", reason=reason, exit_code=-11)
    message, hint = ending_words(state)
    assert bool(message) == (reason is not Reason.COMPLETED)
    if kind != "train":
        assert "checkpoint" not in hint or reason is Reason.OVER_QUOTA
        assert "The run " not in message
    told = replace(state, message="Only the worker knew this.", hint="So do that.", last_output="")
    assert ending_words(told) == ("Only the worker knew this.", "So do that.")


def test_a_vanished_run_is_resumed_from_where_it_was_saved_and_its_log_is_quoted() -> None:
    state = RunState(state="failed", reason=Reason.EXITED, exit_code=7, last_output="boom")
    again = "No checkpoint was saved yet, so Resume starts over. The log ends with:\nboom"
    assert ending_words(state) == ("The worker ended without a message (exit code 7).", again)
    assert ending_words(replace(state, saved=True))[1].startswith("Resume continues from the last checkpoint.")
    assert ending_words(replace(state, kind="export"))[0].startswith("The export process ended")


def test_words_of_endings_are_made_in_page_terminal_api_and_notes_alone() -> None:
    users = [
        path.relative_to(PACKAGE).parts[0]
        for path in MODULES
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and "ending_words" in {alias.name for alias in node.names}
    ]
    # of runs, the verdict that page and terminal show; of jobs, the notes that a webhook gets
    assert set(users) == {"runs", "ui", "cli", "api", "jobs"}
