"""Questions answered while a run goes on: the same ones each time, by base and adapter, without a trace in training."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from lora_studio.config.parsing import parse
from lora_studio.data.dataset import prepare
from lora_studio.data.preview import questions
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.runtime import EventLog
from lora_studio.engine.train import program, settings
from lora_studio.engine.train.callbacks import MAX_TEXT, shorten
from lora_studio.engine.train.rows import write_suggestions
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Event, Finished, PhaseStarted, QuestionsAnswered, QuestionsAsked, StepLogged, fold
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events

Train = Callable[..., int]


def test_the_same_rows_are_asked_for_a_seed_and_none_that_is_too_long(base: Path, data_file: Path) -> None:
    prepared = prepare(str(data_file), load_tokenizer(str(base)), validation_fraction=0.5, max_length=64)
    asked = questions(prepared, 5, seed=1, longest=64)
    assert asked == questions(prepared, 5, seed=1, longest=64) != questions(prepared, 5, seed=2, longest=64)
    kept_back = set(prepared.validation.row_numbers.tolist())
    texts = {chat.messages[0].content: chat for chat in prepared.conversations if chat.row in kept_back}
    for question in asked:
        (message,) = question.messages
        assert texts[message["content"]].messages[1].content == question.reference
    assert len(questions(prepared, 100, seed=1, longest=64)) == len(prepared.validation)
    with pytest.raises(StudioError, match="at most 3 tokens"):
        questions(prepared, 5, seed=1, longest=3)


def test_texts_without_questions_are_refused(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(f'{{"text": "Just text, number {n}."}}\n' for n in range(9)), encoding="utf-8")
    prepared = prepare(str(path), load_tokenizer(str(base)), validation_fraction=0.5)
    with pytest.raises(StudioError, match="contains a prompt"):
        questions(prepared, 2, seed=1, longest=64)


def test_a_run_keeps_validation_questions_for_the_chat_to_suggest(base: Path, data_file: Path, tmp_path: Path) -> None:
    config = parse({"data": {"max_length": 64}})
    run = RunFolder(tmp_path)
    prepared = prepare(str(data_file), load_tokenizer(str(base)), validation_fraction=0.5, max_length=64)
    write_suggestions(run, config, prepared)
    kept_back = set(prepared.validation.row_numbers.tolist())
    asked = {chat.messages[0].content for chat in prepared.conversations if chat.row in kept_back}
    rows = json.loads(run.questions.read_text(encoding="utf-8"))
    assert len(rows) == min(8, len(asked))
    assert {row["question"] for row in rows} <= asked
    run.questions.unlink()
    prepared = prepare(str(data_file), load_tokenizer(str(base)), validation_fraction=0.0, max_length=64)
    write_suggestions(run, config, prepared)
    assert not run.questions.exists()


def test_a_long_answer_is_cut_for_the_event() -> None:
    assert shorten("short") == "short"
    assert len(shorten("x" * 9999)) == MAX_TEXT + 1


ASKING: dict[str, Any] = {"evaluation__gen_eval_samples": 3, "generation__max_new_tokens": 6}


@pytest.mark.slow
def test_base_and_adapter_answer_after_each_evaluation_and_training_is_the_same_as_without(
    trained: RunFolder, make_run: MakeRun, train: Train
) -> None:
    run = make_run(evaluation__per_device_eval_batch_size=2, **ASKING)
    assert train(run) == 0
    state, plain = fold(events(run)), fold(events(trained))
    assert [point.loss for point in state.steps] == [point.loss for point in plain.steps]
    assert state.questions is not None
    assert len(state.questions.questions) == len(state.questions.answers) == 3
    assert [(one.step, len(one.answers)) for one in state.answers] == [(4, 3), (8, 3)]
    assert any(one.answers != state.questions.answers for one in state.answers)
    assert [event.phase for event in events(run, PhaseStarted)].count("evaluate") == 5


@pytest.mark.slow
def test_a_stop_ends_the_answers_and_resuming_does_not_ask_the_base_again(
    trained: RunFolder, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(**ASKING)
    emit = EventLog.emit
    sent = []

    def emit_and_signal(self: EventLog, event: Event) -> None:
        emit(self, event)
        if isinstance(event, StepLogged) and event.step == 4:
            sent.append(event)
        if len(sent) == 1 and isinstance(event, PhaseStarted) and event.unit == "answers":
            sent.append(event)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EventLog, "emit", emit_and_signal)
        assert train(run) == 130
    assert events(run, Finished)[-1].state == "stopped"
    assert train(run, "--resume") == 0
    assert len(events(run, QuestionsAsked)) == 1
    assert [one.step for one in events(run, QuestionsAnswered)] == [8]
    assert [point.loss for point in fold(events(run)).steps] == [point.loss for point in fold(events(trained)).steps]


@pytest.mark.slow
def test_modules_that_are_trained_in_full_fit_into_a_16_bit_base_that_is_asked_meanwhile(
    make_run: MakeRun, train: Train
) -> None:
    """Their weights are float32 then, and the next module's are not; no autocast is there where the model is asked."""
    run = make_run(
        model__dtype="bfloat16",
        lora__modules_to_save="embed_tokens, norm, lm_head",
        training__max_steps=2,
        evaluation__gen_eval_samples=2,
        generation__max_new_tokens=4,
    )
    assert train(run) == 0, run.complete.read_text()
    (asked,) = events(run, QuestionsAsked)
    assert len(asked.answers) == 2
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {weights[name].dtype for name in weights if "lora_" not in name} == {torch.float32}


@pytest.mark.slow
def test_the_model_is_asked_in_the_precision_that_it_trains_in(
    base: Path, make_run: MakeRun, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a 16-bit base trains under autocast: its biases are float32 then."""
    own = AutoConfig.from_pretrained(base)
    shape = {name: getattr(own, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    with_biases = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape, **heads))
    with_biases.save_pretrained(tmp_path)
    load_tokenizer(str(base)).save_pretrained(tmp_path)
    monkeypatch.setattr(program, "machine_conflicts", lambda *args: [])
    values = settings.trainer_values
    monkeypatch.setattr(settings, "trainer_values", lambda *args, **more: {**values(*args, **more), "bf16": True})
    short = {"training__max_steps": 1, "evaluation__gen_eval_samples": 2, "generation__max_new_tokens": 4}
    run = make_run(model__name=str(tmp_path), model__dtype="bfloat16", lora__bias="all", **short)
    assert train(run) == 0, run.complete.read_text()
    assert len(events(run, QuestionsAsked)[0].answers) == 2
