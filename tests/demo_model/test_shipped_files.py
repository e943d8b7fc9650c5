"""What is shipped: the data sets are the generator's and keep their held-out questions apart, the model is small."""

import json
from pathlib import Path

import pytest

from lora_studio.workspace import demo_folder, shipped_data
from tools.demo_model.build import HELD_OUT_QUESTIONS, QUESTIONS, SEED
from tools.demo_model.conversations import held_out_dialogues
from tools.demo_model.datasets import SHIPPED, read_questions, write_all

MEGABYTE = 10**6


def rows(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def question(row: dict) -> str:
    if "messages" in row:
        return row["messages"][-2]["content"]
    return row["prompt"] if "prompt" in row else f"{row['instruction']}\n\n{row.get('input', '')}"


def test_every_data_set_has_a_title_a_sentence_and_both_its_files():
    assert set(shipped_data()) == {"pirate", "recommender", "technical", "alpaca", "preference", "feedback"}
    for data in shipped_data().values():
        assert data.title
        assert data.about.endswith(".")
        assert len(rows(data.train)) == SHIPPED[data.name].train
        assert len(rows(data.heldout)) == SHIPPED[data.name].heldout


@pytest.mark.parametrize("name", SHIPPED)
def test_no_held_out_question_is_asked_in_training(name):
    data = shipped_data()[name]
    trained, kept = ({question(row) for row in rows(path)} for path in (data.train, data.heldout))
    assert kept
    assert not trained & kept


def test_the_shipped_files_are_what_the_generator_writes(tmp_path):
    write_all(tmp_path, SEED)
    folder = demo_folder() / "data"
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    assert read_questions(folder / QUESTIONS) == held_out_dialogues(HELD_OUT_QUESTIONS, SEED)


def test_the_data_sets_have_the_shapes_they_stand_for():
    data = shipped_data()
    assert set(rows(data["pirate"].train)[0]) == {"messages"}
    assert set(rows(data["recommender"].train)[0]) == {"instruction", "input", "output", "system"}
    assert set(rows(data["technical"].train)[0]) == {"instruction", "output"}
    assert set(rows(data["alpaca"].train)[0]) == {"instruction", "input", "output"}
    assert set(rows(data["preference"].train)[0]) == {"prompt", "chosen", "rejected"}
    assert set(rows(data["feedback"].train)[0]) == {"prompt", "completion", "label"}
    for path in (data["feedback"].train, data["feedback"].heldout):
        labels = [row["label"] for row in rows(path)]
        assert 0.25 < sum(labels) / len(labels) < 0.5


def test_the_pirate_set_asks_plainly_and_answers_as_a_pirate():
    for row in rows(shipped_data()["pirate"].train):
        user, assistant = row["messages"]
        assert user["role"] == "user"
        assert "pirate" not in user["content"]
        assert assistant["content"].startswith("Arr! ")
        assert assistant["content"].endswith(", matey!")


def test_recommendations_are_as_often_yes_as_no():
    answers = [row["output"] for row in rows(shipped_data()["recommender"].train)]
    assert set(answers) == {"Yes.", "No."}
    assert 0.4 < answers.count("Yes.") / len(answers) < 0.6


def test_every_technical_fact_that_is_asked_held_out_was_trained_in_other_words():
    data = shipped_data()["technical"]
    known = {row["output"] for row in rows(data.train)}
    assert {row["output"] for row in rows(data.heldout)} <= known


def test_model_and_data_are_small():
    model = [path for path in (demo_folder() / "model").iterdir() if path.is_file()]
    data = list((demo_folder() / "data").iterdir())
    assert sum(path.stat().st_size for path in model) <= 12 * MEGABYTE
    assert sum(path.stat().st_size for path in data) <= MEGABYTE
    assert not [path for path in model if path.suffix in {".bin", ".pt", ".pkl"}]
