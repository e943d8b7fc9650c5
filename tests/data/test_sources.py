"""Sources beside the single file: packed files, several files, folders, Arrow, and data sets of the Hub."""

import gzip
import io
import json
import sys
import tracemalloc
import types
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_studio.data import memory_limit, sources
from lora_studio.data import sources as hub
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format
from lora_studio.data.memory_limit import MemoryLimitError
from lora_studio.data.messages import BadRow, Record, RowError, Tally
from lora_studio.data.readers import binary
from lora_studio.data.readers import json as json_files
from lora_studio.data.readers import text_encoding as opening
from lora_studio.data.sources import open_source
from lora_studio.errors import StudioError
from lora_studio.models.hub import is_dataset_name
from tests.data.reading import read_records

ROWS = [{"prompt": f"ask {number}", "completion": "tell"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _fields(source):
    return [row.fields for row in source.rows() if isinstance(row, Record)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", LINES),
        ("a.json.gz", json.dumps(ROWS).encode()),
        ("a.gz", json.dumps(ROWS).encode()),
        ("a.csv.gz", b"prompt,completion\r\n" + b"".join(f"ask {n},tell\r\n".encode() for n in range(5))),
    ],
)
def test_a_packed_file_is_read_as_what_is_inside(write, name, content):
    assert _fields(open_source(write(name, gzip.compress(content)))) == ROWS


def test_a_packed_table_is_read_too(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert _fields(open_source(packed)) == ROWS
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(StudioError, match="damaged or truncated"):
        open_source(packed)


def test_a_table_in_one_row_group_is_never_held_whole(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    texts = [bytes(draw.integers(97, 123, 1000, dtype=np.uint8)).decode() for _ in range(16_000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), path, compression="none", use_dictionary=False)
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(binary, "open_bytes", lambda path: Counted(path))
    rows = open_source(path).rows()
    assert next(rows).fields == {"prompt": texts[0], "completion": texts[0]}
    assert sum(read) < path.stat().st_size / 3  # its head twice: how large its rows are is seen first


def test_members_joined_in_one_packed_file_are_all_read(write):
    half = gzip.compress(LINES)
    assert len(_fields(open_source(write("a.jsonl.gz", half + half)))) == 10


def test_a_torn_packed_file_gives_what_came_before_and_says_so(write):
    many = b"".join(
        json.dumps({"prompt": str(n * 7919 % 1013), "completion": str(n)}).encode() + b"\n" for n in range(9000)
    )
    file = read_records(write("a.jsonl.gz", gzip.compress(many)[:-2000]))
    assert len(file.records) > 1000
    assert file.bad_rows[-1].reason == sources.TORN


def test_a_bomb_is_stopped_before_it_fills_the_memory(write, monkeypatch):
    monkeypatch.setattr(opening, "BOMB_SIZE", 1 << 20)
    bomb = write("a.jsonl.gz", gzip.compress(b'{"text": "' + b"a" * (1 << 24) + b'"}\n'))
    with pytest.raises(StudioError, match="decompresses to more than 200 times"):
        read_records(bomb)


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_is_read_as_file_and_as_stream(tmp_path, stream):
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "data-00000-of-00001.arrow"
    with path.open("wb") as sink, (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    source = open_source(path)
    assert source.kind == "arrow"
    assert _fields(source) == ROWS
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StudioError, match="Arrow file"):
        list(open_source(path).rows())


def test_an_arrow_file_of_one_large_batch_is_read_in_slices_and_a_compressed_one_whole(tmp_path):
    texts = [f"{number} " + "word " * 100 for number in range(40_000)]
    table = pa.table({"text": texts})
    for name, compression in (("plain", None), ("packed", "lz4")):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(str(tmp_path / f"{name}.arrow"), table.schema, options=options) as writer:
            writer.write_table(table)
    before = pa.total_allocated_bytes()
    rows = open_source(tmp_path / "plain.arrow").rows()
    assert next(rows).fields == {"text": texts[0]}
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert sum(1 for _ in rows) == len(texts) - 1
    assert sum(1 for _ in open_source(tmp_path / "packed.arrow").rows()) == len(texts)


def test_a_compressed_arrow_file_that_unpacks_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_limit, "MIN_BYTES", 1 << 23)
    table = pa.table({"text": ["word " * 10_000_000]})
    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())  # it asks the system for a block as large as this one
    try:
        for name, new, compression in (("file", pa.ipc.new_file, "lz4"), ("stream", pa.ipc.new_stream, "zstd")):
            path = tmp_path / f"{name}.arrow"
            with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
                writer.write_table(table)
            with pytest.raises(MemoryLimitError, match="The Arrow file needs more"), memory_limit.limited(most=1 << 23):
                next(open_source(path).rows())
    finally:
        pa.set_memory_pool(pool)


def test_a_cell_that_is_no_text_spoils_its_row_only(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    rows = list(open_source(tmp_path / "a.parquet").rows())
    assert [row.fields["text"] for row in rows if isinstance(row, Record)] == ["a", "b"]
    assert [(row.row, row.reason) for row in rows if isinstance(row, BadRow)] == [(2, json_files.BROKEN_BYTES)]


@pytest.mark.parametrize("offset", [2, 3])
def test_an_arrow_file_that_points_outside_itself_is_not_followed(tmp_path, offset):
    table = pa.table({"text": ["a", "b", "c"]})
    path = tmp_path / "a.arrow"
    with path.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    sound = np.arange(4, dtype=np.int32)
    wild = sound.copy()
    wild[offset] = 0x7FFF0000
    assert sound.tobytes() in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(sound.tobytes(), wild.tobytes()))
    with pytest.raises(StudioError, match="Arrow file is damaged") if offset == 3 else nullcontext():
        rows = list(open_source(path).rows())
        assert [row.row for row in rows if isinstance(row, BadRow)] == [2, 3]


def test_two_columns_of_one_name_in_a_table_are_an_error(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(StudioError, match="'text'"):
        open_source(tmp_path / "a.parquet")
    assert binary.BROKEN_CELL != json_files.BROKEN_BYTES


def test_rows_of_several_files_go_on_counting_and_know_their_place(write):
    first, second = write("a.jsonl", ROWS[:2]), write("b.jsonl", b'{"prompt": "x", "completion": "y"}\nbroken\n')
    source = open_source([first, second])
    rows = list(source.rows())
    assert [row.row for row in rows] == [1, 2, 3, 4]
    assert isinstance(rows[3], BadRow)
    assert [source.place(row) for row in (2, 3, 4)] == [("a.jsonl", 2), ("b.jsonl", 1), ("b.jsonl", 2)]
    assert [row.row for row in source.rows()] == [1, 2, 3, 4]


def test_a_pattern_means_the_files_that_fit_it(write, tmp_path):
    for name in ("part-2.jsonl", "part-1.jsonl", "other.jsonl"):
        write(name, ROWS)
    assert [path.name for path in open_source(tmp_path / "part-*.jsonl").files] == ["part-1.jsonl", "part-2.jsonl"]
    with pytest.raises(StudioError, match="No file matches"):
        open_source(str(tmp_path / "none-*.jsonl"))


def test_a_folder_is_its_training_files_and_says_what_is_left_aside(tmp_path):
    (tmp_path / "data").mkdir()
    for name, rows in (("train-0.jsonl", ROWS[:3]), ("train-1.jsonl", [{"text": "else"}]), ("test-0.jsonl", ROWS[3:])):
        (tmp_path / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text("# About")
    (tmp_path / "notes.txt").write_text("a note")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".hidden.jsonl").write_text("{}")
    source = open_source(tmp_path)
    assert [path.name for path in source.files] == ["train-0.jsonl", "train-1.jsonl"]
    assert len(_fields(source)) == 4
    told = " ".join(source.assumptions)
    assert "ignored: test-0.jsonl" in told
    assert "1 text files" in told
    assert "have different columns: train-0.jsonl has `completion`, `prompt`; train-1.jsonl has `text`" in told


def test_reading_needs_memory_for_a_block_and_not_for_the_file(write):
    path = write("a.json", "[" + ",\n".join(json.dumps({"text": "ü" * 1000}) for _ in range(6_000)) + "]")
    tracemalloc.start()
    count = sum(1 for _ in open_source(path).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6_000
    assert peak < 24 << 20 < path.stat().st_size


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{\n"a": 1\n}\n{\n"a": 2\n}', [{"a": 1}, {"a": 2}]),
        ('{"train": [{"a": 1}], "test": [{"a": 2}]}', [{"a": 1}]),
        ('{"a": {"0": 1, "1": 2}, "b": {"0": 3, "1": 4}}', [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ('[{"role": "doctor", "prompt": "x"}]', [{"role": "doctor", "prompt": "x"}]),
        ('{"a": "' + "long " * 300_000 + '"}\n{"a": 2}', [{"a": "long " * 300_000}, {"a": 2}]),
        ('[{"a": "' + "long " * 300_000 + '"}, {"a": 2}]', [{"a": "long " * 300_000}, {"a": 2}]),
    ],
)
def test_json_in_its_rarer_forms(write, text, rows):
    assert _fields(open_source(write("a.json", text))) == rows


def test_columns_that_are_not_equally_long_are_an_error(write):
    with pytest.raises(StudioError, match="`a` 2, `b` 1"):
        open_source(write("a.json", {"a": [1, 2], "b": [3]}))


def test_a_table_without_a_header_is_told(write):
    source = open_source(write("a.csv", "What is the capital of France?,Paris it is.\nWhat is 2 + 2?,It is 4.\n"))
    assert _fields(source)[0] == {"column 1": "What is the capital of France?", "column 2": "Paris it is."}
    assert any("looks like data" in sentence for sentence in source.assumptions)
    assert _fields(open_source(write("b.csv", "1,2\n3,4\n")))[0] == {"column 1": "1", "column 2": "2"}


@pytest.fixture
def fake_hub(monkeypatch):
    """The Hub's two libraries, with one data set `own/set`."""
    import datasets

    asked = {}
    rows = datasets.Dataset.from_list(ROWS)

    def load_dataset(name, config, *, split, revision, streaming):
        asked.update(name=name, config=config, split=split, revision=revision, streaming=streaming)
        if split != "train":
            raise ValueError(f"Unknown split {split!r}. Should be one of ['train'].")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name, **_: types.SimpleNamespace(sha="abc123"))
    return asked


def test_a_data_set_of_the_hub_is_streamed_at_a_fixed_revision(fake_hub):
    source = open_source("hub:own/set?config=main")
    assert _fields(source) == ROWS
    assert (source.kind, source.files) == ("hub", [])
    assert source.name == "hub:own/set?config=main&split=train&revision=abc123"
    assert fake_hub == {"name": "own/set", "config": "main", "split": "train", "revision": "abc123", "streaming": True}
    assert open_source("own/set").kind == "hub"


def test_what_the_hub_refuses_is_said_with_a_way_out(fake_hub):
    with pytest.raises(StudioError, match="Unknown split 'best'") as error:
        open_source("hub:own/set?split=best")
    assert "download" in error.value.hint
    with pytest.raises(StudioError, match="unknown option 'spilt'"):
        open_source("hub:own/set?spilt=train")


def test_offline_the_hub_has_a_way_out(monkeypatch):
    monkeypatch.setattr(hub, "_is_offline", lambda: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach 'own/set' on the Hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=refuse))
    with pytest.raises(StudioError, match="cannot be read") as error:
        open_source("hub:own/set")
    assert "give their folder" in error.value.hint


def test_a_hub_out_of_reach_is_said_with_a_way_out(monkeypatch):
    from huggingface_hub.utils import httpx

    def refuse(*_, **__):
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(hub, "_is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.dataset_info", refuse)
    with pytest.raises(StudioError, match="was not found: Connection refused"):
        open_source("own/set")


def test_media_of_the_hub_are_not_decoded_but_refused(tmp_path):
    import datasets

    rows = {"prompt": ["ask"], "completion": ["tell"], "image": [{"bytes": b"no picture", "path": None}]}
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "completion": datasets.Value("string"), "image": datasets.Image()}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    (row,) = hub._rows(hub._load(str(tmp_path), None, "train", None, streaming=True), "own/set", Tally())
    assert row.fields["image"]["bytes"] == b"no picture"
    with pytest.raises(RowError, match="images"):
        convert(row, detect_format([row]))


def test_a_path_is_never_taken_for_a_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_dataset_name("own/set")
    assert not is_dataset_name("other/set.jsonl")
    assert is_dataset_name("other/set")
