"""The base beside an adapter is the bare base, also where the adapter trained the base's biases or whole modules."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.jobs.events import QuestionsAsked, StepLogged, fold
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, build_tokenizer, events, run_worker
from tests.engine.test_generate import LONGEST, QUESTIONS, alone_with, ask

pytestmark = pytest.mark.slow
QUICK: dict[str, Any] = {
    "training__max_steps": 3,
    "training__save_strategy": "no",
    "training__learning_rate": 0.05,
    "evaluation__gen_eval_samples": 2,
    "generation__max_new_tokens": 6,
}


@pytest.fixture(scope="module")
def biased(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with biases of its own in every attention."""
    folder = tmp_path_factory.mktemp("models") / "biased"
    config = AutoConfig.from_pretrained(base)
    config.attention_bias = True
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(make_run: MakeRun, biased: Path) -> dict[str, RunFolder]:
    """One run for each way to train more than an adapter's matrices, and one that trains these alone."""
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "biases": {"lora__bias": "all"},
        "whole": {"lora__modules_to_save": "lm_head, norm"},
    }
    made = {name: make_run(model__name=str(biased), **QUICK, **settings) for name, settings in ways.items()}
    assert [run_worker(run) for run in made.values()] == [0, 0, 0]
    return made


def test_what_was_trained_is_in_the_adapter(runs: dict[str, RunFolder]) -> None:
    names = load_file(runs["biases"].adapter / "adapter_model.safetensors")
    assert sum(name.endswith("bias") for name in names) == 8
    names = load_file(runs["whole"].adapter / "adapter_model.safetensors")
    assert {"lm_head.weight", "norm.weight"} <= {name.rpartition("model.")[2] for name in names}


def test_a_run_measures_the_same_base_whatever_it_trained(runs: dict[str, RunFolder]) -> None:
    measured = [json.loads(run.complete.read_text(encoding="utf-8"))["difference"] for run in runs.values()]
    assert len({round(each["base_loss"], 5) for each in measured}) == 1
    assert len({round(each["adapter_loss"], 5) for each in measured}) == 3
    assert len({tuple(events(run, QuestionsAsked)[0].answers) for run in runs.values()}) == 1


@pytest.fixture(scope="module")
def loaded(runs: dict[str, RunFolder], biased: Path) -> LoadedModel:
    loaded = load_base(str(biased))
    add_adapters(loaded, {name: run.adapter for name, run in runs.items()})
    return loaded


def test_each_column_of_the_chat_says_what_its_model_says_alone(
    loaded: LoadedModel, runs: dict[str, RunFolder], biased: Path
) -> None:
    question, tokenizer = QUESTIONS[0], AutoTokenizer.from_pretrained(runs["plain"].adapter)
    expected = [alone_with(AutoModelForCausalLM.from_pretrained(biased), tokenizer, question)]
    for run in runs.values():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(biased), run.adapter)
        expected.append(alone_with(model, tokenizer, question))
    columns = [Column(name, ask(question)) for name in (None, *runs)]
    for order in (columns, columns[::-1]):
        answers = generate(loaded, order, greedy(loaded, LONGEST))
        assert [answer.ids for answer in answers] == (expected if order is columns else expected[::-1])
    assert len(set(expected)) == 4


def test_a_base_that_adapters_left_is_the_bare_base(runs: dict[str, RunFolder], biased: Path) -> None:
    used = load_base(str(biased))
    add_adapters(used, {name: run.adapter for name, run in runs.items()})
    bare, fresh = used.without_adapters(), load_base(str(biased))
    ids = torch.tensor([[5, 9, 30, 41]])
    with torch.no_grad():
        assert torch.equal(bare.model(input_ids=ids).logits, fresh.model(input_ids=ids).logits)


def test_a_run_that_trains_biases_goes_on_where_it_was(
    runs: dict[str, RunFolder], make_run: MakeRun, biased: Path
) -> None:
    settings = {**QUICK, "training__save_strategy": "steps", "training__save_steps": 2, "training__max_steps": 4}
    run = make_run(model__name=str(biased), lora__bias="all", **settings)
    assert run_worker(run) == 0
    whole = [point.loss for point in fold(events(run)).steps]
    run.complete.unlink()
    torn = run.checkpoints / "checkpoint-4" / "trainer_state.json"
    torn.write_text("{", encoding="utf-8")
    assert run_worker(run, "--resume") == 0
    assert [point.loss for point in fold(events(run)).steps] == whole
    assert [point.step for point in events(run, StepLogged)] == [1, 2, 3, 4, 3, 4]
