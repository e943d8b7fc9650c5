"""What an adapter's file holds lands in the base, or is refused or told; plain peft is the measure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from lora_studio.engine.chat.generate import Column, generate, greedy, prompt_ids
from lora_studio.engine.models.adapter import continue_adapter, other_text
from lora_studio.engine.models.load import load_model
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.errors import StudioError
from lora_studio.workspace import model_source
from tests.engine.kinds import alone, bare, logits, make, moved, tiny_llama
from tests.engine.test_generate import ask

IDS = torch.tensor([[5, 9, 30, 41, 2, 40, 1, 77]])
WEIGHTS = "adapter_model.safetensors"
MODULES = ["q_proj", "v_proj", "up_proj"]
TEMPLATE = "{% for m in messages %}<|x|>{{ m.role }}: {{ m.content }}<|tool|>{% endfor %}<|x|>assistant: "


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("weights") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return make(base, base.parent / "adapter", target_modules=MODULES)


def put(base: Path, folder: Path) -> LoadedModel:
    loaded = load_base(str(base))
    add_adapters(loaded, {"it": folder})
    return loaded


def computed(loaded: LoadedModel, column: str | None = "it", ids: torch.Tensor = IDS) -> torch.Tensor:
    with loaded.use_adapter(column) as model:
        return logits(model, ids)


def rewritten(source: Path, target: Path, name: Callable[[str], str | None], **settings: Any) -> Path:
    """The same adapter with other names of its weights, some left out (None), and other settings."""
    shutil.copytree(source, target)
    weights = {new: tensor for key, tensor in load_file(source / WEIGHTS).items() if (new := name(key))}
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return target


INNER = "model.model.layers"
RENAMED: dict[str, Callable[[str], str]] = {
    "multimodal": lambda key: key.replace(INNER, "model.model.language_model.layers"),
    "older multimodal": lambda key: key.replace(INNER, "model.language_model.model.layers"),
    "compiled": lambda key: key.replace(INNER, "model._orig_mod.model.layers"),
    "named": lambda key: key.replace(".weight", ".default.weight"),
    "twice": lambda key: f"base_model.model.{key}",
    "bare": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("how", RENAMED)
def test_names_of_other_programs_are_the_bases(how: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = rewritten(adapter, tmp_path / "it", RENAMED[how])
    assert torch.equal(computed(put(base, folder)), alone(base, adapter, IDS))
    model, _ = continue_adapter(load_model(str(base)), folder, base=str(base), revision=None, dropout=0)
    assert torch.equal(logits(model.eval(), IDS), alone(base, adapter, IDS))


def test_settings_for_the_whole_model_are_the_text_models(base: Path, adapter: Path, tmp_path: Path) -> None:
    one = "model.layers.1.self_attn.q_proj"
    ours = rewritten(adapter, tmp_path / "ours", lambda key: key, alpha_pattern={one: 32})
    target = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q_proj|v_proj|up_proj)"
    settings = {"target_modules": target, "alpha_pattern": {one.replace("layers", "language_model.layers"): 32}}
    theirs = rewritten(adapter, tmp_path / "theirs", RENAMED["multimodal"], **settings)
    expected = alone(base, ours, IDS)
    assert not torch.equal(expected, alone(base, adapter, IDS))
    assert torch.equal(computed(put(base, theirs)), expected)


def test_weights_that_match_nothing_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = rewritten(adapter, tmp_path / "it", lambda key: key.replace(INNER, "model.transformer.blocks"))
    with pytest.raises(StudioError, match=r"None of the 12 weights of it matches a module of .*transformer\.blocks\.0"):
        put(base, folder)
    with pytest.raises(StudioError, match="None of the 12 weights"):
        continue_adapter(load_model(str(base)), folder, base=str(base), revision=None, dropout=0)


def test_what_lacks_and_what_has_no_place_is_told_by_name(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = rewritten(adapter, tmp_path / "half", lambda key: None if "layers.1" in key else key)
    loaded = put(base, folder)
    assert torch.equal(computed(loaded), alone(base, folder, IDS))
    (told,) = loaded.notes["it"]
    assert "no weights for 3 of the 6 modules" in told
    assert "model.layers.1.mlp.up_proj" in told
    folder = rewritten(adapter, tmp_path / "more", lambda key: key.replace("layers.1", "visual.blocks.1"))
    told_of = " ".join(put(base, folder).notes["it"])
    assert "6 of the 12 weights of more match no module" in told_of
    assert "visual.blocks.1" in told_of


def test_ranks_below_r_are_loaded_and_ranks_of_another_adapter_refused(base: Path, tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 32, "rank_pattern": {"q_proj": 4, "v_proj": 8}}
    folder = make(base, tmp_path / "it", **settings)
    loaded = put(base, folder)
    assert torch.equal(computed(loaded), alone(base, folder, IDS))
    assert loaded.notes["it"] == []
    wrong = rewritten(folder, tmp_path / "wrong", lambda key: key, rank_pattern={"q_proj": 4})
    with pytest.raises(
        StudioError, match=r"states rank 32 for model\.layers\.0\.self_attn\.v_proj, but its matrix has 8"
    ):
        put(base, wrong)


def test_a_mark_of_another_task_that_writes_text_loads_and_numbers_that_are_none_do_not(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    marked = rewritten(adapter, tmp_path / "marked", lambda key: key, task_type="SEQ_2_SEQ_LM", lora_alpha=0.25)
    loaded = put(base, marked)
    assert (computed(loaded) - computed(loaded, None)).abs().max() > 1e-3
    with pytest.raises(StudioError, match="trained for SEQ_CLS"):
        put(base, rewritten(adapter, tmp_path / "other", lambda key: key, task_type="SEQ_CLS"))
    broken = load_file(adapter / WEIGHTS)
    broken[next(iter(broken))][0, 0] = float("nan")
    shutil.copytree(adapter, tmp_path / "broken")
    save_file(broken, tmp_path / "broken" / WEIGHTS)
    with pytest.raises(StudioError, match="1 of the 12 weights of broken are not finite"):
        put(base, tmp_path / "broken")


def tokens_added(base: Path) -> Any:
    """The base's tokenizer with two more tokens, and a template of them."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|x|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token = "<|tool|>"
    return tokenizer


@pytest.mark.parametrize("whole", [None, ["embed_tokens", "lm_head"]], ids=["saved beside", "modules to save"])
def test_a_larger_vocabulary_is_loaded_as_peft_saved_it(whole: list[str] | None, base: Path, tmp_path: Path) -> None:
    tokenizer = tokens_added(base)

    def resized() -> Any:
        model = bare(base)
        torch.manual_seed(5)
        model.resize_token_embeddings(len(tokenizer))
        return model

    made = moved(get_peft_model(resized(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=whole)), 3).eval()
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, len(tokenizer) - 1, len(tokenizer) - 2, 7]])
    loaded = put(base, tmp_path)
    assert torch.equal(computed(loaded, "it", ids), logits(made, ids))
    assert torch.equal(computed(loaded, None), logits(bare(base), IDS))
    assert f"its own embeddings for {len(tokenizer):,} tokens" in loaded.notes["it"][0]
    expected = tokenizer.apply_chat_template(ask("Hi!"), return_dict=True)["input_ids"]
    assert prompt_ids(loaded, Column("it", ask("Hi!")), None) == expected
    assert prompt_ids(loaded, Column(None, ask("Hi!")), None) != expected
    both = generate(loaded, [Column("it", ask("Hi!")), Column(None, ask("Hi!"))], greedy(loaded, 3))
    assert next(answer.prompt_tokens for answer in both) == len(expected)
    with pytest.raises(StudioError, match="its own embeddings for"):
        continue_adapter(load_model(str(base)), tmp_path, base=str(base), revision=None, dropout=0)


def test_an_adapters_own_tokenizer_counts_where_it_fits(tmp_path: Path) -> None:
    padded = tiny_llama(tmp_path / "padded", rows=8)
    tokenizer = tokens_added(padded)
    folder = make(padded, tmp_path / "own", target_modules=["q_proj"])
    tokenizer.save_pretrained(folder)
    loaded = put(padded, folder)
    expected = tokenizer.apply_chat_template(ask("Hi!"), return_dict=True)["input_ids"]
    assert prompt_ids(loaded, Column("it", ask("Hi!")), None) == expected
    assert loaded.notes["it"] == []
    small = tiny_llama(tmp_path / "small")
    other = make(small, tmp_path / "too large", target_modules=["q_proj"])
    tokenizer.save_pretrained(other)
    (told,) = put(small, other).notes["it"]
    assert "does not fit" in told
    assert "embeddings for" in told
    (said,) = other_text(folder, loaded.tokenizer, TEMPLATE, 10_000)
    assert "its own tokenizer" in said


def test_each_column_ends_where_its_own_tokenizer_ends(base: Path, tmp_path: Path) -> None:
    said = generate(load_base(str(base)), [Column(None, ask("Who?"))], greedy(load_base(str(base)), 12))[0].ids
    end = said[4]
    first = said.index(end)
    for kind in ("whole", "settings"):
        folder = make(base, tmp_path / kind, target_modules=["q_proj"])
        weights = {key: torch.zeros_like(tensor) for key, tensor in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS)
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        tokenizer.save_pretrained(folder)
        if kind == "settings":
            (folder / "tokenizer.json").unlink()
        loaded = put(base, folder)
        own, bare_base = generate(loaded, [Column("it", ask("Who?")), Column(None, ask("Who?"))], greedy(loaded, 12))
        assert (own.ids, own.finish) == (said[: first + 1], "eos"), kind
        assert bare_base.ids == said


@pytest.mark.parametrize("several", [False, True], ids=["one", "a list"])
def test_a_template_in_the_tokenizers_settings_is_read(
    several: bool, base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "it")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    own = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}### assistant:\n"
    listed = [{"name": "default", "template": own}, {"name": "tool_use", "template": "no"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed if several else own}))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(ask("Hi!"), return_dict=True)["input_ids"]
    assert prompt_ids(put(base, folder), Column("it", ask("Hi!")), None) == expected


def test_modules_that_flatten_a_batch_keep_their_adapters_out_of_it(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "num_hidden_layers": 1, "init_std": 0.3}
    config = OPTConfig(vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=128, **sizes)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    folders = {
        name: make(tmp_path / "opt", tmp_path / name, target_modules=[module])
        for name, module in (("attention", "q_proj"), ("flat", "fc1"))
    }
    loaded = load_base(str(tmp_path / "opt"))
    add_adapters(loaded, folders)
    assert loaded.shares([None, "attention"])
    assert not loaded.shares(["flat"])
    together = generate(loaded, [Column(name, ask("Who?")) for name in (None, *folders)], greedy(loaded, 4))
    for name, answer in zip((None, *folders), together, strict=True):
        assert answer.ids == generate(loaded, [Column(name, ask("Who?"))], greedy(loaded, 4))[0].ids
        if name:
            assert torch.equal(computed(loaded, name), alone(tmp_path / "opt", folders[name], IDS))


def test_an_adapter_of_a_multimodal_checkpoint_lands_on_its_text_model(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3},
        **{"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16},
        **{"linear_value_head_dim": 16, "tie_word_embeddings": True, "max_position_embeddings": 128},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=text, vision_config={**vision, "num_position_embeddings": 16})
    Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")

    def whole() -> Any:
        return Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()

    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj", "in_proj_qkv"], task_type="CAUSAL_LM")
    moved(get_peft_model(whole(), settings), 1).save_pretrained(tmp_path / "theirs")
    expected = logits(PeftModel.from_pretrained(whole(), tmp_path / "theirs").eval(), IDS)
    loaded = put(tmp_path / "whole", tmp_path / "theirs")
    assert torch.allclose(computed(loaded), expected, atol=1e-4)
    assert not torch.allclose(computed(loaded, None), expected, atol=0.1)
    assert not loaded.notes["it"]
    text_model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert (logits(text_model.eval(), IDS) - computed(loaded, None)).abs().max() < 1e-4
    moved(get_peft_model(text_model, settings), 1).save_pretrained(tmp_path / "text")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), tmp_path / "text")
    alone = put(tmp_path / "whole", tmp_path / "text")
    assert torch.allclose(computed(alone), logits(plain.eval(), IDS), atol=1e-4)
    assert "peft alone would ignore them" in alone.notes["it"][0]
