"""Ids, labels and cuts: against the tokenizer's own apply_chat_template, and against what the rows say."""

import random

import pytest

from lora_studio.data import convert, encode
from lora_studio.data import render as rendering
from lora_studio.data.chat_templates import choose_template
from lora_studio.data.dataset import prepare
from lora_studio.data.encode import Encoded, Encoder, cut, window
from lora_studio.data.messages import IGNORED, Conversation, Message
from lora_studio.errors import StudioError
from tests.data.conftest import MARKED, UNMARKED, build_tokenizer

END = "<|im_end|>"
ONE = Conversation(1, (Message("user", "What is the capital?"), Message("assistant", "Paris.")))
TWO = Conversation(
    2,
    (
        Message("system", "Be kind."),
        Message("user", "Hallo, wie heißt du? 🙂"),
        Message("assistant", " Ich heiße  Jörg 👨‍👩‍👧 "),
        Message("user", "naïve\n\n"),
        Message("assistant", "日本語 ok\n"),
    ),
)


def _encoder(tokenizer, style="auto", **settings):
    rules = {"max_length": 1000, "truncation": "keep_answer", "train_on": "assistant", **settings}
    return Encoder(tokenizer, choose_template(tokenizer, style), **rules)


def _trained(tokenizer, example):
    return tokenizer.decode([token for token in example.labels if token != IGNORED])


def test_ids_and_mask_are_those_of_apply_chat_template(tokenizer):
    examples, bad_rows = _encoder(tokenizer).encode([ONE, TWO])
    assert not bad_rows
    for chat, example in zip([ONE, TWO], examples, strict=True):
        expected = tokenizer.apply_chat_template(
            chat.to_dicts(), chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        assert example.input_ids == expected["input_ids"]
        assert [int(label != IGNORED) for label in example.labels] == expected["assistant_masks"]


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_trained_tokens_decode_to_the_answers_and_their_end_tokens(template):
    tokenizer = build_tokenizer(template)
    examples, _ = _encoder(tokenizer).encode([ONE, TWO])
    assert _trained(tokenizer, examples[0]) == f"Paris.{END}"
    assert _trained(tokenizer, examples[1]) == f" Ich heiße  Jörg 👨‍👩‍👧 {END}日本語 ok\n{END}"


def test_marks_and_prefixes_find_the_same_labels(tokenizer, unmarked_tokenizer):
    with_marks, _ = _encoder(tokenizer).encode([ONE, TWO])
    by_prefix, _ = _encoder(unmarked_tokenizer).encode([ONE, TWO])
    assert with_marks == by_prefix


def test_only_the_last_turn_or_everything_can_be_trained(tokenizer):
    last, _ = _encoder(tokenizer, train_on="last_turn").encode([TWO])
    assert _trained(tokenizer, last[0]) == f"日本語 ok\n{END}"
    whole, _ = _encoder(tokenizer, train_on="all").encode([TWO])
    assert whole[0].labels[:-1] == whole[0].input_ids[:-1]


@pytest.mark.parametrize("style", ["chatml", "alpaca", "plain"])
def test_our_prompt_styles_train_the_answer_and_the_end_of_text(bare_tokenizer, style):
    encoder = _encoder(bare_tokenizer, style)
    examples, bad_rows = encoder.encode([ONE, TWO])
    assert not bad_rows
    assert _trained(bare_tokenizer, examples[0]) == f"Paris.{END}"
    assert bare_tokenizer.decode(examples[1].input_ids) == encoder.render(TWO)


def test_the_alpaca_style_names_instruction_input_and_response(bare_tokenizer):
    asked = Message("user", "Translate.\n\nHallo", instruction="Translate.", input="Hallo")
    chat = Conversation(1, (asked, Message("assistant", "Hello")))
    assert _encoder(bare_tokenizer, "alpaca").render(chat) == (
        f"### Instruction:\nTranslate.\n\n### Input:\nHallo\n\n### Response:\nHello{END}"
    )
    assert _encoder(bare_tokenizer, "alpaca").render(ONE) == (
        f"### Instruction:\nWhat is the capital?\n\n### Response:\nParis.{END}"
    )


def test_the_plain_style_is_the_question_a_blank_line_and_the_answer(bare_tokenizer):
    assert _encoder(bare_tokenizer, "plain").render(ONE) == f"What is the capital?\n\nParis.{END}"


@pytest.mark.parametrize("style", ["chatml", "alpaca", "plain"])
def test_a_prompt_for_generation_is_what_the_trained_text_begins_with(bare_tokenizer, style):
    template = choose_template(bare_tokenizer, style)
    prompt = bare_tokenizer.apply_chat_template(
        ONE.to_dicts()[:1], chat_template=template.source, add_generation_prompt=True, tokenize=False
    )
    assert _encoder(bare_tokenizer, style).render(ONE) == f"{prompt}Paris.{END}" + ("\n" if style == "chatml" else "")


def test_a_tokenizer_without_a_template_gets_chatml(bare_tokenizer):
    template = choose_template(bare_tokenizer, "auto")
    assert template.name == "chatml"
    with pytest.raises(StudioError, match="no chat template"):
        choose_template(bare_tokenizer, "chat")
    with pytest.raises(StudioError, match="no prompt style 'fancy'"):
        choose_template(bare_tokenizer, "fancy")


def test_a_known_familys_template_is_exchanged_for_trls_with_marks():
    import importlib.util
    from pathlib import Path

    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    own = (folder / "qwen3.jinja").read_text(encoding="utf-8")
    template = choose_template(build_tokenizer(own), "auto")
    assert template.has_marks
    assert "qwen3" in template.origin


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(StudioError, match="end-of-text"):
        choose_template(build_tokenizer(None, eos=None), "auto")


def test_marks_that_leave_the_end_token_out_are_extended_to_it():
    outside = MARKED.replace("+ '<|im_end|>' }}{%- endgeneration %}", "}}{%- endgeneration %}{{- '<|im_end|>' }}")
    tokenizer = build_tokenizer(outside)
    examples, _ = _encoder(tokenizer).encode([TWO])
    assert _trained(tokenizer, examples[0]).count(END) == 2


def test_a_template_that_writes_no_end_token_gets_one_after_the_last_answer():
    endless = MARKED.replace("<|im_end|>", "")
    tokenizer = build_tokenizer(endless)
    examples, _ = _encoder(tokenizer).encode([ONE])
    assert _trained(tokenizer, examples[0]) == f"Paris.{END}"
    assert examples[0].input_ids[-1] == tokenizer.eos_token_id


def test_a_template_that_rewrites_earlier_turns_is_reported_row_by_row():
    forgetful = UNMARKED.replace(
        "message.content +", "(message.content if loop.last or message.role == 'user' else '') +"
    )
    tokenizer = build_tokenizer(forgetful)
    examples, bad_rows = _encoder(tokenizer).encode([ONE, TWO])
    assert [example.row for example in examples] == [1]
    assert [(bad.row, bad.reason) for bad in bad_rows] == [(2, rendering.REWRITES)]
    examples, bad_rows = _encoder(tokenizer, train_on="last_turn").encode([ONE, TWO])
    assert [example.row for example in examples] == [1, 2]


def test_a_row_that_the_template_refuses_does_not_stop_the_others():
    strict = "{%- if messages|length > 2 %}{{- raise_exception('too long') }}{%- endif %}" + MARKED
    examples, bad_rows = _encoder(build_tokenizer(strict)).encode([TWO, ONE, TWO])
    assert [example.row for example in examples] == [1]
    assert [(bad.reason, bad.found) for bad in bad_rows] == [(rendering.REFUSED, "too long")] * 2


def test_tool_calls_are_not_dropped_by_a_template_without_a_place_for_them(tokenizer):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    chat = Conversation(1, (Message("user", "a"), Message("assistant", "", tool_calls=(call,))))
    _, bad_rows = _encoder(tokenizer).encode([chat])
    assert [bad.reason for bad in bad_rows] == [rendering.NO_TOOLS]


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_an_answer_that_the_file_leaves_out_is_context_only(template):
    tokenizer = build_tokenizer(template)
    turns = [*TWO.messages[:2], Message("assistant", "rest", trained=False), *TWO.messages[3:]]
    examples, _ = _encoder(tokenizer).encode([Conversation(1, tuple(turns))])
    assert _trained(tokenizer, examples[0]) == f"日本語 ok\n{END}"


def test_plain_text_is_trained_whole_with_an_end():
    tokenizer = build_tokenizer(None)
    examples, _ = _encoder(tokenizer).encode([Conversation(1, text="Once upon a time")])
    assert _trained(tokenizer, examples[0]) == f"Once upon a time{END}"


@pytest.mark.slow
def test_batches_equal_single_rows(tokenizer):
    chats = [
        Conversation(row, (Message("user", f"q {row}"), Message("assistant", "a " * (row % 9 + 1))))
        for row in range(1, 560)
    ]
    encoder = _encoder(tokenizer)
    together, _ = encoder.encode(chats)
    assert together == [encoder.encode([chat])[0][0] for chat in chats]


def _row(prompt, answer, after=1, keep_first=False):
    """A row whose ids are their positions."""
    return Encoded(1, list(range(100, 100 + prompt + answer + after)), ((prompt, prompt + answer),), keep_first)


def test_a_row_that_fits_is_not_touched():
    example = cut(_row(5, 4), 10, "keep_answer")
    assert example.input_ids == list(range(100, 110))
    assert example.labels == [IGNORED] * 5 + [105, 106, 107, 108] + [IGNORED]
    assert (example.trained_tokens, example.lost_trained_tokens, example.full_length) == (4, 0, 10)


def test_keep_answer_cuts_the_prompt_from_the_left():
    example = cut(_row(20, 4), 10, "keep_answer")
    assert example.input_ids == list(range(114, 124))
    assert example.labels[-4:] == [120, 121, 122, 123]
    assert example.lost_trained_tokens == 0


def test_keep_answer_gives_up_what_follows_the_answer_first():
    assert cut(_row(6, 4, after=3), 10, "keep_answer").input_ids == list(range(100, 110))


def test_an_answer_too_long_keeps_its_start_and_some_prompt():
    example = cut(_row(20, 50), 12, "keep_answer")
    assert example.input_ids == list(range(117, 129))
    assert (example.trained_tokens, example.lost_trained_tokens) == (9, 41)


def test_a_leading_token_is_kept_when_the_prompt_is_cut():
    example = cut(_row(20, 4, keep_first=True), 10, "keep_answer")
    assert example.input_ids == [100, *range(115, 124)]
    assert len(example.labels) == 10


def test_keep_start_and_drop_do_what_they_say():
    kept = cut(_row(8, 4), 10, "keep_start")
    assert (kept.input_ids, kept.trained_tokens, kept.lost_trained_tokens) == (list(range(100, 110)), 2, 2)
    dropped = cut(_row(8, 4), 10, "drop")
    assert (dropped.input_ids, dropped.trained_tokens, dropped.lost_trained_tokens) == ([], 0, 4)


def test_no_cut_is_ever_longer_than_asked_for():
    draw = random.Random(0)
    for _ in range(2000):
        row = _row(draw.randrange(0, 40), draw.randrange(1, 40), draw.randrange(0, 3), draw.random() < 0.3)
        size, how = draw.randrange(4, 60), draw.choice(["keep_answer", "keep_start", "drop"])
        example = cut(row, size, how)
        first, stop = window(row, size, how)
        assert len(example.input_ids) == len(example.labels) <= size
        assert 0 <= first <= stop <= len(row.ids)
        assert example.trained_tokens + example.lost_trained_tokens == row.spans[0][1] - row.spans[0][0]
        assert example.trained_tokens == sum(label != IGNORED for label in example.labels)
        if how == "keep_answer":
            assert example.trained_tokens > 0


def test_rows_that_come_as_tokens_are_taken_as_they_are(tokenizer):
    ids = tokenizer("What is the capital?").input_ids
    labels = [IGNORED, IGNORED, *ids[2:]]
    rows = [Conversation(1, input_ids=tuple(ids), labels=tuple(labels)), Conversation(2, input_ids=tuple(ids))]
    encoder = Encoder(
        tokenizer, choose_template(tokenizer, "auto"), max_length=99, truncation="drop", train_on="assistant"
    )
    examples, bad = encoder.encode(rows)
    assert not bad
    assert [(example.input_ids, example.labels) for example in examples] == [(ids, labels), (ids, ids)]
    encoded, pieces, text = encoder.tokens(rows[0])
    assert (encoded.ids, "".join(pieces)) == (ids, text)


@pytest.mark.parametrize(
    ("reason", "ids", "labels"),
    [
        (encode.FOREIGN_TOKEN, (1, 999_999), None),
        (encode.NOTHING_TRAINED, (1, 2), (IGNORED, IGNORED)),
        (encode.OTHER_LABELS, (1, 2), (2, 3)),
    ],
)
def test_tokens_that_can_not_be_trained_on_are_bad_rows(tokenizer, reason, ids, labels):
    encoder = Encoder(tokenizer, choose_template(tokenizer, "auto"), max_length=99, truncation="drop", train_on="all")
    _, (bad,) = encoder.encode([Conversation(1, input_ids=ids, labels=labels)])
    assert bad.reason == reason


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_padding_is_neither_trained_nor_kept(write, tokenizer, labelled, left):
    rows, wanted = [], []
    for ids in ([10, 11, 12, 2], [14, 2]):
        padding = [0] * (6 - len(ids))
        mask, own = [1] * len(ids), ids[:]
        row = {"input_ids": padding + ids if left else ids + padding}
        row["attention_mask"] = padding + mask if left else mask + padding
        if labelled:
            own[0] = IGNORED
            row["labels"] = padding + own if left else own + padding
        rows.append(row)
        wanted.append((ids, own))
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer, validation_fraction=0)
    assert [(one.input_ids, one.labels) for one in prepared.train] == wanted
    assert "`attention_mask` marks padding, which is removed" in prepared.format.words


def test_a_mask_of_what_is_learned_counts_where_no_labels_stand(write, tokenizer):
    row = {"input_ids": [10, 11, 12, 2, 0], "completion_mask": [0, 0, 1, 1, 0], "attention_mask": [1, 1, 1, 1, 0]}
    prepared = prepare(str(write("a.jsonl", [row, row])), tokenizer, validation_fraction=0)
    assert prepared.train[0].labels == [IGNORED, IGNORED, 12, 2]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [([1, 1], convert.UNLIKE_LENGTHS), ([0, 0, 0], convert.ONLY_PADDING), ([1, -1, 1], convert.NOT_IDS)],
)
def test_a_mask_that_fits_no_tokens_is_a_bad_row(write, tokenizer, mask, reason):
    good = {"input_ids": [10, 11, 2], "attention_mask": [True, True, True]}
    prepared = prepare(
        str(write("a.jsonl", [good, {**good, "attention_mask": mask}])), tokenizer, validation_fraction=0
    )
    assert list(prepared.bad_rows.reasons()) == [reason]
