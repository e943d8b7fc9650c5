"""Mixtures of experts: a loss that is told is the tokens' cross-entropy, and the router's is told beside it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.multi_adapter import load_base
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, QuestionsAnswered, StepLogged
from tests.engine.conftest import MakeRun, build_tokenizer, events

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "layer_types": ["mamba", "attention"],
    "shared_intermediate_size": 64,
}
MIXTURES: dict[str, PreTrainedConfig] = {
    "gpt-oss": GptOssConfig(**SIZES, **MOE, head_dim=16, router_aux_loss_coef=0.9),
    "granite": GraniteMoeConfig(**SIZES, **MOE, router_aux_loss_coef=0.5),
    "granite-hybrid-without-experts": GraniteMoeHybridConfig(**SIZES, **MAMBA, num_local_experts=0),
    "phi": PhimoeConfig(**SIZES, **MOE, router_aux_loss_coef=0.5),
}


def save(config: PreTrainedConfig, folder: Path) -> PreTrainedTokenizerFast:
    """A random model of that kind, with the tests' tokenizer."""
    tokenizer = build_tokenizer()
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def cross_entropy(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Nats a token of the answers, end token included, from the model's own logits."""
    nats, tokens = 0.0, 0
    for row in rows:
        asked = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, tokenize=False)
        answer = row["messages"][1]["content"] + tokenizer.eos_token
        start = tokenizer(asked, return_tensors="pt").input_ids.shape[1]
        ids = tokenizer(asked + answer, return_tensors="pt").input_ids
        with torch.no_grad():
            scores = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        answered = ids[0, start:]
        nats -= float(scores[torch.arange(len(answered)), answered].sum())
        tokens += len(answered)
    return nats / tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(MIXTURES))
def test_losses_of_a_mixture_are_the_cross_entropy_of_plain_transformers(
    kind: str, make_run: MakeRun, train: Callable[..., int], data_file: Path, tmp_path: Path
) -> None:
    base, rows = tmp_path / "base", [json.loads(line) for line in data_file.read_text(encoding="utf-8").splitlines()]
    tokenizer = save(MIXTURES[kind], base)
    for name, part in (("train", rows[:8]), ("held", rows[8:12])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    run = make_run(
        model__name=str(base),
        data__train_file=str(tmp_path / "train.jsonl"),
        data__validation_file=str(tmp_path / "held.jsonl"),
        data__validation_fraction=0.0,
        lora__lora_dropout=0.0,
        training__num_train_epochs=2,
        evaluation__gen_eval_samples=2,
        generation__max_new_tokens=3,
    )
    assert train(run) == 0
    first, last = events(run, StepLogged)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    if kind != "phi":  # whose router draws experts at random in training
        assert first.loss == pytest.approx(cross_entropy(plain, tokenizer, rows[:8]), abs=1e-4)
    measured = cross_entropy(PeftModel.from_pretrained(plain, run.adapter), tokenizer, rows[8:12])
    assert events(run, Evaluated)[-1].loss == pytest.approx(measured, abs=1e-4)
    difference = json.loads(run.complete.read_text(encoding="utf-8"))["difference"]
    assert difference["adapter_loss"] == pytest.approx(measured, abs=1e-4)
    experts = "without" not in kind
    assert ("aux_loss" in last.metrics) == experts
    assert not experts or last.metrics["aux_loss"] > 1
    assert len(events(run, QuestionsAnswered)) == 2


@pytest.mark.parametrize("first", ["pissa", "olora", "orthogonal", "eva"])
def test_first_weights_that_experts_can_not_bear_are_refused_in_words(first: str) -> None:
    def put_on(target: str) -> Any:
        model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, **MOE, vocab_size=50))
        return add_adapter(
            model, base="x", revision=None, target=target, seed=0, init_lora_weights=first, r=2, lora_dropout=0.0
        )

    with pytest.raises(StudioError, match=f"do not support the initialization {first}"):
        put_on("all-linear")
    assert put_on("attention").get_nb_trainable_parameters()[0] > 0


def test_a_mixture_whose_config_asks_for_router_scores_generates_in_the_chat(tmp_path: Path) -> None:
    tokenizer = save(MixtralConfig(**SIZES, **MOE, output_router_logits=True), tmp_path)
    loaded = load_base(str(tmp_path))
    ids = tokenizer(["Paint the sky", "Now"], return_tensors="pt", padding=True)
    assert loaded.model.generate(**ids, max_new_tokens=3, do_sample=False).shape[0] == 2
