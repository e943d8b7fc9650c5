"""Rows in the forms that vendors document for tuning: OpenAI's, Bedrock's, Gemini's, LLaMA-Factory's and axolotl's."""

import pytest

from lora_studio.data import messages, turns
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format
from lora_studio.data.messages import Record, RowError
from lora_studio.errors import StudioError

ASK, TELL, WORSE = ({"role": r, "content": c} for r, c in (("user", "ask"), ("assistant", "tell"), ("assistant", "no")))


def _chat(row, goal="answers"):
    records = [Record(1, row), Record(2, row)]
    return convert(records[0], detect_format(records, goal))


def _texts(turns):
    return [(message.role, message.content) for message in turns]


TOLD = [("system", "Be brief."), ("user", "ask"), ("assistant", "tell")]
BEDROCK = {
    "schemaVersion": "bedrock-conversation-2024",
    "system": [{"text": "Be brief."}],
    "messages": [{"role": "user", "content": [{"text": "ask"}]}, {"role": "assistant", "content": [{"text": "tell"}]}],
}
GEMINI = {
    "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
    "contents": [{"role": "user", "parts": [{"text": "ask"}]}, {"role": "model", "parts": [{"text": "tell"}]}],
}


@pytest.mark.parametrize(
    "row",
    [
        BEDROCK,
        GEMINI,
        {"request": GEMINI, "key": "1"},
        {"body": {"messages": [{"role": "system", "content": "Be brief."}, ASK, TELL], "model": "m"}},
        {**GEMINI, "contents": [{"parts": [{"text": "a"}, {"text": "sk"}]}, GEMINI["contents"][1]]},
        {"system_instruction": "Be brief.", "text_input": "ask", "output": "tell"},
    ],
)
def test_chats_of_bedrock_and_gemini_are_turns(row):
    assert _texts(_chat(row).messages) == TOLD


def test_calls_results_and_thoughts_of_bedrock_and_gemini_are_kept():
    bedrock = [
        {"role": "user", "content": [{"text": "ask"}]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "look", "input": {"at": 2}}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"json": {"sky": "grey"}}]}}]},
        {
            "role": "assistant",
            "content": [{"reasoningContent": {"reasoningText": {"text": "Hm."}}}, {"text": "tell"}],
        },
    ]
    tools = {"tools": [{"toolSpec": {"name": "look", "inputSchema": {"json": {"type": "object"}}}}]}
    chat = _chat({"messages": bedrock, "toolConfig": tools})
    asked, called, result, told = chat.messages
    assert [asked.role, called.role, result.role, told.role] == ["user", "assistant", "tool", "assistant"]
    assert called.tool_calls[0]["function"] == {"name": "look", "arguments": {"at": 2}}
    assert (result.content, result.tool_call_id, told.reasoning_content) == ('{"sky": "grey"}', "1", "Hm.")
    assert chat.tools == ({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},)
    gemini = [
        {"role": "user", "parts": [{"text": "ask"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {"at": 2}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"sky": "grey"}}}]},
        {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"text": "tell"}]},
    ]
    chat = _chat({"contents": gemini, "tools": [{"functionDeclarations": [{"name": "look", "parameters": {}}]}]})
    assert chat.messages[1].tool_calls[0]["function"] == {"name": "look", "arguments": {"at": 2}}
    assert (chat.messages[2].content, chat.messages[2].name) == ('{"sky": "grey"}', "look")
    assert (chat.messages[3].content, chat.messages[3].reasoning_content) == ("tell", "Hm.")
    assert chat.tools == ({"type": "function", "function": {"name": "look", "parameters": {}}},)


@pytest.mark.parametrize(
    ("reason", "turn"),
    [
        (turns.MEDIA, {"role": "user", "content": [{"image": {"format": "png", "source": {}}}]}),
        (turns.MEDIA, {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}]}),
        (turns.NOT_TEXT, {"role": "user", "content": [{"cachePoint": {"type": "default"}}]}),
        (turns.NOT_A_MESSAGE, {"role": "user", "said": "ask"}),
        (messages.EMPTY_TURN, {"role": "user", "parts": [{"text": ""}]}),
    ],
)
def test_what_a_turn_holds_beside_text_is_refused_by_its_name(reason, turn):
    shape = detect_format([Record(1, {"messages": [ASK, TELL]})])
    with pytest.raises(RowError, match=reason):
        convert(Record(1, {"messages": [turn, TELL]}), shape)


OPENAI_PAIR = {"input": {"messages": [ASK]}, "preferred_output": [TELL], "non_preferred_output": [WORSE]}


@pytest.mark.parametrize(
    "row",
    [
        OPENAI_PAIR,
        {**OPENAI_PAIR, "input": {"messages": [ASK], "tools": [], "parallel_tool_calls": True}},
        {"chosen_messages": [ASK, TELL], "rejected_messages": [ASK, WORSE]},
        {"messages": [ASK, TELL], "rejected_messages": [ASK, WORSE]},
        {"messages": [ASK, TELL], "rejected_response": "no"},
        {"prompt": "ask", "chosen": {"messages": [ASK, TELL]}, "rejected": {"messages": [ASK, WORSE]}},
        {"prompt": "ask", "winning_response": "tell", "losing_response": "no"},
        {"prompt": "ask", "preferred": ["tell"], "dispreferred": ["no"]},
        {"prompt": "ask", "chosen": "tell", "rejected": "no", "rejected_model": "m", "chosen_model": "n"},
    ],
)
def test_pairs_of_every_vendor_are_pairs_and_never_learned_from_by_example(row):
    chat = _chat(row, "preference")
    sides = (chat.messages, chat.chosen, chat.rejected)
    assert [_texts(side) for side in sides] == [[("user", "ask")], [("assistant", "tell")], [("assistant", "no")]]
    with pytest.raises(StudioError, match="These rows are preference pairs") as error:
        _chat(row)
    assert "training.method to dpo" in error.value.hint


def test_the_tools_of_openais_pairs_are_those_of_their_input():
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    chat = _chat({**OPENAI_PAIR, "input": {"messages": [ASK], "tools": [tool]}}, "preference")
    assert chat.tools == (tool,)


def test_columns_of_numbers_are_no_pair():
    shape = detect_format([Record(1, {"messages": [ASK, TELL], "chosen_score": 1, "rejected_score": 0})])
    assert shape.name == "messages"


@pytest.mark.parametrize("mark", [{"train": False}, {"training": False}, {"train": "false"}, {"weight": "0"}])
def test_a_turn_that_is_not_to_be_trained_is_not(mark):
    chat = _chat({"messages": [ASK, {**TELL, **mark}, ASK, {**TELL, "train": True, "training": None}]})
    assert [message.trained for message in chat.messages] == [True, False, True, True]


def test_a_turn_that_is_to_be_trained_in_parts_is_refused():
    detail = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    with pytest.raises(RowError, match=turns.PARTLY_TRAINED):
        _chat({"messages": [ASK, {**TELL, "train_detail": detail}]})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (["tell"], "tell"),
        ([7], "7"),
        (10**400, str(10**400)),
        ({"text": ["tell"], "answer_start": [3]}, "tell"),
        ([{"type": "text", "text": "te"}, {"type": "text", "text": "ll"}], "tell"),
    ],
)
def test_truth_values_single_texts_and_parts_are_text(value, text):
    assert _chat({"question": "ask", "answer": value}).messages[1].content == text


@pytest.mark.parametrize("value", [[[[[["x"]]]]], ["one", "two"], {"a": "b"}, [["x"], ["y"]]])
def test_several_texts_are_no_text(value):
    with pytest.raises(RowError, match=turns.NOT_TEXT):
        _chat({"question": "ask", "answer": value})


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([["Hello", ""]], messages.EMPTY_ANSWER),
        ([["", "Hi"]], messages.EMPTY_TURN),
        ([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": " "}], messages.EMPTY_ANSWER),
    ],
)
def test_an_empty_turn_is_told_of_the_column_that_it_stands_in(history, reason):
    shape = detect_format([Record(1, {"prompt": "ask", "response": "tell", "history": [["a", "b"]]})])
    with pytest.raises(RowError) as error:
        convert(Record(1, {"prompt": "ask", "response": "tell", "history": history}), shape)
    assert (error.value.reason, error.value.field) == (reason, "history")
