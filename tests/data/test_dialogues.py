"""Who speaks in dialogues that are written as one text: one way of marking and one pair of names for a file."""

import contextlib

import pytest

from lora_studio.data import dialogues
from lora_studio.data.convert import convert
from lora_studio.data.formats import apply_mapping, detect_format, detect_formats
from lora_studio.data.mapping import Format, Mapping
from lora_studio.data.messages import Record, RowError
from lora_studio.data.sources import open_source
from tests.cpu_time import CpuTime


def _records(*texts):
    return [Record(number, {"text": text}) for number, text in enumerate(texts, 1)]


def _turns(text, *others):
    records = _records(text, *others)
    shape = detect_format(records)
    assert shape.name == "dialogue"
    return [(message.role, message.content) for message in convert(records[0], shape).messages]


HEADED = "### Instruction:\nask\n\n### Response:\ntell"


@pytest.mark.parametrize(
    "heading",
    [
        *("### Quick start", "### Advantages", "### Additional notes", "### AI safety", "### Model", "### Question 2"),
        *(
            "### Answer:",
            "### Question",
            "### Output:",
            "#### Response:",
            "## Response:",
            "### Responses:",
            "### User:",
        ),
        *("### System:", "### Input:", "See ### Response: for more"),
    ],
)
def test_headings_in_an_answer_that_are_no_mark_of_the_file_are_text(heading):
    tail = f"\n\n{heading}\nmore"
    assert _turns(HEADED + tail, HEADED) == [("user", "ask"), ("assistant", "tell" + tail)]
    assert _turns(HEADED + tail) == [("user", "ask"), ("assistant", "tell" + tail)]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("Human", "Assistant"), ("User", "AI"), ("Human", "AI"), ("User", "Bot"), ("Prompt", "Response")],
)
@pytest.mark.parametrize(
    "within", ["Model: Nova 3", "Question: when?", "Answer: 42", "A: one", "Completion: x", "System: ok"]
)
def test_names_within_a_turn_that_are_not_the_files_pair_are_text(asked, answered, within):
    text = f"{asked}: I own it.\n{within}\nwhat now?\n\n{answered}: Sell.\n{within}"
    turns = [("user", f"I own it.\n{within}\nwhat now?"), ("assistant", f"Sell.\n{within}")]
    assert _turns(text) == _turns(text, f"{asked}: a\n{answered}: b") == turns


def test_the_pair_is_decided_over_the_file_and_not_for_a_row():
    usual = ["Question: what?\nAnswer: this"] * 8
    odd = "Human: what?\nAssistant: that"
    records = _records(*usual, odd)
    shape = detect_format(records)
    assert "`Question:` marks user turns, `Answer:` assistant turns" in shape.words
    with pytest.raises(RowError, match=dialogues.NO_MARKS):
        convert(records[-1], shape)


def test_a_system_mark_counts_where_rows_begin_with_one():
    text = "System: Be kind.\nHuman: ask\nAssistant: tell"
    assert _turns(text) == [("system", "Be kind."), ("user", "ask"), ("assistant", "tell")]
    assert _turns("Rules.\nSystem: Be kind.\nHuman: ask\nAssistant: tell", text)[0] == ("system", "Rules.\n\nBe kind.")


@pytest.mark.parametrize(
    ("head", "system"),
    [
        ("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]", "Be brief."),
        ("<s>Be brief.\n\n", "Be brief."),
        ("Be brief. ", "Be brief."),
        ("<s>", None),
        ("", None),
    ],
)
def test_what_stands_before_the_first_inst_is_the_system_prompt(head, system):
    turns = _turns(f"{head}[INST]ask[/INST]tell</s><s>[INST] two [/INST] see [INST] marks</s>")
    said = [("user", "ask"), ("assistant", "tell"), ("user", "two"), ("assistant", "see [INST] marks")]
    assert turns == ([("system", system)] if system else []) + said


def test_tool_calls_in_inst_texts_are_refused_and_not_learned_as_an_answer():
    text = "[INST]ask[/INST]tell</s>[AVAILABLE_TOOLS][{}][/AVAILABLE_TOOLS][INST]two[/INST]three</s>"
    shape = detect_format(_records(text, "[INST]ask[/INST]tell"))
    with pytest.raises(RowError, match=dialogues.TOOL_MARKS):
        convert(_records(text)[0], shape)


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nask<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\ntell<|eot_id|>",
        "<s>Be kind. USER: ask ASSISTANT: tell</s>",
        "<｜begin▁of▁sentence｜>Be kind.<｜User｜>ask<｜Assistant｜>tell<｜end▁of▁sentence｜>",
        "<bos>Be kind.<start_of_turn>user\nask<end_of_turn>\n<start_of_turn>model\ntell<end_of_turn>\n",
    ],
)
def test_texts_that_a_template_rendered_are_read_as_its_turns(text):
    assert _turns(text) == [("system", "Be kind."), ("user", "ask"), ("assistant", "tell")]


def test_the_marks_are_kept_with_the_reading_and_found_for_a_persons_mapping_too():
    records = _records("Human: ask\nModel: X\nAssistant: tell", "nothing of the kind", "nor here")
    assert [shape.name for shape in detect_formats(records)] == ["text"]
    shape = apply_mapping(Mapping(dialogue="text"), records)
    assert Format.from_dict(shape.to_dict()) == shape
    assert convert(records[0], shape).messages[0].content == "ask\nModel: X"
    with pytest.raises(RowError, match=dialogues.NO_MARKS):
        convert(records[1], shape)


EXCHANGES = ["User: a\n\nAssistant: b", "User: c\n\nAssistant: d"]


def _rows_of(write, name, text):
    return [(row.row, row.fields["text"]) for row in open_source(write(name, text)).rows()]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d", EXCHANGES),
        ("User: a\nAssistant: b\nUser: c\nAssistant: d", ["User: a\nAssistant: b", "User: c\nAssistant: d"]),
        ("Q: a\n\nA: b\n\nmore\n\nQ: c\n\nA: d\n", ["Q: a\n\nA: b\n\nmore", "Q: c\n\nA: d"]),
        ("# Talk\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d", ["# Talk", *EXCHANGES]),
        ("### User\n\na\n\n### Assistant\n\nb\n", ["### User\n\na\n\n### Assistant\n\nb"]),
        (
            "System: s\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d",
            ["System: s\n\nUser: a\n\nAssistant: b", "User: c\n\nAssistant: d"],
        ),
        (
            "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d\n\n---\n\nUser: e\n\nAssistant: f",
            ["User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d", "User: e\n\nAssistant: f"],
        ),
        (
            "User: a\n\nAssistant: b\n\n\n\nUser: c\n\nAssistant: d\n\nUser: e\n\nAssistant: f",
            ["User: a\n\nAssistant: b", "User: c\n\nAssistant: d\n\nUser: e\n\nAssistant: f"],
        ),
        (
            "System: s\nUser: a\nAssistant: b\nUser: c\nAssistant: d\nSystem: t\nUser: e\nAssistant: f",
            ["System: s\nUser: a\nAssistant: b\nUser: c\nAssistant: d", "System: t\nUser: e\nAssistant: f"],
        ),
    ],
)
def test_a_dialogue_over_the_lines_of_a_text_is_read_as_rows_of_whole_exchanges(write, text, rows):
    assert [row for _, row in _rows_of(write, "talk.txt", text)] == rows
    assumed = open_source(write("talk.txt", text)).assumptions
    assert any("The lines of the text are a dialogue" in sentence for sentence in assumed)
    shape, plain = detect_formats([Record(1, {"text": row}) for row in rows if row != "# Talk"])
    assert (shape.name, plain.name, shape.ambiguous) == ("dialogue", "text", True)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("User: a\nAssistant: b\nUser: c\nAssistant: d\n\nUser: e\nAssistant: f", [1, 6]),
        ("Chapter one\n\nUser: a\n\nAssistant: b", [1, 3, 5]),
        ("Title\n=====\n\nOne line.\nAnother.\n---\n\nThe end.", [1, 4, 8]),
    ],
)
def test_other_texts_stay_paragraphs_and_lines(write, text, rows):
    assert [number for number, _ in _rows_of(write, "book.txt", text)] == rows


@pytest.mark.parametrize("end", ["", "\nAssistant: b", "### Response:\nb", "[/INST]b", "<|im_start|>assistant\nb"])
@pytest.mark.parametrize(
    "unit",
    [
        *(" ", "\n", '"', "[", "a", " \n", "[INST]", "[/INST]", "[INST][/INST]", "</s>", "<|im_end|> ", "### ", "###"),
        *(
            "Human:\n",
            "Assistant: ",
            "### Instruction:\n",
            "### Input:\n",
            "<|user|>",
            "<|im_start|>user\n",
            "**",
            "<s>",
        ),
    ],
)
def test_a_hundred_thousand_letters_of_anything_are_read_within_a_second(unit, end):
    text = f"Human: {unit * (100_000 // len(unit))}{end}"
    with CpuTime() as spent:
        for shape in detect_formats(_records(text, text)):
            with contextlib.suppress(RowError):
                convert(_records(text)[0], shape)
    assert spent.seconds < 1
