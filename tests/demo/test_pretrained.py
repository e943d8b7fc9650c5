"""The built-in model itself: its size, its kind, and how many held-out questions it answers exactly."""

from itertools import islice
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from lora_studio.demo.build import QUESTIONS, score
from lora_studio.demo.conversations import copying_dialogue, training_dialogue
from lora_studio.demo.datasets import read_questions
from lora_studio.demo.pretrain import answers, batches, learning_rate
from lora_studio.workspace import demo_folder, model_source


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_source("demo"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_source("demo"), dtype=torch.float32).eval()


def test_it_is_a_small_qwen3_whose_ends_and_pads_are_set(model, tokenizer):
    assert isinstance(model, Qwen3ForCausalLM)
    assert 2_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 6_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_batches_hold_as_many_tokens_as_asked_and_train_only_answers(tokenizer):
    for input_ids, attention_mask, labels in islice(batches(tokenizer, Random(1), 512, training_dialogue), 5):
        assert input_ids.shape == attention_mask.shape == labels.shape
        assert input_ids.numel() <= 512
        trained = labels != -100
        assert trained.any()
        assert (labels[trained] == input_ids[trained]).all()
        assert not trained[attention_mask == 0].any()


def test_the_first_lessons_are_long_texts_of_different_words_to_copy():
    for seed in range(50):
        ask, answer = copying_dialogue(Random(seed)).messages
        words = answer["content"].split()
        assert ask["content"].endswith(answer["content"])
        assert len(words) == len(set(words)) >= 6


def test_the_learning_rate_rises_and_falls_to_a_twentieth():
    assert learning_rate(0, 1000, 1.0) < learning_rate(49, 1000, 1.0) == 1.0
    assert learning_rate(1000, 1000, 1.0) == pytest.approx(0.05)


@pytest.mark.slow
def test_at_least_95_of_100_held_out_questions_are_answered_exactly(model, tokenizer):
    dialogues = read_questions(demo_folder() / "data" / QUESTIONS)
    exact, wrong = score(model, tokenizer, dialogues)
    assert len({dialogue.kind for dialogue in dialogues}) >= 12
    assert exact >= 0.95, [(dialogue.messages[-2]["content"], text) for dialogue, text in wrong]


@pytest.mark.slow
def test_an_answer_is_the_same_alone_and_in_a_batch(model, tokenizer):
    dialogues = read_questions(demo_folder() / "data" / QUESTIONS)[:8]
    assert answers(model, tokenizer, dialogues) == [answers(model, tokenizer, [one])[0] for one in dialogues]
