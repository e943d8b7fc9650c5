"""Shapes beside the common ones: comparisons, marks, dialogues in one text, problems in fields, tokens."""

import pytest

from lora_studio.data import convert as conversion
from lora_studio.data import convert as preferences
from lora_studio.data import dialogues, messages
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format, detect_formats
from lora_studio.data.messages import Record, RowError

ASK, TELL, WORSE = ({"role": r, "content": c} for r, c in (("user", "ask"), ("assistant", "tell"), ("assistant", "no")))
HUMAN, GPT, BAD = ({"from": f, "value": v} for f, v in (("human", "ask"), ("gpt", "tell"), ("gpt", "no")))


def _records(*rows):
    return [Record(number, row) for number, row in enumerate(rows, 1)]


def _texts(turns):
    return [(message.role, message.content) for message in turns]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ask", "chosen": "tell", "rejected": "no"},
        {"question": "ask", "response_chosen": "tell", "response_rejected": "no"},
        {"prompt": [ASK], "chosen": [TELL], "rejected": [WORSE]},
        {"prompt": "ask", "chosen": [ASK, TELL], "rejected": [ASK, WORSE], "score_chosen": 8.0},
        {"chosen": [ASK, TELL], "rejected": [ASK, WORSE]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": BAD},
        {"messages": [ASK, TELL], "chosen": [ASK, TELL], "rejected": [ASK, WORSE]},
        {"instruction": "ask", "input": "", "chosen": "tell", "rejected": "no"},
        {"chosen": "\n\nHuman: ask\n\nAssistant: tell", "rejected": "\n\nHuman: ask\n\nAssistant: no"},
        {"query": "ask", "response": "tell", "rejected_response": "no"},
    ],
)
def test_comparisons_of_every_form_become_prompt_chosen_and_rejected(row):
    shape = detect_format(_records(row, row), goal="preference")
    assert shape.name == "preference"
    chat = convert(Record(1, row), shape)
    assert _texts(chat.messages) == [("user", "ask")]
    assert _texts(chat.chosen) == [("assistant", "tell")]
    assert _texts(chat.rejected) == [("assistant", "no")]


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        (preferences.SAME_ANSWERS, {"prompt": "ask", "chosen": "tell", "rejected": "tell"}),
        (messages.EMPTY_ANSWER, {"prompt": "ask", "chosen": "tell", "rejected": ""}),
        ("lacks a required field", {"prompt": "ask", "chosen": "tell", "rejected": None}),
        ("not text", {"prompt": "ask", "chosen": ["tell", "me"], "rejected": "no"}),
    ],
)
def test_a_comparison_that_compares_nothing_is_a_bad_row(reason, row):
    shape = detect_format(_records(*[{"prompt": "ask", "chosen": "tell", "rejected": "no"}] * 3), goal="preference")
    with pytest.raises(RowError, match=reason):
        convert(Record(1, row), shape)


def test_comparisons_that_share_no_prompt_are_bad_rows():
    shape = detect_format(_records(*[{"chosen": [ASK, TELL], "rejected": [ASK, WORSE]}] * 2), goal="preference")
    with pytest.raises(RowError, match=preferences.NO_SHARED_PROMPT):
        convert(Record(1, {"chosen": [TELL], "rejected": [WORSE]}), shape)


@pytest.mark.parametrize("row", [{"messages": [ASK, TELL]}, {"prompt": "ask", "completion": "tell"}])
def test_marked_answers_keep_their_mark(row):
    records = _records({**row, "label": True}, {**row, "label": False})
    shape = detect_format(records, goal="preference")
    assert shape.name == "kto"
    assert [convert(record, shape).label for record in records] == [True, False]
    assert _texts(convert(records[0], shape).messages) == [("user", "ask"), ("assistant", "tell")]
    with pytest.raises(RowError, match=preferences.NOT_A_MARK):
        convert(Record(3, {**row, "label": "maybe"}), shape)


@pytest.mark.parametrize(
    "text",
    [
        "Human: ask\nAssistant: tell",
        "\n\nHuman: ask\n\nAssistant: tell",
        "### Human: ask### Assistant: tell",
        "### Instruction:\nask\n\n### Response:\ntell",
        "User: ask\nBot: tell",
        "Q: ask\nA: tell",
        "**User:** ask\n**Assistant:** tell",
        "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\ntell<|im_end|>\n",
        "<|user|>\nask</s>\n<|assistant|>\ntell</s>",
        "<s>[INST] ask [/INST] tell </s>",
    ],
)
def test_dialogues_in_one_text_are_read_as_turns_or_as_text(text):
    readings = detect_formats(_records({"text": text}, {"text": text}))
    assert [shape.name for shape in readings] == ["dialogue", "text"]
    assert readings[0].ambiguous
    assert _texts(convert(Record(1, {"text": text}), readings[0]).messages) == [("user", "ask"), ("assistant", "tell")]
    assert convert(Record(1, {"text": text}), readings[1]).text == text


def test_what_stands_before_a_dialogue_is_the_system_prompt_and_inputs_join_their_turn():
    text = "Below is a task.\n\n### Instruction:\nask\n\n### Input:\nmore\n\n### Response:\ntell"
    (shape, _) = detect_formats(_records({"text": text}))
    chat = convert(Record(1, {"text": text}), shape)
    assert _texts(chat.messages) == [("system", "Below is a task."), ("user", "ask\n\nmore"), ("assistant", "tell")]
    inst = "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nask [/INST] tell </s><s>[INST] two [/INST] three"
    (other, _) = detect_formats(_records({"text": inst}))
    chat = convert(Record(1, {"text": inst}), other)
    assert [message.content for message in chat.messages] == ["Be kind.", "ask", "tell", "two", "three"]
    with pytest.raises(RowError, match=dialogues.NO_MARKS):
        convert(Record(1, {"text": "nothing of the kind"}), shape)


def test_a_text_that_only_mentions_a_name_is_plain_text():
    assert detect_format(_records({"text": "Question: who was it? He did not know."})).name == "text"


PROBLEM = {
    "title": "Sum",
    "description": "Add two numbers.",
    "input_format": "a and b",
    "output_format": "their sum",
    "examples": [{"input": "1 2", "output": "3"}],
    "time_limit": 2.0,
}


def test_problems_in_fields_become_one_turn_and_their_solution_the_answer():
    row = {**PROBLEM, "generation": "<think>easy</think>print(a + b)"}
    shape = detect_format(_records(row, row))
    assert shape.name == "problem"
    assert "Some answers contain reasoning in <think> tags" in shape.words
    chat = convert(Record(1, row), shape)
    assert chat.messages[0].content == (
        "Sum\n\nAdd two numbers.\n\nInput:\na and b\n\nOutput:\ntheir sum\n\nExamples:\nInput: 1 2\nOutput: 3"
    )
    assert chat.messages[1].content == row["generation"]


def test_input_and_output_describe_a_problem_that_has_a_solution_and_answer_one_that_has_none():
    fields = {"title": "Sum", "description": "Add.", "input": "a b", "output": "sum", "examples": "1 2 -> 3"}
    with_solution = {**fields, "solution": "code"}
    chat = convert(Record(1, with_solution), detect_format(_records(with_solution)))
    assert (chat.messages[1].content, "Output:\nsum" in chat.messages[0].content) == ("code", True)
    chat = convert(Record(1, fields), detect_format(_records(fields)))
    assert (chat.messages[1].content, "sum" in chat.messages[0].content) == ("sum", False)


def test_problems_with_turns_beside_them_use_the_turns_where_a_row_has_them():
    with_turns, without = (
        {**PROBLEM, "solution": "x", "messages": [ASK, TELL]},
        {**PROBLEM, "solution": "code", "messages": None},
    )
    assert detect_format(_records(with_turns, with_turns)).name == "messages"
    shape = detect_format(_records(with_turns, without))
    assert shape.name == "problem"
    assert _texts(convert(Record(1, with_turns), shape).messages) == [("user", "ask"), ("assistant", "tell")]
    assert convert(Record(2, without), shape).messages[1].content == "code"


def test_a_column_of_reasoning_goes_before_the_answer():
    row = {"Question": "ask", "Complex_CoT": "hm", "Response": "tell"}
    shape = detect_format(_records(row))
    assert "`Complex_CoT` is the reasoning before the answer" in shape.words
    assert convert(Record(1, row), shape).messages[1].reasoning_content == "hm"


def test_tokenised_rows_are_named_and_kept_as_they_are():
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]}
    (shape,) = detect_formats(_records(row))
    chat = convert(Record(1, row), shape)
    assert (shape.name, chat.input_ids, chat.labels) == ("tokenised", (1, 2, 3), (-100, 2, 3))
    (bare,) = detect_formats(_records({"input_ids": [1]}))
    assert convert(Record(1, {"input_ids": [1]}), bare).labels is None
    for wrong, reason in (([1, "x"], conversion.NOT_IDS), ([], conversion.NOT_IDS), ([1], conversion.UNLIKE_LENGTHS)):
        with pytest.raises(RowError, match=reason):
            convert(Record(1, {"input_ids": [1, 2], "labels": wrong}), shape)


@pytest.mark.parametrize("letter", ["\x00", "\x07", "\x1b", "\x0c"])
def test_control_characters_are_reported_with_their_place(letter):
    shape = detect_format(_records({"prompt": "ask", "completion": "tell"}))
    with pytest.raises(RowError, match=messages.CONTROL) as error:
        convert(Record(1, {"prompt": "ask", "completion": f"te{letter}ll"}), shape)
    assert error.value.found.startswith(f"U+{ord(letter):04X} at character 3")
    assert convert(Record(1, {"prompt": "a\tb\r\n", "completion": "tell"}), shape).messages[0].content == "a\tb\r\n"


def test_a_tools_result_keeps_the_id_of_its_call():
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    told = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    row = {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, told, TELL]}
    chat = convert(Record(1, row), detect_format(_records(row)))
    assert chat.messages[1].tool_calls[0]["id"] == "call_1"
    assert chat.messages[2].to_dict() == told


@pytest.mark.parametrize(
    "history", [[["one", "two"]], '[["one", "two"]]', [ASK, TELL], [{"human": "x", "assistant": "y"}]]
)
def test_earlier_turns_are_pairs_or_turns(history):
    row = {"history": history, "query": "ask", "response": "tell"}
    chat = convert(Record(1, row), detect_format(_records(row)))
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


def test_a_picture_in_a_cell_is_refused():
    shape = detect_format(_records({"prompt": "ask", "completion": "tell"}))
    with pytest.raises(RowError, match="images, audio and video"):
        convert(Record(1, {"prompt": "ask", "completion": "tell", "scan": {"bytes": b"x", "path": None}}), shape)
