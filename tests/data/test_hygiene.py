"""What is found in a data set as a whole: repeats, leaks, contradictions, lopsided answers, hidden tokens."""

import json
import random

from lora_studio.data import report
from lora_studio.data.dataset import prepare
from lora_studio.data.messages import Conversation, Message
from lora_studio.data.quality import data_quality, group_key, near_duplicates, special_text


def _chat(row, asked, told):
    return Conversation(row, (Message("user", asked), Message("assistant", told)))


def _different(count, start=1):
    return [_chat(row, f"Question number {row}", f"Answer number {row}") for row in range(start, start + count)]


def test_rows_that_repeat_are_counted_with_examples():
    found = data_quality([*_different(3), _chat(4, "question  NUMBER 1", "Answer number 1"), _chat(5, "x", "y")])
    assert found["exact_duplicates"] == {"rows": 1, "groups": 1, "examples": [[1, 4]]}
    assert "rows 1, 4" in found["sentences"][0]
    assert json.dumps(found)


def test_questions_that_differ_in_one_sign_are_not_the_same():
    assert group_key(_chat(1, "3 + 4", "?")) != group_key(_chat(2, "3 - 4", "?"))


def test_rows_that_nearly_repeat_are_found_in_bounded_time():
    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    rows = [_chat(row, " ".join(draw.choices(words, k=60)), "fine") for row in range(1, 200)]
    rows.append(_chat(200, rows[9].messages[0].content.replace("word1", "changed", 1), "fine"))
    found = near_duplicates(rows)
    assert found == {"rows": 1, "groups": 1, "examples": [[10, 200]], "sampled": None}
    assert near_duplicates(rows, seconds=0)["sampled"] == 0


def test_rows_on_both_sides_and_prompts_on_both_sides_are_told_apart():
    validation = [_chat(1, "Question number 2", "Answer number 2"), _chat(2, "Question number 3", "Another answer")]
    shared = data_quality(_different(5), validation)["shared_with_validation"]
    assert shared == {"rows": 1, "examples": [[2, 1]], "prompts": 1, "prompt_examples": [[3, 2]]}


def test_one_prompt_with_two_answers_is_a_contradiction():
    found = data_quality([*_different(3), _chat(4, "Question number 2", "No"), _chat(5, "Question number 2", "No")])
    assert found["contradictions"] == {"prompts": 1, "rows": 3, "examples": [[2, 4]]}


def test_few_short_answers_are_counted_as_labels():
    rows = [_chat(row, f"Question {row}", "spam" if row % 10 else "ham") for row in range(100)]
    labels = data_quality(rows)["labels"]
    assert labels == {"counts": {"spam": 90, "ham": 10}, "distinct": 2, "largest_share": 0.9}
    assert data_quality(_different(100))["labels"] is None


def test_texts_and_compared_answers_are_looked_at_too():
    texts = [Conversation(row, text="the same text") for row in (1, 2)]
    assert data_quality(texts)["exact_duplicates"]["rows"] == 1
    pair = Conversation(
        1, (Message("user", "a"),), chosen=(Message("assistant", "b"),), rejected=(Message("assistant", "c"),)
    )
    assert data_quality([pair, pair])["contradictions"]["prompts"] == 0


def test_special_tokens_written_out_in_a_row_are_named():
    chat = _chat(1, "what is <|im_end|>?", "fine</s>")
    assert special_text(chat, ["<|im_end|>", "</s>", " "]) == [("user", "<|im_end|>"), ("assistant", "</s>")]
    assert not special_text(chat, ["<|pad|>"])
    found = data_quality([*_different(3), chat], specials=["<|im_end|>", "</s>"])
    assert found["special_tokens"]["counts"] == {"<|im_end|>": 1, "</s>": 1}
    assert found["special_tokens"]["examples"][0] == [1, "user", "<|im_end|>"]
    assert "1 row contains <|im_end|>, </s> as text" in found["sentences"][-1]


def test_of_a_large_file_all_exact_duplicates_are_counted(write, tokenizer, monkeypatch):
    monkeypatch.setattr(report, "_MAX_ROWS", 10)
    rows = [{"prompt": f"Question {number % 190}", "completion": f"Answer {number % 190}"} for number in range(200)]
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer, validation_fraction=0)
    reports = []
    found = report.findings(prepared, lambda *call: reports.append(call))
    assert (found["looked_at"], found["of_rows"]) == (10, 200)
    assert (found["exact_duplicates"]["rows"], found["exact_duplicates"]["groups"]) == (10, 10)
    assert found["exact_duplicates"]["examples"] == [[row, row + 190] for row in range(1, 11)]
    assert "10 rows repeat an earlier row, in 10 groups. For example rows 1, 191." in found["sentences"]
    assert reports[0] == ("check", 0, 0)
    assert reports[-1] == ("check", 30, 30)
