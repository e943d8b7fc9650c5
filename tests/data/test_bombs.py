"""Small files that unpack to more than a machine holds end in a sentence, with little memory taken for it."""

import gzip
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_studio.data import memory_limit, store
from lora_studio.data import preview as counting
from lora_studio.data.cache import Arrays, Cache
from lora_studio.data.memory_limit import MemoryLimitError, available, limited
from lora_studio.data.preview import quick_look
from lora_studio.data.readers import text_encoding as opening
from lora_studio.data.sources import open_source
from lora_studio.data.store import MAX_ROW_BYTES, TOO_LONG, RecordStore, write_records
from lora_studio.errors import StudioError
from tests.data.reading import read_records

HUGE = "x" * 20_000_000


def repeated(path: Path, rows: int, value: str = HUGE) -> Path:
    """A file of some kB whose rows all have one value that it holds once."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    table = pa.table({"instruction": column, "output": pa.array(["b"] * rows)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
        return path
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return path


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, sooner."""
    monkeypatch.setattr(store, "MAX_GROWN_BYTES", 1 << 26)
    monkeypatch.setattr(memory_limit, "MIN_BYTES", 1 << 26)
    monkeypatch.setattr(counting, "MAX_BYTES", 1 << 26)
    monkeypatch.setattr(opening, "BOMB_SIZE", 1 << 25)


def stored(path: Path) -> Arrays:
    source = open_source(path)
    return Cache(None).get("records", lambda writer: write_records(writer, source, lambda *_: None))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_value_that_every_row_repeats_is_not_unpacked_for_all_of_them(tmp_path: Path, ending: str) -> None:
    bomb = repeated(tmp_path / f"bomb.{ending}", 400)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(StudioError, match=r"decompress to more than|more memory than allowed"), limited(most=1 << 29):
        stored(bomb)


def test_rows_that_come_to_far_more_than_their_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match=r"The rows of .*bomb.parquet decompress to more than"):
        stored(repeated(tmp_path / "bomb.parquet", 100_000, "y" * 20_000))


def test_rows_that_repeat_a_prompt_as_real_data_does_are_read(tmp_path: Path) -> None:
    file = repeated(tmp_path / "rows.parquet", 3000, "You are a helpful assistant. " * 100)
    assert len(RecordStore(stored(file))) == 3000


def test_a_row_longer_than_any_model_takes_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n{"text": "%s"}\n' % ("z" * MAX_ROW_BYTES))
    found = stored(file)
    assert (len(RecordStore(found)), found.facts["bad_reasons"]) == (1, [TOO_LONG])


@pytest.mark.slow
def test_a_bomb_is_not_counted(tmp_path: Path) -> None:
    wide = pa.table({"text": pa.array(["x" * 90_000_000])})
    pq.write_table(wide, tmp_path / "wide.parquet", compression="zstd")
    with pytest.raises(MemoryLimitError):
        quick_look(tmp_path / "wide.parquet")


@pytest.mark.slow
def test_packed_rows_without_an_end_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wb", 6) as packed:
        for _ in range(3):
            packed.write(b'{"text": "' + b"a" * 20_000_000 + b'"}\n')
    with pytest.raises(StudioError, match="decompresses to more than"):
        read_records(file)


@pytest.mark.slow
def test_a_file_that_asks_for_more_memory_than_it_may_take_is_not_called_damaged(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["x" * 90_000_000])}), tmp_path / "cell.parquet", compression="zstd")
    with pytest.raises(MemoryLimitError) as refused, limited(most=1 << 26):
        read_records(tmp_path / "cell.parquet")
    assert "needs more memory" in str(refused.value)


def test_the_limit_is_taken_back_and_never_above_what_is_free() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited() as most:
        assert most <= available() // 2 + (1 << 30)
        with pytest.raises(MemoryLimitError), limited(most=1 << 26):
            bytearray(1 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
