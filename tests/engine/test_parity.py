"""Every column of the chat says, token for token, what its model says alone; and is asked what training taught.

The reference never touches the studio's engine: transformers' own `generate`, one unpadded prompt at a time.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lora_studio.data.dataset import prepare
from lora_studio.engine.chat.generate import Column, generate, greedy, prompt_ids
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base, remove_adapters
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.train_script import keep_unpacked
from lora_studio.workspace import RunFolder
from tests.engine.conftest import COLOURS, THINGS

pytestmark = pytest.mark.slow
LONGEST = 12
ENDS = [2, *range(10, 400, 20)]  # one token in twenty ends an answer, so that columns end at different times
NAMES = (None, "run", "early", "random")
PROMPTS = [
    f"Paint the {thing} {colour}, please." + " Thank you." * (number % 6)
    for number, (colour, thing) in enumerate((colour, thing) for colour in COLOURS for thing in THINGS)
] + ["x", "Which colour is coal?\nAnd snow? ünïcödé ✓", *(f"{number} {'and on ' * number}" for number in range(1, 9))]

Folders = dict[str, Path]
Alone = Callable[[str | None, str], tuple[int, ...]]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def folders(base: Path, trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three adapters of different rank and modules on one base."""
    random = tmp_path_factory.mktemp("random")
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(random)
    AutoTokenizer.from_pretrained(trained.adapter).save_pretrained(random)
    return {"run": trained.adapter, "early": trained.checkpoints / "checkpoint-4", "random": random}


def reference(base: Path, folders: Folders, **options: Any) -> Alone:
    """Answers of the bare base and of base and adapter, each a model of its own."""
    models: dict[str | None, Any] = {None: AutoModelForCausalLM.from_pretrained(base, **options)}
    for name, folder in folders.items():
        models[name] = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), folder)
    for model in models.values():
        keep_unpacked(model)  # else a CPU with AVX512-BF16 rounds the scales of 4-bit weights once more
        model.generation_config.eos_token_id = ENDS
    tokenizer = AutoTokenizer.from_pretrained(base)
    known: dict[tuple[str | None, str], tuple[int, ...]] = {}

    def alone(name: str | None, text: str) -> tuple[int, ...]:
        if (name, text) not in known:
            prompt = tokenizer.apply_chat_template(
                ask(text), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.inference_mode():
                output = models[name].eval().generate(**prompt, max_new_tokens=LONGEST, do_sample=False)
            known[name, text] = tuple(output[0, prompt["input_ids"].shape[1] :].tolist())
        return known[name, text]

    return alone


@pytest.fixture(scope="module")
def alone(base: Path, folders: Folders) -> Alone:
    return reference(base, folders)


@pytest.fixture(scope="module")
def loaded(base: Path, folders: Folders) -> LoadedModel:
    return put_on(load_base(str(base), dtype="float32"), folders)


def put_on(loaded: LoadedModel, folders: Folders) -> LoadedModel:
    loaded.model.generation_config.eos_token_id = ENDS
    add_adapters(loaded, folders)
    return loaded


def together(loaded: LoadedModel, asked: list[tuple[str | None, str]]) -> list[tuple[int, ...]]:
    answers = generate(loaded, [Column(name, ask(text)) for name, text in asked], greedy(loaded, LONGEST))
    return [answer.ids for answer in answers]


def test_over_fifty_prompts_one_to_four_columns_each_say_what_they_say_alone(loaded: LoadedModel, alone: Alone) -> None:
    assert len(set(PROMPTS)) == 50
    columns, ends, padded = set(), 0, 0
    for number, prompt in enumerate(PROMPTS):
        names = [NAMES[(number // 4 + step) % 4] for step in range(1 + number % 4)]
        asked = [(name, prompt) for name in names]
        if number % 3 == 0:  # conversations have gone different ways: prompts of different lengths, padded on the left
            asked = [(name, PROMPTS[(number + 7 * step) % 50]) for step, name in enumerate(names)]
            padded += len({len(prompt_ids(loaded, Column(name, ask(text)), None)) for name, text in asked}) > 1
        expected = [alone(name, text) for name, text in asked]
        assert together(loaded, asked) == expected
        columns.add(len(asked))
        ends += len({len(ids) for ids in expected}) > 1
    assert columns == {1, 2, 3, 4}
    assert ends > 5
    assert padded > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_add_to_the_rows_of_a_batch_what_peft_adds(loaded: LoadedModel, dtype: torch.dtype) -> None:
    mixing = [module for module in loaded.model.modules() if "_mixed_batch_forward" in vars(module)]
    assert len(mixing) == sum(isinstance(module, Linear) for module in loaded.model.modules()) > 0
    module = copy.deepcopy(mixing[0]).to(dtype)
    assert module._mixed_batch_forward.__self__ is module
    base, first, second = ("__base__", *list(loaded.adapters.values())[:2])
    for names in ([base, first], [first, base, second], [first, second, first], [base, base], [second, second]):
        rows = torch.randn(len(names), 5, module.in_features, dtype=dtype)
        with torch.inference_mode():
            own = module(rows, adapter_names=names)
            assert torch.equal(own, Linear._mixed_batch_forward(module, rows, adapter_names=names))
        alone = [module.base_layer(rows[at : at + 1]) for at in range(len(names))]
        assert [torch.equal(own[at], alone[at][0]) for at in range(len(names)) if names[at] == base] == [
            True for name in names if name == base
        ]


class Operators(TorchDispatchMode):
    """The operators that are called inside, by their names in aten."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_on_a_quantized_base_too_and_no_list_of_rows_is_sent_to_the_device(
    base: Path, folders: Folders, quantization: str
) -> None:
    loaded = put_on(load_base(str(base), dtype="float32", quantization=quantization), folders)
    module: Any = next(module for module in loaded.model.modules() if "_mixed_batch_forward" in vars(module))
    kind = type(module)
    assert kind.__name__ == {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantization]
    own, first, second = ("__base__", *list(loaded.adapters.values())[:2])
    for names in ([own, first], [first, own, second], [first, second, first], [second, second]):
        rows = torch.randn(len(names), 5, module.in_features)
        with torch.inference_mode():
            module(rows, adapter_names=names)
            with Operators() as called:
                ours = module(rows, adapter_names=names)
            with Operators() as called_by_peft:
                theirs = kind._mixed_batch_forward(module, rows, adapter_names=names)
        assert torch.equal(ours, theirs)
        by_list = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
        assert not called.names & by_list
        assert called_by_peft.names & by_list


def test_base_and_adapters_do_not_say_the_same(alone: Alone) -> None:
    said = [[alone(name, prompt) for prompt in PROMPTS[:8]] for name in NAMES]
    assert all(one != other for at, one in enumerate(said) for other in said[at + 1 :])


def test_the_columns_hold_on_a_base_in_four_bits(base: Path, folders: Folders) -> None:
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    expected = reference(base, folders, quantization_config=four_bit)
    loaded = put_on(load_base(str(base), dtype="float32", quantization="4bit"), folders)
    for prompt in PROMPTS[::10]:
        asked = [(name, prompt) for name in NAMES]
        assert together(loaded, asked) == [expected(name, text) for name, text in asked]


def test_the_columns_hold_after_adapters_came_and_went(base: Path, folders: Folders, alone: Alone) -> None:
    loaded = put_on(load_base(str(base), dtype="float32"), {})
    for kept, gone in ((["run"], ["early", "random"]), (["random"], ["run"]), ([], ["random"])):
        add_adapters(loaded, {name: folders[name] for name in (*kept, *gone) if name not in loaded.adapters})
        loaded = remove_adapters(loaded, gone)
        assert list(loaded.adapters) == kept
        for prompt in PROMPTS[::15]:
            asked = [(name, prompt) for name in (None, *kept)]
            assert together(loaded, asked) == [alone(name, text) for name, text in asked]


def test_an_adapter_with_biases_leaves_the_base_its_own(base: Path, folders: Folders, tmp_path: Path) -> None:
    """peft keeps one set of biases for all adapters and overwrites the base's with it."""
    config = json.loads((base / "config.json").read_text()) | {"attention_bias": True}
    (tmp_path / "base").mkdir()
    for file in base.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    model.save_pretrained(tmp_path / "base")
    settings = LoraConfig(r=2, target_modules=["q_proj"], bias="all", init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, settings)
    for name, bias in tuned.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(bias)
    tuned.save_pretrained(tmp_path / "biased")
    own = {"biased": tmp_path / "biased", "early": folders["early"]}
    expected = reference(tmp_path / "base", own)
    loaded = put_on(load_base(str(tmp_path / "base"), dtype="float32"), own)
    for prompt in PROMPTS[:2]:
        asked = [(name, prompt) for name in ("biased", None, "early")]
        assert together(loaded, asked) == [expected(name, text) for name, text in asked]


@pytest.mark.parametrize("style", ["chat", "chatml", "alpaca", "plain"])
@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_chat_asks_with_the_ids_that_training_saw(
    style: str, model: str, base: Path, data_file: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer = load_tokenizer(str(base) if model == "tiny" else model)
    data = str(data_file) if style != "alpaca" else "alpaca"
    prepared = prepare(
        data,
        tokenizer,
        validation_fraction=0,
        max_length=512,
        prompt_style=style,
        system_prompt="Be brief.",
        max_samples=8,
    )
    loaded: LoadedModel = request.getfixturevalue("loaded") if model == "tiny" else load_base(model)
    templates: dict[str | None, str] = {"own": prepared.template.source}
    asked = LoadedModel(model, loaded.model, tokenizer, {}, templates=templates, cards={"own": {}})
    rows = {chat.row: chat for chat in prepared.conversations}
    assert len(prepared.train) == 8
    for example in prepared.train:
        first = next(at for at, label in enumerate(example.labels) if label != -100)
        messages = rows[example.row].to_dicts()[:-1]
        assert messages[0]["content"] == "Be brief."
        assert prompt_ids(asked, Column("own", messages), None) == example.input_ids[:first]


@pytest.mark.parametrize("thinking", [True, False, None])
def test_the_thinking_switch_of_chat_is_that_of_training(thinking: bool | None, data_file: Path) -> None:
    tokenizer = load_tokenizer("demo")
    prepared = prepare(
        str(data_file), tokenizer, validation_fraction=0, max_length=512, enable_thinking=thinking, max_samples=3
    )
    loaded = load_base("demo")
    loaded.templates["own"], loaded.cards["own"] = prepared.template.source, {"enable_thinking": thinking}
    loaded.adapters["own"] = "own"
    rows = {chat.row: chat for chat in prepared.conversations}
    for example in prepared.train:
        first = next(at for at, label in enumerate(example.labels) if label != -100)
        prompt = prompt_ids(loaded, Column("own", rows[example.row].to_dicts()[:-1]), None)
        assert prompt == example.input_ids[:first]


def test_what_is_chosen_in_the_chat_goes_before_the_thinking_of_training(base: Path) -> None:
    loaded = load_base(str(base))
    switch = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    loaded.templates["own"], loaded.cards["own"] = f"{switch}{loaded.template(None)}", {"enable_thinking": True}
    begun = {chosen: prompt_ids(loaded, Column("own", ask("x")), chosen) for chosen in (None, True, False)}
    assert begun[None] == begun[True] != begun[False]
    assert loaded.tokenizer.decode(begun[False]).startswith("False")


def test_a_stop_ends_all_columns_within_one_token(loaded: LoadedModel) -> None:
    asked: list[int] = []

    def after_three() -> bool:
        asked.append(1)
        return len(asked) > 2

    answers = generate(loaded, [Column(name, ask(PROMPTS[0])) for name in NAMES], greedy(loaded, 200), stop=after_three)
    assert {answer.tokens for answer in answers} == {3}
