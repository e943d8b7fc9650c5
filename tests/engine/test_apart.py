"""Adapters of other kinds than LoRA answer on the same base, each alone, and leave it and the others as they were.

The reference is peft by itself: one model for each adapter, one unpadded prompt, and each next token from a forward
pass over the whole text, without a cache.
"""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.data.encode import Example
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.chat.logprobs import loglikelihoods, score
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base, remove_adapters
from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import KINDS, virtual_tokens
from lora_studio.workspace import model_source
from tests.engine.test_generate import ask

LONGEST = 5
PROMPTS = ("What is the capital of France?", "Hi!")
NARROW: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2, **NARROW},
    "ADALORA": {"init_r": 2, "target_r": 1, "total_step": 10, **NARROW},
    "LOHA": {"r": 2, **NARROW},
    "LOKR": {"r": 2, **NARROW},
    "VERA": {"r": 2, "target_modules": ["q_proj"]},
    "OFT": {"oft_block_size": 4, **NARROW},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {},
    "PROMPT_TUNING": {"num_virtual_tokens": 12},
    "P_TUNING": {"num_virtual_tokens": 10, "encoder_hidden_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
}
STRENGTH = {"LORA": 0.3, "ADALORA": 3.0, "LOHA": 0.5, "VERA": 30.0, "OFT": 0.3, "PREFIX_TUNING": 5.0}
"""How far the weights are from what changes nothing; 1 for the other kinds."""
SPOKEN = {"PROMPT_TUNING": "Speak like a pirate.", "P_TUNING": "Answer in capital letters."}
"""Virtual tokens that say something: the base's own embeddings of a system prompt."""


def bare() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_source("demo"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each kind that can answer, of weights that change what is said."""
    made = {}
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    for kind in KINDS:
        torch.manual_seed(3)
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](task_type="CAUSAL_LM", **SETTINGS[kind])
        model = get_peft_model(bare(), config)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn_like(weight) * STRENGTH.get(kind, 1.0))
        folder = tmp_path_factory.mktemp(kind.lower())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if kind in SPOKEN:
            system = [{"role": "system", "content": SPOKEN[kind]}]
            ids = tokenizer.apply_chat_template(system, return_dict=True, return_tensors="pt")["input_ids"][0]
            embeddings = model.get_input_embeddings()(ids).detach()
            save_file({"prompt_embeddings": embeddings}, folder / "adapter_model.safetensors")
        made[kind] = folder
    return made


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> LoadedModel:
    loaded = load_base("demo")
    add_adapters(loaded, folders)
    return loaded


def alone(folder: Path | None, text: str) -> tuple[int, ...]:
    """What the bare base, or peft's own model of base and adapter, says to one prompt."""
    model = bare() if folder is None else PeftModel.from_pretrained(bare(), folder)
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    encoded: Any = tokenizer.apply_chat_template(ask(text), add_generation_prompt=True, return_dict=True)
    prompt: list[int] = encoded["input_ids"]
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + LONGEST and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.slow
def test_each_kind_says_beside_the_others_what_it_says_alone(loaded: LoadedModel, folders: dict[str, Path]) -> None:
    names = (None, *folders)
    expected = {(name, text): alone(folders[name] if name else None, text) for name in names for text in PROMPTS}
    columns = [(name, text) for text in PROMPTS for name in names]
    for order in (columns, columns[::-1]):
        answers = generate(loaded, [Column(name, ask(text)) for name, text in order], greedy(loaded, LONGEST))
        said = {one: answer.ids for one, answer in zip(order, answers, strict=True)}
        assert {one: (ids, expected[one]) for one, ids in said.items() if ids != expected[one]} == {}
    silent = [name for name in folders if all(expected[name, text] == expected[None, text] for text in PROMPTS)]
    assert not silent, "an adapter that changes nothing proves nothing"


def test_virtual_tokens_are_read_as_the_text_whose_embeddings_they_are(loaded: LoadedModel) -> None:
    for kind, spoken in SPOKEN.items():
        told = [{"role": "system", "content": spoken}, *ask(PROMPTS[0])]
        base, adapter = generate(loaded, [Column(None, told), Column(kind, ask(PROMPTS[0]))], greedy(loaded, 12))
        assert adapter.text == base.text
        assert adapter.finish == "eos"


def example(ids: list[int]) -> Example:
    """A row whose tokens after the second are trained."""
    return Example(0, ids, [-100, -100, *ids[2:]], len(ids), 0, len(ids) - 2)


def test_only_lora_shares_a_batch_with_the_base(loaded: LoadedModel) -> None:
    assert loaded.shares([None, "LORA"])
    assert not loaded.shares([None, "IA3"])
    names = [None, "IA3", "LORA", "PROMPT_TUNING", "IA3", "PROMPT_TUNING"]
    assert loaded.groups(names) == [[0, 2], [1, 4], [3], [5]], "after virtual tokens no prompt is padded"


@pytest.mark.parametrize("kind", list(KINDS))
def test_given_answers_are_scored_as_peft_alone_scores_them(
    kind: str, loaded: LoadedModel, folders: dict[str, Path]
) -> None:
    rows = [[5, 9, 30, 41, 7, 12], [8, 3, 9]]
    model = PeftModel.from_pretrained(bare(), folders[kind]).eval()
    found = loglikelihoods(loaded, kind, [example(row) for row in rows])
    for row, one in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -len(row) :]
        wanted = torch.tensor(row[2:])
        assert one.loss == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits[1:-1], wanted)) * len(wanted), abs=1e-3
        )
        assert one.right_tokens == int((logits[1:-1].argmax(-1) == wanted).sum())


def test_token_by_token_each_kind_is_compared_with_the_bare_base(loaded: LoadedModel, folders: dict[str, Path]) -> None:
    found = score(loaded, list(folders), ask(PROMPTS[0]), "Paris.")
    only_base = score(load_with(folders, "LORA"), ["LORA"], ask(PROMPTS[0]), "Paris.")
    assert found["base"] == pytest.approx(only_base["base"], abs=1e-4)
    assert all(value > 0 for value in found["mean_divergence"].values())


def load_with(folders: dict[str, Path], *names: str) -> LoadedModel:
    loaded = load_base("demo")
    add_adapters(loaded, {name: folders[name] for name in names})
    return loaded


def test_a_base_that_they_left_is_the_bare_base(folders: dict[str, Path]) -> None:
    ids = torch.tensor([[5, 9, 30, 41]])
    with torch.no_grad():
        expected = bare()(input_ids=ids).logits
    loaded = load_with(folders, "IA3", "LORA", "PREFIX_TUNING", "LN_TUNING")
    for gone in (["LORA"], ["IA3", "PREFIX_TUNING"], ["LN_TUNING"]):
        loaded = remove_adapters(loaded, gone)
        with torch.no_grad(), loaded.use_adapter(None) as model:
            assert torch.equal(model(input_ids=ids).logits, expected)
    assert not loaded.adapters
    add_adapters(loaded, {"LORA": folders["LORA"]})
    (answer,) = generate(loaded, [Column("LORA", ask(PROMPTS[1]))], greedy(loaded, LONGEST))
    assert answer.ids == alone(folders["LORA"], PROMPTS[1])


def test_virtual_tokens_count_as_text(folders: dict[str, Path]) -> None:
    loaded = load_with(folders, "PROMPT_TUNING")
    longest = loaded.longest_text
    assert longest is not None
    text = "a " * longest
    assert loaded.virtual_tokens("PROMPT_TUNING") == 12
    assert [virtual_tokens(folders[kind]) for kind in ("PROMPT_TUNING", "PREFIX_TUNING", "LORA")] == [12, 3, 0]
    with pytest.raises(StudioError, match="tokens and 12 virtual ones; demo reads at most"):
        generate(loaded, [Column("PROMPT_TUNING", ask(text))], greedy(loaded, LONGEST))


@pytest.mark.slow
def test_a_base_in_four_bits_bears_the_kinds_that_peft_puts_on_it(folders: dict[str, Path]) -> None:
    four_bit = load_base("demo", quantization="4bit")
    with pytest.raises(StudioError, match="LOKR is LoKr, which cannot be used on a base in 4 or 8 bits"):
        add_adapters(four_bit, {"IA3": folders["IA3"], "LOKR": folders["LOKR"]})
    add_adapters(four_bit, {name: folders[name] for name in ("PROMPT_TUNING", "LORA", "IA3")})
    names = (None, *four_bit.adapters)
    together = generate(four_bit, [Column(name, ask(PROMPTS[0])) for name in names], greedy(four_bit, LONGEST))
    for name, answer in zip(names, together, strict=True):
        only = load_base("demo", quantization="4bit")
        add_adapters(only, {name: folders[name]} if name else {})
        assert generate(only, [Column(name, ask(PROMPTS[0]))], greedy(only, LONGEST))[0].ids == answer.ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "duplicates layers"),
        ({"peft_type": "XLORA"}, "unsupported type XLORA"),
    ],
    ids=str,
)
def test_an_adapter_that_would_change_the_base_is_refused(
    settings: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in folders["LORA"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    with pytest.raises(StudioError, match=words):
        add_adapters(load_base("demo"), {"it": tmp_path})
