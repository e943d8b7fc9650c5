"""Models, tokenizers and adapters from folders, and plain words for those that are not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.engine.models.layout import bearing_names, linear_modules
from lora_studio.engine.models.load import choose_dtype, load_model, memory_bytes
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.models.source import load_tokenizer, unpacking, without_weights
from lora_studio.errors import StudioError
from tests.engine.conftest import build_tokenizer
from tests.engine.kinds import tiny_llama


def test_the_built_in_model_loads_by_its_name() -> None:
    loaded = load_base("demo")
    assert loaded.longest_text is not None
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert memory_bytes() > 0


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(StudioError, match="There is no model folder"):
        load_tokenizer(name)


def test_a_hub_model_out_of_reach_is_told_with_what_works() -> None:
    with pytest.raises(StudioError, match="neither a local folder nor available") as caught:
        load_model("nobody/nothing-at-all")
    assert "`demo`" in caught.value.hint


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StudioError, match="an adapter, not a model"):
        load_model(str(tmp_path))


def write_config(folder: Path, **values: object) -> str:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return str(folder)


def test_a_model_that_writes_no_text_is_refused_before_its_weights(tmp_path: Path) -> None:
    name = write_config(tmp_path, model_type="bert", architectures=["BertForMaskedLM"])
    with pytest.raises(StudioError, match="BertForMaskedLM, which does not generate text"):
        load_model(name)


def test_an_architecture_that_nobody_knows_is_said_to_be_unknown(tmp_path: Path) -> None:
    name = write_config(tmp_path, model_type="quantumllama", architectures=["QuantumForCausalLM"])
    with pytest.raises(StudioError, match="does not support the architecture"):
        load_model(name)


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modeling.py").write_text("raise SystemExit('this code ran')", encoding="utf-8")
    name = write_config(tmp_path, model_type="own", auto_map={"AutoConfig": "modeling.Config"})
    with pytest.raises(StudioError, match="contains custom code"):
        load_model(name)


def test_a_model_without_weights_is_said_to_be_broken(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(StudioError, match="cannot be read"):
        load_model(str(tmp_path))


def test_a_missing_padding_token_is_one_that_exists_and_does_not_end_answers(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    write_config(tmp_path, model_type="qwen3")
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token == "<|pad|>"
    assert len(loaded) == len(AutoTokenizer.from_pretrained(tmp_path))


def test_precision_follows_the_device_and_float16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_dtype("auto") is torch.float32
    assert choose_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(StudioError, match="float16 cannot run here: it needs a GPU"):
        choose_dtype("float16")


def test_an_adapter_that_needs_pickles_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(StudioError, match="not stored as safetensors"):
        add_adapters(load_base(str(base)), {"evil": tmp_path})


def test_a_base_without_a_template_is_asked_as_chatml(base: Path) -> None:
    loaded = load_base(str(base))
    loaded.templates.clear()
    loaded.tokenizer.chat_template = None
    assert "<|im_start|>" in loaded.template(None)


def test_a_model_without_weights_bears_the_names_of_the_real_one(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    described = without_weights(str(tmp_path))
    assert linear_modules(described) == linear_modules(load_model(str(base)))
    assert bearing_names(described) == bearing_names(load_model(str(base)))
    assert "embed_tokens" in bearing_names(described)
    assert next(described.parameters()).device.type == "meta"


@pytest.fixture
def in_fp8(tmp_path: Path) -> tuple[Path, Path]:
    """A base stored in FP8 by blocks, and the one that it was made of, with the numbers that FP8 left of it."""
    plain, packed = tiny_llama(tmp_path / "plain"), tmp_path / "packed"
    shutil.copytree(plain, packed)
    weights, stored = load_file(plain / "model.safetensors"), dict[str, torch.Tensor]()
    for name, weight in weights.items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
            weights[name] = stored[name].float() * scale
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }
    (packed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return plain, packed


def test_a_base_in_fp8_is_unpacked_where_transformers_would_fetch_kernels_for_it(
    in_fp8: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, packed = in_fp8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a Hopper GPU, and the model in the machine's memory
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    model = load_model(str(packed), dtype=torch.float32, on_cpu=True)
    theirs = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32, device_map={"": "cpu"})
    monkeypatch.undo()
    assert "FP8Linear" in {type(module).__name__ for module in theirs.modules()}
    assert {type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__} == {"Linear"}
    expected = load_model(str(plain), dtype=torch.float32).state_dict()
    unpacked = model.state_dict()
    assert unpacked.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(unpacked[name], weight, rtol=1e-5, atol=1e-7)
    assert "quantization_config" not in model.config.to_dict()
    assert unpacking(json.loads((packed / "config.json").read_text(encoding="utf-8"))["quantization_config"]) == {
        "dequantize": True,
        "modules_to_not_convert": ["lm_head"],
    }
    assert unpacking({"quant_method": "bitsandbytes", "load_in_4bit": True}) is None
