"""First weights of a fresh adapter; one that took them out of the base still works on the base as everybody has it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lora_studio.data.dataset import prepare
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.models.adapter import (
    add_adapter,
    as_base,
    fill_from_data,
    fill_with_rounding,
    initial_lora_state,
    save_as_difference,
    token_batches,
)
from lora_studio.engine.models.load import load_model
from lora_studio.engine.models.multi_adapter import biases_of, load_base
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.errors import StudioError
from lora_studio.jobs.events import QuestionsAsked, StepLogged
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events

IDS = torch.tensor([[5, 9, 30, 41, 77, 120, 33, 8]])
CPU = torch.device("cpu")


def fresh(base: Path, start: str, model: PreTrainedModel | None = None, **lora: Any) -> PeftModel:
    settings = {"r": 4, "lora_alpha": 8, **lora}
    return add_adapter(
        model or load_model(str(base)),
        base=str(base),
        revision=None,
        target="all-linear",
        seed=1,
        init_lora_weights=start,
        **settings,
    )


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def matrices(model: PeftModel, which: str) -> list[torch.Tensor]:
    return [weight.detach() for name, weight in model.named_parameters() if which in name]


def test_gaussian_weights_are_as_wide_as_the_rank_says(base: Path) -> None:
    values = torch.cat([weight.flatten() for weight in matrices(fresh(base, "gaussian"), "lora_A")])
    assert float(values.std()) == pytest.approx(1 / 4, rel=0.05)


def test_orthogonal_weights_have_rows_at_right_angles_to_the_other_matrix(base: Path) -> None:
    model = fresh(base, "orthogonal")
    for a, b in zip(matrices(model, "lora_A"), matrices(model, "lora_B"), strict=True):
        assert a.abs().sum() > 0
        assert float((b @ a).abs().max()) < 1e-5  # nothing is added at first, though neither matrix is zero


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["plain", "rslora", "dora"])
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora"])
def test_weights_taken_out_of_the_base_come_back_as_an_adapter_for_the_base_as_it_is(
    start: str, lora: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    bare = load_model(str(base))
    model = fresh(base, start, **lora)
    changed = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert not torch.allclose(changed, bare.model.layers[0].mlp.up_proj.weight, atol=1e-4)
    assert torch.allclose(scores(model), scores(bare), atol=1e-3)
    initial_state = initial_lora_state(model, start)
    assert initial_state is not None
    torch.manual_seed(2)
    for weight in [*matrices(model, "lora_A"), *matrices(model, "lora_B")]:
        weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(str(tmp_path))
    save_as_difference(tmp_path, initial_state)
    moved = scores(model)
    with as_base(model, initial_state, biases_of(model)):
        assert torch.allclose(scores(model), scores(bare), atol=1e-3)
    assert torch.equal(scores(model), moved)
    assert not torch.allclose(moved, scores(bare), atol=1e-2)
    assert torch.allclose(scores(PeftModel.from_pretrained(load_model(str(base)), str(tmp_path))), moved, atol=1e-3)


def test_loftq_begins_nearer_to_the_base_than_its_rounded_weights_are(base: Path) -> None:
    exact = scores(load_model(str(base)))
    rounded = load_model(str(base), quantization="4bit")
    before = float((scores(rounded) - exact).abs().mean())
    model = fresh(base, "loftq", rounded, r=16, lora_alpha=32)
    assert float((scores(model) - exact).abs().mean()) == pytest.approx(before, rel=1e-3)
    fill_with_rounding(model, str(base), None)
    assert float((scores(model) - exact).abs().mean()) < 0.9 * before


def test_eva_begins_with_the_directions_of_the_data(base: Path, data_file: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    examples = prepare(str(data_file), tokenizer, max_length=64, validation_fraction=0).train
    batches = token_batches((one.input_ids for one in examples), tokens=256, pad=0, device=CPU)
    model = fresh(base, "eva")
    seen: list[torch.Tensor] = []
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0]))
    fill_from_data(model, batches)
    with torch.no_grad():
        model.eval()(**batches[0])
    handle.remove()
    states = seen[-1] - seen[-1].mean(dim=0)

    def caught(matrix: torch.Tensor) -> float:
        directions = torch.linalg.qr(matrix.T)[0]
        return float((states @ directions).square().sum() / states.square().sum())

    random = fresh(base, "default").base_model.model.model.layers[1].mlp.up_proj.lora_A["default"].weight
    assert caught(layer.lora_A["default"].weight.detach()) > 3 * caught(random.detach())
    assert all(float(weight.abs().max()) == 0 for weight in matrices(model, "lora_B"))


def test_eva_gives_up_on_data_without_directions(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_studio.engine.models.adapter.MAX_BATCHES", 5)
    batches = token_batches([[7, 7]], tokens=8, pad=0, device=CPU)
    with pytest.raises(StudioError, match="no 4 stable directions"):
        fill_from_data(fresh(base, "eva"), batches)


def test_batches_hold_enough_tokens_and_every_row_once() -> None:
    rows = [[1] * length for length in (5, 3, 9, 2, 4, 1)]
    batches = token_batches(rows, tokens=8, pad=0, device=CPU)
    counts = [int(batch["attention_mask"].sum()) for batch in batches]
    assert counts == [8, 16]
    assert token_batches([[1, 2]], tokens=8, pad=0, device=CPU)[0]["input_ids"].tolist() == [[1, 2]]


@pytest.mark.slow
def test_a_run_from_the_bases_own_weights_resumes_as_if_it_had_not_stopped(
    make_run: MakeRun, train: Callable[..., int], base: Path
) -> None:
    settings: dict[str, Any] = {
        "lora__init_lora_weights": "pissa",
        "lora__modules_to_save": "embed_tokens",  # of which the base has its own
        "training__learning_rate": 1e-3,
        "training__max_steps": 4,
    }
    settings |= {"evaluation__gen_eval_samples": 2, "generation__max_new_tokens": 6}
    saving = {"training__save_strategy": "steps", "training__save_steps": 2}
    whole, cut = make_run(**settings, **saving), make_run(**settings, **saving)
    assert train(whole) == 0
    assert train(cut) == 0
    last = cut.checkpoints / "checkpoint-4" / "trainer_state.json"
    last.write_text("{", encoding="utf-8")  # as a crash leaves it
    assert train(cut, "--resume") == 0

    def losses(run: RunFolder) -> dict[int, float]:
        return {point.step: point.loss for point in events(run, StepLogged)}

    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    (asked,), untouched = events(whole, QuestionsAsked), load_base(str(base))
    columns = [Column(None, [{"role": "user", "content": question}]) for question in asked.questions]
    alone = [answer.text for answer in generate(untouched, columns, greedy(untouched, 6))]
    assert asked.answers == alone  # asked of the base as it is, not of what the adapter left of it
    bare = load_model(str(base))
    answers = [
        scores(PeftModel.from_pretrained(load_model(str(base)), str(folder)))
        for folder in (whole.adapter, cut.adapter, whole.checkpoints / "checkpoint-4")
    ]
    assert all(torch.allclose(answers[0], other, atol=1e-3) for other in answers)
    assert not torch.allclose(answers[0], scores(bare), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["eva", "loftq"])
def test_a_run_may_begin_with_its_own_data_or_with_what_4bit_lost(
    start: str, make_run: MakeRun, train: Callable[..., int]
) -> None:
    quantization = "4bit" if start == "loftq" else "none"
    run = make_run(lora__init_lora_weights=start, model__quantization=quantization, training__max_steps=2)
    assert train(run) == 0
    assert '"init_lora_weights": true' in (run.adapter / "adapter_config.json").read_text(encoding="utf-8")
