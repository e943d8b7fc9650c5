"""What the chat tab's events do, with a session that only plays answers back."""

from typing import Any

import gradio as gr
import pytest

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.ui import chat_tab, dialogue
from lora_studio.ui.chatting import SAMPLING, Chat
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace
from tests.ui.fake_session import FakeSession
from tests.ui.test_dialogue import make_run

LOADED = {"kind": "result", "base": "demo", "device": "cpu", "dtype": "float32", "memory_bytes": 1000}
ANSWER = {"tokens": 3, "tokens_per_second": 9.0, "first_token_seconds": 0.1, "finish": "eos"}
DEFAULTS = [setting.default for setting in SAMPLING]


class FakeSupervisor:
    """Says that there are runs."""

    def __init__(self, runs: list[RunState]) -> None:
        self.found = runs

    def runs(self) -> list[RunState]:
        return self.found


def script(method: str, **params: Any) -> list[dict[str, Any] | StudioError]:
    if method == "load":
        return [{"kind": "progress", "phase": "base", "done": 0, "total": 1}, {**LOADED, "enable_thinking": None}]
    question = params["columns"][0]["messages"][-1]["content"]
    piece = {"kind": "piece", "texts": ["Rome", "Arr"], "tokens": [1, 1]}
    if question == "fail at once":
        return [StudioError("No memory is left.", "Take a smaller model.")]
    if question == "fail later":
        return [piece, StudioError("No memory is left.", "Take a smaller model.")]
    columns = [{"text": text, **ANSWER} for text in ("Rome.", "Arr, Rome!")]
    return [piece, {"kind": "result", "columns": columns, "note": ""}]


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return make_run(workspace, "Pirate", adapter=True, steps=(8,), system_prompt="Be a pirate.")


@pytest.fixture
def act(workspace: Workspace, run: RunFolder) -> Chat:
    session: Any = FakeSession(script)
    supervisor: Any = FakeSupervisor([RunState(run.id, "Pirate", "done")])
    with gr.Blocks():
        return Chat(Studio(workspace, supervisor, session, session), chat_tab.draw())


def talk_of(act: Chat) -> dialogue.Talk:
    return dialogue.read_talk(act.studio.workspace, act.choices()[0])


def send(act: Chat, question: str, run: RunFolder) -> list[dict[Any, Any]]:
    return list(act.send(question, run.id, "Be a pirate.", *DEFAULTS))


def test_a_question_loads_the_adapter_and_both_columns_answer(act: Chat, run: RunFolder) -> None:
    updates = send(act, " Capital of Italy? ", run)
    assert [method for method, _ in act.studio.chat.asked] == ["load", "generate"]
    assert act.studio.chat.asked[0][1]["adapters"] == {"adapter": str(run.adapter)}
    columns = act.studio.chat.asked[1][1]["columns"]
    assert [column["adapter"] for column in columns] == [None, "adapter"]
    assert columns[0]["messages"][0] == {"role": "system", "content": "Be a pirate."}
    shown = [update[act.parts.talks[1]] for update in updates if act.parts.talks[1] in update]
    assert "Arr" in shown[1]
    assert "Arr, Rome!" in shown[-1]
    assert [column[-1]["content"] for column in talk_of(act).columns] == ["Rome.", "Arr, Rome!"]
    assert talk_of(act).notes[0].startswith("3 tokens, 9 tokens/s")


def test_what_is_in_memory_is_not_loaded_again_and_the_talk_goes_on(act: Chat, run: RunFolder) -> None:
    send(act, "One?", run)
    send(act, "Two?", run)
    assert [method for method, _ in act.studio.chat.asked] == ["load", "generate", "generate"]
    asked = act.studio.chat.asked[-1][1]["columns"][1]["messages"]
    assert [message["content"] for message in asked] == ["Be a pirate.", "One?", "Arr, Rome!", "Two?"]


def test_another_adapter_is_loaded_and_has_a_conversation_of_its_own(act: Chat, run: RunFolder) -> None:
    send(act, "One?", run)
    list(act.send("Two?", f"{run.id}/checkpoint-8", "", *DEFAULTS))
    assert [method for method, _ in act.studio.chat.asked] == ["load", "generate"] * 2
    assert len(talk_of(act).columns[0]) == 2


def test_a_failure_before_the_first_word_gives_the_question_back(act: Chat, run: RunFolder) -> None:
    last = send(act, "fail at once", run)[-1]
    assert "No memory is left." in last[act.parts.status]
    assert last[act.parts.question] == "fail at once"
    assert talk_of(act).columns == [[], []]


def test_a_failure_later_keeps_the_question_and_what_was_said(act: Chat, run: RunFolder) -> None:
    last = send(act, "fail later", run)[-1]
    assert "Take a smaller model." in last[act.parts.status]
    assert talk_of(act).columns[1] == [
        {"role": "user", "content": "fail later"},
        {"role": "assistant", "content": "Arr"},
    ]


def test_a_page_that_goes_away_stops_the_engine_and_keeps_what_was_said(act: Chat, run: RunFolder) -> None:
    answering = act.send("Capital?", run.id, "", *DEFAULTS)
    for update in answering:
        if "Arr" in update.get(act.parts.talks[1], ""):
            break
    answering.close()
    assert act.studio.chat.left_early == 1
    assert talk_of(act).columns[0][-1]["content"] == "Rome"


def test_no_question_and_no_adapter_are_sentences(act: Chat, run: RunFolder) -> None:
    assert "There is no question yet." in send(act, "  ", run)[-1][act.parts.status]
    last = list(act.send("Hi", "../../etc", "", *DEFAULTS))[-1]
    assert "not there any more" in last[act.parts.status]
    assert last[act.parts.question] == "Hi"
    assert act.studio.chat.asked == []


def test_sampling_out_of_bounds_is_told_before_the_engine_is_asked(act: Chat, run: RunFolder) -> None:
    last = list(act.send("Hi", run.id, "", *[-1 for _ in SAMPLING]))[-1]
    assert "generation.max_new_tokens" in last[act.parts.status]
    assert act.studio.chat.asked == []


def test_an_emptied_sampling_box_is_its_default(act: Chat, run: RunFolder) -> None:
    list(act.send("Hi", run.id, "", *[None for _ in SAMPLING]))
    settings = act.studio.chat.asked[-1][1]["settings"]
    assert settings == {setting.path.rpartition(".")[2]: setting.default for setting in SAMPLING}


def test_load_says_what_is_in_memory_and_unload_ends_the_child(act: Chat, run: RunFolder) -> None:
    updates = list(act.load(run.id))
    assert any("Loading the base model" in str(update.get(act.parts.status)) for update in updates)
    assert "In memory: demo with Pirate" in updates[-1][act.parts.status]
    assert "No model is in memory" in act.unload(run.id)[act.parts.status]
    assert act.loaded is None


def test_a_child_that_died_has_nothing_in_memory(act: Chat, run: RunFolder) -> None:
    list(act.load(run.id))
    act.studio.chat.running = False
    assert act.loaded is None


def test_a_reload_brings_adapter_conversation_and_sampling_back(act: Chat, run: RunFolder) -> None:
    checkpoint = f"{run.id}/checkpoint-8"
    list(act.send("One?", checkpoint, "Be brief.", 99, *DEFAULTS[1:]))
    updates = act.repaint()
    assert updates[act.parts.choice].value == checkpoint
    assert "Arr, Rome!" in updates[act.parts.talks[1]]
    assert updates[act.parts.titles[1]] == '<h3 class="ls-column">Adapter: Pirate, step 8</h3>'
    assert updates[act.parts.system] == "Be brief."
    assert updates[act.parts.sampling[0]] == 99


def test_without_any_adapter_the_tab_says_what_to_do(act: Chat) -> None:
    act.studio.supervisor.found = []
    updates = act.repaint()
    assert updates[act.parts.nothing].visible is True
    assert updates[act.parts.body].visible is False
    assert "Train tab" in str(chat_tab.NO_RUNS)


def test_opening_the_tab_shows_the_adapter_that_another_tab_chose(act: Chat, run: RunFolder) -> None:
    other = make_run(act.studio.workspace, "Other", adapter=True)
    act.studio.supervisor.found.insert(0, RunState(other.id, "Other", "done"))
    dialogue.choose(act.studio.workspace, run.id)
    assert act.arrive(other.id)[act.parts.choice].value == run.id
    act.pick(other.id)
    unchanged = act.arrive(other.id)
    assert unchanged[act.parts.choice].value == other.id
    assert act.parts.system not in unchanged


def test_an_example_brings_its_question_and_system_prompt(act: Chat, run: RunFolder) -> None:
    updates = act.ask_example(1, run.id, "mine")
    assert updates[act.parts.question] == dialogue.examples(act.choices()[0].config())[1].question
    assert updates[act.parts.system] == "Be a pirate."


def test_clear_begins_a_new_conversation_with_the_same_system_prompt(act: Chat, run: RunFolder) -> None:
    send(act, "One?", run)
    updates = act.clear(run.id, "Be brief.")
    assert dialogue.NOTHING_SAID in updates[act.parts.talks[0]]
    assert talk_of(act) == dialogue.Talk(system="Be brief.")
    assert "No adapter is chosen" in act.clear(None, "")[act.parts.status]


def test_stop_reaches_the_engine(act: Chat) -> None:
    act.stop()
    assert act.studio.chat.stops == 1
