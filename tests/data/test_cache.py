"""The cache of prepared data: found again, made anew where anything changed or broke, and never larger than allowed."""

import os
import time
import types
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import MARKED, build_tokenizer

from lora_studio.data import cache, dataset, pipeline, sources
from lora_studio.data import cache as arrays
from lora_studio.data.cache import Cache, digest, key_of
from lora_studio.data.dataset import prepare, recut
from lora_studio.data.encode import Encoder
from lora_studio.errors import StudioError
from lora_studio.workspace import Workspace


@pytest.fixture
def file(write):
    rows = [{"prompt": f"What is {number}?", "completion": "It is. " * (number % 7 + 1)} for number in range(60)]
    return str(write("pairs.jsonl", rows))


def _work(file, tokenizer, folder, **settings):
    """Prepared data, and the phases that it took."""
    phases = []
    prepared = prepare(
        file, tokenizer, cache_folder=folder, on_progress=lambda phase, *_: phases.append(phase), **settings
    )
    return prepared, set(phases) - {"split"}


def test_a_second_start_reads_and_encodes_nothing(file, tokenizer, tmp_path):
    first, phases = _work(file, tokenizer, tmp_path)
    assert phases == {"read", "encode"}
    again, phases = _work(file, tokenizer, tmp_path)
    assert not phases
    assert [*again.train, *again.validation] == [*first.train, *first.validation]
    assert (list(again.bad_rows), again.assumptions, again.fingerprint, again.format) == (
        list(first.bad_rows),
        first.assumptions,
        first.fingerprint,
        first.format,
    )
    assert list(again.conversations) == list(first.conversations)


def test_another_cut_or_split_needs_no_new_encoding(file, tokenizer, tmp_path):
    _work(file, tokenizer, tmp_path)
    changed, phases = _work(file, tokenizer, tmp_path, max_length=20, truncation="keep_start", validation_fraction=0.5)
    assert not phases
    fresh = prepare(file, tokenizer, max_length=20, truncation="keep_start", validation_fraction=0.5)
    assert list(changed.train) == list(fresh.train)


TURNS = ("Hi", "Hello.", "How are you?", "Fine, thank you.", "Naïve?", "Yes, 日本 too.")


@pytest.fixture
def talks(write):
    """Rows of one to three answers, one without any, and one with control characters."""
    rows = [
        {
            "messages": [
                {"role": ("user", "assistant")[at % 2], "content": f"{words} {number}"}
                for at, words in enumerate(TURNS[: 2 * (number % 3 + 1)])
            ]
        }
        for number in range(30)
    ]
    rows.insert(7, {"messages": [{"role": "user", "content": "Nobody answers."}]})
    rows.insert(9, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\x01"}]})
    return rows


def _of_all(prepared):
    """All that a mask may change."""
    rows = [*prepared.train, *prepared.validation]
    return (
        rows,
        list(prepared.bad_rows),
        prepared.dropped,
        prepared.assumptions,
        prepared.fingerprint,
        prepared.part.facts,
    )


@pytest.mark.parametrize("first", ["assistant", "last_turn"])
def test_another_mask_tokenises_nothing_and_comes_to_the_same(write, talks, tokenizer, tmp_path, monkeypatch, first):
    file, texts, render = str(write("talks.jsonl", talks)), [], Encoder._render
    monkeypatch.setattr(Encoder, "_render", lambda self, new: texts.extend(new) or render(self, new))
    _work(file, tokenizer, tmp_path, train_on=first)
    assert len(texts) >= 30
    masks = {"assistant", "last_turn", "all"} - {first}
    texts.clear()
    again = {mask: _work(file, tokenizer, tmp_path, train_on=mask) for mask in masks}
    assert not texts
    for mask, (prepared, phases) in again.items():
        assert not phases
        assert _of_all(prepared) == _of_all(prepare(file, tokenizer, train_on=mask))


@pytest.mark.parametrize("what", ["answers left out", "no marks", "the whole text first"])
def test_rows_that_another_mask_might_refuse_are_encoded_anew(
    write, talks, tokenizer, unmarked_tokenizer, tmp_path, what
):
    if what == "answers left out":
        talks[2]["messages"][-1]["weight"] = 0
    file, chosen = str(write("talks.jsonl", talks)), unmarked_tokenizer if what == "no marks" else tokenizer
    first, second = ("all", "assistant") if what == "the whole text first" else ("assistant", "last_turn")
    _work(file, chosen, tmp_path, train_on=first)
    prepared, phases = _work(file, chosen, tmp_path, train_on=second)
    assert "encode" in phases
    assert _of_all(prepared) == _of_all(prepare(file, chosen, train_on=second))


def test_whatever_changes_the_tokens_makes_a_new_entry(file, tokenizer, unmarked_tokenizer, tmp_path, monkeypatch):
    _work(file, tokenizer, tmp_path)
    for changed in ({"enable_thinking": False}, {"system_prompt": "Be kind."}, {"prompt_style": "plain"}):
        assert "encode" in _work(file, tokenizer, tmp_path, **changed)[1]
    assert "encode" in _work(file, unmarked_tokenizer, tmp_path)[1]
    monkeypatch.setattr(pipeline, "code_version", lambda: "other")
    assert _work(file, tokenizer, tmp_path)[1] == {"read", "encode"}


def test_a_template_that_writes_the_date_makes_a_new_entry_each_day(file, tmp_path, monkeypatch):
    dated = build_tokenizer("{{- strftime_now('%d %b %Y') }}" + MARKED)
    first, _ = _work(file, dated, tmp_path)
    assert f"The chat template writes today's date into every row ({date.today()})." in first.assumptions
    assert not _work(file, dated, tmp_path)[1]
    tomorrow = date.today() + timedelta(days=1)
    monkeypatch.setattr(dataset, "date", types.SimpleNamespace(today=lambda: tomorrow))
    later, phases = _work(file, dated, tmp_path)
    assert phases == {"encode"}
    assert later.fingerprint != first.fingerprint


@pytest.mark.slow
def test_a_second_start_takes_a_small_part_of_the_first(write, tokenizer, tmp_path, monkeypatch):
    rows = [{"prompt": f"What is {number}?", "completion": f"It is {number * 7}. " * 8} for number in range(5000)]
    file = str(write("many.jsonl", rows))
    began = time.perf_counter()
    first = prepare(file, tokenizer, cache_folder=tmp_path / "cache")
    took = time.perf_counter() - began
    read = []
    monkeypatch.setattr(sources.Source, "rows", lambda self: read.append(self))
    began = time.perf_counter()
    again = prepare(file, tokenizer, cache_folder=tmp_path / "cache")
    assert time.perf_counter() - began < took / 5
    assert not read
    assert again.fingerprint == first.fingerprint


def test_a_files_fingerprint_is_remembered_until_it_is_touched(write, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_HASH_CHUNK", 3)
    path, folder, told = write("a.txt", "one"), Cache(tmp_path / "cache"), []
    first = digest(path, folder, lambda: told.append("fresh"))
    assert digest(path, folder, lambda: told.append("fresh")) == first
    assert told == ["fresh"] * 2  # touched just now: it might change within the same tick of the clock
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -60)
    assert [digest(path, folder, lambda: told.append("kept")) for _ in range(3)] == [first] * 3
    assert told[2:] == ["kept"]
    stamp = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest(path, folder) != first


def test_looking_up_a_large_file_tells_of_itself_and_can_be_ended(file, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_HASH_CHUNK", 1000)
    monkeypatch.setattr(arrays, "_TELL", 1)
    _work(file, tokenizer, tmp_path)
    assert _work(file, tokenizer, tmp_path)[1] == {"lookup"}
    for most in (0, 5):
        calls = []

        def stop(*call, calls=calls, most=most):
            calls.append(call)
            if len(calls) > most:
                raise StudioError("stopped", "")

        with pytest.raises(StudioError, match="stopped"):
            prepare(file, tokenizer, cache_folder=tmp_path, on_progress=stop)
    assert not _work(file, tokenizer, tmp_path)[1] - {"lookup"}


def test_a_changed_file_is_never_answered_from_the_cache(file, tokenizer, tmp_path):
    _work(file, tokenizer, tmp_path)
    stamp = os.stat(file)
    text = Path(file).read_text().replace("What is 7?", "What is 8?")
    Path(file).write_text(text)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "read" in _work(file, tokenizer, tmp_path)[1]


@pytest.mark.parametrize("name", ["ids.bin", "records.bin", "entry.json", "sizes.bin"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_entry_is_made_anew(file, tokenizer, tmp_path, name, harm):
    first = list(_work(file, tokenizer, tmp_path)[0].train)
    for path in tmp_path.glob(f"*/{name}"):
        data = path.read_bytes()
        if harm == "remove":
            path.unlink()
        else:
            path.write_bytes(data[:-7] if harm == "cut" else data[:9] + bytes([data[9] ^ 1]) + data[10:])
    again, phases = _work(file, tokenizer, tmp_path)
    assert phases
    assert list(again.train) == first
    assert not _work(file, tokenizer, tmp_path)[1]


def test_work_that_is_cancelled_leaves_no_entry(file, tokenizer, tmp_path):
    def stop(phase, done, total):
        if phase == "encode":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(file, tokenizer, cache_folder=tmp_path, on_progress=stop)
    assert not list(tmp_path.glob(".making-*"))
    assert _work(file, tokenizer, tmp_path)[1] == {"encode"}


def _fill(cache, key, size):
    def build(writer):
        writer.add("values", np.zeros(size, np.uint8))
        return {}

    cache.get(key, build)


def test_the_entries_used_longest_ago_go_when_there_is_no_room(tmp_path):
    for number in range(4):
        _fill(Cache(tmp_path, limit=5000), str(number), 1000)
        os.utime(tmp_path / str(number), (number + 1, number + 1))
    _fill(Cache(tmp_path, limit=5000), "0", 1000)  # used again: now the newest
    _fill(Cache(tmp_path, limit=5000), "new", 3500)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "new"}


def test_what_is_in_use_stays_though_it_is_larger_than_the_limit(tmp_path):
    cache = Cache(tmp_path, limit=100)
    _fill(cache, "a", 1000)
    _fill(cache, "b", 1000)
    assert cache.has("a")
    assert cache.has("b")


def test_a_limit_on_rows_encodes_only_these_and_is_kept_apart(file, tokenizer, tmp_path):
    few, _ = _work(file, tokenizer, tmp_path, max_samples=5, max_eval_samples=2)
    assert len(few.part.rows) == 7
    assert len(few.conversations) == 60
    whole, _ = _work(file, tokenizer, tmp_path)
    assert len(whole.part.rows) == 60
    assert set(few.train.row_numbers) < set(whole.train.row_numbers)


def test_keys_tell_every_part_apart():
    assert len({key_of("a"), key_of("a", None), key_of(["a"]), key_of("a", 1), key_of("a", "1")}) == 5


def test_the_workspace_says_how_large_its_cache_is_and_clears_it(file, tokenizer, tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.cache_size() == 0
    prepared, _ = _work(file, tokenizer, workspace.cache_folder)
    size = workspace.cache_size()
    assert size > 1000
    assert workspace.clear_cache() == size
    assert workspace.cache_size() == 0
    assert len(list(recut(prepared, max_length=20, truncation="keep_start").train)) > 0
    assert prepared.conversations[3].messages


def test_a_token_added_to_a_tokenizer_makes_another_fingerprint():
    tokenizer = build_tokenizer(MARKED)
    before = pipeline.tokenizer_key(tokenizer)
    assert pipeline.tokenizer_key(tokenizer) == before == pipeline.tokenizer_key(build_tokenizer(MARKED))
    tokenizer.add_tokens(["<new>"])
    assert pipeline.tokenizer_key(tokenizer) != before
