"""What is said in the chat: turns, what is asked, what is changed and kept."""

import json

from lora_studio.chat import conversation as dialogue
from lora_studio.chat.conversation import BASE, ChatState
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format
from lora_studio.data.messages import Record
from lora_studio.workspace import Workspace

WHO = "0123456789abcdef01234567"


def talk_of_two() -> ChatState:
    talk = ChatState(adapters=["run"])
    for question in ("One?", "Two?"):
        talk.ask(question, talk.names)
        talk.finish({BASE: f"Base {question}", "run": f"Arr {question}"})
    return talk


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def test_each_column_is_asked_with_its_own_answers() -> None:
    talk = ChatState(adapters=["run"])
    talk.ask("One?", talk.names)
    talk.add({BASE: "Base", "run": "Arr"})
    talk.add({BASE: " one.", "run": " one!"})
    talk.ask("Two?", talk.names)
    assert contents(talk.prompt(BASE, "Be brief.")) == ["Be brief.", "One?", "Base one.", "Two?"]
    assert contents(talk.prompt("run", " ")) == ["One?", "Arr one!", "Two?"]


def test_a_question_that_one_column_did_not_answer_is_left_out_of_its_next_prompt() -> None:
    talk = ChatState(adapters=["run"])
    talk.ask("One?", talk.names)
    talk.finish({BASE: "Yes.", "run": ""})
    assert talk.take_back(talk.names) is False
    talk.ask("Two?", talk.names)
    assert contents(talk.prompt("run", "")) == ["Two?"]
    assert [message["role"] for message in talk.prompt(BASE, "")] == ["user", "assistant", "user"]


def test_a_question_that_nobody_answered_is_taken_back() -> None:
    talk = ChatState(adapters=["run"])
    talk.ask("One?", talk.names)
    assert talk.take_back(talk.names) is True
    assert [talk.column(name) for name in talk.names] == [[], []]


def test_one_column_is_undone_asked_again_or_changed_by_itself() -> None:
    talk = talk_of_two()
    talk.undo(["run"])
    assert contents(talk.column("run")) == ["One?", "Arr One?"]
    assert len(talk.column(BASE)) == 4
    assert talk.again("run") == "One?"
    assert talk.column("run") == []
    assert talk.edit(BASE, 0) == "One?"
    assert talk.column(BASE) == []
    assert talk.again("run") == talk.edit("run", 7) == ""


def test_a_column_that_went_brings_its_conversation_back() -> None:
    talk = talk_of_two()
    talk.adapters = ["other"]
    assert talk.column("other") == []
    talk.adapters = ["other", "run"]
    assert len(talk.column("run")) == 4
    talk.clear()
    assert [talk.column(name) for name in talk.names] == [[], [], []]


def test_a_chat_is_kept_for_each_browser(workspace: Workspace) -> None:
    talk = talk_of_two()
    talk.system, talk.marks = "Be brief.", True
    dialogue.write_state(workspace, WHO, talk)
    assert dialogue.read_state(workspace, WHO) == talk
    assert dialogue.read_state(workspace, WHO[::-1]) == ChatState()
    for nonsense in ("../../etc/passwd", "", "a" * 500):
        assert dialogue.draft_key(nonsense) == "guest"


def test_conversations_leave_as_rows_that_the_data_tab_reads() -> None:
    talk = talk_of_two()
    talk.ask("Three?", [BASE])
    rows = [json.loads(line) for line in talk.jsonl("Be brief.").splitlines()]
    records = [Record(number, row) for number, row in enumerate(rows, start=1)]
    shape = detect_format(records)
    said = [convert(record, shape, None) for record in records]
    assert [len(conversation.messages) for conversation in said] == [5, 5]
    assert said[1].messages[0].content == "Be brief."
    assert said[1].messages[-1].content == "Arr Two?"


def test_turns_of_one_question_stand_in_one_row_whenever_a_column_was_asked() -> None:
    aligned = dialogue.aligned
    assert aligned([("a", "b"), ("a", "b")]) == [(0, 0), (1, 1)]
    assert aligned([("a", "b", "c"), ("c",)]) == [(0, None), (1, None), (2, 0)]
    assert aligned([("a", "b"), ("x", "b")]) == [(0, 0), (1, 1)]
    assert aligned([(), ("a",)]) == [(None, 0)]
    assert aligned([("a",), ("a", "b"), ("b",)]) == [(0, 0, None), (None, 1, 0)]
    assert aligned([("a", "a"), ("a",)]) == [(0, None), (1, 0)]  # an adapter that was chosen after the first answer
    assert aligned([("a", "b", "a"), ("a", "b")]) == [(0, 0), (1, 1), (2, None)]
    assert aligned([(), ()]) == aligned([]) == []


def test_a_shared_conversation_has_each_question_once() -> None:
    talk = talk_of_two()
    titles = {BASE: "Base: demo", "run": "Pirate"}
    text = talk.markdown(titles, "Be brief.")
    assert text.count("> One?") == text.count("> Two?") == 1
    assert text.index("Be brief.") < text.index("Base One?") < text.index("Arr One?") < text.index("Base Two?")
    whole = json.loads(talk.as_json(titles, "Be brief."))
    assert [column["name"] for column in whole["columns"]] == ["Base: demo", "Pirate"]
    assert contents(whole["columns"][1]["messages"]) == ["One?", "Arr One?", "Two?", "Arr Two?"]
