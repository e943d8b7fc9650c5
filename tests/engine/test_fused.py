"""A step in fewer passes comes to the numbers of plain transformers, peft and trl."""

import copy
import pickle
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from transformers import AutoModelForCausalLM, LlamaConfig
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from lora_studio.engine.train import fused

LABELS = torch.tensor([[-100, -100, 7, 3, 9, -100], [-100, 5, 5, 1, -100, -100]])
IDS = torch.tensor([[4, 2, 7, 3, 9, 8], [6, 5, 5, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dropout": {"lora_dropout": 0.3},
    "dora": {"use_dora": True},
    "bias of the base": {"bias": "all"},
    "bias of the adapter": {"lora_bias": True},
    "trained output layer": {"modules_to_save": ["lm_head"]},
}


def _model(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = LlamaConfig(vocab_size=40, num_key_value_heads=1, attention_bias=True, **sizes)
    base = AutoModelForCausalLM.from_config(shape)
    for name, bias in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    model = get_peft_model(base, LoraConfig(**{"r": 2, "target_modules": "all-linear", **settings})).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model


def _step(model: Any, labels: torch.Tensor = LABELS, **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of a step; dropout draws the same numbers each time."""
    torch.manual_seed(1)
    loss = model(input_ids=IDS, attention_mask=MASK, labels=labels, use_cache=False, **options).loss
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def _fused(model: Any) -> Any:
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    fused.fuse(model)
    return model


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_loss_and_gradients_are_those_of_transformers_and_peft(settings: dict[str, Any]) -> None:
    plain = _model(**settings)
    ours = _fused(copy.deepcopy(plain))
    loss, gradients = _step(plain)
    our_loss, our_gradients = _step(ours, fused_lm_head=True)
    assert our_loss == pytest.approx(loss, rel=1e-6)
    assert our_gradients.keys() == gradients.keys()
    assert len(gradients) >= 28
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-4, atol=1e-6)


def test_plain_layers_take_the_short_way_and_others_that_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(**settings: Any) -> int:
        count = 0

        def counted(*args: Any) -> Any:
            nonlocal count
            count += 1
            return product(*args)

        monkeypatch.setattr(fused.LoraProduct, "apply", counted)
        _step(_fused(_model(**settings)), fused_lm_head=True)
        return count

    product = fused.LoraProduct.apply
    assert calls() == 14  # seven modules in each of two layers
    assert [calls(**SETTINGS[name]) for name in ("dropout", "dora", "bias of the base", "bias of the adapter")] == [
        0,
        0,
        6,
        0,
    ]


def test_another_precision_a_merged_or_disabled_adapter_and_one_for_each_row_are_left_to_peft() -> None:
    model = _fused(_model())
    layer = next(module for module in model.modules() if type(module) is Linear)
    x = torch.randn(2, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), Linear.forward(layer, x))
        assert layer(x).dtype == torch.bfloat16
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    mixed = layer(x, adapter_names=["__base__", "default"])
    torch.testing.assert_close(mixed, torch.stack([layer.base_layer(x[0]), layer(x[1])]))
    before = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), before)


def test_a_batch_without_a_trained_token_has_a_loss_of_zero_and_gradients_of_zero() -> None:
    loss, gradients = _step(_fused(_model()), torch.full_like(LABELS, -100), fused_lm_head=True)
    assert loss == 0.0
    assert gradients
    assert all(not gradient.any() for gradient in gradients.values())


def _with_known_places(model: Any) -> Any:
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    fused.KnownPlaces(model)
    return model


def _places(labels: torch.Tensor) -> torch.Tensor:
    return fused.WithPlaces(lambda _: {"labels": labels})([])[fused.PLACES]


def test_the_collator_goes_to_a_worker_that_starts_anew() -> None:
    collate = fused.WithPlaces(DataCollatorForLanguageModeling(0, padding_free=True))
    rows = [{"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}, {"input_ids": [7, 8], "labels": [-100, 8]}]
    for made in (collate(rows), pickle.loads(pickle.dumps(collate))(rows)):
        assert made["labels"].tolist() == [[-100, 5, 6, -100, 8]]
        assert made[fused.PLACES].tolist() == [0, 1, 3]


@pytest.mark.parametrize("labels", [LABELS, torch.full_like(LABELS, -100)], ids=["some", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_scored_at_the_places_of_a_batch_is_what_trl_scores_by_a_mask(
    labels: torch.Tensor, checkpointing: bool
) -> None:
    theirs = _model(lora_dropout=0.3)
    ours = _with_known_places(copy.deepcopy(theirs))
    add_fused_lm_head(theirs.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    scored, results = [], []
    for model, places in ((theirs, {}), (ours, {fused.PLACES: _places(labels)})):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        torch.manual_seed(1)
        output = model(input_ids=IDS, labels=labels, use_cache=False, fused_lm_head=True, **places)
        output.loss.backward()
        scored.append(output)
        results.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert scored[1].log_probs.shape == (1, int((labels[:, 1:] != -100).sum()))
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        sums = [float(getattr(output, name).sum()) for output in scored]
        assert sums[1] == pytest.approx(sums[0], rel=1e-6), name
    assert scored[1].loss.item() == pytest.approx(scored[0].loss.item(), rel=1e-6)
    assert len(results[1]) == len(results[0]) == 28
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_without_a_loss_and_in_evaluation_the_places_change_nothing() -> None:
    plain = _model().eval()
    ours = _with_known_places(copy.deepcopy(plain)).eval()
    with torch.no_grad():
        logits = plain(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
        assert torch.equal(
            ours(input_ids=IDS, attention_mask=MASK, use_cache=False, trained_places=None).logits, logits
        )
        scored = ours(input_ids=IDS, labels=LABELS, use_cache=False, fused_lm_head=True, trained_places=_places(LABELS))
    assert scored.log_probs.shape == (2, 5)
    assert fused.masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 0, 1]])).tolist() == [[0, 0, 1, 1]]
    assert fused.masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 2, 3]])) is None


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.7, 3.0)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_scores_and_their_gradients_are_those_of_trl(
    softcap: float | None, temperature: float, scale: float, with_bias: bool
) -> None:
    torch.manual_seed(2)
    values = [torch.randn(9, 16), torch.randn(40, 16), torch.randn(40) if with_bias else None]
    outputs = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")

    def scored(function: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        leaves = [None if value is None else value.clone().requires_grad_() for value in values]
        targets = torch.arange(9) * 4
        scores = function(*leaves, targets, temperature, 16, softcap, scale, outputs)
        (scores[0] * torch.arange(9)).sum().backward()
        return [score.detach() for score in scores], [leaf.grad for leaf in leaves if leaf is not None]

    torch.testing.assert_close(scored(fused.LogProbs.apply), scored(ChunkedLogProbFunction.apply), rtol=1e-4, atol=1e-5)


def test_of_words_that_are_equally_likely_the_first_counts_as_the_likeliest() -> None:
    hidden, weight = torch.eye(3), torch.tensor([[1.0, 0.0, 2.0], [1.0, 5.0, 2.0], [0.0, 0.0, 2.0]])
    for targets in ([0, 1, 0], [1, 1, 1], [2, 0, 2]):
        arguments = (hidden, weight, None, torch.tensor(targets), 1.0, 16, None, 1.0, ("log_probs", "is_top1"))
        assert fused.LogProbs.apply(*arguments)[4].tolist() == ChunkedLogProbFunction.apply(*arguments)[4].tolist()


def test_more_scores_than_are_held_at_once_are_computed_by_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, gradients = _step(_fused(_model()), fused_lm_head=True)
    monkeypatch.setattr(fused, "MAX_SCORES", 6 * 40 - 1)  # six trained tokens, forty words
    monkeypatch.setattr(torch.Tensor, "log_softmax", MethodType(pytest.fail, "the scores were held"))
    their_loss, their_gradients = _step(_fused(_model()), fused_lm_head=True)
    assert their_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(their_gradients, gradients, rtol=1e-4, atol=1e-6)
