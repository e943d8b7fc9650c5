"""What is trained of rows that a template writes in its own way: earlier turns otherwise, calls in a form of its own.

Expected are the texts that the template prints, and the ids of `apply_chat_template` or of the same Jinja text.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import MARKED, UNMARKED, build_tokenizer
from tokenizers import AddedToken

from lora_studio.data import render as rendering
from lora_studio.data.chat_templates import choose_template
from lora_studio.data.dataset import prepare
from lora_studio.data.encode import Encoder
from lora_studio.data.messages import BROKEN_TEXT, EMPTY_ANSWER, FORMS, IGNORED, Conversation, Message, RowError, check
from lora_studio.data.render import REWRITES
from lora_studio.data.turns import parse_turns
from lora_studio.errors import StudioError

TURNS = (
    Message("user", "Where?"),
    Message("assistant", "Here."),
    Message("user", "Sure?"),
    Message("assistant", "Yes."),
)
SYSTEM = Message("system", "Be kind.")
THOUGHT = "<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n"
# As Qwen3's: reasoning stands in the last turn alone.
LAST_THINKS = UNMARKED.replace(
    "{{- message.content +",
    "{%- if loop.last and message.role == 'assistant' %}{{- '" + THOUGHT + "' }}{%- endif %}{{- message.content +",
)
# As Qwen3-Thinking's: the prompt for an answer opens the reasoning.
PROMPT_THINKS = LAST_THINKS.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
# As Mistral's: the system prompt goes with the newest question.
SYSTEM_MOVES = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}{%- for m in rest %}"
    "{%- if m.role == 'user' %}{{- '<|im_start|>' }}{%- if system and (loop.last or loop.revindex == 2) %}"
    "{{- system + '\\n\\n' }}{%- endif %}{{- m.content + '<|begin|>' }}"
    "{%- else %}{{- ' ' + m.content|trim + '<|im_end|>' }}{%- endif %}{%- endfor %}"
)


def _call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "c1", "function": {"name": "look", "arguments": arguments}}


def _called(arguments: Any, content: Any = None) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Look?"},
        {"role": "assistant", "content": content, "tool_calls": [_call(arguments)]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "There."},
    ]


def _encoder(template: str, train_on: str = "assistant", tokenizer: Any = None) -> Encoder:
    tokenizer = tokenizer or build_tokenizer(template)
    tokenizer.chat_template = template
    return Encoder(
        tokenizer, choose_template(tokenizer, "auto"), max_length=1 << 20, truncation="drop", train_on=train_on
    )


def _trained(template: str, chat: Conversation, train_on: str = "assistant", tokenizer: Any = None) -> list[str]:
    """The text of each run of trained tokens, with the ids held to those of `apply_chat_template`."""
    tokenizer = tokenizer or build_tokenizer(template)
    examples, bad = _encoder(template, train_on, tokenizer).encode([chat])
    assert not bad, bad
    runs: list[list[int]] = [[]]
    for token, label in zip(examples[0].input_ids, examples[0].labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    if not any(message.tool_calls for message in chat.messages):
        whole = tokenizer.apply_chat_template(chat.to_dicts(), tokenize=True, return_dict=False)
        assert examples[0].input_ids == whole[: len(examples[0].input_ids)]
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize(
    ("template", "last"), [(LAST_THINKS, "<think>\n\n</think>\n\nYes."), (PROMPT_THINKS, "\n</think>\n\nYes.")]
)
def test_every_turn_trains_where_reasoning_is_kept_in_the_last_one_only(template, last):
    assert _trained(template, Conversation(1, TURNS)) == ["Here.<|im_end|>", last + "<|im_end|>"]
    assert _trained(template, Conversation(1, TURNS), "last_turn") == [last + "<|im_end|>"]


def test_reasoning_of_earlier_turns_is_not_trained_where_the_template_drops_it():
    thoughtful = [replace(turn, reasoning_content="Hm.") if turn.role == "assistant" else turn for turn in TURNS]
    trained = _trained(LAST_THINKS, Conversation(1, tuple(thoughtful)))
    assert trained == ["Here.<|im_end|>", "<think>\nHm.\n</think>\n\nYes.<|im_end|>"]


def test_answers_that_repeat_each_other_and_bear_white_space_are_found_in_their_places():
    turns = (*TURNS[:1], Message("assistant", " Yes.\n"), TURNS[2], Message("assistant", "Yes.")) * 3
    trained = _trained(LAST_THINKS, Conversation(1, turns))
    assert trained == [
        *[" Yes.\n<|im_end|>", "Yes.<|im_end|>"] * 2,
        " Yes.\n<|im_end|>",
        "<think>\n\n</think>\n\nYes.<|im_end|>",
    ]


def test_every_turn_trains_where_the_system_prompt_moves_to_the_newest_question():
    chat = Conversation(1, (SYSTEM, *TURNS))
    assert _trained(SYSTEM_MOVES, chat) == [" Here.<|im_end|>", " Yes.<|im_end|>"]


def test_calls_without_a_word_train_where_reasoning_is_kept_in_the_last_turn_only():
    template = LAST_THINKS.replace(
        "{{- message.content +",
        "{%- for c in message.tool_calls or [] %}{{- 'CALL ' + c.function.name + ' ' + c.function.arguments|tojson }}"
        "{%- endfor %}{{- message.content +",
    )
    chat = Conversation(1, tuple(parse_turns(_called({"at": "x"}, ""), "messages")))
    assert _trained(template, chat) == ['CALL look {"at": "x"}<|im_end|>', "<think>\n\n</think>\n\nThere.<|im_end|>"]


def test_rows_whose_template_changes_earlier_turns_are_told_of_in_a_sentence(write):
    row = {"messages": [turn.to_dict() for turn in TURNS]}
    prepared = prepare(str(write("a.jsonl", [row] * 3)), build_tokenizer(LAST_THINKS))
    assert any("renders earlier answers differently from the last" in said for said in prepared.assumptions)


def test_where_earlier_answers_can_not_be_found_the_setting_that_works_is_named(write):
    dropped = UNMARKED.replace(
        "message.content +", "(message.content if loop.last or message.role == 'user' else '') +"
    )
    path = str(write("a.jsonl", [{"messages": [turn.to_dict() for turn in TURNS]}] * 3))
    with pytest.raises(StudioError, match=REWRITES) as error:
        prepare(path, build_tokenizer(dropped))
    assert "data.train_on to last_turn" in error.value.hint
    assert len(prepare(path, build_tokenizer(dropped), train_on="last_turn", validation_fraction=0).train) == 3


CALLING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}CALLS{{ m.content or '' }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _calling(one_call: str) -> str:
    return CALLING.replace("CALLS", "{% for c in m.tool_calls or [] %}" + one_call + "{% endfor %}")


AS_TEXT = _calling("{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}")
PRINTED = _calling("<call>{{ c.function.name }} {{ c.function.arguments }}</call>")
AS_OBJECT = _calling(
    "<call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}</call>"
)
WHERE_NONE = CALLING.replace(
    "CALLS{{ m.content or '' }}",
    "{% if m.content is none %}{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments }}</call>"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}",
)
COMPACT = '{"at":"Köln","n":2}'


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize(
    ("template", "arguments", "printed"),
    [
        (AS_TEXT, COMPACT, f"look {COMPACT}"),
        (AS_TEXT, {"at": "Köln"}, 'look {"at": "Köln"}'),
        (AS_TEXT, {}, "look {}"),
        (PRINTED, COMPACT, f"look {COMPACT}"),
        (PRINTED, {"at": "x"}, 'look {"at": "x"}'),
        (AS_OBJECT, COMPACT, "look at=Köln n=2"),
        (AS_OBJECT, json.dumps(COMPACT), "look at=Köln n=2"),
        (WHERE_NONE, COMPACT, f"look {COMPACT}"),
        (WHERE_NONE, {"at": "x"}, 'look {"at": "x"}'),
    ],
)
def test_a_template_gets_calls_in_the_form_that_it_prints(template, arguments, printed, content):
    chat = Conversation(1, tuple(parse_turns(_called(arguments, content), "messages")))
    expected = [f"<call>{printed}</call><|im_end|>", "There.<|im_end|>"]
    assert _trained(template, chat) == expected
    assert _trained(template, chat, "last_turn") == expected[1:]
    marked = template.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' %}{% generation %}")
    marked = (
        marked.replace(
            "{% else %}{{ m.content }}{% endif %}<|im_end|>",
            "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>",
            1,
        )
        if template is not WHERE_NONE
        else template
    )
    assert _trained(marked, chat) == expected


def test_a_row_as_it_stands_prints_what_the_same_jinja_prints():
    from jinja2 import Environment

    row = _called(COMPACT)
    chat = Conversation(1, tuple(parse_turns(row, "messages")))
    plain = Environment(trim_blocks=True, lstrip_blocks=True).from_string(WHERE_NONE).render(messages=row)
    assert _encoder(WHERE_NONE).render(chat) == plain


@pytest.mark.parametrize("tools", [(), ({"type": "function", "function": {"name": "look", "parameters": {"at": {}}}},)])
@pytest.mark.parametrize("train_on", ["assistant", "last_turn"])
@pytest.mark.parametrize(
    "one_call",
    [
        "{% if false %}{{ m.tool_calls }}{% endif %}",
        "<call>{{ c.function.name }}</call>",
        "<call>{{ c.function.arguments|tojson }}</call>",
    ],
)
def test_a_call_that_is_not_in_the_text_makes_its_row_a_bad_one(one_call, tools, train_on):
    template = "{% for t in tools or [] %}{{ t|tojson }}{% endfor %}" + _calling(one_call)
    chat = Conversation(1, tuple(parse_turns(_called({"at": "x"}), "messages")), tools=tools)
    if train_on == "last_turn":
        chat = replace(chat, messages=chat.messages[:2])
    _, bad_rows = _encoder(template, train_on).encode([chat, Conversation(2, TURNS)])
    assert [(bad.row, bad.reason) for bad in bad_rows] == [(1, rendering.CALLS_LEFT_OUT)]


def test_the_form_of_calls_is_what_it_is_called():
    message = parse_turns(_called(COMPACT), "messages")[1]
    forms = [message.to_dict(form) for form in FORMS if not form.numbered]
    assert [one["content"] for one in forms] == ["", "", None, None]
    given = [one["tool_calls"][0]["function"]["arguments"] for one in forms]
    assert given == [{"at": "Köln", "n": 2}, COMPACT, {"at": "Köln", "n": 2}, COMPACT]


HEADER = "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' %}{%- generation %}"


@pytest.mark.parametrize("before", ["", "\\n", "\\n\\n"])
def test_a_mark_that_takes_in_the_header_does_not_train_it(before):
    template = MARKED.replace(
        HEADER,
        "{%- if message.role == 'assistant' %}{%- generation %}{{- '" + before + "<|im_start|>assistant\\n' }}",
    ).replace("{%- else %}", "{%- else %}{{- '<|im_start|>' + message.role + '\\n' }}")
    assert "{%- generation %}{{- '" + before + "<|im_start|>" in template
    assert _trained(template, Conversation(1, TURNS)) == ["Here.<|im_end|>", "Yes.<|im_end|>"]
    thinking = template.replace(
        "add_generation_prompt %}{{- '<|im_start|>assistant\\n",
        "add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n",
    )
    assert _trained(thinking, Conversation(1, TURNS)) == ["Here.<|im_end|>", "Yes.<|im_end|>"]


@pytest.mark.parametrize("content", [" Here. ", "\n\nHere.", "Here.\n"])
def test_a_roles_token_that_takes_in_the_answers_white_space_is_prompt(content):
    tokenizer = build_tokenizer(None)
    marks = [
        AddedToken("<|you|>", special=True, rstrip=True),
        AddedToken("<|stop|>", special=True, lstrip=True, rstrip=True),
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|you|>\n"
        "{% else %}{{ m.content }}<|stop|>\n{% endif %}{% endfor %}"
    )
    chat = Conversation(1, (TURNS[0], Message("assistant", content), *TURNS[2:]))
    assert _trained(template, chat, tokenizer=tokenizer) == ["Here.<|stop|>", "Yes.<|stop|>"]


HALF = "\ud83d"


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "a", "tool_calls": [_call({"at": [{"deep": f"x{HALF}"}]})]},
        {"role": "assistant", "content": "a", "tool_calls": [_call({HALF: 1})]},
        {"role": "assistant", "content": "a", "tool_calls": [_call(json.dumps({"at": HALF}))]},
        {"role": "assistant", "content": "a", "tool_calls": [{**_call({}), "id": HALF}]},
        {"role": "assistant", "content": "a", "reasoning_content": HALF},
        {"role": "assistant", "content": "a", "name": HALF},
    ],
)
def test_half_a_character_anywhere_in_a_turn_is_a_bad_row(turn):
    with pytest.raises(RowError, match=BROKEN_TEXT):
        check([Message("user", "a"), *parse_turns([turn], "messages")])


def test_half_a_character_in_tools_is_one_bad_row_of_the_file(write):
    tool = {"type": "function", "function": {"name": "look", "description": "x", "parameters": {}}}
    rows = [{"messages": _called({"at": "x"}), "tools": [tool]} for _ in range(4)]
    rows[1]["tools"] = [{**tool, "function": {**tool["function"], "description": HALF}}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    prepared = prepare(str(write("a.jsonl", text.encode())), build_tokenizer(AS_TEXT))
    assert [(bad.row, bad.reason) for bad in prepared.bad_rows] == [(2, BROKEN_TEXT)]


def test_half_a_character_that_a_template_brings_is_no_crash():
    _, bad_rows = _encoder("{{ '\\ud83d' }}" + UNMARKED).encode([Conversation(1, TURNS)])
    assert [bad.reason for bad in bad_rows] == [BROKEN_TEXT]


@pytest.mark.parametrize("answer", ["\u200b", "\ufeff \u2060", "\u00ad\u200d\ufe0f", "\u3164", "\u2800\n"])
def test_an_answer_without_ink_is_empty(answer):
    with pytest.raises(RowError, match=EMPTY_ANSWER):
        check([Message("user", "a"), Message("assistant", answer)])
    check([Message("user", "a"), Message("assistant", answer + "é")])


def test_a_system_prompt_that_the_template_refuses_is_named_with_its_setting(write):
    gemma = "{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}"
    tokenizer = build_tokenizer(gemma + UNMARKED)
    path = str(write("a.jsonl", [{"messages": [turn.to_dict() for turn in TURNS]}] * 3))
    with pytest.raises(StudioError, match=r"does not support a system prompt.*System role not supported") as error:
        prepare(path, tokenizer, system_prompt="Be kind.")
    assert "data.system_prompt" in error.value.hint
    own = str(write("b.jsonl", [{"messages": [turn.to_dict() for turn in (SYSTEM, *TURNS)]}] * 3))
    with pytest.raises(StudioError, match="does not support a system prompt") as error:
        prepare(own, tokenizer)
    assert "data.prompt_style" in error.value.hint
    assert "data.system_prompt" not in error.value.hint


def test_calls_get_the_ids_that_a_template_insists_on_and_that_the_rows_lack(write):
    template = _calling(
        "{% if c.id is not defined or c.id|length != 9 %}{{ raise_exception('ids of length 9') }}{% endif %}"
        "<call>{{ c.function.name }} {{ c.function.arguments|tojson }} {{ c.id }}</call>"
    ).replace("{{ m.content }}{% endif %}", "{{ m.tool_call_id }} {{ m.content }}{% endif %}")
    twice = [*_called({"at": "x"}), *_called({"at": "y"})]
    for turn in twice:
        for call in turn.get("tool_calls", ()):
            call.pop("id")
    rows = [{"messages": twice}, {"messages": [turn.to_dict() for turn in TURNS]}] * 2
    tokenizer = build_tokenizer(template)
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer, validation_fraction=0)
    assert any(said.startswith("In 2 rows the tool calls get ids") for said in prepared.assumptions)
    text = tokenizer.decode(prepared.train[0].input_ids)
    assert '<call>look {"at": "x"} call00001</call>' in text
    assert "call00001 found" in text
    assert '<call>look {"at": "y"} call00002</call>' in text
    assert "call00002 found" in text
    own = template.replace("c.id|length != 9", "c.id|length != 2")
    assert _encoder(own).render(Conversation(1, tuple(parse_turns(_called({"at": "x"}), "m")))).count(" c1</call>") == 1
