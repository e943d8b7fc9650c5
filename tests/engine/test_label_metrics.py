"""Labels read off the evaluation's own pass: where the answers lie, what they say, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_studio.data.encode import Example
from lora_studio.data.messages import IGNORED
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.evaluate.answer import Voice, read_asked_file
from lora_studio.engine.evaluate.tasks import label_of, label_scores
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.train.rows import answer_spans, given_label, labelled_rows, thinking_tokens
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, Finished, Warned, fold
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events

WORDS = ["<end>", "<think>", "</think>", "Ye", "s", "N", "o", "pe", "hm", "."]
NO = IGNORED


def decode(ids: list[int]) -> str:
    return "".join(WORDS[one] for one in ids if one)


def spell(*pieces: str) -> list[int]:
    return [WORDS.index(piece) for piece in pieces]


def test_the_answer_is_each_examples_last_trained_stretch_padded_or_in_one_row() -> None:
    padded = np.array([[NO, 5, 5, NO, 6, 7], [NO, NO, 8, 9, NO, NO], [NO] * 6])
    assert list(answer_spans(padded)) == [(0, 4, 6), (1, 2, 4)]
    flat, positions = padded[:2].reshape(1, -1), np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    assert list(answer_spans(flat, positions)) == [(0, 4, 6), (0, 8, 10)]


def test_what_follows_a_token_that_differs_is_not_the_models_answer() -> None:
    labels = ("Yes", "Nope")
    assert given_label(spell("Ye", "s", "<end>"), spell("Ye", "s", "<end>"), labels, decode) == "Yes"
    assert given_label(spell("Ye", "s", "<end>"), spell("N", "s", "<end>"), labels, decode) == "Nope"
    assert given_label(spell("Ye", "s", "<end>"), spell("hm", "s", "<end>"), labels, decode) is None
    assert given_label(spell("Ye", "s", "<end>"), spell("Ye", "s", "."), labels, decode) == "Yes"


def test_reasoning_is_not_part_of_the_answer() -> None:
    answer = spell("<think>", "hm", "</think>", "Ye", "s")
    assert thinking_tokens(answer, decode) == 3
    assert thinking_tokens(answer[3:], decode) == 0


def test_rows_without_a_label_are_told_with_what_they_say() -> None:
    rows = [Example(1, [], [NO, *spell("Ye", "s", "<end>")], 4, 0, 3), Example(2, [], [NO, *spell("hm", ".")], 3, 0, 2)]
    assert labelled_rows(rows, ("yes", "no"), decode) == 1
    with pytest.raises(StudioError, match="one of the labels up, down") as caught:
        labelled_rows(rows, ("up", "down"), decode)
    assert "“Yes”; “hm.”" in caught.value.hint


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that the tiny model can learn: the answer is the colour that the question names, or (four rows) neither."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{'Please ' * (n % 3)}{colour}?"},
                {"role": "assistant", "content": f"{said}."},
            ]
        }
        for n in range(20)
        for colour, said in (("red", "Red" if n % 10 else "Other"), ("green", "Green" if n % 10 else "Other"))
    ]
    path = tmp_path_factory.mktemp("labels") / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_accuracy_and_f1_are_measured_and_decide_the_best_checkpoint(
    packing: bool, questions: Path, base: Path, make_run: MakeRun, train: Callable[..., int]
) -> None:
    run = make_run(
        data__train_file=str(questions),
        data__validation_file=str(questions),
        training__packing=packing,
        training__num_train_epochs=8,
        evaluation__labels="red, Green",
        evaluation__metric_for_best_model="f1",
        evaluation__load_best_model_at_end=True,
    )
    assert train(run) == 0
    found = events(run, Evaluated)
    assert len(found) == 8
    assert all({"accuracy", "f1", "unanswered"} <= set(one.metrics) for one in found)
    best = max(found, key=lambda one: one.metrics["f1"])
    numbers = json.loads(run.complete.read_text(encoding="utf-8"))
    assert numbers["best_checkpoint"] == f"checkpoint-{best.step}"
    assert numbers["eval_metrics"]["f1"] == best.metrics["f1"]
    warned = [one.message for one in events(run, Warned)]
    assert warned[0].startswith("4 of 40 validation rows")
    assert len(warned) == 1 + packing
    loaded = load_base(str(base))
    add_adapters(loaded, {"adapter": run.adapter})
    expected, given = [], []
    voices = {"adapter": Voice.of(run.adapter)}
    for row in read_asked_file(str(questions), loaded.tokenizer, voices).rows:
        wanted = label_of(row.reference, ("red", "Green"))
        if wanted:
            asked = Column("adapter", row.asked["adapter"].messages)
            (answer,) = generate(loaded, [asked], greedy(loaded, 8))
            expected.append(wanted)
            given.append(label_of(answer.text, ("red", "Green")))
    assert best.metrics["accuracy"] == pytest.approx(label_scores(expected, given)["accuracy"])
    assert best.metrics["f1"] > 0.3


@pytest.mark.slow
def test_a_run_without_gain_ends_early_and_says_why(make_run: MakeRun, train: Callable[..., int]) -> None:
    run = make_run(
        training__num_train_epochs=6,
        evaluation__early_stopping_patience=2,
        evaluation__early_stopping_threshold=100,
        evaluation__load_best_model_at_end=True,
    )
    assert train(run) == 0
    words = "Stopped early at step 12: the validation loss has not decreased by more than 100 for 2 evaluations."
    assert events(run, Finished)[-1].message == words
    state = fold(events(run))
    assert (state.state, state.step, state.total_steps, len(state.evaluations)) == ("done", 12, 24, 3)
    assert json.loads(run.complete.read_text(encoding="utf-8"))["best_checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluation__labels": "up, down"}, "is one of the labels up, down"),
        (
            {"data__validation_file": "EMPTY", "evaluation__early_stopping_patience": 2},
            "No validation rows are left for early stopping",
        ),
    ],
)
def test_what_can_not_be_measured_is_refused_before_the_model_is_loaded(
    settings: dict[str, object], said: str, make_run: MakeRun, train: Callable[..., int], tmp_path: Path
) -> None:
    short = tmp_path / "long.jsonl"
    answer = "word " * 200
    pair = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": answer}]
    short.write_text(json.dumps({"messages": pair}) + "\n", encoding="utf-8")
    if "data__validation_file" in settings:
        settings = {**settings, "data__validation_file": str(short), "data__truncation": "drop"}
    run: RunFolder = make_run(**settings)
    assert train(run) == 2
    assert said in events(run, Finished)[-1].message
