"""A reading that a person gives or corrects, and files whose reading must be asked for."""

import json

import pytest

from lora_studio.data import messages, turns
from lora_studio.data.convert import convert
from lora_studio.data.formats import apply_mapping, detect_format, detect_formats, mapping_of
from lora_studio.data.mapping import Format, Mapping
from lora_studio.data.messages import Record, RowError
from lora_studio.errors import StudioError


def _records(*rows):
    return [Record(number, row) for number, row in enumerate(rows, 1)]


def _mapped(row, system_prompt=None, **parts):
    records = _records(row)
    shape = apply_mapping(Mapping.from_dict(parts), records)
    assert Format.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape
    return shape, convert(records[0], shape, system_prompt)


def _turns(chat):
    return [(message.role, message.content) for message in chat.messages]


def test_columns_of_any_name_can_play_the_parts():
    row = {"frage": "ask", "antwort": "tell", "rolle": "Be kind.", "gedanke": "hm", "url": "x"}
    shape, chat = _mapped(row, user="frage", assistant="antwort", system="rolle", reasoning="gedanke")
    assert _turns(chat) == [("system", "Be kind."), ("user", "ask"), ("assistant", "tell")]
    assert chat.messages[2].reasoning_content == "hm"
    assert shape.words == (
        "`frage` is the user turn, `antwort` the assistant turn; `rolle` is the system prompt; `gedanke` is the "
        "reasoning before the answer. Ignored columns: `url`."
    )


def test_a_template_makes_the_users_turn_out_of_columns_and_closes_up_where_one_is_empty():
    parts = {"user_template": "{title}\n\n{the text}\n\nAnswer in {{braces}}.", "assistant": "a"}
    shape, chat = _mapped({"title": "T", "the text": "{x}", "a": "tell"}, **parts)
    assert chat.messages[0].content == "T\n\n{x}\n\nAnswer in {braces}."
    assert "`title`, `the text`" in shape.words
    assert (
        convert(Record(2, {"title": "", "the text": "D", "a": "tell"}), shape).messages[0].content.startswith("D\n\n")
    )
    with pytest.raises(RowError, match=turns.MISSING):
        convert(Record(3, {"title": None, "a": "tell"}), shape)


def test_role_names_of_the_file_can_be_named():
    talk = [{"role": "Kunde", "content": "ask"}, {"role": "Berater", "content": "tell"}]
    with pytest.raises(RowError, match=turns.UNKNOWN_ROLE):
        convert(Record(1, {"talk": talk}), detect_format(_records({"talk": talk})))
    _, chat = _mapped({"talk": talk}, messages="talk", roles={"Kunde": "user", "Berater": "assistant"})
    assert _turns(chat) == [("user", "ask"), ("assistant", "tell")]


def test_turns_may_be_answered_by_a_column_of_their_own():
    row = {"talk": [{"role": "user", "content": "ask"}], "best": "tell"}
    _, chat = _mapped(row, messages="talk", assistant="best")
    assert _turns(chat) == [("user", "ask"), ("assistant", "tell")]


def test_the_mappings_system_prompt_goes_before_the_general_one():
    _, chat = _mapped({"q": "ask", "a": "tell"}, system_prompt="general", **{"user": "q", "assistant": "a"})
    assert chat.messages[0].content == "general"
    records = _records({"q": "ask", "a": "tell"})
    own = apply_mapping(Mapping.from_dict({"user": "q", "assistant": "a", "system_prompt": "own"}), records)
    assert convert(records[0], own, "general").messages[0].content == "own"
    assert "a system prompt is added" in own.words


def test_all_that_is_wrong_with_a_mapping_is_said_at_once():
    with pytest.raises(StudioError) as error:
        Mapping.from_dict({"usr": "q", "assistant": 3, "roles": {"x": "narrator"}})
    assert "3 errors" in error.value.message
    assert "did you mean `user`?" in error.value.message
    with pytest.raises(StudioError) as error:
        apply_mapping(Mapping(user="questoin", assistant="b", chosen="c"), _records({"question": "q", "b": "x"}))
    assert "did you mean `question`?" in error.value.message
    assert "both `chosen` and `rejected`" in error.value.message


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("nothing to train on", {"user": "q"}),
        ("has no prompt", {"assistant": "a"}),
        ("contains no column", {"user_template": "same", "assistant": "a"}),
        ("whole rows", {"text": "q", "user": "q", "assistant": "a"}),
        ("`assistant` and `user` name the same column, `a`", {"user": "a", "assistant": "a"}),
        ("`chosen` and `rejected` name the same column", {"user": "q", "chosen": "a", "rejected": "a"}),
        ("there is no column", {"user_template": "{nothing}", "assistant": "a"}),
        ("object of names", [1]),
        ("object with the role names", {"roles": [1]}),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(said, parts):
    with pytest.raises(StudioError, match=said) as error:
        apply_mapping(Mapping.from_dict(parts), _records({"q": "ask", "a": "tell"}))
    assert error.value.hint


def test_a_mapping_of_preference_is_refused_for_learning_by_example():
    records = _records({"q": "ask", "good": "yes", "bad": "no"})
    mapping = Mapping(user="q", chosen="good", rejected="bad")
    with pytest.raises(StudioError, match="preference pairs"):
        apply_mapping(mapping, records)
    chat = convert(records[0], apply_mapping(mapping, records, goal="preference"))
    assert (chat.messages[0].content, chat.chosen[0].content, chat.rejected[0].content) == ("ask", "yes", "no")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"instruction": "a", "input": "", "output": "b", "system": "s"},
        {"question": "a", "answer": "b"},
        {"text": "a"},
        {"text": "Human: a\nAssistant: b"},
        {"title": "t", "description": "d", "examples": "e", "solution": "b"},
    ],
)
def test_a_recognised_reading_is_a_mapping_to_start_from(row):
    records = _records(row, row)
    shape = detect_format(records)
    again = apply_mapping(Mapping.from_dict(mapping_of(shape).to_dict()), records)
    told = convert(records[0], shape), convert(records[0], again)
    assert told[0].text == told[1].text
    if "title" not in row:
        assert [m.content.strip() for m in told[0].messages] == [m.content.strip() for m in told[1].messages]
    else:
        assert told[1].messages[0].content == "t\n\nd\n\nExamples:\ne"


def test_answers_and_comparisons_in_one_file_are_asked_about():
    row = {"instruction": "i", "input": "", "output": "o", "chosen": "c", "rejected": "r"}
    readings = detect_formats(_records(row, row))
    assert [shape.name for shape in readings] == ["alpaca", "preference"]
    assert all(shape.ambiguous and "`output`" in shape.question for shape in readings)


def test_columns_whose_names_say_nothing_are_offered_both_ways_and_never_guessed():
    records = _records({"foo": "a", "bar": "b"})
    readings = detect_formats(records)
    assert [shape.columns for shape in readings] == [
        {"prompt": "foo", "completion": "bar"},
        {"prompt": "bar", "completion": "foo"},
    ]
    assert readings[0].ambiguous
    with pytest.raises(StudioError, match="not known"):
        detect_format(records)
    assert detect_formats(_records({"n": 1})) == []


def test_a_clear_file_is_not_asked_about():
    (shape,) = detect_formats(_records({"question": "a", "answer": "b"}))
    assert not shape.ambiguous
    assert shape.question == ""


def test_a_row_that_lacks_a_mapped_part_is_reported_with_its_field():
    shape, _ = _mapped({"q": "ask", "a": "tell"}, user="q", assistant="a")
    with pytest.raises(RowError, match=messages.EMPTY_ANSWER) as error:
        convert(Record(2, {"q": "ask", "a": " "}), shape)
    assert error.value.field == "a"
