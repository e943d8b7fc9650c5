"""Every real file is read as its owner means it, or refused with a sentence. Needs no tokenizer."""

import pytest

from lora_studio.data.convert import convert
from lora_studio.data.formats import apply_mapping, detect_format, detect_formats, mapping_of
from lora_studio.data.messages import Record, RowError
from lora_studio.data.sources import open_source
from lora_studio.errors import StudioError

pytestmark = pytest.mark.real

# file or folder -> for each reading: its name, usable rows, bad rows
READINGS = {
    "eda-corpus/Question-Answer_Dataset.csv": [("prompt_completion", 196, 0)],
    "eda-corpus/query.csv": [("prompt_completion", 394, 0)],
    "gsm8k/test.jsonl": [("prompt_completion", 1319, 0)],
    "gsm8k/train.jsonl": [("prompt_completion", 7473, 0)],
    "llama-factory/alpaca_en_demo.json": [("alpaca", 999, 0)],
    "llama-factory/dpo_en_demo.json": [("preference", 299, 1)],
    "llama-factory/glaive_toolcall_en_demo.json": [("sharegpt", 300, 0)],
    "llama-factory/identity.json": [("alpaca", 91, 0)],
    "llama-factory/kto_en_demo.json": [("kto", 300, 0)],
    "llama-factory/reason_tool_use_demo_50.jsonl": [("messages", 50, 0)],
    "llama-factory/wiki_demo.txt": [("text", 30, 0)],
    "llms-from-scratch/instruction-data-with-preference.json": [("alpaca", 1100, 0), ("preference", 1094, 6)],
    "mlx-examples/wwdc25-train.jsonl": [("prompt_completion", 1800, 0)],
    "ms-swift-tests/alpaca.csv": [("alpaca", 3, 0)],
    "ms-swift-tests/alpaca.jsonl": [("alpaca", 3, 0)],
    "ms-swift-tests/alpaca2.csv": [("instruction", 3, 0)],
    "ms-swift-tests/chatml.jsonl": [("messages", 3, 0)],
    "ms-swift-tests/conversations.jsonl": [("sharegpt", 3, 0)],
    "ms-swift-tests/multi_modal_1.jsonl": [("prompt_completion", 1, 2)],
    "ms-swift-tests/sharegpt.jsonl": [("sharegpt", 3, 0)],
    "ms-swift-tests/swift_multi.jsonl": [("prompt_completion", 3, 0)],
    "ms-swift-tests/swift_pre.csv": [("text", 3, 0)],
    "ms-swift-tests/swift_pre.jsonl": [("text", 3, 0)],
    "ms-swift-tests/swift_single.csv": [("prompt_completion", 3, 0)],
    "ms-swift-tests/swift_single.jsonl": [("prompt_completion", 3, 0)],
    "self-instruct/ag_news_classify.jsonl": [("prompt_completion", 200, 0)],
    "smollm2-customs": [("prompt_completion", 139, 0)],
    "smollm2-customs/train-00000-of-00001.parquet": [("prompt_completion", 48, 0)],
    "smollm2-customs/train-00001-of-00002.parquet": [("prompt_completion", 28, 0)],
    "smollm2-customs/train-00002-of-00003.parquet": [("prompt_completion", 63, 0)],
    "tinker-cookbook/conversations.jsonl": [("messages", 128, 0)],
    "xtuner/qwen35_tokenize_data.jsonl": [("messages", 12, 5)],
}


def test_no_real_file_is_left_out(real):
    files = {
        path.relative_to(real / "datasets").as_posix() for path in (real / "datasets").rglob("*") if path.is_file()
    }
    assert files == {name for name in READINGS if "." in name}


@pytest.mark.parametrize(("name", "expected"), READINGS.items())
def test_a_real_file_is_read_as_its_owner_means_it(real, name, expected):
    records = []
    for row in open_source(real / "datasets" / name).rows():
        assert isinstance(row, Record)
        records.append(row)
    found = []
    for shape in detect_formats(records):
        told, again = _convert(records, shape), mapping_of(shape)
        found.append((shape.name, len(told), len(records) - len(told)))
        assert len(_convert(records, apply_mapping(again, records, goal="preference"))) == len(told)
    assert found == expected
    assert {shape.ambiguous for shape in detect_formats(records)} == {len(expected) > 1}


@pytest.mark.parametrize("name", [name for name, readings in READINGS.items() if readings[0][0] == "preference"])
def test_a_real_file_for_comparison_is_refused_for_examples_only(real, name):
    records = [row for row in open_source(real / "datasets" / name).rows() if isinstance(row, Record)]
    with pytest.raises(StudioError) as error:
        detect_format(records)
    assert error.value.hint
    chats = _convert(records, detect_format(records, goal="preference"))
    assert all(chat.chosen and chat.rejected for chat in chats)


def _convert(records, shape):
    chats = []
    for record in records:
        try:
            chats.append(convert(record, shape))
        except RowError:
            continue
    return chats
