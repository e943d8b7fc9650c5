"""Which column asks and which answers: the filled one wins, a constant asks nothing, a second text is a question."""

import pytest

from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format, detect_formats
from lora_studio.data.messages import Record
from lora_studio.errors import StudioError

ASKED = ["Where is the office?", "When does it close?", "How much is it?", "Is there a cafe?"]
TOLD = ["Next to gate three.", "At six.", "Four euros.", "Yes, upstairs."]


def _records(make, count=4):
    return [Record(at + 1, make(at, ASKED[at % 4], TOLD[at % 4])) for at in range(count)]


def _turns(make, count=4):
    records = _records(make, count)
    shape = detect_format(records)
    return [[message.content for message in convert(record, shape).messages] for record in records]


PAIRS = [list(pair) for pair in zip(ASKED, TOLD, strict=True)]


@pytest.mark.parametrize(
    "make",
    [
        lambda at, q, a: {"question": q, "sql": a, **({"answer": "x"} if at == 0 else {})},
        lambda at, q, a: {"question": q, "answer": a if at == 0 else "", "sql": a},
        lambda at, q, a: {"question": q, "answer": a if at == 0 else None, "output": a},
        lambda at, q, a: {"instruction": q, "response": a if at else "", "target": a},
        lambda at, q, a: {"prompt": q if at == 0 else " ", "question": q, "answer": a},
        lambda at, q, a: {"title": "T", "problem": q, "solution": a if at == 0 else None, "response": a},
    ],
)
def test_the_filled_column_wins_over_one_that_is_filled_in_some_rows(make):
    assert _turns(make) == PAIRS


def test_a_sparse_answer_that_is_not_used_is_told():
    shape = detect_format(_records(lambda at, q, a: {"question": q, "sql": a, "answer": "x" if at == 0 else None}))
    assert "`answer`, filled in 25% of the rows, is not the answer." in shape.words


def test_two_filled_columns_that_are_named_like_answers_are_asked_about():
    records = _records(lambda at, q, a: {"problem": q, "solution": a, "answer": str(at)})
    readings = detect_formats(records)
    assert [shape.columns["completion"] for shape in readings] == ["answer", "solution"]
    assert readings[0].ambiguous
    assert "Which one should be trained" in detect_format(records).question


@pytest.mark.parametrize(
    "row",
    [
        {"prompt_type": "plain"},
        {"task": "qa", "url": "https://a.b/c"},
        {"created_at": "2024-01-02"},
        {"run": "0123456789abcdef"},
    ],
)
def test_a_column_that_says_nothing_of_its_own_is_no_question(row):
    records = _records(lambda at, q, a: {**row, "output": a})
    (shape,) = detect_formats(records)
    assert (shape.name, shape.columns) == ("text", {"text": "output"})
    assert convert(records[0], shape).text == TOLD[0]


@pytest.mark.parametrize(
    ("row", "asked", "about"),
    [
        ({"prompt": "Translate."}, "prompt", "text"),
        ({"instruction": "Translate."}, "instruction", "query"),
        ({"question": "What is meant?", "language": "en"}, "question", "sentence"),
    ],
)
def test_what_a_constant_question_is_asked_about_belongs_to_it(row, asked, about):
    records = _records(lambda at, q, a: {**row, about: q, "response": a, "target": a})
    shape = detect_format(records)
    assert [shape.columns[part] for part in ("instruction" if asked == "instruction" else "prompt", "input")] == [
        asked,
        about,
    ]
    assert row[asked] in (said := convert(records[0], shape).messages[0].content)
    assert ASKED[0] in said


def test_where_rows_come_from_is_no_question_beside_one():
    records = _records(lambda at, q, a: {"source": "web", "text_input": q, "response": a})
    assert detect_format(records).columns == {"prompt": "text_input", "completion": "response"}


def test_a_few_classes_are_no_question_and_an_ask_without_an_answer_is_no_text():
    records = _records(lambda at, q, a: {"category": "ab"[at % 2], "output": f"{a} {at}"}, count=40)
    assert detect_formats(records)[0].ambiguous
    for row in ({"question": 1, "task": "qa"}, {"question": 1, "answer_format": "one word"}):
        with pytest.raises(StudioError):
            detect_format(_records(lambda at, q, a, row=row: {**row, "question": q}))


@pytest.mark.parametrize("text", ["text", "content", "document", "body", "passage"])
@pytest.mark.parametrize("other", ["summary", "code", "label", "highlights"])
def test_a_second_text_is_asked_about_and_never_left_aside(text, other):
    records = _records(lambda at, q, a: {text: q, other: a})
    readings = detect_formats(records)
    assert [shape.columns for shape in readings] == [
        {"prompt": text, "completion": other},
        {"prompt": other, "completion": text},
        {"text": text},
    ]
    assert all(shape.ambiguous for shape in readings)
    with pytest.raises(StudioError, match=f"`{text}`, `{other}` contain text") as error:
        detect_format(records)
    assert f'{{"user": "{text}", "assistant": "{other}"}}' in error.value.hint


@pytest.mark.parametrize(
    "aside",
    [
        {"id": "7", "url": "https://a.b/c"},
        {"timestamp": "2019-04-25T12:57:54Z"},
        {"source": "wiki", "language": "en"},
        {"score": 3, "system": "Be kind."},
        {"summary": None},
    ],
)
def test_what_tells_of_a_row_stands_beside_its_text_unasked(aside):
    (shape,) = detect_formats(_records(lambda at, q, a: {"text": q, **aside}))
    assert shape.columns == {"text": "text"}


def test_a_title_beside_a_text_is_asked_about_and_the_text_taken():
    text, pair = detect_formats(_records(lambda at, q, a: {"title": q, "text": a, "url": "https://a.b"}))
    assert (text.name, pair.columns) == ("text", {"prompt": "title", "completion": "text"})
    assert text.ambiguous


@pytest.mark.parametrize(
    "make",
    [
        lambda at, q, a: {"message_id": f"m{at}", "parent_id": "m", "role": "prompter", "text": q, "lang": "en"},
        lambda at, q, a: {"message_tree_id": "t", "role": ["prompter", "assistant"][at % 2], "text": q},
        lambda at, q, a: {"role": ["user", "assistant"][at % 2], "content": q},
        lambda at, q, a: {"message_id": f"m{at}", "parent_id": "m", "text": q},
    ],
)
def test_messages_one_a_row_are_no_texts(make):
    assert detect_formats(_records(make)) == []
    with pytest.raises(StudioError, match="is a single message") as error:
        detect_format(_records(make))
    assert "`messages`" in error.value.hint


OPTIONS = [
    (lambda at, a: {"A": a, "B": "x", "answer": "AB"[at % 2]}, "A. {}\nB. x", ["A", "B"]),
    (lambda at, a: {"option_a": a, "option_b": "x", "answer": "ab"[at % 2]}, "a. {}\nb. x", ["a", "b"]),
    (lambda at, a: {"sol1": a, "sol2": "x", "answer": at % 2}, "0. {}\n1. x", ["0", "1"]),
    (lambda at, a: {"choice1": a, "choice2": "x", "answer": str(at % 2 + 1)}, "1. {}\n2. x", ["1", "2"]),
    (lambda at, a: {"first": a, "second": "x", "answer": ["first", "second"][at % 2]}, "first. {}\nsecond. x", None),
]


@pytest.mark.parametrize(("make", "options", "answers"), OPTIONS)
def test_answers_that_name_columns_get_these_as_options_in_the_question_and_it_is_asked(make, options, answers):
    records = _records(lambda at, q, a: {"question": q, **make(at, a)})
    readings = detect_formats(records)
    assert [shape.name for shape in readings] == ["mapped", "prompt_completion"]
    assert "Add these to the prompt as options" in readings[0].question
    asked, told = (message.content for message in convert(records[1], detect_format(records)).messages)
    assert asked == f"{ASKED[1]}\n\n{options.format(TOLD[1])}"
    assert told == (answers or ["first", "second"])[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda at, a: {"choices": [a, "x", "y"], "answer": at % 3},
        lambda at, a: {"choices": {"text": [a, "x", "y"], "label": ["A", "B", "C"]}, "answerKey": "ABC"[at % 3]},
        lambda at, a: {"endings": [a, "x", "y"], "answer": str(at % 3)},
    ],
)
def test_answers_that_point_into_a_list_left_aside_are_told_and_asked_about(make):
    shape = detect_format(_records(lambda at, q, a: {"question": q, **make(at, a)}))
    assert "which is ignored, so their meaning is not learned" in shape.words
    assert shape.question


def test_options_whose_text_is_the_answer_are_left_aside_unasked():
    (shape,) = detect_formats(_records(lambda at, q, a: {"question": q, "choices": [a, "x"], "answer": a}))
    assert not shape.ambiguous


@pytest.mark.parametrize("described", ["output_description", "output_format", "output_specification", "output_spec"])
def test_what_the_output_looks_like_is_never_the_answer(described):
    make = lambda at, q, a: {"title": f"T{at}", "description": q, "input_format": f"n{at}", described: a}  # noqa: E731
    with pytest.raises(StudioError, match="contain problems but no answers"):
        detect_format(_records(make))
    with pytest.raises(StudioError, match="contain problems but no answers"):
        detect_format(_records(lambda at, q, a: {"problem": q, described: a}))


def test_a_list_of_several_texts_is_not_the_answer_whatever_its_name():
    make = lambda at, q, a: {"input": q, "generations": [a, "x"], "chosen": a, "rejected": "no"}  # noqa: E731
    assert [shape.name for shape in detect_formats(_records(make))] == ["preference"]


def test_a_passage_beside_a_question_belongs_to_it():
    records = _records(lambda at, q, a: {"question": q, "passage": a, "answer": at % 2 == 0})
    shape = detect_format(records)
    assert "`question` followed by `passage` is the user turn" in shape.words
    contents = [message.content for message in convert(records[0], shape).messages]
    assert contents == [f"{ASKED[0]}\n\n{TOLD[0]}", "true"]
