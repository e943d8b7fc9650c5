"""The session child behind its pipes: answers, pieces, stops and errors, one JSON object a line."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import resolve
from lora_studio.engine.chat.analysis import Call
from lora_studio.engine.chat.session import SessionWorker, serve
from lora_studio.jobs import protocol
from lora_studio.jobs.preflight import request_of
from lora_studio.workspace import RunFolder
from tests.cpu_time import CpuTime, of_process

pytestmark = pytest.mark.slow


class Child:
    """A session child and the requests sent to it."""

    def __init__(self, log: Path) -> None:
        self.log = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lora_studio.engine.chat.session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.number = 0

    def send(self, method: str, **params: Any) -> int:
        assert self.process.stdin is not None
        self.number += 1
        self.process.stdin.write(json.dumps({"id": self.number, "method": method, "params": params}) + "\n")
        self.process.stdin.flush()
        return self.number

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def answers(self, method: str, **params: Any) -> list[dict[str, Any]]:
        """All that a request brings, its result or error last."""
        self.send(method, **params)
        found = [self.next()]
        while found[-1]["kind"] not in ("result", "error"):
            found.append(self.next())
        assert {answer["id"] for answer in found} == {self.number}
        return found


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(tmp_path_factory.mktemp("session") / "session.log")
    yield child
    child.process.kill()
    child.process.wait()
    child.log.close()


@pytest.fixture
def model(child: Child, base: Path, trained: RunFolder) -> dict[str, Any]:
    """The tiny model with its trained adapter, in the child."""
    *_, result = child.answers("load", base=str(base), adapters={"Run 1": str(trained.adapter)})
    assert result["kind"] == "result", result
    return result


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_inspecting_looks_at_data_as_training_does(child: Child, base: Path, data_file: Path) -> None:
    *progress, result = child.answers("inspect", model=str(base), train_file=str(data_file), max_length=64)
    assert {"tokenizer", "read", "encode"} <= {answer["phase"] for answer in progress}
    assert (result["rows"], result["format"], result["file_kind"]) == (40, "messages", "jsonl")
    assert result["kind"] == "result"
    with CpuTime(lambda: of_process(child.process.pid)) as spent:
        *_, shorter = child.answers("inspect", model=str(base), train_file=str(data_file), max_length=16)
    assert spent.seconds < 1
    assert shorter["truncated_rows"] > result["truncated_rows"] == 0


def test_the_look_before_a_start_reads_rows_as_the_run_will(child: Child, tmp_path: Path) -> None:
    *_, pairs = child.answers("look_at_first", **request_of(resolve("demo-preference", {})).to_fields())
    assert (pairs["kind"], pairs["format"]) == ("result", "preference")
    marks = tmp_path / "marks.jsonl"
    rows = [{"prompt": f"Ask {n}", "completion": f"Tell {n}", "label": n < 4} for n in range(6)]
    marks.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    *_, good = child.answers(
        "look_at_first", **request_of(resolve("demo", {"data.train_file": str(marks)})).to_fields()
    )
    assert (good["usable_rows"], good["marked_bad_rows"]) == (4, 2)
    settings = {"data.train_file": str(marks), "training.method": "dpo"}
    *_, refused = child.answers("look_at_first", **request_of(resolve("demo", settings)).to_fields())
    assert "DPO compares two answers" in refused["message"]


def test_a_row_can_be_seen_token_by_token(child: Child, base: Path, data_file: Path) -> None:
    child.answers("inspect", model=str(base), train_file=str(data_file), max_length=64)
    *_, row = child.answers("preview", row_index=3)
    assert row["messages"][0]["role"] == "user"
    assert "".join(token["text"] for token in row["tokens"]) == row["text"]


def test_a_row_is_of_the_file_that_is_meant_whatever_another_visitor_looked_at_since(
    child: Child, base: Path, data_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "theirs", "completion": "d"}) + "\n", encoding="utf-8")
    mine = {"model": str(base), "train_file": str(data_file), "max_length": 64}
    child.answers("inspect", **mine)
    *_, before = child.answers("preview", row_index=0)
    child.answers("inspect", model=str(base), train_file=str(other), max_length=64)
    *_, row = child.answers("preview", row_index=0, of=mine)
    assert row["text"] == before["text"]
    assert "theirs" not in row["text"]


def test_a_file_that_changed_is_read_anew(child: Child, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    line = json.dumps({"prompt": "a b c", "completion": "d"}) + "\n"
    file.write_text(line * 3, encoding="utf-8")
    *_, first = child.answers("inspect", model=str(base), train_file=str(file))
    file.write_text(line * 5, encoding="utf-8")
    *_, second = child.answers("inspect", model=str(base), train_file=str(file))
    assert (first["rows"], second["rows"]) == (3, 5)


def test_a_large_file_shows_its_first_rows_soon_and_the_whole_is_kept_for_the_next_child(
    child: Child, base: Path, tmp_path: Path
) -> None:
    file, cache = tmp_path / "data.jsonl", tmp_path / "cache"
    row = {"prompt": "Paint the sky green, please. " * 40, "completion": "Now the sky is green."}
    file.write_text((json.dumps(row) + "\n") * 3600, encoding="utf-8")
    params = {"model": str(base), "train_file": str(file), "cache_folder": str(cache)}
    *progress, result = child.answers("inspect", **params)
    phases = [answer["phase"] for answer in progress]
    (sample,) = [answer["sample"] for answer in progress if "sample" in answer]
    assert phases.index("sample") < phases.index("read")
    assert (sample["sampled"], sample["file_kind"], result["rows"]) == (400, "jsonl", 3600)
    assert all(answer["rows_per_second"] > 0 for answer in progress if answer["phase"] == "encode" and answer["done"])
    other = Child(tmp_path / "other.log")
    *progress, again = other.answers("inspect", **params)
    other.process.kill()
    other.log.close()
    assert {answer["phase"] for answer in progress} <= {"tokenizer", "split", "measure"}  # nothing is read or encoded
    assert again["fingerprint"] == result["fingerprint"]


def test_a_look_at_data_can_be_stopped_and_begun_again(child: Child, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a b c", "completion": "d"}\n' * 30_000, encoding="utf-8")
    child.send("inspect", model=str(base), train_file=str(file))
    while child.next().get("phase") != "read":
        pass
    child.send("stop")
    answers = [child.next(), child.next()]
    while answers[-1]["kind"] == "progress" or answers[-2]["kind"] == "progress":
        answers.append(child.next())
    assert "stopped" in next(answer["message"] for answer in answers if answer["kind"] == "error")
    *_, result = child.answers("inspect", model=str(base), train_file=str(file), max_samples=10)
    assert result["train_rows"] == 10


def test_loading_says_what_is_in_memory(model: dict[str, Any], base: Path) -> None:
    assert model["base"] == str(base)
    assert model["adapters"] == ["Run 1"]
    assert model["memory_bytes"] > 0
    assert model["mixes"]


def test_the_base_of_an_adapter_is_found_by_itself(child: Child, trained: RunFolder, base: Path) -> None:
    *_, result = child.answers("load", adapters={"Run 1": str(trained.checkpoints / "checkpoint-4")})
    assert result["base"] == str(base)


def test_both_columns_stream_and_the_result_holds_the_whole(child: Child, model: dict[str, Any]) -> None:
    columns = [{"adapter": name, "messages": ask("Paint the sky green, please.")} for name in (None, "Run 1")]
    *pieces, result = child.answers("generate", columns=columns, settings={"max_new_tokens": 40})
    assert pieces
    assert {piece["kind"] for piece in pieces} == {"piece"}
    for at, column in enumerate(result["columns"]):
        assert "".join(piece["texts"][at] for piece in pieces) == column["text"]
    assert result["columns"][0]["text"] != result["columns"][1]["text"]


def test_a_stop_is_heard_while_an_answer_is_made(child: Child, model: dict[str, Any]) -> None:
    asked = child.send("generate", columns=[{"adapter": None, "messages": ask("a")}], settings={"max_new_tokens": 200})
    stopped = child.send("stop")
    answers = []
    while not {(asked, "result"), (stopped, "result")} <= {(each["id"], each["kind"]) for each in answers}:
        answers.append(child.next())
    (result,) = [each for each in answers if each["id"] == asked and each["kind"] == "result"]
    assert result["columns"][0]["finish"] == "stopped"
    assert result["columns"][0]["tokens"] < 200


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("dance", {}, "no method 'dance'"),
        ("inspect", {"train_file": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ("load", {"base": "/nowhere"}, "no model folder"),
        ("load", {"adapters": {"x": "/"}}, "no adapter in /"),
        ("generate", {"columns": [{"adapter": "ghost", "messages": []}]}, "'ghost'"),
    ],
)
def test_errors_are_plain_and_leave_the_child_alive(
    child: Child, model: dict[str, Any], method: str, params: dict[str, Any], words: str
) -> None:
    *_, error = child.answers(method, **params)
    assert error["kind"] == "error"
    assert words in error["message"]
    assert child.process.poll() is None


def test_an_adapter_of_another_base_is_refused_and_leaves_no_trace(
    child: Child, model: dict[str, Any], trained: RunFolder, base: Path
) -> None:
    columns = [{"adapter": None, "messages": ask("a")}]
    *_, before = child.answers("generate", columns=columns, settings={"max_new_tokens": 8})
    *_, error = child.answers("load", base="demo", adapters={"x": str(trained.adapter)})
    assert "does not fit demo" in error["message"]
    *_, again = child.answers("load", base=str(base))
    assert again["adapters"] == []
    *_, after = child.answers("generate", columns=columns, settings={"max_new_tokens": 8})
    assert after["columns"][0]["text"] == before["columns"][0]["text"]


def test_a_setting_out_of_bounds_is_named(child: Child, model: dict[str, Any]) -> None:
    columns = [{"adapter": None, "messages": ask("a")}]
    *_, error = child.answers("generate", columns=columns, settings={"temperature": 99})
    assert "generation.temperature" in error["message"]


def test_the_child_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    child = Child(tmp_path / "log")
    child.answers("stop")
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(200) == 0
    child.log.close()


@pytest.mark.parametrize(
    ("error", "last", "gives_back", "words"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", False, True, "Out of memory."),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False, True, "Out of memory."),
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors", True, False, "illegal memory"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True, False, "EXECUTION_FAILED"),
        ("HIP error: unspecified launch failure", True, False, "unspecified launch failure"),
        ("something else", False, True, "RuntimeError: something else"),
    ],
)
def test_a_process_that_lost_its_gpu_ends_and_one_out_of_memory_gives_back(
    error: str, last: bool, gives_back: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(call: Any) -> Any:
        raise RuntimeError(error)

    session, lines, freed = SessionWorker(), list[dict[str, Any]](), list[bool]()
    session.methods[protocol.Rest] = fails
    monkeypatch.setattr(session, "give_back", lambda: freed.append(True))
    assert serve(session, Call(1, protocol.Rest(), lines.append)) is not last
    assert bool(freed) is gives_back
    assert words in lines[-1]["message"]
    assert bool(lines[-1].get("last")) is last
    assert "\n" not in lines[-1]["message"]


def test_a_full_disk_is_named_also_where_the_log_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(call: Any) -> Any:
        raise ValueError("no cache") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FullLog(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    session, lines = SessionWorker(), list[dict[str, Any]]()
    session.methods[protocol.Rest] = fails
    monkeypatch.setattr(sys, "stderr", FullLog())
    assert serve(session, Call(1, protocol.Rest(), lines.append)), "the next request is answered"
    assert lines[-1]["message"] == "The disk is full."
