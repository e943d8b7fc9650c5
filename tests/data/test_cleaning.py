"""A copy without duplicates: the first of like rows stays, with the columns of its file."""

import json
from pathlib import Path
from typing import Any

from lora_studio.data.dataset import prepare
from lora_studio.engine.chat.analysis import save_without_duplicates

LONG = "the quick brown fox jumps over the lazy dog and runs on through the wood until the evening comes"


def test_the_first_of_like_rows_stays_and_near_duplicates_go_on_request(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "question": LONG, "answer": "Yes."},
        {"id": 2, "question": "Hi?", "answer": "Ho."},
        {"id": 3, "question": "hi?", "answer": "ho."},
        {"id": 4, "question": "Empty?", "answer": ""},
        {"id": 5, "question": f"{LONG} again", "answer": "Yes."},
        {"id": 6, "question": "Hi?", "answer": "Ho."},
        {"id": 7, "question": "Café?", "answer": "Ho."},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("not json\n" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    prepared = prepare(str(path), tokenizer, validation_fraction=0.3)
    target = tmp_path / "clean.jsonl"
    compared: list[tuple[int, int]] = []
    for near, written, removed in ((False, [1, 2, 4, 5, 7], 2), (True, [1, 2, 4, 7], 3)):
        assert save_without_duplicates(prepared, target, near=near, report=lambda *counts: compared.append(counts)) == (
            len(written),
            removed,
        )
        copied = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert copied == [row for row in rows if row["id"] in written]
    assert max(compared) == (len(prepared.conversations), len(prepared.conversations))  # of the second alone
