"""A world small enough to train in seconds: a random two-layer model, its tokenizer, and a file of forty rows."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lora_studio.config.parsing import merge, nest, parse, to_yaml
from lora_studio.engine.train import worker
from lora_studio.jobs.events import Event, from_line
from lora_studio.workspace import RunFolder, Workspace

COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "pink")
THINGS = ("sky", "grass", "coal", "snow", "rose")
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def rows() -> list[dict[str, Any]]:
    pairs = [(colour, thing) for colour in COLOURS for thing in THINGS]
    return [
        {
            "messages": [
                {"role": "user", "content": f"Paint the {thing} {colour}, please." + " Thank you." * (number % 4)},
                {"role": "assistant", "content": f"Now the {thing} is {colour}."},
            ]
        }
        for number, (colour, thing) in enumerate(pairs)
    ]


def build_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([message["content"] for row in rows() for message in row["messages"]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Qwen3 with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "paint.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


MakeRun = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def make_run(base: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A run folder that trains the tiny model; settings by path (dots as `__`) on top."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    values = {
        "model": {"name": str(base)},
        "data": {"train_file": str(data_file), "max_length": 64, "validation_fraction": 0.2},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
        },
        "tracking": {"logging_steps": 1},
    }

    def make(**settings: Any) -> RunFolder:
        overrides = nest({path.replace("__", "."): value for path, value in settings.items()})
        return workspace.create_run("test", to_yaml(parse(merge(values, overrides))), {})

    return make


def run_worker(run: RunFolder, *flags: str, program: Callable[[list[str]], int] = worker.main) -> int:
    """A worker's program in this process; its signal handlers and environment are taken back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    environment = dict(os.environ)
    try:
        return program([str(run.path), *flags])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture
def train() -> Callable[..., int]:
    """Trains a run in this process and gives the exit code."""
    return run_worker


@pytest.fixture(scope="session")
def trained(make_run: MakeRun) -> RunFolder:
    """A finished run of the tiny model."""
    run = make_run()
    assert run_worker(run) == 0
    return run


def events(run: RunFolder, kind: type | None = None) -> list[Any]:
    """A run's events, or those of one type."""
    found: list[Event] = []
    for line in run.events.read_text(encoding="utf-8").splitlines():
        event = from_line(line)
        if event is not None and (kind is None or isinstance(event, kind)):
            found.append(event)
    return found
