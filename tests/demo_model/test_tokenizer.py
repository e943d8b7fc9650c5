"""The built-in model's tokenizer and chat template: text comes back, and exactly the answers are marked as trained."""

import pytest
from transformers import AutoTokenizer

from lora_studio.workspace import model_source


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_source("demo"))


SYSTEM = {"role": "system", "content": "You are a pirate."}
ASK = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "The capital of France is Paris."}
AGAIN = {"role": "user", "content": "And of Spain?"}
LAST = {"role": "assistant", "content": "The capital of Spain is Madrid."}
REASONED = {**ANSWER, "reasoning_content": "France, so Paris."}


def rendered(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def trained_text(tokenizer, messages, **options) -> list[str]:
    """The stretches of text that the template marks as generated."""
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    stretches, current = [], []
    for token, marked in zip([*encoded["input_ids"], 0], [*encoded["assistant_masks"], 0], strict=True):
        if marked:
            current.append(token)
        elif current:
            stretches.append(tokenizer.decode(current))
            current = []
    return stretches


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris.",
        "  two  spaces\n\n\ttab, trailing \n",
        "Grüße, 北京 и Москва: שלום 🎉👩‍🚀",
        "x = 1234567890; \\n is not a newline\r\n",
        "don't won't I'm ...!?",
        "\x00\x7f\ufffd",
    ],
)
def test_any_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_encoding_adds_nothing_of_its_own(tokenizer):
    assert tokenizer("Paris")["input_ids"] == tokenizer("Paris", add_special_tokens=False)["input_ids"]


def test_digits_are_read_one_by_one(tokenizer):
    assert [tokenizer.decode([token]) for token in tokenizer("1024")["input_ids"]] == ["1", "0", "2", "4"]


def test_pad_and_end_of_turn_are_different_single_tokens(tokenizer):
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"):
        assert len(tokenizer(mark)["input_ids"]) == 1


def test_thinking_stays_readable_where_special_tokens_are_left_out(tokenizer):
    ids = tokenizer("<think>\nhm\n</think>\n\nyes<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>\nhm\n</think>\n\nyes"


def test_a_conversation_is_rendered_as_chatml(tokenizer):
    assert rendered(tokenizer, [SYSTEM, ASK, ANSWER]) == (
        "<|im_start|>system\nYou are a pirate.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>\n"
    )


def test_no_system_prompt_is_invented(tokenizer):
    assert "system" not in rendered(tokenizer, [ASK, ANSWER])


def test_exactly_the_answers_and_their_end_tokens_are_marked_as_generated(tokenizer):
    assert trained_text(tokenizer, [SYSTEM, ASK, ANSWER, AGAIN, LAST]) == [
        "The capital of France is Paris.<|im_end|>",
        "The capital of Spain is Madrid.<|im_end|>",
    ]


def test_reasoning_is_rendered_between_think_marks_and_trained(tokenizer):
    assert trained_text(tokenizer, [ASK, REASONED]) == [
        "<think>\nFrance, so Paris.\n</think>\n\nThe capital of France is Paris.<|im_end|>"
    ]


def test_without_thinking_an_empty_think_block_stands_before_the_answer_and_is_not_trained(tokenizer):
    text = rendered(tokenizer, [ASK, ANSWER], enable_thinking=False)
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\nThe capital" in text
    assert trained_text(tokenizer, [ASK, ANSWER], enable_thinking=False) == [
        "The capital of France is Paris.<|im_end|>"
    ]


@pytest.mark.parametrize("switch", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
@pytest.mark.parametrize("messages", [[ASK, ANSWER], [SYSTEM, ASK, ANSWER], [ASK, REASONED, AGAIN, LAST]])
def test_what_is_asked_at_generation_is_how_training_began(tokenizer, messages, switch):
    asked = rendered(tokenizer, messages[:-1], add_generation_prompt=True, **switch)
    assert asked.endswith("</think>\n\n" if switch.get("enable_thinking") is False else "<|im_start|>assistant\n")
    assert rendered(tokenizer, messages, **switch).startswith(asked)
