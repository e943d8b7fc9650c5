"""Language models of multimodal checkpoints are trained, asked and merged by text; their other parts stay the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    Gemma3Config,
    Llama4Config,
    Mistral3Config,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    T5Config,
)

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.layout import layout_of
from lora_studio.engine.models.load import load_model
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.models.source import without_weights
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, StepLogged
from lora_studio.models.memory import trained_adapter
from lora_studio.models.shape import architecture, read_config
from lora_studio.models.targets import adapter
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, build_tokenizer, events, run_worker
from tests.engine.exporting import last_event, run_script, take_away

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EYES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SIGHT = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
MERGED_PIXELS = {
    **{"vision_output_dim": 24, "projector_input_dim": 24, "projector_output_dim": 24, "pixel_shuffle_ratio": 0.5},
    **EYES,
    "intermediate_size": 64,
}


def checkpoint(family: str) -> PreTrainedConfig:
    """The config of a tiny multimodal model, with a vocabulary that the tests' tokenizer fits in."""
    text = {**TEXT, "vocab_size": 450, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    seen = {"image_token_id": 449, "video_token_id": 448, "vision_start_token_id": 447, "vision_end_token_id": 446}
    if family == "gemma3":
        text |= {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 16}
        eyes = {**EYES, "num_hidden_layers": 1, "model_type": "siglip_vision_model"}
        tokens = {"image_token_index": 449, "boi_token_index": 448, "eoi_token_index": 447}
        return Gemma3Config(text_config=text, vision_config=eyes, mm_tokens_per_image=4, **tokens)
    if family == "mistral3":
        eyes = {**EYES, "num_hidden_layers": 1, "model_type": "pixtral", "head_dim": 8}
        return Mistral3Config(text_config={**text, "model_type": "mistral"}, vision_config=eyes, image_token_index=449)
    if family == "llama4":
        text |= {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
        text |= {"model_type": "llama4_text", "intermediate_size_mlp": 48, "attention_chunk_size": 32}
        eyes = {**MERGED_PIXELS, "num_hidden_layers": 1}
        tokens = {"image_token_index": 449, "boi_token_index": 448, "eoi_token_index": 447}
        return Llama4Config(text_config=text, vision_config=eyes, **tokens)
    if family == "qwen2_5_vl":
        eyes = {**SIGHT, "fullatt_block_indexes": [0], "patch_size": 14}
        return Qwen2_5_VLConfig(text_config={**text, **ROPE}, vision_config=eyes, **seen)
    if family == "qwen3_vl_moe":
        text |= {**EXPERTS, **ROPE, "decoder_sparse_step": 1}
        eyes = {**SIGHT, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        return CONFIG_MAPPING[family](text_config=text, vision_config=eyes, **seen)
    eyes = {**SIGHT, "num_position_embeddings": 16}
    return CONFIG_MAPPING[family](text_config={**text, **DELTA}, vision_config=eyes, **seen)


FAMILIES = ("gemma3", "mistral3", "llama4", "qwen2_5_vl", "qwen3_5", "qwen3_vl_moe")


def save(family: str, folder: Path) -> None:
    """The random model of that family, with the tests' tokenizer."""
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(checkpoint(family)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_reaches_the_language_model_and_nothing_else(family: str, tmp_path: Path) -> None:
    config = checkpoint(family)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    assert type(without_weights(str(tmp_path))) is type(model), "the whole checkpoint is loaded"
    layout = layout_of(model)
    assert layout.parameters == sum(weight.numel() for weight in model.parameters())
    inside = [
        path for path, part in model.named_modules() if isinstance(part, torch.nn.Linear) and "language_model." in path
    ]
    with torch.device("meta"):
        adapted = add_adapter(model, base="x", revision=None, target="all-linear", seed=0, r=4, lora_alpha=8)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert all("language_model." in name for name in trained)
    places = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in trained}
    assert places >= {path for path in inside if not path.endswith(("lm_head", "router"))}
    assert adapter(layout, r=4).trainable == adapted.get_nb_trainable_parameters()[0]


@pytest.fixture(scope="module", params=["gemma3", "qwen2_5_vl"])
def run(
    request: pytest.FixtureRequest, make_run: MakeRun, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A run of two epochs on eight rows."""
    folder = tmp_path_factory.mktemp(request.param)
    save(request.param, folder / "base")
    (folder / "base" / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    lines = data_file.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("train", lines[:8]), ("held", lines[8:12])):
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    made = make_run(
        model__name=str(folder / "base"),
        data__train_file=str(folder / "train.jsonl"),
        data__validation_file=str(folder / "held.jsonl"),
        data__validation_fraction=0.0,
        lora__lora_dropout=0.0,
        training__gradient_accumulation_steps=1,
    )
    assert run_worker(made) == 0
    return made


def base_of(run: RunFolder) -> Path:
    return Path(parse(read_yaml(run.config)).model.name)


QUESTION = [{"role": "user", "content": "Paint the sky red, please."}]


def plain(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.slow
def test_the_losses_are_those_of_plain_transformers_and_the_count_is_exact(run: RunFolder) -> None:
    base, tokenizer = base_of(run), build_tokenizer()
    held = [json.loads(line)["messages"] for line in (base.parent / "held.jsonl").read_text().splitlines()]
    adapted, nats, tokens = PeftModel.from_pretrained(plain(base), run.adapter).eval(), 0.0, 0
    for messages in held:
        asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(asked).input_ids)
        ids = tokenizer(asked + messages[1]["content"] + tokenizer.eos_token, return_tensors="pt").input_ids
        with torch.no_grad():
            scores = adapted(input_ids=ids).logits[0, start - 1 : -1]
        nats += float(torch.nn.functional.cross_entropy(scores, ids[0, start:], reduction="sum"))
        tokens += ids.shape[1] - start
    assert events(run, Evaluated)[-1].loss == pytest.approx(nats / tokens, abs=1e-4)
    layout = architecture(read_config(str(base)) or {})
    assert layout is not None
    trained = trained_adapter(parse(read_yaml(run.config)), layout).trainable
    assert trained == json.loads(run.complete.read_text(encoding="utf-8"))["trainable_parameters"]


@pytest.mark.slow
def test_base_and_adapter_answer_in_one_batch_as_each_does_alone(run: RunFolder) -> None:
    loaded, base, tokenizer = load_base(str(base_of(run)), dtype="float32"), base_of(run), build_tokenizer()
    add_adapters(loaded, {"own": run.adapter})
    assert loaded.shares([None, "own"])
    columns = [Column(None, QUESTION), Column("own", QUESTION)]
    answers = [list(answer.ids) for answer in generate(loaded, columns, greedy(loaded, 6))]
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    expected = []
    for adapted in (False, True):
        model = PeftModel.from_pretrained(plain(base), run.adapter).eval() if adapted else plain(base)
        said = model.generate(**ids, max_new_tokens=6, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        expected.append(said[0, ids["input_ids"].shape[1] :].tolist())
    assert answers == expected


@pytest.mark.slow
def test_a_merged_checkpoint_has_the_other_parts_byte_for_byte(run: RunFolder) -> None:
    base = base_of(run)
    folder = take_away(run, "merged", dtype="float32")
    assert last_event(folder).state == "done", last_event(folder).message
    assert (folder.result / "preprocessor_config.json").read_bytes() == b"{}"
    before, after = (load_file(place / "model.safetensors") for place in (base, folder.result))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert changed
    assert all("layers" in name and "vision" not in name and "visual" not in name for name in changed)
    assert any("vision" in name or "visual" in name for name in before)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(plain(base), run.adapter).eval()(input_ids=ids).logits
        assert torch.allclose(plain(folder.result)(input_ids=ids).logits, wanted, atol=1e-4)


@pytest.mark.slow
def test_the_exported_script_trains_the_same_adapter(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = take_away(run, "script", trial=False, keep_local_base=True)
    own = {step.step: step.loss for step in events(run, StepLogged)}
    assert run_script(folder.result, monkeypatch) == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("called", ["T5ForConditionalGeneration", "Qwen2AudioForConditionalGeneration"])
def test_what_has_no_language_model_of_its_own_is_refused_in_a_sentence(called: str, tmp_path: Path) -> None:
    family = "t5" if called.startswith("T5") else "qwen2_audio"
    config = T5Config() if family == "t5" else CONFIG_MAPPING[family]()
    config.architectures = [called]
    config.save_pretrained(tmp_path)
    with pytest.raises(StudioError, match=f"is a {called}, ") as refused:
        load_model(str(tmp_path))
    assert "ForCausalLM" in refused.value.hint
