"""Damaged and malicious files end in rows or in one clear error: never a traceback, never a hang."""

import json
import random

import pytest

from lora_studio.data.report import inspect
from lora_studio.errors import StudioError

CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
VALUES = (
    *(None, True, 0, -1, 1e308, float("nan"), "", "x", "${1+1}", "<script>alert(1)</script>", "=cmd|'/c calc'!A0"),
    *(
        "\x00",
        "\ud800",
        "<|im_end|>",
        "[1]",
        '[{"role": 1}]',
        [],
        {},
        [[]],
        [{}],
        [None],
        CONVERSATION,
        CONVERSATION[::-1],
    ),
    *([{"from": "human", "value": None}], [{"role": None, "content": 3}], {"role": "assistant"}, ["a", ["b"]]),
)
FIELDS = (
    *("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "system"),
    *("history", "tools", "chosen", "rejected", "label", "input_ids", "images", "question", "answer", "\x00", "", " "),
)
WHOLE = (
    json.dumps([{"instruction": "Say ü", "input": "", "output": "ü 🙂"}] * 9, ensure_ascii=False).encode(),
    b"".join(json.dumps({"messages": CONVERSATION}).encode() + b"\n" for _ in range(9)),
    'question,answer\r\n"one\r\ntwo",three\r\n'.encode("utf-16") * 2,
    b"\xef\xbb\xbfquestion;answer\r\n" + b'"one\r\ntwo";three\r\n' * 9,
    b"One line.\n\nTwo lines\nof text.\n" * 5,
)
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".parquet", "")
JUNK = (b"\x00" * 9, b'"', b"[", b"{", b"\n", b"\xff\xfe", b",,,", b"\r", b"PAR1", b"[" * 5000)


def _damaged(draw: random.Random) -> bytes:
    """A whole file with pieces cut out, put in, or the end missing."""
    data = bytearray(draw.choice(WHOLE))
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(data) + 1)
        choice = draw.randrange(3)
        if choice == 0:
            del data[at : at + draw.randrange(1, 60)]
        elif choice == 1:
            data[at:at] = draw.choice(JUNK)
        else:
            data = data[: max(at, 1)]
    return bytes(data)


def _nonsense(draw: random.Random) -> bytes:
    """Rows of fields and values that do not belong together."""
    rows = [{draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randrange(6))} for _ in range(5)]
    if draw.random() < 0.5:
        rows = [{**rows[0], draw.choice(FIELDS): draw.choice(VALUES)} for _ in range(5)]
    text = json.dumps(rows) if draw.random() < 0.5 else "\n".join(map(json.dumps, rows))
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("make", [_damaged, _nonsense])
@pytest.mark.parametrize("seed", range(6))
def test_any_file_is_read_or_refused_with_a_sentence(tmp_path, tokenizer, make, seed):
    draw = random.Random(seed)
    refusals = []
    for number in range(20):
        path = tmp_path / f"file{number}{draw.choice(ENDINGS)}"
        path.write_bytes(make(draw))
        try:
            found = inspect(str(path), tokenizer)
        except StudioError as error:
            refusals.append(error)
        else:
            assert found["rows"] > 0
            assert json.dumps(found)
    assert refusals
    assert all(error.message and error.hint for error in refusals)
