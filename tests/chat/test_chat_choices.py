"""Which adapters can be talked to, and which of them together."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat import choices as chat_choices
from lora_studio.chat import prompts as chat_prompts
from lora_studio.config.parsing import parse, to_yaml
from lora_studio.errors import StudioError
from lora_studio.jobs.events import CheckpointSaved, QuestionsAsked, RunState, to_line
from lora_studio.workspace import RunFolder, Workspace
from tests.adapters import files, write


def make_run(workspace: Workspace, title: str, *, adapter: bool, steps: tuple[int, ...] = (), **data: Any) -> RunFolder:
    """A run of the built-in model with adapters that have all their files."""
    run = workspace.create_run(title, to_yaml(parse({"title": title, "data": data})), {})
    card = json.dumps({"base_model": "demo", "system_prompt": data.get("system_prompt")}).encode()
    folders = [run.checkpoints / f"checkpoint-{step}" for step in steps]
    for folder in [*folders, *([run.adapter] if adapter else [])]:
        write(folder, files() | {"studio.json": card, "trainer_state.json": b"{}"})
    return run


def test_a_finished_adapter_comes_first_then_its_checkpoints_from_the_last(workspace: Workspace) -> None:
    run = make_run(workspace, "Pirate", adapter=True, steps=(8, 16))
    saved = [CheckpointSaved(0.0, 16, "checkpoint-16", 0.1234)]
    found = chat_choices.choices(workspace, [RunState(run.id, "Pirate", "done", checkpoints=saved)])
    assert [choice.value for choice in found] == [run.id, f"{run.id}/checkpoint-16", f"{run.id}/checkpoint-8"]
    assert found[0].label.startswith("Pirate (finished, 20")
    assert found[1].label == "Pirate, checkpoint at step 16, validation loss 0.123"
    assert found[2].name == "Pirate, step 8"
    assert found[1].folder == run.checkpoints / "checkpoint-16"


def test_a_running_run_offers_its_checkpoints_only(workspace: Workspace) -> None:
    run = make_run(workspace, "Pirate", adapter=True, steps=(8,))
    found = chat_choices.choices(workspace, [RunState(run.id, "Pirate", "running")])
    assert [choice.value for choice in found] == [f"{run.id}/checkpoint-8"]


def test_a_run_deleted_meanwhile_is_not_offered(workspace: Workspace) -> None:
    assert chat_choices.choices(workspace, [RunState("20260101-000000-gone-ab12", "Gone", "done")]) == []


def test_adapters_from_elsewhere_stand_last(workspace: Workspace, tmp_path: Path) -> None:
    run = make_run(workspace, "Pirate", adapter=True)
    write(workspace.adapters_folder / "brought", files())
    mine = write(tmp_path / "mine", files())
    found = chat_choices.choices(workspace, [RunState(run.id, "Pirate", "done")], [str(mine), str(tmp_path / "gone")])
    assert [choice.name for choice in found] == ["Pirate", "brought", "mine"]
    assert found[2].config() is None


def test_what_was_chosen_is_preferred_then_its_run_then_the_newest(workspace: Workspace) -> None:
    runs = [make_run(workspace, title, adapter=True, steps=(8,)) for title in ("One", "Two")]
    found = chat_choices.choices(workspace, [RunState(run.id, "", "done") for run in runs])
    assert chat_choices.preferred(found, f"{runs[1].id}/checkpoint-8") == found[3]
    assert chat_choices.preferred(found, f"{runs[1].id}/checkpoint-2") == found[2]
    assert chat_choices.preferred(found, "gone") == found[0]
    assert chat_choices.preferred([], "") is None


def test_columns_that_can_not_answer_together_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    run = make_run(workspace, "Pirate", adapter=True, steps=(1, 2, 3))
    other = write(tmp_path / "other", files(base_model_name_or_path="Qwen/Qwen3-8B"))
    found = chat_choices.choices(workspace, [RunState(run.id, "Pirate", "done")], [str(other)])
    values = [choice.value for choice in found]
    assert len(chat_choices.require(found, values[:3])) == 3
    for wanted, words in (
        ([], "No adapter is selected"),
        (["../../etc"], "no longer exists"),
        (values[:4], "at most 3"),
        ([values[0], values[4]], "other was trained on Qwen/Qwen3-8B, and Pirate on demo"),
    ):
        with pytest.raises(StudioError, match=words):
            chat_choices.require(found, wanted)


@pytest.mark.parametrize("name", ["pirate", "recommender", "technical", "alpaca"])
def test_a_newcomer_is_offered_held_out_questions_of_a_shipped_set(workspace: Workspace, name: str) -> None:
    offered = chat_prompts.suggestions(chosen(make_run(workspace, "Shipped", adapter=True, train_file=name)))
    assert len(offered) == chat_prompts.EXAMPLES
    assert all(example.question for example in offered)
    assert len({example.question for example in offered}) == chat_prompts.EXAMPLES


def chosen(run: RunFolder) -> chat_choices.Choice:
    return chat_choices.Choice(run.id, run.id, run.id, run.adapter, run)


def test_of_other_data_the_runs_own_validation_questions_are_offered(workspace: Workspace) -> None:
    run = make_run(workspace, "Own", adapter=True, train_file="/data/own.csv")
    assert chat_prompts.suggestions(chosen(run)) == []
    asked = QuestionsAsked(0.0, ["Why?", " "], ["a", "b"], ["c", "d"], [False, False])
    run.events.write_text(to_line(asked))
    assert chat_prompts.suggestions(chosen(run)) == [
        chat_prompts.StarterQuestion("Why?", "")
    ]  # a run of an earlier version
    rows = [{"question": f"Question {number}?", "system": "Be brief."} for number in range(9)]
    run.questions.write_text(json.dumps([rows[0], *rows]))
    offered = chat_prompts.suggestions(chosen(run))
    assert [example.question for example in offered] == [f"Question {number}?" for number in range(4)]
    assert offered[0].system == "Be brief."
    for damaged in ("{", '[{"question": 1}]', "[3]"):
        run.questions.write_text(damaged)
        assert chat_prompts.suggestions(chosen(run)) == []


def test_the_next_column_is_another_run_then_the_best_checkpoint_then_the_newest(workspace: Workspace) -> None:
    old, new = (make_run(workspace, title, adapter=True, steps=(4, 8, 16)) for title in ("Old", "New"))
    half = make_run(workspace, "Half", adapter=False, steps=(2, 4))  # it is still training
    saved = [CheckpointSaved(0.0, step, f"checkpoint-{step}", loss) for step, loss in ((4, 0.7), (8, 0.5), (16, 0.6))]
    states = [
        RunState(half.id, "Half", "running"),
        RunState(new.id, "New", "done", checkpoints=saved),
        RunState(old.id, "Old", "done", checkpoints=saved),
    ]
    available = chat_choices.choices(workspace, states)
    shown = [f"{new.id}/checkpoint-8"]
    while (following := chat_choices.next_choice(available, shown)) is not None:
        shown.append(following.value)
    best, *rest = (f"/checkpoint-{step}" for step in (8, 16, 4))
    assert shown == [
        *(f"{new.id}{best}", f"{half.id}/checkpoint-4", old.id),  # a column for each run
        f"{old.id}{best}",
        f"{half.id}/checkpoint-2",
        *(new.id, *(f"{new.id}{checkpoint}" for checkpoint in rest)),
        *(f"{old.id}{checkpoint}" for checkpoint in rest),
    ]


def test_a_columns_list_groups_adapters_by_run_and_says_why_some_can_not_be_chosen(
    workspace: Workspace, tmp_path: Path
) -> None:
    run, later = (make_run(workspace, title, adapter=True, steps=(8, 16)) for title in ("One", "Two"))
    saved = [CheckpointSaved(0.0, 8, "checkpoint-8", 0.5), CheckpointSaved(0.0, 16, "checkpoint-16", 0.75)]
    other = write(tmp_path / "other", files(base_model_name_or_path="Qwen/Qwen3-8B"))
    states = [RunState(run.id, "One", "done", checkpoints=saved), RunState(later.id, "Two", "done")]
    available = chat_choices.choices(workspace, states, [str(other)])
    groups = chat_choices.options(available, [run.id], run.id)
    assert [(title.partition(" ·")[0], len(offered)) for title, offered in groups] == [
        ("One", 3),
        ("Two", 3),
        ("External adapters", 1),
    ]
    assert [option.label for option in groups[0][1] if option.best] == ["Step 8, validation loss 0.5"]
    assert not any(option.reason for _, offered in groups for option in offered)  # the only adapter decides the base

    groups = chat_choices.options(available, [run.id, later.id], later.id)
    reasons = {option.value: option.reason for _, offered in groups for option in offered}
    assert reasons[run.id] == "in another column"
    assert reasons[later.id] == reasons[f"{run.id}/checkpoint-8"] == ""
    assert reasons[f"folder:{other}"] == "other base: Qwen/Qwen3-8B"
    (other / "adapter_config.json").write_text("{")
    available = chat_choices.choices(workspace, states, [str(other)])
    groups = chat_choices.options(available, [run.id, later.id], later.id)
    assert groups[-1][1][0].reason == "its files can't be read"
