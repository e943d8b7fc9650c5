"""`rows` in the terminal: documents of all kinds through the reading child and the worker, a kill, and a resume."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.chat import documents
from lora_studio.chat.documents import DocumentsRequest, Writing
from lora_studio.data.readers.documents import Chunk, write_chunks
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hub import SERVER_KEY
from lora_studio.workspace import Workspace
from tests.conftest import Say
from tests.data.test_documents import pdf, word
from tests.openai_stand_in import ROWS, completion, openai_server


def until(what: Callable[[], bool], seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_documents_become_rows_in_a_file_and_what_could_not_be_read_is_told(
    say: Say, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text("# Ports\n\nThe server listens on port 7860.\n", encoding="utf-8")
    files = [guide, word(tmp_path / "guide.docx"), pdf(tmp_path / "guide.pdf", [["Port 7861 is the other port."]])]
    locked, out = pdf(tmp_path / "locked.pdf", [["secret"]], password="key"), tmp_path / "rows.jsonl"
    monkeypatch.setenv(SERVER_KEY, "sk-terminal")
    with openai_server() as server:
        server.reply = lambda prompt: completion(ROWS % "It listens on port 7860")
        words = ["--server", server.address, "--model", "small", "--input-price", "1", "--out", str(out), "--json"]
        code, printed, told = say("rows", *map(str, [*files, locked]), *words)
        assert code == 0, told
        assert "not read: locked.pdf is encrypted." in told
        assert "guide.pdf: 1 chunk" in told
        assert set(server.keys) == {"Bearer sk-terminal"}
        result = json.loads(printed.splitlines()[-1])
        assert (result["state"], result["chunks"], result["rows"], result["written"]) == ("done", 3, 3, 3)
        assert result["near_duplicates"] == 2
        assert result["cost"] == pytest.approx(300e-6)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["source"] for row in rows] == ["guide.md", "guide.docx", "guide.pdf"]
        assert rows[2]["page"] == 1
        asked = len(server.bodies)
        code, _, told = say("rows", str(guide), *words)
        assert (code, len(server.bodies)) == (2, asked)
        assert "already exists" in told
        code, printed, told = say("jobs", "show", result["generation"], "--json")
        assert json.loads(printed)["state"] == "done"
    assert not any("sk-terminal" in path.read_text() for path in workspace.root.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_no_answered_chunk_is_asked_about_again(workspace: Workspace) -> None:
    supervisor = Supervisor(workspace)
    with openai_server() as server:
        server.seconds = 0.15
        request = DocumentsRequest("small on a.md", ("a.md",), "small", Writing(batch_size=1), server=server.address)
        chunks = [Chunk(at, "a.md", "", None, f"It is word{at}", 5) for at in range(8)]
        write_chunks(workspace.root / "chunks.jsonl", chunks)
        job = documents.start(supervisor, request, workspace.root / "chunks.jsonl")
        folder = documents.folders(workspace).find(job)
        until(lambda: len(list(folder.read_answers())) >= 2)
        pid = supervisor.state(job).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: supervisor.state(job).final)
        assert supervisor.state(job).state == "failed"
        answered = {answer["chunk"] for answer in folder.read_answers()}
        before = len(server.bodies)
        documents.resume(supervisor, job)
        until(lambda: supervisor.state(job).state == "done")
        later = [prompt.split()[-1] for prompt in server.prompts[before:]]
    assert sorted(later) == sorted(f"word{at}" for at in range(8) if at not in answered)
    assert [row.chunk for row in documents.rows_of(folder)] == list(range(8))


def test_what_can_not_be_asked_for_is_wrong_input_and_starts_nothing(
    say: Say, workspace: Workspace, tmp_path: Path
) -> None:
    for words, sentence in (
        (["--model", "demo"], "No document is chosen"),
        (["a.md"], "No model is named"),
        (["a.md", "--model", "demo", "--chunk-size", "1"], "Chunk size (tokens) must be at least 32"),
        (["a.md", "--model", "m", "--server", "localhost"], "is not the address of a server"),
        (["a.md", "--model", "demo", "--prompt", "Hi"], "does not contain {chunk}"),
        (["a.md", "--resume", "x"], "--resume takes no documents"),
        (["--resume", "x"], "There is no generation 'x'"),
        (["a.md", "--model", "demo", "--out", str(tmp_path / "no" / "x.jsonl")], "folder that does not exist"),
    ):
        code, _, told = say("rows", *words)
        assert code == 2
        assert sentence in told
    assert documents.folders(workspace).all() == []
