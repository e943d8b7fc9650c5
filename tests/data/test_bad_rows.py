"""Bad rows on the disk: in the file's order, counted by reason, all of them written out, and none held in memory."""

import json
import tracemalloc

import pytest

from lora_studio.data.cache import Cache
from lora_studio.data.dataset import prepare
from lora_studio.data.messages import BadRow
from lora_studio.data.report import describe, save_bad_rows
from lora_studio.data.store import BadRows, BadRowWriter


def _stored(rows):
    def build(writer):
        bad_rows = BadRowWriter(writer)
        for row in rows:
            bad_rows.add(row)
        return {"bad_reasons": bad_rows.finish()}

    return Cache(None).get("bad", build)


def test_rows_of_two_stores_come_in_the_order_of_the_file():
    one = [BadRow(row, "torn", "é\udc80", "") for row in (2, 9)]
    other = [BadRow(5, "empty", "", "answer"), BadRow(3, "torn", "x", "y")]
    found = BadRows(_stored(one), _stored(other))
    assert list(found) == sorted([*one, *other], key=lambda bad: bad.row)
    assert (found[-1], found[1:3]) == (one[1], [other[1], other[0]])
    assert list(found.reasons().items()) == [("torn", 3), ("empty", 1)]
    assert found.values_with("torn", 2) == ["é\udc80", "é\udc80"]
    assert not BadRows(_stored([]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_bad_rows(tmp_path):
    rows = 12_000
    tracemalloc.start()
    arrays = _stored(BadRow(row, "empty", f"{row} " * 40, "answer") for row in range(rows))
    found = BadRows(arrays)
    size = sum(len(bad.found) for bad in found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 2_400_000
    assert peak < 1_200_000


@pytest.mark.parametrize("bad", [1, 350])
def test_every_bad_row_is_written_out_with_its_file_and_number(write, tokenizer, tmp_path, bad):
    good = [{"prompt": f"q {n}", "completion": "a"} for n in range(9)]
    write("a.jsonl", [*good, *({"prompt": "é", "completion": ""} for _ in range(bad))])
    write("b.jsonl", [{"prompt": "", "completion": "x"}, *good])
    held = write("held.jsonl", [*good, {"prompt": "late", "completion": ""}])
    prepared = prepare(str(tmp_path / "[ab].jsonl"), tokenizer, validation_file=str(held))
    found = describe(prepared)
    assert found["bad_rows"] == bad + 1
    assert len(found["bad_row_list"]) == min(bad + 1, 200)
    assert found["bad_row_list"][0]["file"] == "a.jsonl"
    assert save_bad_rows(prepared, tmp_path / "bad.jsonl") == bad + 2
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["file"], row["row"]) for row in rows] == [
        *(("a.jsonl", 10 + n) for n in range(bad)),
        ("b.jsonl", 1),
        ("held.jsonl", 10),
    ]
