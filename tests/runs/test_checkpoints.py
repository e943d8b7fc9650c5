"""Checkpoints of a run: what is listed, deleted, packed."""

import zipfile
from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.jobs.events import CheckpointSaved, Evaluated, RunState, StepLogged
from lora_studio.runs import checkpoints
from lora_studio.workspace import RunFolder, Workspace


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    """Two whole checkpoints and one that a crash left half."""
    made = workspace.create_run("one", "title: one\n", {})
    for step in (2, 4, 6):
        folder = made.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"w" * 100)
        for name in ("optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth"):
            (folder / name).write_bytes(b"pickle")
        if step != 6:
            (folder / "trainer_state.json").write_text("{}")
    return made


STATE = RunState(
    state="done",
    steps=[StepLogged(1.0, step, 6, step / 2, loss=1.0, learning_rate=1e-3) for step in (1, 2, 3, 4)],
    evaluations=[Evaluated(1.0, 4, 2.0, 0.5, {"token_accuracy": 0.9})],
    checkpoints=[CheckpointSaved(1.0, 2, "checkpoint-2", 0.4), CheckpointSaved(1.0, 4, "checkpoint-4", 0.5)],
)


def test_whole_checkpoints_are_listed_newest_first_with_what_was_measured(run: RunFolder) -> None:
    newest, older = checkpoints.checkpoints(run, STATE)
    assert (newest.name, newest.step, newest.epoch, newest.loss) == ("checkpoint-4", 4, 2.0, 0.5)
    assert newest.metrics == {"token_accuracy": 0.9}
    assert (older.loss, older.epoch, older.best, newest.best) == (0.4, 1.0, True, False)
    assert older.bytes == 100 + 4 * len(b"pickle") + len(b"{}")


def test_the_best_is_the_one_that_the_run_chose(run: RunFolder) -> None:
    run.complete.write_text('{"best_checkpoint": "checkpoint-4"}')
    assert [item.best for item in checkpoints.checkpoints(run, STATE)] == [True, False]


def test_a_zip_holds_no_pickles(run: RunFolder, tmp_path: Path) -> None:
    checkpoints.write_zip(checkpoints.folder_of(run, "checkpoint-4"), tmp_path / "out" / "it.zip")
    with zipfile.ZipFile(tmp_path / "out" / "it.zip") as archive:
        assert archive.namelist() == ["checkpoint-4/adapter_model.safetensors", "checkpoint-4/trainer_state.json"]
        assert archive.read("checkpoint-4/adapter_model.safetensors") == b"w" * 100


def test_a_checkpoint_of_a_run_that_goes_on_is_kept(run: RunFolder) -> None:
    with pytest.raises(StudioError, match="is still active"):
        checkpoints.delete(run, RunState(state="running"), "checkpoint-4")
    checkpoints.delete(run, STATE, "checkpoint-4")
    assert [item.name for item in checkpoints.checkpoints(run, STATE)] == ["checkpoint-2"]
    assert not list(run.checkpoints.glob(".deleted*"))


@pytest.mark.parametrize("name", ["checkpoint-9", "..", "../adapter", "", "/etc", "checkpoint-6"])
def test_only_names_of_checkpoints_that_are_there_are_taken(run: RunFolder, name: str) -> None:
    with pytest.raises(StudioError, match="no checkpoint"):
        checkpoints.folder_of(run, name)
