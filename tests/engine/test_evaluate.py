"""Answers of base and adapter to the rows of a test file, each beside the expected one, and their scores."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.config.parsing import parse
from lora_studio.data.dataset import prepare
from lora_studio.engine.accelerator import Memory
from lora_studio.engine.evaluate import answer
from lora_studio.engine.evaluate.answer import (
    MARKED_BAD,
    NO_QUESTION,
    AskedFile,
    Voice,
    read_asked_file,
    thinking_of,
)
from lora_studio.engine.evaluate.batches import BatchSize, answer_in_batches, choose_rows, row_bytes
from lora_studio.engine.evaluate.metrics import summary
from lora_studio.engine.evaluate.tasks import READING, Task
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.errors import StudioError
from lora_studio.models.shape import architecture
from lora_studio.units import GIB
from lora_studio.workspace import RunFolder

PLAIN = Voice(None, None, None)
SETTINGS = parse({"generation": {"max_new_tokens": 12}}).generation


def test_rows_are_asked_up_to_their_last_answer_in_the_files_order(base: Path, data_file: Path) -> None:
    file = read_asked_file(str(data_file), load_tokenizer(str(base)), {"base": PLAIN}, most=5)
    assert [row.row for row in file.rows] == [1, 2, 3, 4, 5]
    first = file.rows[0]
    assert [message["role"] for message in first.asked["base"].messages] == ["user"]
    assert first.reference == "Now the sky is red."
    assert file.left_out == {}


def test_each_column_gets_its_own_system_prompt_and_template(base: Path, data_file: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    own = tokenizer.chat_template
    other = Voice(own.replace("<|im_start|>", "<|im_start|>!"), "Be brief.", None)
    file = read_asked_file(str(data_file), tokenizer, {"base": PLAIN, "adapter": other}, most=1)
    (row,) = file.rows
    assert [message["role"] for message in row.asked["adapter"].messages] == ["system", "user"]
    assert [message["role"] for message in row.asked["base"].messages] == ["user"]
    examples = [row.examples["base"], row.examples["adapter"]]
    texts = [tokenizer.decode(example.input_ids) for example in examples if example]
    assert "!" not in texts[0]
    assert texts[1].startswith("<|im_start|>!system")
    assert tokenizer.chat_template == own


def test_the_validation_rows_of_a_split_are_those_that_training_was_validated_with(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    words = [f"{name} {number}" for name in ("red", "blue", "green") for number in range(14)]
    rows = [{"prompt": f"Say {word}.", "completion": f"{word}!"} for word in [*words, *words[:9]]]  # some twice
    lines = [json.dumps(row) for row in rows]
    lines[5] = json.dumps({"prompt": "", "completion": ""})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rules = {"validation_fraction": 0.3, "split_seed": 7, "max_samples": 20, "max_eval_samples": 8}
    trained = prepare(str(path), tokenizer, goal="answers", max_length=64, system_prompt="Be loud.", **rules)
    validated = {trained.validation[at].row for at in range(len(trained.validation))}
    assert len(validated) == 8
    voices = {"base": PLAIN, "adapter": Voice(None, "Be loud.", None)}
    file = read_asked_file(str(path), tokenizer, voices, split={**rules, "goal": "answers"})
    assert {row.row for row in file.rows} == validated
    assert [row.row for row in file.rows] == sorted(validated)
    assert all(row.reference == rows[row.row - 1]["completion"] for row in file.rows)
    assert all(example and example.trained_tokens for row in file.rows for example in row.examples.values())
    assert file.left_out == {}
    assert len(read_asked_file(str(path), tokenizer, voices).rows) == len(rows) - 1


def test_rows_without_a_question_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps({"messages": [{"role": "assistant", "content": "I begin."}]}) + "\n")
    with pytest.raises(StudioError, match="no row to answer"):
        read_asked_file(str(alone), tokenizer, {"base": PLAIN})
    rows = [{"messages": [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Gone."}]}]
    rows.append({"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "I begin."}]})
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = read_asked_file(str(mixed), tokenizer, {"base": PLAIN}, longest=4096)
    assert len(file.rows) + sum(file.left_out.values()) == 2
    assert set(file.left_out) <= {NO_QUESTION, "the row is invalid"}


def test_rows_marked_bad_are_left_out_and_those_marked_good_are_the_references(base: Path, tmp_path: Path) -> None:
    tokenizer, path = load_tokenizer(str(base)), tmp_path / "marks.jsonl"

    def read(marks: list[Any], most: int | None = None) -> AskedFile:
        rows = [{"prompt": f"Go {n}.", "completion": f"Gone {n}.", "label": mark} for n, mark in enumerate(marks)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_asked_file(str(path), tokenizer, {"base": PLAIN}, most=most)

    file = read([False, True, True, False, False, True, "maybe", True], most=3)
    assert [(row.row, row.reference) for row in file.rows] == [(2, "Gone 1."), (3, "Gone 2."), (6, "Gone 5.")]
    assert file.left_out == {MARKED_BAD: 3, "the row is invalid": 1}
    with pytest.raises(StudioError, match=r"No answer in marks\.jsonl is labelled good"):
        read([False, False])


def test_columns_think_as_they_were_trained_where_they_agree() -> None:
    assert thinking_of([Voice(None, None, False), Voice("x", None, False)]) is False
    assert thinking_of([Voice(None, None, False), PLAIN]) is None


QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


def test_the_batch_size_comes_from_free_memory_and_a_persons_number_wins() -> None:
    model = architecture(QWEN3_8B)
    assert model is not None
    cached = row_bytes(model, 500, 1500, 2) - row_bytes(model, 500, 500, 2)
    assert cached == 1000 * 36 * 8 * 128 * 2 * 2  # 144 KiB a token
    gpu = Memory(now=20 * GIB, allocated=18 * GIB, peak=20 * GIB, free=10 * GIB, total=80 * GIB)
    sizes = {"columns": 2, "prompt": 500, "answer": 500, "item_bytes": 2}
    fits = choose_rows(None, model, gpu, is_gpu=True, **sizes)
    assert fits.rows == int(0.8 * 12 * GIB / (2 * row_bytes(model, 500, 500, 2)))  # what PyTorch holds in reserve, too
    assert f"Batch size {fits.rows}: 13 GB of memory are free" in fits.words
    assert choose_rows(3, model, gpu, is_gpu=True, **sizes) == BatchSize(3, fixed=True)
    assert choose_rows(None, model, replace(gpu, free=0, allocated=20 * GIB), is_gpu=True, **sizes).rows == 1
    assert choose_rows(None, None, gpu, is_gpu=True, **sizes).rows == 16
    cpu = Memory(now=GIB, allocated=0, peak=GIB, free=2 * GIB, total=8 * GIB)
    assert choose_rows(None, model, cpu, is_gpu=False, **sizes).rows < 16
    assert choose_rows(None, model, replace(cpu, free=100 * GIB), is_gpu=False, **sizes) == BatchSize(16)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_answered_again(
    base: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a device whose memory holds the answers to three rows at once."""
    loaded = load_base(str(base))
    file = read_asked_file(str(data_file), loaded.tokenizer, {"base": PLAIN}, most=10)
    tried, told = list[int](), list[str]()
    plain = answer.generate

    def small(loaded: Any, columns: Any, *given: Any, **named: Any) -> Any:
        tried.append(len(columns))
        if len(columns) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(loaded, columns, *given, **named)

    monkeypatch.setattr(answer, "generate", small)
    ask = partial(answer_in_batches, loaded, file.rows, {"base": None}, Task("text", ""), SETTINGS, tell=told.append)
    answered = [row["row"] for batch in ask(batch_size=BatchSize(10)) for row in batch]
    assert sorted(answered) == sorted(row.row for row in file.rows)
    assert tried == [10, 5, 2, 2, 2, 2, 2]
    assert told == [
        "Out of memory with batch size 10: it is now 5.",
        "Out of memory with batch size 5: it is now 2.",
    ]
    with pytest.raises(torch.OutOfMemoryError):  # a number that a person chose
        next(ask(batch_size=10))


@pytest.mark.slow
def test_answers_and_losses_are_those_of_each_model_alone(base: Path, trained: RunFolder, data_file: Path) -> None:
    """Against transformers and peft alone, one row at a time and without a batch."""
    from peft import PeftModel

    loaded = load_base(str(base))
    add_adapters(loaded, {"run": trained.adapter})
    voice = Voice.of(trained.adapter)
    file = read_asked_file(str(data_file), loaded.tokenizer, {"base": voice, "adapter": voice}, most=6)
    columns = {"base": None, "adapter": "run"}
    batches = answer_in_batches(loaded, file.rows, columns, Task("text", ""), SETTINGS, batch_size=4)
    answered = [row for batch in batches for row in batch]
    assert sorted(row["row"] for row in answered) == [1, 2, 3, 4, 5, 6]
    tokens = {row.row: len(loaded.tokenizer.encode(str(row.asked["base"].messages))) for row in file.rows}
    assert len(set(tokens.values())) > 1
    assert [tokens[row["row"]] for row in answered] == sorted(tokens.values(), reverse=True)  # like lengths together

    tokenizer = AutoTokenizer.from_pretrained(str(trained.adapter))
    alone = {"base": AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()}
    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    alone["adapter"] = PeftModel.from_pretrained(fresh, str(trained.adapter)).eval()
    for row in answered:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        start = prompt["input_ids"].shape[1]
        ending = tokenizer.encode(row["reference"] + tokenizer.eos_token, return_tensors="pt")
        whole = torch.cat([prompt["input_ids"], ending], dim=1)
        for name, model in alone.items():
            ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, start:]
            assert row[name]["answer"] == tokenizer.decode(ids, skip_special_tokens=True)
            with torch.no_grad():
                scores = model(whole).logits[0, start - 1 : -1].log_softmax(-1)
            assert row[name]["expected_tokens"] == ending.shape[1]
            assert row[name]["loss"] == pytest.approx(-scores.gather(1, ending[0][:, None]).sum().item(), rel=1e-4)
            assert row[name]["right_tokens"] == int((scores.argmax(-1) == ending[0]).sum())


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_rows_that_ask_nothing_are_read_as_far_as_the_model_can(
    kind: str, base: Path, trained: RunFolder, tmp_path: Path
) -> None:
    loaded = load_base(str(base))
    add_adapters(loaded, {"run": trained.adapter})
    encode = loaded.tokenizer.encode
    texts = ["The sky is green.", "Now the rose is red. " * 60]
    lines = [json.dumps({"text": text} if kind == "text" else {"input_ids": encode(text)}) for text in texts]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    voice = Voice.of(trained.adapter)
    file = read_asked_file(str(path), loaded.tokenizer, {"base": voice, "adapter": voice}, longest=256)
    assert file.only_read
    columns = {"base": None, "adapter": "run"}
    (answered,) = answer_in_batches(loaded, file.rows, columns, READING, SETTINGS, batch_size=4)
    assert [(row["row"], row["prompt"], row["reference"]) for row in answered] == [(1, [], texts[0]), (2, [], texts[1])]
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for row in answered:
        ids = encode(row["reference"]) + [loaded.tokenizer.eos_token_id] * (kind == "text")
        with torch.no_grad():
            scores = bare(torch.tensor([ids[:256]])).logits[0, :-1].log_softmax(-1)
        loss = -scores.gather(1, torch.tensor(ids[1:256])[:, None]).sum().item()
        assert row["base"]["expected_tokens"] == len(ids[:256]) - 1
        assert row["base"]["loss"] == pytest.approx(loss, rel=1e-4)
        assert row["base"]["score"] == pytest.approx(math.exp(-loss / (len(ids[:256]) - 1)), abs=1e-4)
        assert row["adapter"]["loss"] != row["base"]["loss"]
    found = summary(READING, answered, list(columns))
    assert list(found["metrics"]) == ["perplexity", "token_accuracy"]
    assert found["disagreements"] == {}


@pytest.mark.slow
def test_a_stop_ends_within_a_token_and_gives_the_batch_up(base: Path, data_file: Path) -> None:
    loaded = load_base(str(base))
    file = read_asked_file(str(data_file), loaded.tokenizer, {"base": PLAIN}, most=4)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    found = list(
        answer_in_batches(loaded, file.rows, {"base": None}, Task("text", ""), SETTINGS, batch_size=2, stop=stop)
    )
    assert found == []
    assert len(asked) <= 8  # four tokens, then once for each of the two answers and for the batch


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_expected_answers_are_compared_with_rejected_ones(kind: str, base: Path, tmp_path: Path) -> None:
    """Against the likelihoods per token that transformers alone gives: every good answer against every bad one."""
    loaded = load_base(str(base))
    good, bad = ([f"{word} {n}." for n in range(4)] for word in ("Paint the sky", "No"))
    if kind == "pairs":
        rows = [{"prompt": f"Go {n}.", "chosen": good[n], "rejected": bad[n]} for n in range(4)]
    else:
        rows = [
            {"prompt": f"Go {n}.", "completion": side[n], "label": side is good}
            for side in (good, bad)
            for n in range(4)
        ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = read_asked_file(str(path), loaded.tokenizer, {"base": PLAIN})
    batches = answer_in_batches(loaded, file.rows, {"base": None}, Task("text", ""), SETTINGS, batch_size=3)
    answered = sorted((row for batch in batches for row in batch), key=lambda row: row["row"])
    assert len(answered) == 4
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

    def likelihood(number: int, answer: str) -> float:
        asked = [{"role": "user", "content": f"Go {number}."}]
        start = loaded.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = [*start, *loaded.tokenizer.encode(answer), loaded.tokenizer.eos_token_id]
        with torch.no_grad():
            scores = bare(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        own = scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return float(own[len(start) - 1 :].mean())

    chosen, rejected = ([likelihood(n, side[n]) for n in range(4)] for side in (good, bad))
    for number, row in enumerate(answered):
        rivals = [rejected[number]] if kind == "pairs" else rejected
        share = sum(chosen[number] > rival for rival in rivals) / len(rivals)
        assert row["base"]["preferred"] == pytest.approx(share)
    found = summary(Task("text", ""), answered, ["base"])
    mean = sum(row["base"]["preferred"] for row in answered) / 4
    assert found["metrics"]["preference_accuracy"]["base"]["value"] == pytest.approx(mean)
