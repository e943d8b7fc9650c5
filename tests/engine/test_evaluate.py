"""Answers of base and adapter to the questions of a file, each beside the expected one."""

from pathlib import Path

import pytest

from lora_studio.engine.evaluate import exact_match, read_questions, scores
from lora_studio.engine.generate import Column, generate, greedy
from lora_studio.engine.load import add_adapters, load_base
from lora_studio.errors import StudioError
from lora_studio.workspace import RunFolder


def test_questions_are_the_rows_that_end_with_an_answer(data_file: Path) -> None:
    questions = read_questions(str(data_file))
    assert len(questions) == 40
    assert all(each.messages[-1].role == "assistant" for each in questions)


def test_a_file_of_plain_text_has_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Only words.\n\nAnd more words.\n", encoding="utf-8")
    with pytest.raises(StudioError, match="no question with an answer"):
        read_questions(str(path))


@pytest.mark.slow
def test_rows_come_in_the_files_order_with_each_columns_own_answer(
    base: Path, trained: RunFolder, data_file: Path
) -> None:
    loaded = load_base(str(base))
    add_adapters(loaded, {"run": trained.adapter})
    questions = read_questions(str(data_file))[:20]
    done: list[int] = []
    judged = exact_match(
        loaded, questions, [None, "run"], max_new_tokens=12, on_progress=lambda count, total: done.append(count)
    )
    assert [row.row for row in judged] == [question.row for question in questions]
    assert done[-1] == 20
    for row in (judged[0], judged[7]):
        alone = generate(loaded, [Column("run", row.messages)], greedy(loaded, 12))[0]
        assert row.answers[1] == alone.text
    base_score, adapter_score = scores(judged)
    assert 0 <= base_score <= adapter_score <= 1
