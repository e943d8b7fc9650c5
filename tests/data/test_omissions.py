"""What a chat template leaves out: never in silence, and never so that something else than the answers is trained."""

import pytest
from conftest import MARKED, UNMARKED, build_tokenizer

from lora_studio.data import pipeline
from lora_studio.data.dataset import prepare
from lora_studio.errors import StudioError

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
CALLED = [
    {"role": "user", "content": "How warm?"},
    {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "20"},
    {"role": "assistant", "content": "20 degrees."},
]
THOUGHT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."},
]
PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
CALL_ALONE = MARKED.replace("{{- message.content +", "{{- (message.tool_calls | string or message.content) +")


def _assumptions(write, template, rows):
    tokenizer = build_tokenizer(template)
    return prepare(str(write("a.jsonl", [{"messages": row} for row in rows])), tokenizer).assumptions


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_a_template_that_prints_no_answer_is_refused(write, template):
    mute = template.replace("message.content +", "'fixed' +")
    with pytest.raises(StudioError, match="contain none of the answers"):
        _assumptions(write, mute, [PLAIN] * 5)


def test_answers_that_a_template_changes_are_counted(write):
    loud = MARKED.replace("{%- generation %}{{- message.content", "{%- generation %}{{- message.content | upper")
    with pytest.raises(StudioError, match="contain none of the answers"):
        _assumptions(write, loud, [PLAIN] * 3)
    found = _assumptions(write, loud, [PLAIN, PLAIN, [PLAIN[0], {"role": "assistant", "content": "42"}]])
    assert "In 2 of 3 rows checked, the chat template changes the last answer." in found


def test_what_is_said_beside_a_call_is_counted_where_the_template_drops_it(write):
    assert "1 rows contain text beside a tool call that the chat template omits." in _assumptions(
        write, CALL_ALONE, [CALLED, PLAIN, PLAIN]
    )
    both = CALL_ALONE.replace(
        "(message.tool_calls | string or message.content)", "message.content + message.tool_calls | string"
    )
    assert not _assumptions(write, both, [CALLED, PLAIN, PLAIN])


def test_reasoning_is_counted_where_the_template_drops_it(write):
    assert "2 rows contain reasoning that the chat template omits, fully or partly." in _assumptions(
        write, MARKED, [THOUGHT, PLAIN, THOUGHT]
    )
    thinking = MARKED.replace(
        "message.content + '<|im_end|>' }}{%- endgen",
        "(message.reasoning_content or '') + message.content + '<|im_end|>' }}{%- endgen",
    )
    assert not _assumptions(write, thinking, [THOUGHT, PLAIN])


@pytest.mark.parametrize("better", [True, False])
def test_what_is_left_out_of_either_answer_of_a_pair_is_counted(write, better):
    def pair(first, second):
        answers = ([first], [second]) if better else ([second], [first])
        return {"prompt": [PLAIN[0]], **dict(zip(("chosen", "rejected"), answers, strict=True))}

    rows = [pair(THOUGHT[1], PLAIN[1]), pair(CALLED[1], PLAIN[1]), pair(PLAIN[1], CALLED[3])]
    path = str(write("pairs.jsonl", rows * 3))
    found = prepare(path, build_tokenizer(CALL_ALONE), goal="preference").assumptions
    assert "3 rows contain reasoning that the chat template omits, fully or partly." in found
    assert "3 rows contain text beside a tool call that the chat template omits." in found
    both = CALL_ALONE.replace(
        "(message.tool_calls | string or message.content)",
        "(message.reasoning_content or '') + message.content + message.tool_calls | string",
    )
    assert not prepare(path, build_tokenizer(both), goal="preference").assumptions


def test_of_very_many_rows_a_part_is_looked_at_and_said_so(write, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_CHECKED_ROWS", 4)
    found = _assumptions(write, MARKED, [THOUGHT] * 10)
    assert "4 rows of the 4 checked contain reasoning that the chat template omits, fully or partly." in found
