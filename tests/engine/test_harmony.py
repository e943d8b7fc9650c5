"""gpt-oss's harmony format: what is trained of it, how its channels are shown in the chat, what a next turn sends."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedTokenizerFast

from lora_studio.data.chat_templates import channel_reader, in_channels, is_harmony, with_reasoning
from lora_studio.data.dataset import prepare
from lora_studio.data.report import describe
from lora_studio.engine.chat.generate import Column, ColumnText, prompt_ids
from lora_studio.engine.chat.logprobs import score
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.jobs.events import StepLogged
from tests.engine.conftest import MakeRun, build_tokenizer, events, run_worker

SPECIAL = ["<|return|>", "<|call|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
ROWS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Paint the sky red, please."},
            {"role": "assistant", "content": "Now the sky is red.", "reasoning_content": "The sky, red."},
            {"role": "user", "content": "Paint the coal blue, please."},
            {"role": "assistant", "content": "Now the coal is blue.", "reasoning_content": "The coal, blue."},
        ]
    }
] * 4


def harmony_tokenizer() -> PreTrainedTokenizerFast:
    """The tests' tokenizer with harmony's tokens, and gpt-oss's template as trl ships it."""
    package = importlib.util.find_spec("trl")
    assert package is not None
    assert package.origin is not None
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.eos_token = "<|return|>"
    folder = Path(package.origin).parent / "chat_templates"
    tokenizer.chat_template = (folder / "gptoss.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harmony") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_what_is_trained_are_the_channels_of_the_answers_with_their_end(rows: Path) -> None:
    tokenizer = harmony_tokenizer()
    prepared = prepare(train_file=str(rows), tokenizer=tokenizer, max_length=1024, validation_fraction=0.0)
    example = prepared.train[0]
    trained = [token if label != -100 else -1 for token, label in zip(example.input_ids, example.labels, strict=True)]
    parts, part = [], list[int]()
    for token in [*trained, -1]:
        if token >= 0:
            part.append(token)
        elif part:
            parts.append(tokenizer.decode(part))
            part = []
    assert parts == [
        "<|channel|>final<|message|>Now the sky is red.<|end|>",
        "<|channel|>analysis<|message|>The coal, blue.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Now the coal is blue.<|return|>",
    ]
    assert is_harmony(prepared.template.source)
    assert "4 rows contain reasoning that the chat template omits, fully or partly." in json.dumps(describe(prepared))


def spoken(text: str, *, whole: bool = True) -> str:
    """What is shown of an answer that the model writes as this text."""
    tokenizer = harmony_tokenizer()
    end = frozenset({tokenizer.eos_token_id})
    column = ColumnText(tokenizer, end, reader=channel_reader(tokenizer))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        column.add(token, 0.0)
    column.take(all_of_it=whole)
    return column.text


def test_the_analysis_is_shown_as_reasoning_and_the_final_channel_as_the_answer() -> None:
    thought, answer = "<|channel|>analysis<|message|>Two and two.<|end|>", "<|channel|>final<|message|>Four."
    assert spoken(f"{thought}<|start|>assistant{answer}<|return|>") == "<think>\nTwo and two.\n</think>\n\nFour."
    assert spoken(f"{answer}<|return|>") == "Four."
    assert spoken(thought.removesuffix("<|end|>")) == "<think>\nTwo and two.", "it still thinks"
    assert spoken("No channel at all.<|return|>") == "No channel at all."
    call = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"n": 2}<|call|>'
    assert spoken(f"{thought}<|start|>assistant{call}").endswith('</think>\n\n{"n": 2}')


def test_tokenizers_without_the_channels_have_no_reader() -> None:
    assert channel_reader(build_tokenizer()) is None


def test_the_reasoning_of_an_earlier_answer_is_apart_in_the_next_turn() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."},
        {"role": "assistant", "content": "<think>\nStopped"},
    ]
    assert with_reasoning(turns)[1:] == [
        {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."},
        {"role": "assistant", "content": "", "reasoning_content": "Stopped"},
    ]
    assert spoken(in_channels("<think>\nTwo and two.\n</think>\n\nFour.")) == "<think>\nTwo and two.\n</think>\n\nFour."
    assert in_channels("Four.") == "<|channel|>final<|message|>Four."


@pytest.mark.slow
def test_a_gpt_oss_trains_and_is_asked_in_harmony(make_run: MakeRun, rows: Path, tmp_path: Path) -> None:
    tokenizer = harmony_tokenizer()
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run = make_run(
        model__name=str(tmp_path),
        data__train_file=str(rows),
        data__max_length=1024,
        data__validation_fraction=0.0,
        lora__lora_dropout=0.0,
        training__num_train_epochs=3,
        training__gradient_accumulation_steps=1,
    )
    assert run_worker(run) == 0
    assert events(run, StepLogged)[-1].loss < events(run, StepLogged)[0].loss
    loaded = load_base(str(tmp_path))
    asked = [
        *ROWS[0]["messages"][:2],
        {"role": "assistant", "content": "<think>\nThe sky, red.\n</think>\n\nNow the sky is red."},
        {"role": "user", "content": "Thank you."},
    ]
    text = tokenizer.decode(prompt_ids(loaded, Column(None, asked), None))
    assert text.endswith(
        "<|start|>assistant<|channel|>final<|message|>Now the sky is red.<|end|><|start|>user<|message|>Thank you."
        "<|end|><|start|>assistant"
    )
    assert "think" not in text.lower().replace("thank", "")
    add_adapters(loaded, {"own": run.adapter})
    scored = score(loaded, ["own"], asked, "<think>\nGladly.\n</think>\n\nNow it is.")
    assert "".join(scored["texts"]).startswith(
        "<|channel|>analysis<|message|>Gladly.<|end|><|start|>assistant<|channel|>"
    )
