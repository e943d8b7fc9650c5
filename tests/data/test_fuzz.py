"""Hundreds of generated files, whole and damaged, of every kind: rows, bad rows or one clear sentence; nothing else."""

import csv
import gzip
import io
import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from lora_studio.data.convert import convert
from lora_studio.data.formats import apply_mapping, detect_format, detect_formats, mapping_of
from lora_studio.data.mapping import Format
from lora_studio.data.messages import BadRow, Record, RowError
from lora_studio.data.quality import data_quality
from lora_studio.data.report import inspect
from lora_studio.data.sources import open_source
from lora_studio.errors import StudioError
from tests.data.reading import read_records

TALK = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]
NAMES = st.sampled_from(
    [
        *("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "system"),
        *("history", "tools", "chosen", "rejected", "label", "input_ids", "labels", "images", "question", "answer"),
        *("title", "description", "examples", "solution", "reasoning", "", " ", "\x00", "${1+1}", "<img src=x>"),
        *("=1+1", "__class__", "{0}", "a" * 300, "ключ", "\ud800"),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            *(
                "ask",
                "tell",
                "",
                "\x00",
                "<script>alert(1)</script>",
                "${process.exit()}",
                "=cmd|'/c calc'!A0",
                "\ud83d",
            ),
            *(
                "Human: a\nAssistant: b",
                "### Instruction:\na\n### Response:\nb",
                "[INST]",
                "[/INST]",
                "<|im_start|>user\n",
            ),
            *('[{"role": "user"}]', "[[[", "<think>", "<img>x</img>", "\u202e", "ü" * 50, "### " * 50),
        ]
    ),
)
LEAVES = st.one_of(
    TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.just(10**400), st.sampled_from([TALK, TALK[:1]])
)
TURNS = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "weight", "type"]), LEAVES),
    max_size=4,
)
VALUES = st.one_of(
    LEAVES,
    TURNS,
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
    ),
)
ROWS = st.one_of(
    st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=6),
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=5, unique=True),
        st.lists(st.lists(VALUES, min_size=5, max_size=5), max_size=6),
    ).map(lambda table: [dict(zip(table[0], cells, strict=False)) for cells in table[1]]),
    st.lists(VALUES, max_size=4),
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis"])
JUNK = st.sampled_from(
    [
        b"\x00" * 9,
        b'"',
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\n",
        b"\xff\xfe",
        b",,,",
        b"\r",
        b"PAR1",
        b"ARROW1",
        b"]",
        b"9" * 5000,
    ]
)
ENDINGS = st.sampled_from(
    ["json", "jsonl", "csv", "tsv", "txt", "md", "parquet", "arrow", "json.gz", "csv.gz", "parquet.gz", "gz", "dat", ""]
)
SLOWEST = timedelta(seconds=10)


def _as_json(rows: list) -> str:
    return json.dumps(rows)


def _as_lines(rows: list) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def _as_columns(rows: list) -> str:
    rows = [row for row in rows if isinstance(row, dict)]
    return json.dumps({name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})})


def _as_table(rows: list) -> str:
    rows = [row for row in rows if isinstance(row, dict)]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=";" if len(rows) % 2 else ",")
    writer.writerow(rows[0] if rows else [])
    writer.writerows(
        [json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row.values()] for row in rows
    )
    return file.getvalue()


def _as_text(rows: list) -> str:
    return "\n\n".join(map(str, rows))


def _as_arrow(rows: list, parquet: bool) -> bytes:
    """A table of those values that one can hold; text where they do not go together."""
    rows = [{str(name): repr(cell) for name, cell in row.items()} for row in rows if isinstance(row, dict)] or [
        {"text": "a"}
    ]
    sink = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
        if parquet:
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    except (pa.ArrowException, ValueError, OSError):
        return b""
    return sink.getvalue()


@st.composite
def files(draw) -> tuple[str, bytes]:
    """A file's ending and its bytes, written well and then, mostly, damaged."""
    rows = draw(ROWS)
    form = draw(st.sampled_from([_as_json, _as_lines, _as_columns, _as_table, _as_text, "parquet", "arrow"]))
    if isinstance(form, str):
        data = bytearray(_as_arrow(rows, form == "parquet"))
    else:
        encoding = draw(ENCODINGS)
        data = bytearray(form(rows).encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        damage = draw(st.sampled_from(["cut", "drop", "junk", "flip"]))
        if damage == "cut":
            data = data[:at]
        elif damage == "drop":
            del data[at : at + draw(st.integers(1, 40))]
        elif damage == "junk":
            data[at:at] = draw(JUNK)
        elif data:
            data[at % len(data)] ^= draw(st.integers(1, 255))
    ending = draw(ENDINGS)
    whole = gzip.compress(bytes(data)) if ending.endswith("gz") or draw(st.integers(0, 9)) == 0 else bytes(data)
    return ending, whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 9)) == 0 else whole


@pytest.mark.slow
@settings(
    max_examples=300,
    deadline=SLOWEST,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(files())
@example(("json", b"[" * 200_000))
@example(("csv", b'a,b\n"' + b"x\n" * 50_000))
@example(("jsonl", b'{"text": ' + b"9" * 5000 + b"}\n" + b'{"text": "fine"}'))
@example(("txt", b"\n" * 100_000 + b"end"))
@example(("json", b'{"a": "' + b"\\u12" * 20_000))
def test_any_file_gives_rows_or_bad_rows_or_a_sentence(file: tuple[str, bytes]) -> None:
    ending, data = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"${{x}} <b>{len(data)}.{ending}"
        path.write_bytes(data)
        try:
            rows = list(open_source(path).rows())
            again = [row.row for row in open_source([path]).rows()]
            read_records(path, max_rows=3)
        except StudioError as error:
            _check(error)
            return
    numbers = [row.row for row in rows]
    assert numbers == again == sorted(set(numbers))
    for row in rows:
        if isinstance(row, BadRow):
            _check_row(row)
    _read_every_way([row for row in rows if isinstance(row, Record)])


@pytest.mark.slow
@settings(max_examples=60, deadline=SLOWEST, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_any_file_is_prepared_or_refused_with_a_sentence(tokenizer: Any, file: tuple[str, bytes]) -> None:
    ending, data = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        path.write_bytes(data)
        try:
            found = inspect(str(path), tokenizer)
        except StudioError as error:
            _check(error)
        else:
            assert found["rows"] > 0
            assert json.dumps(found)


def _check(error: StudioError) -> None:
    assert error.message
    assert error.hint


def _check_row(bad: BadRow) -> None:
    assert bad.reason
    assert len(json.dumps(bad.to_dict())) < 20_000


def _read_every_way(records: list[Record]) -> None:
    """Every reading of the records gives conversations or bad rows, survives a save, and can be mapped."""
    for goal in ("answers", "preference"):
        try:
            detect_format(records, goal)
        except StudioError as error:
            _check(error)
    for shape in detect_formats(records):
        assert Format.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape
        good = []
        for record in records:
            try:
                good.append(convert(record, shape, "Be kind."))
            except RowError as error:
                _check_row(error.at(record.row))
        assert json.dumps(data_quality(good, good[:2], seconds=1.0))
        try:
            apply_mapping(mapping_of(shape), records, goal="preference")
        except StudioError as error:
            _check(error)
