"""The cache of an answer on the CPU holds what transformers' own would, and copies nothing for a token more."""

import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from lora_studio.engine.chat import cache
from lora_studio.engine.chat.cache import StoredLayer, stored_cache

GREEDY = GenerationConfig(max_new_tokens=12, do_sample=False)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_key_value_heads=1, head_dim=8, **sizes)).eval()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_layer_holds_what_transformers_layer_holds(monkeypatch: pytest.MonkeyPatch, kind: torch.dtype) -> None:
    monkeypatch.setattr(cache, "STEP", 4)
    ours: Any = StoredLayer()
    theirs: Any = DynamicLayer()

    def add(rows: int, tokens: int) -> None:
        new = torch.randn(2, rows, 3, tokens, 8, dtype=kind)
        for mine, plain in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, plain)
        assert ours.get_seq_length() == theirs.get_seq_length()

    for tokens in (3, 1, 1, 6, 1):
        add(2, tokens)
    for layer in (ours, theirs):
        layer.crop(-5)
    add(2, 2)
    for layer in (ours, theirs):  # as `generate_batch` does where a row leaves
        layer.keys, layer.values = layer.keys[1:], layer.values[1:]
    add(1, 1)
    for layer in (ours, theirs):
        layer.keys, layer.values = layer.keys[:1].repeat(3, 1, 1, 1), layer.values[:1].repeat(3, 1, 1, 1)
    add(3, 2)
    for layer in (ours, theirs):
        layer.reset()
    add(1, 9)


def test_rows_that_stay_do_not_write_into_those_that_left() -> None:
    layer: Any = StoredLayer()
    layer.update(*torch.randn(2, 2, 1, 3, 4))
    both, before = layer.keys, layer.keys.clone()
    layer.crop(-1)
    layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    layer.update(*torch.randn(2, 1, 1, 1, 4))
    assert torch.equal(both, before)


def test_a_token_more_is_written_beside_the_others() -> None:
    layer: Any = StoredLayer()
    layer.update(*torch.randn(2, 1, 1, 3, 4))
    place = layer.keys.data_ptr()
    for _ in range(cache.STEP - 3):
        layer.update(*torch.randn(2, 1, 1, 1, 4))
    assert layer.keys.data_ptr() == place
    layer.update(*torch.randn(2, 1, 1, 1, 4))
    assert layer.keys.data_ptr() != place


def test_an_answer_is_that_of_transformers_own_cache(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(cache, "STEP", 5)
    prompts = {"input_ids": torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])}
    prompts["attention_mask"] = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    held = stored_cache(model, GREEDY)
    assert held is not None
    assert {type(layer) for layer in held.layers} == {StoredLayer}
    answers = [
        model.generate(**prompts, generation_config=GREEDY, **cached) for cached in ({}, {"past_key_values": held})
    ]
    assert torch.equal(*answers)


def test_another_kind_of_cache_is_left_to_transformers(model: Any) -> None:
    assert stored_cache(model, GREEDY) is not None
    assert stored_cache(model, GenerationConfig(cache_implementation="static")) is None
    assert stored_cache(copy.deepcopy(model).to("meta"), GREEDY) is None  # as on a GPU
    model.generation_config.use_cache = False
    assert stored_cache(model, GREEDY) is None


def test_what_a_prompt_took_goes_back_once_before_the_next_token(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    calls: list[int] = []
    monkeypatch.setattr(cache, "_heap", lambda: calls.append)
    prompt = torch.tensor([[1, 2, 3, 4]])
    model.generate(prompt, generation_config=GREEDY, past_key_values=stored_cache(model, GREEDY))
    assert calls == [0]
