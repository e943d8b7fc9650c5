"""What is kept of a run's events in short: the same in the end, and never trusted where it may be wrong."""

import json
import os
from pathlib import Path

import pytest

from lora_studio.jobs.events import (
    CheckpointSaved,
    DataPrepared,
    Evaluated,
    Finished,
    QuestionsAsked,
    RunStarted,
    RunState,
    StepLogged,
    fold,
    to_line,
)
from lora_studio.jobs.watcher import brief, keep_folded, read_folded
from lora_studio.workspace import RunFolder, Workspace

KEY = (12, 34)
EVENTS = [
    RunStarted(1.0, 7, "cpu", "float32"),
    DataPrepared(2.0, 9, 1, 0, 0, 90, 40, "f", "chat"),
    QuestionsAsked(2.5, ["q"], ["r"], ["a"], [True]),
    *(StepLogged(2.0 + step, step, 3, step / 3, loss=float("nan"), learning_rate=1e-3) for step in (1, 2, 3)),
    Evaluated(6.0, 3, 1.0, 0.5, {"accuracy": 0.75}),
    CheckpointSaved(7.0, 3, "checkpoint-3", 0.5),
    Finished(8.0, "done", 3),
]


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return workspace.create_run("test", "{}", {})


def whole() -> RunState:
    return fold(EVENTS)


def test_what_is_kept_is_the_state_with_its_last_step_alone(run: RunFolder) -> None:
    keep_folded(run, whole(), KEY)
    found = read_folded(run, KEY)
    assert found is not None
    assert to_line(found.steps[0]) == to_line(whole().steps[-1])
    assert len(found.steps) == 1
    found.steps = []
    short = brief(whole())
    short.steps = []
    assert found == short
    assert found.questions is None
    assert list(run.path.glob("folded*")) == [run.folded]


def test_other_events_a_damaged_file_and_another_version_are_not_taken(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_folded(run, KEY) is None
    keep_folded(run, whole(), KEY)
    good = run.folded.read_text()
    assert read_folded(run, (13, 34)) is None
    for damaged in ("", good[:-40], "[]", "{}", good.replace('"phase_done"', '"phase_undone"')):
        run.folded.write_text(damaged)
        assert read_folded(run, KEY) is None
    older = json.loads(good)
    older["made_by"][0] = "0.0.0"
    run.folded.write_text(json.dumps(older))
    assert read_folded(run, KEY) is None


def test_a_run_that_is_gone_stays_gone(run: RunFolder, tmp_path: Path) -> None:
    os.rename(run.path, tmp_path / "elsewhere")
    keep_folded(run, whole(), KEY)
    assert not run.path.exists()
