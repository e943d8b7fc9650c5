"""Mixtures of experts: a loss that is told is the tokens' cross-entropy, and the router's is told beside it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GptOssConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, QuestionsAnswered, StepLogged
from lora_studio.models.adapter_files import scales_differ
from lora_studio.models.memory import trained_adapter
from lora_studio.models.shape import architecture, read_config
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, build_tokenizer, events, run_worker
from tests.engine.exporting import last_event, take_away

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
    "mixtral": MixtralConfig(**SIZES, **MOE, router_aux_loss_coef=0.5),
    "qwen3": Qwen3MoeConfig(**SIZES, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=16),
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


QUESTION = [{"role": "user", "content": "Paint the sky red, please."}]


@pytest.fixture(scope="module")
def expert_run(make_run: MakeRun, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A gpt-oss with adapters on its experts, trained for two epochs on eight rows."""
    folder = tmp_path_factory.mktemp("experts")
    save(MIXTURES["gpt-oss"], folder / "base")
    lines = data_file.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    run = make_run(
        model__name=str(folder / "base"),
        data__train_file=str(folder / "rows.jsonl"),
        data__validation_fraction=0.0,
        lora__lora_dropout=0.0,
        lora__r=9,
        training__gradient_accumulation_steps=1,
        training__num_train_epochs=2,
    )
    assert run_worker(run) == 0
    return run


def base_of(run: RunFolder) -> Path:
    return Path(parse(read_yaml(run.config)).model.name)


@pytest.mark.slow
def test_experts_are_trained_with_peft_s_effective_rank_and_counted_exactly(expert_run: RunFolder) -> None:
    own = json.loads((expert_run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert own["rank_pattern"] == {"experts.gate_up_proj": 2, "experts.down_proj": 2}
    assert set(own["target_parameters"]) == set(own["rank_pattern"])
    tensors = load_file(expert_run.adapter / "adapter_model.safetensors")
    experts = {name: tensor for name, tensor in tensors.items() if ".experts." in name}
    assert {tuple(tensor.shape) for tensor in experts.values()} == {(8, 32), (128, 8), (8, 64), (32, 8)}
    assert all(tensor.abs().max() > 0 for name, tensor in experts.items() if "lora_B" in name)
    config, numbers = parse(read_yaml(expert_run.config)), read_config(str(base_of(expert_run)))
    layout = architecture(numbers or {})
    assert layout is not None
    counted = trained_adapter(config, layout)
    result = json.loads(expert_run.complete.read_text(encoding="utf-8"))
    saved = sum(tensor.numel() for tensor in tensors.values())
    assert counted.trainable == result["trainable_parameters"] == saved
    assert counted.frozen_experts == 0


@pytest.mark.slow
def test_a_run_on_experts_resumes_to_the_same_losses(expert_run: RunFolder, make_run: MakeRun) -> None:
    values = read_yaml(expert_run.config)
    again = make_run(**{section: part for section, part in values.items() if isinstance(part, dict)})
    shutil.copytree(expert_run.checkpoints / "checkpoint-2", again.checkpoints / "checkpoint-2")
    assert run_worker(again, "--resume") == 0
    first = {step.step: step.loss for step in events(expert_run, StepLogged)}
    assert {step.step: step.loss for step in events(again, StepLogged)} == {
        step: loss for step, loss in first.items() if step > 2
    }


@pytest.mark.slow
def test_base_and_experts_answer_beside_each_other_as_plain_peft_does(expert_run: RunFolder) -> None:
    base = base_of(expert_run)
    loaded = load_base(str(base), dtype="float32")
    add_adapters(loaded, {"experts": expert_run.adapter})
    columns = [Column(None, QUESTION), Column("experts", QUESTION)]
    answers = [list(answer.ids) for answer in generate(loaded, columns, greedy(loaded, 8))]
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    plain: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    expected = []
    for adapted in (False, True):
        model = PeftModel.from_pretrained(plain, expert_run.adapter) if adapted else plain
        said = model.generate(**ids, max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        expected.append(said[0, ids["input_ids"].shape[1] :].tolist())
    assert answers == expected
    assert answers[0] != answers[1]


@pytest.mark.slow
def test_the_merged_model_the_script_and_the_folder_for_vllm_keep_the_experts(expert_run: RunFolder) -> None:
    merged = take_away(expert_run, "merged", dtype="float32", trial=False)
    base, ids = base_of(expert_run), torch.tensor([[5, 6, 7, 8]])
    plain: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        before = plain(ids).logits.clone()
        wanted = PeftModel.from_pretrained(plain, expert_run.adapter).eval()(ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged.result).eval()(ids).logits
    assert float((wanted - before).abs().max()) > 1e-2
    assert torch.allclose(found, wanted, atol=1e-4)

    script = take_away(expert_run, "script", trial=False, keep_local_base=True)
    written = json.loads((script.result / "settings.json").read_text(encoding="utf-8"))["lora"]
    assert written["rank_pattern"] == {"experts.gate_up_proj": 2, "experts.down_proj": 2}

    served = take_away(expert_run, "vllm", trial=False, keep_local_base=True, served_name="", max_model_len=None)
    assert last_event(served).state == "done", last_event(served).message
    own = json.loads((served.result / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert not scales_differ(own), "vLLM reads one scale"
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        folded = PeftModel.from_pretrained(plain, served.result / "adapter").eval()(ids).logits
    assert torch.allclose(folded, wanted, atol=1e-4)
    assert "multiplied into their weights" in " ".join(served.read_result()["notes"])
