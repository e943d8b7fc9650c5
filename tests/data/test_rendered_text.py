"""Rows that a chat template has rendered already: read as conversations, with one begin and one end token.

Expected are the ids of `apply_chat_template` for the turns that the texts were rendered from.
"""

from typing import Any

import pytest
from conftest import MARKED, build_tokenizer
from tokenizers.processors import TemplateProcessing

from lora_studio.data.dataset import prepare
from lora_studio.data.messages import EMPTY_ANSWER, IGNORED

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where? [a]"},
    {"role": "assistant", "content": "Here.\n\nOr there."},
]
ANSWER = "Here.\n\nOr there."
# Each writes a turn as a family's template does: before its role, after it, and after its content.
FAMILIES = {
    "chatml": "<|im_start|>{role}\n{content}<|im_end|>\n",
    "phi 4": "<|im_start|>{role}<|im_sep|>{content}<|im_end|>",
    "llama 3": "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
    "llama 4": "<|header_start|>{role}<|header_end|>\n\n{content}<|eot|>",
    "granite": "<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n",
    "gpt-oss": "<|start|>{role}<|message|>{content}<|end|>",
    "phi 3": "<|{role}|>\n{content}<|end|>\n",
    "exaone": "[|{role}|]{content}[|endofturn|]\n",
}
LATER = {
    "gemma": f"<bos><start_of_turn>user\nWhere? [a]<end_of_turn>\n<start_of_turn>model\n{ANSWER}<end_of_turn>\n",
    "gemma 4": "<bos><|turn>user\nWhere? [a]<turn|>\n<|turn>model\nHere.\n\nOr there.<turn|>\n",
    "cohere": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Where? [a]<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Here.\n\nOr there.<|END_OF_TURN_TOKEN|>"
    ),
    "deepseek": "<｜begin▁of▁sentence｜><｜User｜>Where? [a]<｜Assistant｜>Here.\n\nOr there.<｜end▁of▁sentence｜>",
    "gpt-oss": (
        f"<|start|>user<|message|>Where? [a]<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>"
    ),
}


def _with_begin(template: str | None) -> Any:
    tokenizer = build_tokenizer(template, bos="<|begin|>")
    begin = [("<|begin|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=begin)
    return tokenizer


def _texts(tokenizer: Any, path: str, **settings: Any) -> tuple[Any, list[str]]:
    """What was prepared, with the trained text of each row."""
    prepared = prepare(path, tokenizer, validation_fraction=0, **settings)
    kept = ([t for t, label in zip(e.input_ids, e.labels, strict=True) if label != IGNORED] for e in prepared.train)
    return prepared, [tokenizer.decode(ids) for ids in kept]


def _check(tokenizer: Any, path: str, turns: list[dict[str, str]], end: str = "<|im_end|>") -> None:
    prepared, trained = _texts(tokenizer, path)
    assert trained == [turns[-1]["content"] + end] * 3
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    for example in prepared.train:
        assert example.input_ids == whole[: len(example.input_ids)]


@pytest.mark.parametrize("begin", ["", "<|begin_of_text|>"])
@pytest.mark.parametrize("turn", FAMILIES.values(), ids=FAMILIES)
def test_a_text_of_a_familys_template_is_read_as_its_turns(write, tokenizer, turn, begin):
    text = begin + "".join(turn.format(**one) for one in TURNS)
    _check(tokenizer, str(write("a.jsonl", [{"text": text}] * 3)), TURNS)


@pytest.mark.parametrize("text", LATER.values(), ids=LATER)
def test_a_text_whose_roles_bear_other_names_is_read_as_its_turns(write, tokenizer, text):
    _check(tokenizer, str(write("a.jsonl", [{"text": text}] * 3)), TURNS[1:])


@pytest.mark.parametrize("system", ["Be kind.", ""])
def test_the_dates_that_llama_3_writes_by_itself_are_not_written_twice(write, tokenizer, system):
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    turns = [{"role": "system", "content": dates + system}, *TURNS[1:]]
    text = "<|begin_of_text|>" + "".join(FAMILIES["llama 3"].format(**one) for one in turns)
    _check(tokenizer, str(write("a.jsonl", [{"text": text}] * 3)), TURNS if system else TURNS[1:])


def test_a_rendered_text_gets_one_begin_token_and_one_end(write):
    tokenizer = _with_begin("{{- bos_token }}" + MARKED)
    own = tokenizer.apply_chat_template(TURNS, tokenize=False)
    _check(tokenizer, str(write("a.jsonl", [{"text": own}] * 3)), TURNS)


@pytest.mark.parametrize("begin", ["", "<|begin|>"])
@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n"])
def test_a_plain_text_gets_no_begin_or_end_that_it_has_already(write, begin, end):
    tokenizer = _with_begin(None)
    file = str(write("a.jsonl", [{"text": f"{begin}Once upon a time.{end}"}] * 3))
    prepared, trained = _texts(tokenizer, file)
    assert [text.rstrip() for text in trained] == ["Once upon a time.<|im_end|>"] * 3
    assert tokenizer.decode(prepared.train[0].input_ids).rstrip() == "<|begin|>Once upon a time.<|im_end|>"


@pytest.mark.parametrize("names", [("prompt", "completion"), ("instruction", "output")])
@pytest.mark.parametrize("turn", ["chatml", "llama 3"])
def test_a_rendered_prompt_and_its_completion_are_one_conversation(write, tokenizer, turn, names):
    whole = "".join(FAMILIES[turn].format(**one) for one in TURNS)
    prompt, answer, end = whole.partition("Here.")
    row = dict(zip(names, (prompt, answer + end), strict=True))
    _check(tokenizer, str(write("a.jsonl", [row] * 3)), TURNS)


def test_rendered_sides_of_a_comparison_go_on_from_their_rendered_prompt(write, tokenizer):
    prompt = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    row = {"prompt": prompt, "chosen": "Here.<|im_end|>", "rejected": "Nowhere.<|im_end|>"}
    prepared = prepare(str(write("a.jsonl", [row] * 3)), tokenizer, goal="preference", validation_fraction=0)
    pair = prepared.train[0]
    for side, said in ((pair.chosen, "Here."), (pair.rejected, "Nowhere.")):
        turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": said}]
        whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert side.input_ids == whole[: len(side.input_ids)]


@pytest.mark.parametrize("answer", ["Here.<|im_end|>", "Here.<|im_end|>\n", "Here.<|im_end|><|im_end|>"])
def test_an_answer_that_brings_its_end_token_gets_no_second_one(write, tokenizer, answer):
    rows = [{"messages": [TURNS[1], {"role": "assistant", "content": answer}]}] * 3
    _check(tokenizer, str(write("a.jsonl", rows)), [TURNS[1], {"role": "assistant", "content": "Here."}])


def test_an_answer_of_an_end_token_alone_is_empty(write, tokenizer):
    rows = [{"messages": [TURNS[1], {"role": "assistant", "content": said}]} for said in ("<|im_end|>", "a", "b", "c")]
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer)
    assert [(bad.row, bad.reason) for bad in prepared.bad_rows] == [(1, EMPTY_ANSWER)]


def test_words_and_headings_in_a_prompt_make_it_no_rendered_one(write, tokenizer):
    row = {"prompt": "User: Where?\nAssistant:", "completion": " Here."}
    prepared = prepare(str(write("a.jsonl", [row] * 3)), tokenizer)
    assert prepared.format.marks is None
