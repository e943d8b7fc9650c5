"""What is said in the chat: turns, what is asked, what is kept, which adapters can be talked to."""

from typing import Any

import pytest

from lora_studio.config import Config
from lora_studio.errors import StudioError
from lora_studio.events import CheckpointSaved, RunState
from lora_studio.parsing import parse, to_yaml
from lora_studio.ui import dialogue
from lora_studio.ui.dialogue import Talk
from lora_studio.workspace import RunFolder, Workspace


def make_run(workspace: Workspace, title: str, *, adapter: bool, steps: tuple[int, ...] = (), **data: Any) -> RunFolder:
    run = workspace.create_run(title, to_yaml(parse({"title": title, "data": data})), {})
    if adapter:
        run.adapter.mkdir()
    for step in steps:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
    return run


def test_a_finished_adapter_comes_first_then_its_checkpoints_from_the_last(workspace: Workspace) -> None:
    run = make_run(workspace, "Pirate", adapter=True, steps=(8, 16))
    saved = [CheckpointSaved(0.0, 16, "checkpoint-16", 0.1234)]
    found = dialogue.choices(workspace, [RunState(run.id, "Pirate", "done", checkpoints=saved)])
    assert [choice.value for choice in found] == [run.id, f"{run.id}/checkpoint-16", f"{run.id}/checkpoint-8"]
    assert found[0].label.startswith("Pirate (finished, 20")
    assert found[1].label == "Pirate, checkpoint at step 16, validation loss 0.123"
    assert found[2].name == "Pirate, step 8"
    assert found[1].folder == run.checkpoints / "checkpoint-16"


def test_a_running_run_offers_its_checkpoints_only(workspace: Workspace) -> None:
    run = make_run(workspace, "Pirate", adapter=True, steps=(8,))
    found = dialogue.choices(workspace, [RunState(run.id, "Pirate", "running")])
    assert [choice.value for choice in found] == [f"{run.id}/checkpoint-8"]


def test_a_run_deleted_meanwhile_is_not_offered(workspace: Workspace) -> None:
    assert dialogue.choices(workspace, [RunState("20260101-000000-gone-ab12", "Gone", "done")]) == []


def test_what_was_chosen_is_preferred_then_its_run_then_the_newest(workspace: Workspace) -> None:
    runs = [make_run(workspace, title, adapter=True, steps=(8,)) for title in ("One", "Two")]
    found = dialogue.choices(workspace, [RunState(run.id, "", "done") for run in runs])
    assert dialogue.preferred(found, f"{runs[1].id}/checkpoint-8") == found[3]
    assert dialogue.preferred(found, f"{runs[1].id}/checkpoint-2") == found[2]
    assert dialogue.preferred(found, "gone") == found[0]
    assert dialogue.preferred([], "") is None


def test_a_value_that_no_adapter_has_is_refused(workspace: Workspace) -> None:
    with pytest.raises(StudioError, match="No adapter is chosen"):
        dialogue.require([], None)
    with pytest.raises(StudioError, match="not there any more"):
        dialogue.require([], "../../etc")


def test_each_column_is_asked_with_its_own_answers() -> None:
    talk = Talk(system="Be brief.")
    talk.ask("One?")
    talk.add(["Base", "Arr"])
    talk.add([" one.", " one!"])
    talk.ask("Two?")
    base, adapter = talk.prompts()
    assert [message["content"] for message in base] == ["Be brief.", "One?", "Base one.", "Two?"]
    assert [message["content"] for message in adapter] == ["Be brief.", "One?", "Arr one!", "Two?"]


def test_a_question_that_one_column_did_not_answer_is_left_out_of_its_next_prompt() -> None:
    talk = Talk()
    talk.ask("One?")
    talk.finish(["Yes.", ""])
    assert talk.take_back() is False
    talk.ask("Two?")
    assert [message["content"] for message in talk.prompts()[1]] == ["Two?"]
    assert [message["role"] for message in talk.prompts()[0]] == ["user", "assistant", "user"]


def test_a_question_that_nobody_answered_is_taken_back() -> None:
    talk = Talk()
    talk.ask("One?")
    assert talk.take_back() is True
    assert talk.columns == [[], []]
    assert talk.take_back() is True


def test_a_conversation_is_kept_and_comes_back(workspace: Workspace) -> None:
    run = make_run(workspace, "Pirate", adapter=True, steps=(8,), system_prompt="Arr.")
    done, checkpoint = dialogue.choices(workspace, [RunState(run.id, "Pirate", "done")])
    assert dialogue.read_talk(workspace, done) == Talk(system="Arr.")
    talk = Talk(system="Changed.", notes=["a", "b"])
    talk.ask("One?")
    talk.finish(["Yes.", "Arr."])
    dialogue.write_talk(workspace, done, talk)
    assert dialogue.read_talk(workspace, done) == talk
    assert dialogue.read_talk(workspace, checkpoint) == Talk(system="Arr.")


def test_markup_in_an_answer_is_shown_as_text() -> None:
    shown = dialogue.column(
        [{"role": "user", "content": "${1+1}"}, {"role": "assistant", "content": "<script>alert(1)</script> [x](y)"}]
    )
    assert "<script" not in shown
    assert "${" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [x](y)" in shown


def test_an_answer_that_has_not_begun_is_awaited_not_called_empty() -> None:
    shown = dialogue.column([{"role": "user", "content": "One?"}, {"role": "assistant", "content": ""}])
    assert "One?" in shown
    assert "empty" not in shown
    assert dialogue.NOTHING_SAID in dialogue.column([])


def test_speed_and_end_of_an_answer_are_told() -> None:
    answer = {"tokens": 23, "tokens_per_second": 41.4, "first_token_seconds": 0.118, "finish": "length"}
    assert dialogue.column_note(answer) == "23 tokens, 41 tokens/s, first after 0.12 s, cut at the longest answer"
    assert dialogue.column_note({**answer, "finish": "eos"}).endswith("first after 0.12 s")
    assert dialogue.column_note({**answer, "tokens": 0}) == "No token before the stop"


@pytest.mark.parametrize("name", ["pirate", "recommender", "technical", "alpaca"])
def test_a_newcomer_is_offered_held_out_questions_of_a_shipped_set(name: str) -> None:
    offered = dialogue.examples(parse({"data": {"train_file": name}}))
    assert len(offered) == dialogue.EXAMPLES
    assert all(example.question for example in offered)
    assert len({example.question for example in offered}) == dialogue.EXAMPLES


def test_questions_that_need_a_system_prompt_bring_it() -> None:
    assert all(example.system for example in dialogue.examples(parse({"data": {"train_file": "recommender"}})))


def test_own_data_has_no_example_questions() -> None:
    assert dialogue.examples(parse({"data": {"train_file": "/somewhere/own.jsonl"}})) == []


def test_the_page_says_what_is_in_memory_and_that_a_run_trains() -> None:
    loaded = {"base": Config().model.name, "device": "cpu", "dtype": "float32", "memory_bytes": 11_000_000}
    assert "In memory: demo with Pirate (cpu, float32, 11 MB)." in dialogue.memory_line(loaded, "Pirate", False)
    assert "No model is in memory" in dialogue.memory_line(None, "Pirate", False)
    assert "A run is training" in dialogue.memory_line(None, "Pirate", True)
