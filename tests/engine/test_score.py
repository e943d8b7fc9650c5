"""A forced answer token by token: the log-probabilities are those of each model alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.engine.chat.logprobs import score
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.errors import StudioError
from lora_studio.workspace import RunFolder

pytestmark = pytest.mark.slow
ASKED = [{"role": "user", "content": "Paint the sky green, please."}]
SAID = "Now the sky is green."


def test_base_and_adapter_score_the_same_text_as_each_would_alone(
    base: Path, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.engine.chat.logprobs.POSITIONS", 3)
    loaded = load_base(str(base), dtype="float32")
    add_adapters(loaded, {"run": trained.adapter, "early": trained.checkpoints / "checkpoint-4"})
    found = score(loaded, ["run", "early"], ASKED, SAID)
    tokenizer = AutoTokenizer.from_pretrained(trained.adapter)
    prompt = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = [*tokenizer.encode(SAID), tokenizer.eos_token_id]
    assert "".join(found["texts"][:-1]) == SAID
    bare = AutoModelForCausalLM.from_pretrained(base)
    with torch.inference_mode():
        before = bare(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        after = PeftModel.from_pretrained(bare, trained.adapter)(torch.tensor([prompt + ids])).logits
        after = after[0, len(prompt) - 1 : -1].log_softmax(-1)
    places = range(len(ids))
    assert found["base"] == pytest.approx([float(before[at, ids[at]]) for at in places], abs=1e-4)
    assert found["adapters"]["run"] == pytest.approx([float(after[at, ids[at]]) for at in places], abs=1e-4)
    apart = (after.exp() * (after - before)).sum(-1).tolist()
    assert found["divergence"]["run"] == pytest.approx(apart, abs=1e-4)
    assert found["mean_divergence"]["run"] == pytest.approx(sum(apart) / len(apart), abs=1e-4)
    assert sum(found["adapters"]["run"]) > sum(found["base"])
    with pytest.raises(StudioError, match="no text"):
        score(loaded, ["run"], ASKED, "")
    with pytest.raises(StudioError, match="at most"):
        score(loaded, ["run"], ASKED, "sky " * 300)
    with pytest.raises(StudioError, match="in memory"):
        score(loaded, ["ghost"], ASKED, SAID)
