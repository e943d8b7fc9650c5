"""Real tokenizers on real files: ids and labels as the tokenizers' own apply_chat_template makes them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lora_studio.data.dataset import prepare
from lora_studio.data.encode import IGNORED
from lora_studio.data.views import inspect
from lora_studio.errors import StudioError

pytestmark = pytest.mark.real

TOKENIZERS = ("qwen3", "minimind", "phi-3-mini", "mistral-7b-instruct-v3")
FILES = {
    "llama-factory/alpaca_en_demo.json": ("alpaca", 999, 0),
    "llama-factory/identity.json": ("alpaca", 91, 0),
    "llama-factory/glaive_toolcall_en_demo.json": ("sharegpt", 300, 0),
    "llama-factory/reason_tool_use_demo_50.jsonl": ("messages", 50, 0),
    "llama-factory/wiki_demo.txt": ("text", 30, 0),
    "tinker-cookbook/conversations.jsonl": ("messages", 128, 0),
    "self-instruct/ag_news_classify.jsonl": ("prompt_completion", 200, 0),
    "gsm8k/test.jsonl": ("prompt_completion", 1319, 0),
    "mlx-examples/wwdc25-train.jsonl": ("prompt_completion", 1800, 0),
    "llms-from-scratch/instruction-data-with-preference.json": ("alpaca", 1100, 0),
    "xtuner/qwen35_tokenize_data.jsonl": ("messages", 12, 5),
    "eda-corpus/query.csv": ("prompt_completion", 394, 0),
    "eda-corpus/Question-Answer_Dataset.csv": ("prompt_completion", 196, 0),
    "ms-swift-tests/alpaca.csv": ("alpaca", 3, 0),
    "ms-swift-tests/chatml.jsonl": ("messages", 3, 0),
    "ms-swift-tests/sharegpt.jsonl": ("sharegpt", 3, 0),
    "ms-swift-tests/swift_multi.jsonl": ("prompt_completion", 3, 0),
    "ms-swift-tests/swift_pre.csv": ("text", 3, 0),
    "ms-swift-tests/multi_modal_1.jsonl": ("prompt_completion", 1, 2),
    "smollm2-customs/train-00000-of-00001.parquet": ("prompt_completion", 48, 0),
}


def _tokenizer(real: Path, name: str) -> Any:
    return AutoTokenizer.from_pretrained(real / "tokenizers" / name)


@pytest.fixture(scope="module", params=TOKENIZERS)
def real_tokenizer(request: pytest.FixtureRequest, real: Path) -> Any:
    return _tokenizer(real, request.param)


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_real_files_are_read_as_a_person_would_read_them(real, name, expected):
    found = inspect(str(real / "datasets" / name), _tokenizer(real, "qwen3"))
    assert (found["format"], found["rows"], found["bad_rows"]) == expected


@pytest.mark.parametrize("name", ["llama-factory/dpo_en_demo.json", "llama-factory/kto_en_demo.json"])
def test_real_preference_files_are_refused_with_a_way_out(real, name):
    with pytest.raises(StudioError) as error:
        inspect(str(real / "datasets" / name), _tokenizer(real, "qwen3"))
    assert error.value.hint


@pytest.mark.parametrize("name", [name for name, (shape, _, _) in FILES.items() if shape != "text"])
def test_ids_are_those_of_apply_chat_template_and_labels_are_the_answers(real, real_tokenizer, name):
    prepared = prepare(
        str(real / "datasets" / name), real_tokenizer, max_length=1_000_000, validation_fraction=0, max_samples=100
    )
    chats = {chat.row: chat for chat in prepared.conversations}
    assert prepared.train
    for example in prepared.train:
        chat = chats[example.row]
        expected = real_tokenizer.apply_chat_template(
            chat.to_dicts(), tools=list(chat.tools) or None, chat_template=prepared.template.source, return_dict=False
        )
        assert example.input_ids == expected
        trained = real_tokenizer.decode([label for label in example.labels if label != IGNORED])
        at = 0
        for message in chat.messages:
            if message.role == "assistant" and message.trained:
                place = trained.find(message.content.strip(), at)
                assert place >= at
                at = place + len(message.content.strip())
        last = max(position for position, label in enumerate(example.labels) if label != IGNORED)
        assert example.labels[last] in real_tokenizer.added_tokens_decoder


def test_what_is_not_the_answers_is_not_trained(real, real_tokenizer):
    prepared = prepare(
        str(real / "datasets/tinker-cookbook/conversations.jsonl"),
        real_tokenizer,
        validation_fraction=0,
        max_length=4096,
    )
    chats = {chat.row: chat for chat in prepared.conversations}
    for example in prepared.train:
        pairs = zip(example.input_ids, example.labels, strict=True)
        untrained = real_tokenizer.decode([token for token, label in pairs if label == IGNORED])
        assert all(m.content.strip() in untrained for m in chats[example.row].messages if m.role == "user")
        spoken = sum(len(m.content) for m in chats[example.row].messages if m.role == "assistant")
        trained = real_tokenizer.decode(
            [label for label in example.labels if label != IGNORED], skip_special_tokens=True
        )
        assert abs(len(trained.replace("<think>\n\n</think>\n\n", "")) - spoken) <= 2 * len(chats[example.row].messages)
