"""An adapter of any make that is trained further takes the very steps that plain peft takes from there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lora_studio.config.parsing import nest, parse, to_yaml
from lora_studio.engine.models.adapter import continue_adapter, look_at_model
from lora_studio.engine.models.load import load_model
from lora_studio.errors import StudioError
from lora_studio.jobs.events import StepLogged
from lora_studio.models.adapters import continued
from lora_studio.workspace import RunFolder, Workspace
from tests.engine.conftest import events, run_worker
from tests.engine.kinds import KINDS, bare, make, tiny_llama

RATE = 0.5
ROWS = {"Who barks?": "The dog does.", "What is ice?": "Cold water.", "Where are fish?": "In the sea."}
OUTPUT = {"output"}
"""Kinds that the loss here can't train."""


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("continuing") / "base", tied=request.param)


def one_step(base: Path, adapter: Path, folder: Path) -> RunFolder:
    """A run of one plain step (SGD) over three rows at once, from that adapter."""
    rows = [{"messages": [message("user", asked), message("assistant", said)]} for asked, said in ROWS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        **{"model.name": str(base), "model.adapter_name_or_path": str(adapter), "lora.lora_dropout": 0},
        **{"data.train_file": str(folder / "rows.jsonl"), "data.validation_fraction": 0, "tracking.logging_steps": 1},
        **{"training.optim": "sgd", "training.learning_rate": RATE, "training.lr_scheduler_type": "constant"},
        **{"training.max_steps": 1, "training.per_device_train_batch_size": 3, "training.max_grad_norm": 1e9},
        **{"training.gradient_accumulation_steps": 1, "training.weight_decay": 0, "evaluation.eval_strategy": "no"},
    }
    workspace = Workspace(folder / "workspace")
    run = workspace.create_run("one step", to_yaml(continued(parse(nest(settings)), workspace)), {})
    assert run_worker(run) == 0, run.read_result()["message"]
    return run


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def plain_step(base: Path, adapter: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss over the answers' tokens, and the adapter after one step, by peft alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = PeftModel.from_pretrained(bare(base), adapter, is_trainable=True)
    nats, tokens = torch.zeros(()), 0
    for asked, said in ROWS.items():
        text = tokenizer.apply_chat_template([message("user", asked)], add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(text).input_ids)
        ids = torch.tensor([tokenizer(text + said + tokenizer.eos_token).input_ids])
        scores = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
        nats = nats + torch.nn.functional.cross_entropy(scores, ids[0, start:], reduction="sum")
        tokens += ids.shape[1] - start
    loss = nats / tokens
    loss.backward()
    for weight in model.parameters():
        if weight.grad is not None:
            weight.data -= RATE * weight.grad
    return loss.item(), get_peft_model_state_dict(model, save_embedding_layers=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "parameters alone", "head"])
def test_a_step_is_that_of_peft(kind: str, base: Path, tmp_path: Path) -> None:
    settings = {"target_parameters": ["mlp.up_proj.weight"]} if kind == "parameters alone" else KINDS[kind]
    adapter = make(base, tmp_path / "before", **settings)
    run = one_step(base, adapter, tmp_path)
    loss, expected = plain_step(base, adapter)
    assert events(run, StepLogged)[0].loss == pytest.approx(loss, abs=1e-5)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, run.adapter))
    assert set(after) == set(expected)
    for name, weight in expected.items():
        assert torch.allclose(after[name], weight, atol=1e-5), name
        assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_trained_is_known_before_the_start(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = make(base, tmp_path / kind, **KINDS[kind])
    lora = {"lora_dropout": 0.0}
    seen = look_at_model(str(base), None, lora=lora, seed=0, adapter=str(adapter))
    model = load_model(str(base))
    if kind in OUTPUT:
        with pytest.raises(StudioError, match="targets the output layer"):
            continue_adapter(model, adapter, base=str(base), revision=None, dropout=0)
        assert "targets the output layer" in seen["adapter_problem"][0]
        return
    adapted, told = continue_adapter(model, adapter, base=str(base), revision=None, dropout=0)
    assert (seen["trainable"], told) == (adapted.get_nb_trainable_parameters()[0], [])
    if KINDS[kind].get("target_parameters"):
        seen = look_at_model(str(base), None, lora={"lora_dropout": 0.1}, seed=0, adapter=str(adapter))
        assert seen["adapter_problem"][1] == "Set lora.lora_dropout to 0."
