"""A run's memory on the runs tab: estimate beside measurement, and the way out after it ran out."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse, to_yaml
from lora_studio.jobs.events import MemoryEstimated, Reason, RunState
from lora_studio.jobs.launchers.local import oom_kills
from lora_studio.ui.runs.details import memory_words, retry_of
from lora_studio.units import GIB
from lora_studio.workspace import RunFolder, Workspace

FORESEEN = MemoryEstimated(0.0, 6 * GIB, 5 * GIB, 5 * GIB, {"weights": 6 * GIB}, False, "Off: it fits.")


def folder(workspace: Workspace, **settings: Any) -> RunFolder:
    values = nest({path.replace("__", "."): value for path, value in settings.items()})
    return workspace.create_run("test", to_yaml(parse(values)), {})


def test_the_estimate_stands_beside_what_was_measured() -> None:
    run = RunState(memory=FORESEEN)
    assert "Memory: estimated 5.0 GiB. Off: it fits." in memory_words(run, None)
    assert "estimated 5.0 GiB, measured 4.2 GiB." in memory_words(run, 4.2 * GIB)
    assert memory_words(RunState(), None) == ""


def test_a_run_that_ran_out_of_memory_offers_what_its_worker_found(workspace: Workspace) -> None:
    run = folder(workspace)
    retry = {"title": "2 rows", "cost": "", "settings": {"training.per_device_train_batch_size": 2}}
    run.complete.write_text(json.dumps({"retry": retry}))
    offered = retry_of(run, RunState(state="failed", reason=Reason.OUT_OF_MEMORY))
    assert offered is not None
    assert (offered.title, offered.settings) == (retry["title"], retry["settings"])
    assert retry_of(run, RunState(state="done")) is None


@pytest.mark.parametrize("reason", [Reason.MEMORY_KILL, Reason.KILLED])
def test_a_worker_that_the_system_killed_is_offered_a_smaller_run(workspace: Workspace, reason: Reason) -> None:
    run = folder(workspace, training__per_device_train_batch_size=256, data__max_length=1024)
    found = retry_of(run, RunState(state="failed", reason=reason, memory=FORESEEN))
    assert found is not None
    assert found.settings
    other = RunState(state="failed", reason=Reason.INTERNAL_ERROR, memory=FORESEEN)
    assert retry_of(run, other) is None


def test_kills_for_want_of_memory_are_counted_where_the_system_counts(tmp_path: Path) -> None:
    machine, group = tmp_path / "vmstat", tmp_path / "events"
    assert oom_kills(machine, group) is None
    machine.write_text("nr_free_pages 12\noom_kill 3\n")
    assert oom_kills(machine, group) == 3
    group.write_text("oom 9\noom_kill 7\noom_group_kill 0\n")
    assert oom_kills(machine, group) == 7
