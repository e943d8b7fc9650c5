"""The whole path from a file to examples: split, counts, cuts, fingerprint, progress."""

import pytest

from lora_studio.config.sections import Data
from lora_studio.data import dataset
from lora_studio.data.dataset import prepare, recut
from lora_studio.data.messages import EMPTY_ANSWER
from lora_studio.errors import StudioError


def _pairs(count):
    return [
        {"prompt": f"What is {number}?", "completion": "It is a number. " * (number % 7 + 1)} for number in range(count)
    ]


@pytest.fixture
def file(write):
    return str(write("pairs.jsonl", _pairs(50)))


def _rows(examples):
    return [example.row for example in examples]


def test_the_split_is_decided_by_rows_and_seed_alone(file, tokenizer):
    one = prepare(file, tokenizer, validation_fraction=0.2)
    two = prepare(file, tokenizer, validation_fraction=0.2, max_length=16)
    other = prepare(file, tokenizer, validation_fraction=0.2, split_seed=43)
    assert (len(one.train), len(one.validation)) == (40, 10)
    assert _rows(one.validation) == _rows(two.validation) != _rows(other.validation)
    assert sorted(_rows(one.train) + _rows(one.validation)) == list(range(1, 51))
    assert _rows(one.train) == sorted(_rows(one.train))


def test_settings_are_those_of_the_config_with_its_defaults(file, tokenizer):
    given = Data(train_file=file, max_samples=7)
    prepared = prepare(file, tokenizer, max_samples=7)
    settings = given.model_dump(exclude={"train_file"})
    assert prepared.settings.model_dump(exclude={"train_file"}) == settings
    with pytest.raises(TypeError, match="max_rows"):
        prepare(file, tokenizer, max_rows=7)


def test_a_share_of_nothing_keeps_nothing_back_and_a_tiny_one_keeps_a_row(file, tokenizer):
    assert not prepare(file, tokenizer, validation_fraction=0).validation
    assert len(prepare(file, tokenizer, validation_fraction=0.001).validation) == 1


def test_a_file_of_one_row_is_trained_on_and_not_measured(write, tokenizer):
    prepared = prepare(str(write("one.jsonl", _pairs(1))), tokenizer)
    assert (len(prepared.train), len(prepared.validation)) == (1, 0)


def test_a_limit_takes_fewer_rows_of_the_same_split(file, tokenizer):
    whole = prepare(file, tokenizer)
    few = prepare(file, tokenizer, max_samples=7, max_eval_samples=2)
    assert (len(few.train), len(few.validation)) == (7, 2)
    assert set(_rows(few.train)) < set(_rows(whole.train))
    assert set(_rows(few.validation)) < set(_rows(whole.validation))


def test_a_validation_file_is_used_instead_of_a_split(file, write, tokenizer):
    other = write("held.json", [{"question": "a", "answer": "b"}, {"question": "c", "answer": ""}])
    prepared = prepare(file, tokenizer, validation_file=str(other))
    assert (len(prepared.train), len(prepared.validation)) == (50, 1)
    assert any("1 rows, 1 invalid rows skipped" in sentence for sentence in prepared.assumptions)


def test_bad_rows_are_reported_with_their_number_and_do_not_stop_the_rest(write, tokenizer):
    rows = _pairs(3)
    rows[1]["completion"] = " "
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer, validation_fraction=0)
    assert _rows(prepared.train) == [1, 3]
    assert [(bad.row, bad.reason, bad.field) for bad in prepared.bad_rows] == [(2, EMPTY_ANSWER, "completion")]


def test_bad_rows_stop_the_work_where_that_is_asked_for_and_are_named(write, tokenizer, tmp_path):
    rows = _pairs(9)
    rows[1]["completion"] = rows[4]["completion"] = " "
    del rows[6]["completion"]
    path, cache = str(write("a.jsonl", rows)), tmp_path / "cache"
    skipped = prepare(path, tokenizer, cache_folder=cache)
    entries = sorted(entry.name for entry in cache.iterdir())
    with pytest.raises(StudioError) as error:
        prepare(path, tokenizer, cache_folder=cache, bad_rows="stop")
    assert "3 rows are invalid (an answer is empty: 2; the row lacks a required field: 1)" in error.value.message
    assert "a.jsonl, row 2: an answer is empty (completion)" in error.value.message
    assert sorted(entry.name for entry in cache.iterdir()) == entries
    good = prepare(str(write("b.jsonl", _pairs(9))), tokenizer, bad_rows="stop")
    assert len(good.train) + len(good.validation) == len(skipped.train) + len(skipped.validation) + 3


def test_bad_rows_of_the_validation_file_stop_the_work_too(file, write, tokenizer):
    held = write("held.jsonl", [{"prompt": "a", "completion": text} for text in ("b", *[""] * 7)])
    with pytest.raises(StudioError, match=r"held\.jsonl, row 2") as error:
        prepare(file, tokenizer, validation_file=str(held), bad_rows="stop")
    assert "and 2 more" in error.value.message


def test_a_file_without_a_usable_row_says_how_it_was_read(write, tokenizer):
    path = write("a.jsonl", [{"prompt": "a", "completion": ""}] * 3)
    with pytest.raises(StudioError, match="`prompt` is the user turn") as error:
        prepare(str(path), tokenizer)
    assert "Row 1: an answer is empty" in error.value.message


def test_rows_that_keep_no_trained_token_are_dropped_and_counted(file, tokenizer):
    prepared = prepare(file, tokenizer, max_length=30, truncation="drop")
    assert len(prepared.train) + len(prepared.validation) + len(prepared.dropped) == 50
    assert {bad.reason for bad in prepared.dropped} == {dataset.NOTHING_LEFT}
    assert all(example.trained_tokens for example in prepared.train)
    with pytest.raises(StudioError, match="No row keeps a trained token"):
        prepare(file, tokenizer, max_length=8, truncation="drop")


def test_another_cut_of_prepared_data_equals_preparing_again(file, tokenizer):
    again = recut(prepare(file, tokenizer), max_length=25, truncation="keep_start")
    fresh = prepare(file, tokenizer, max_length=25, truncation="keep_start")
    assert [*again.train, *again.validation] == [*fresh.train, *fresh.validation]
    assert again.dropped == fresh.dropped
    assert again.fingerprint == fresh.fingerprint


def test_the_fingerprint_changes_with_everything_that_matters(file, write, tokenizer, unmarked_tokenizer):
    changed = _pairs(50)
    changed[7]["completion"] = "else"
    prints = [
        prepare(file, tokenizer).fingerprint,
        prepare(file, tokenizer, max_length=99).fingerprint,
        prepare(file, tokenizer, system_prompt="Be kind.").fingerprint,
        prepare(file, tokenizer, prompt_style="plain").fingerprint,
        prepare(file, unmarked_tokenizer).fingerprint,
        prepare(str(write("changed.jsonl", changed)), tokenizer).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert prepare(str(write("copy.jsonl", _pairs(50))), tokenizer).fingerprint == prints[0]


def test_progress_goes_through_the_phases_in_order(file, tokenizer):
    seen = []
    prepare(file, tokenizer, on_progress=lambda *call: seen.append(call))
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == ["read", "encode", "split"]
    assert ("encode", 50, 50) in seen


def test_a_choice_of_rows_is_made_from_all_before_they_are_encoded(file, tokenizer):
    seen = []
    prepare(file, tokenizer, max_samples=10, on_progress=lambda *call: seen.append(call))
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == ["read", "convert", "encode", "split"]
    assert ("convert", 50, 50) in seen


def test_an_unknown_name_lists_the_shipped_data_sets(monkeypatch, tokenizer):
    monkeypatch.setattr(dataset, "shipped_data", lambda: {"pirate": None, "alpaca": None})
    with pytest.raises(StudioError) as error:
        prepare("privateer", tokenizer)
    assert "pirate, alpaca" in error.value.hint
    with pytest.raises(StudioError, match="does not exist"):
        prepare("absent/file.json", tokenizer)


def test_an_endless_name_is_an_error_and_no_traceback(tokenizer):
    with pytest.raises(StudioError):
        prepare("x" * 5000 + ".json", tokenizer)
    with pytest.raises(StudioError):
        prepare("x" * 5000, tokenizer)
    with pytest.raises(StudioError):
        prepare("nul\0byte.json", tokenizer)


def test_a_shipped_name_means_the_shipped_set_also_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pirate").mkdir()
    assert dataset.resolve_source("pirate").name == "pirate.train.jsonl"
