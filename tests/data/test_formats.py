"""Which shape a file is recognised as, in which words, and what conversations its rows become."""

import pytest

from lora_studio.data import messages, turns
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format
from lora_studio.data.messages import Message, Record, RowError
from lora_studio.errors import StudioError

U, A = Message("user", "ask"), Message("assistant", "tell")


def _records(*rows):
    return [Record(number, row) for number, row in enumerate(rows, 1)]


def _read(*rows, system_prompt=None):
    records = _records(*rows)
    shape = detect_format(records)
    return shape, [convert(record, shape, system_prompt) for record in records]


OPENAI = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]
SHAREGPT = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "tell"}]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", {"messages": OPENAI}),
        ("messages", {"dialogue": OPENAI, "id": 7}),
        ("messages", {"Messages": '[{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]'}),
        ("sharegpt", {"conversations": SHAREGPT}),
        ("sharegpt", {"conversation": [{"human": "ask", "assistant": "tell"}]}),
        ("instruction", {"instruction": "ask", "output": "tell"}),
        ("instruction", {"Instruction": "ask", "Response": "tell", "category": "x"}),
        ("alpaca", {"instruction": "ask", "input": "", "output": "tell"}),
        ("alpaca", {"instruction": "ask", "context": None, "response": "tell"}),
        ("alpaca", {"instruction": "ask", "input": "", "output": "tell", "text": "ask tell"}),
        ("alpaca", {"instruction": "ask", "input": "", "output": "tell", "chosen": "tell", "rejected": "no"}),
        ("prompt_completion", {"prompt": "ask", "completion": "tell"}),
        ("prompt_completion", {"question": "ask", "answer": "tell"}),
        ("prompt_completion", {"query": "ask", "response": "tell"}),
        ("prompt_completion", {"input": "ask", "output": "tell"}),
        ("prompt_completion", {"Prompts": "ask", "Answers": "tell"}),
        ("prompt_completion", {"code": "tell", "prompt": "ask"}),
        ("prompt_completion", {"prompt": OPENAI[:1], "completion": OPENAI[1:]}),
        ("prompt_completion", {"prompt": "ask", "response": "tell", "model": "m", "score": 0.5}),
    ],
)
def test_every_shape_becomes_the_same_conversation(name, row):
    shape, conversations = _read(row, row)
    assert shape.name == name
    assert all(chat.messages == (U, A) for chat in conversations)


@pytest.mark.parametrize("row", [{"text": "once"}, {"content": "once", "id": 1}, {"anything": "once"}])
def test_plain_text_is_recognised_by_name_or_as_the_only_column(row):
    shape, conversations = _read(row)
    assert shape.name == "text"
    assert conversations[0].text == "once"


def test_the_reading_is_said_in_the_files_own_words():
    shape, _ = _read({"question": "a", "answer": "b", "system": "s", "url": "x"})
    assert shape.words == (
        "`question` is the user turn, `answer` the assistant turn; `system` is the system prompt. "
        "Ignored columns: `url`."
    )


def test_the_shape_is_that_of_most_rows_and_not_of_the_first():
    records = _records({"note": "header"}, *[{"prompt": "ask", "completion": "tell"}] * 9)
    shape = detect_format(records)
    assert shape.name == "prompt_completion"
    with pytest.raises(RowError, match=turns.MISSING):
        convert(records[0], shape)


def test_an_answer_that_looks_like_a_list_of_turns_is_still_an_answer():
    answer = '[{"role": "user"}]'
    _, conversations = _read({"instruction": "Write JSON", "output": answer})
    assert conversations[0].messages[1].content == answer


def test_instruction_and_input_are_one_turn_that_still_knows_its_parts():
    _, (chat,) = _read({"instruction": "Translate.", "input": "Hallo", "output": "Hello"})
    assert chat.messages[0].content == "Translate.\n\nHallo"
    assert chat.messages[0].to_dict() == {
        "role": "user",
        "content": "Translate.\n\nHallo",
        "instruction": "Translate.",
        "input": "Hallo",
    }


def test_system_and_history_stand_before_the_turn():
    row = {"system": "Be kind.", "history": [["one", "two"]], "query": "ask", "response": "tell"}
    _, (chat,) = _read(row)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_the_chosen_system_prompt_is_put_only_where_a_row_has_none():
    _, chats = _read(
        {"system": "own", "prompt": "a", "completion": "b"},
        {"system": "", "prompt": "a", "completion": "b"},
        system_prompt="given",
    )
    assert [chat.messages[0].content for chat in chats] == ["own", "given"]
    _, (chat,) = _read({"messages": [{"role": "developer", "content": "own"}, *OPENAI]}, system_prompt="given")
    assert (chat.messages[0].role, chat.messages[0].content) == ("system", "own")


def test_numbers_are_text_as_they_are_written():
    _, (chat,) = _read({"prompt": "How many?", "completion": 3})
    assert chat.messages[1].content == "3"


def test_typed_parts_reasoning_and_tool_calls_of_messages_are_kept():
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "value": "here?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "Look."},
                    {"type": "tool_call", "value": '{"name": "look", "arguments": "{\\"at\\": 1}"}'},
                ],
            },
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "Rain.", "reasoning_content": "It says rain."},
        ],
        "tools": '[{"name": "look", "parameters": {}}]',
    }
    _, (chat,) = _read(row)
    asked, called, _, told = chat.messages
    assert asked.content == "Weather here?"
    assert called.reasoning_content == "Look."
    assert called.tool_calls == ({"type": "function", "function": {"name": "look", "arguments": {"at": 1}}},)
    assert told.reasoning_content == "It says rain."
    assert chat.tools == ({"type": "function", "function": {"name": "look", "parameters": {}}},)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}, {"loss_weight": 0.0}])
def test_an_answer_of_weight_nothing_is_not_trained(mark):
    rest = [{**OPENAI[1], **mark}, *OPENAI]
    _, (chat,) = _read({"messages": [OPENAI[0], *rest]})
    assert [message.trained for message in chat.messages] == [True, False, True, True]
    with pytest.raises(RowError, match=messages.NO_ANSWER):
        _read({"messages": [OPENAI[0], {**OPENAI[1], **mark}]})


def test_sharegpt_calls_join_the_turn_of_the_assistant():
    call = {"from": "function_call", "value": '{"name": "look", "arguments": {}}'}
    conversation = [SHAREGPT[0], call, call, {"from": "observation", "value": "rain"}, SHAREGPT[1]]
    _, (chat,) = _read({"conversations": conversation})
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert len(chat.messages[1].tool_calls) == 2


@pytest.mark.parametrize(
    ("reason", "conversation"),
    [
        (messages.NO_ANSWER, OPENAI[:1]),
        (messages.EMPTY_ANSWER, [OPENAI[0], {"role": "assistant", "content": " \n"}]),
        (messages.EMPTY_ANSWER, [OPENAI[0], {"role": "assistant", "content": None}]),
        (messages.EMPTY_TURN, [{"role": "user", "content": ""}, OPENAI[1]]),
        (messages.TWO_USERS, [OPENAI[0], OPENAI[0], OPENAI[1]]),
        (messages.TWO_ASSISTANTS, [OPENAI[0], OPENAI[1], OPENAI[1]]),
        (messages.SYSTEM_LATE, [OPENAI[0], {"role": "system", "content": "s"}, OPENAI[1]]),
        (messages.LONE_TOOL, [OPENAI[0], {"role": "tool", "content": "t"}, OPENAI[1]]),
        (messages.BROKEN_TEXT, [OPENAI[0], {"role": "assistant", "content": "half \ud83d"}]),
        (turns.UNKNOWN_ROLE, [{"role": "narrator", "content": "x"}, OPENAI[1]]),
        (turns.UNKNOWN_ROLE, [{"role": ["user"], "content": "x"}, OPENAI[1]]),
        (turns.NOT_A_MESSAGE, [OPENAI[0], "tell"]),
        (turns.NOT_A_MESSAGE, [OPENAI[0], {"speaker": "x"}]),
        (turns.NOT_TEXT, [OPENAI[0], {"role": "assistant", "content": {"a": 1}}]),
        (turns.NOT_TEXT, [OPENAI[0], {"role": "assistant", "content": [["x"]]}]),
        (turns.MEDIA, [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, OPENAI[1]]),
        (turns.BROKEN_CALL, [OPENAI[0], {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]),
        (turns.NOT_A_LIST, "not a list"),
        (turns.NOT_A_LIST, []),
        (turns.NOT_A_LIST, 7),
        (turns.MISSING, None),
    ],
)
def test_each_broken_rule_is_a_reason_with_its_field(reason, conversation):
    shape = detect_format(_records(*[{"messages": OPENAI}] * 3))
    with pytest.raises(RowError) as error:
        convert(Record(4, {"messages": conversation}), shape)
    bad = error.value.at(4)
    assert (bad.row, bad.reason) == (4, reason)
    assert bad.field.startswith("messages")


@pytest.mark.parametrize(
    "row", [{"prompt": "see <img>a.png</img>", "completion": "x"}, {"prompt": "a", "completion": "b", "images": ["c"]}]
)
def test_rows_with_media_are_refused(row):
    shape = detect_format(_records(*[{"prompt": "ask", "completion": "tell"}] * 3))
    with pytest.raises(RowError, match=turns.MEDIA):
        convert(Record(1, row), shape)


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ("preference pairs", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("preference pairs", {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}),
        (
            "preference pairs",
            {"conversations": [*SHAREGPT, SHAREGPT[0]], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]},
        ),
        ("not known", {"temperature": 3, "pressure": 4}),
        ("not known", {}),
    ],
)
def test_what_can_not_be_learned_by_example_is_refused_with_a_way_out(said, row):
    with pytest.raises(StudioError, match=said) as error:
        detect_format(_records(row, row))
    assert error.value.hint


@pytest.mark.parametrize(
    ("reason", "field", "row"),
    [
        (messages.CONTROL, "question", {"question": "a\x07", "answer": "b\x00"}),
        (messages.CONTROL, "answer", {"question": "a", "answer": "b\x00"}),
        (messages.BROKEN_TEXT, "question", {"question": "a\udc80", "answer": "b"}),
        (messages.EMPTY_TURN, "question", {"question": " ", "answer": "b"}),
        (messages.EMPTY_ANSWER, "answer", {"question": "a", "answer": " "}),
    ],
)
def test_a_fault_is_told_of_the_column_that_it_lies_in(reason, field, row):
    shape = detect_format(_records(*[{"question": "ask", "answer": "tell"}] * 3))
    with pytest.raises(RowError) as error:
        convert(Record(1, row), shape)
    assert (error.value.reason, error.value.field) == (reason, field)
    if reason in (messages.EMPTY_TURN, messages.EMPTY_ANSWER):
        assert error.value.found == "' '"
