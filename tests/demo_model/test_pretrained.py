"""The built-in model itself: its size, its kind, and how many held-out questions it answers exactly."""

from itertools import islice, pairwise
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from lora_studio.workspace import demo_folder, model_source
from tools.demo_model.build import QUESTIONS, score
from tools.demo_model.conversations import copying_dialogue, training_dialogue
from tools.demo_model.datasets import read_questions
from tools.demo_model.pretrain import answers, batches, learning_rate


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


def test_packed_rows_are_full_and_train_only_answers(tokenizer):
    for input_ids, labels, position_ids in islice(batches(tokenizer, Random(1), 2, 128, training_dialogue), 5):
        assert input_ids.shape == labels.shape == position_ids.shape == (2, 128)
        trained = labels != -100
        assert trained.any()
        assert not trained.all()
        assert (labels[trained] == input_ids[trained]).all()
        assert (position_ids[:, 0] == 0).all()


def test_conversations_packed_into_a_row_do_not_see_each_other(model, tokenizer):
    input_ids, _, position_ids = next(batches(tokenizer, Random(1), 2, 256, training_dialogue))
    with torch.no_grad():
        packed = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        for row in range(2):
            starts = [*torch.nonzero(position_ids[row] == 0).flatten().tolist(), 256]
            assert len(starts) > 2
            for first, end in pairwise(starts):
                alone = model(input_ids=input_ids[row : row + 1, first:end]).logits[0]
                assert torch.allclose(packed[row, first:end], alone, atol=1e-3)


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
