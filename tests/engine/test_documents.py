"""Rows about documents, written by a stand-in server and by the built-in model: retries, stop, resume, secrets."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat import documents
from lora_studio.chat.documents import DocumentsRequest, Writing, result_of, rows_of, totals
from lora_studio.data.readers.documents import Chunk, write_chunks
from lora_studio.engine.chat import documents as worker
from lora_studio.engine.chat.documents import Server, ask_all
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState, read_state
from lora_studio.jobs.kinds import DocumentsFolder
from lora_studio.models.hub import SERVER_KEY
from lora_studio.workspace import Workspace
from tests.openai_stand_in import CLOSED, ROWS, Answer, StandIn, completion, failure, openai_server

KEY = "sk-very-secret-123"


@pytest.fixture(scope="module")
def of_module() -> Iterator[StandIn]:
    with openai_server() as found:
        yield found


@pytest.fixture
def server(of_module: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The server as it is at first, and no pause between two attempts."""
    monkeypatch.setattr(worker, "FIRST_WAIT_SECONDS", 0.01)
    fresh = StandIn(of_module.address)
    vars(of_module).update(vars(fresh))
    return of_module


def client(server: StandIn, **more: Any) -> Server:
    return Server(server.address, "small", KEY, max_new_tokens=50, temperature=0.2, **more)


def make(workspace: Workspace, server: StandIn, count: int = 4, **settings: Any) -> DocumentsFolder:
    """A job about so many chunks."""
    request = DocumentsRequest(
        "small on guide.md", ("guide.md",), "small", Writing(**{"batch_size": 1, **settings}), server=server.address
    )
    folder = documents.folders(workspace).create(request.to_dict())
    write_chunks(folder.chunks, [Chunk(at, "guide.md", "", None, f"It is word{at}", 5) for at in range(count)])
    return folder


def work(folder: DocumentsFolder, *flags: str) -> tuple[int, RunState]:
    """What the worker does, in this process: its exit code, and the state that it left."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        return worker.main([str(folder.path), *flags]), read_state(folder.events)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def everything_in(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())


def test_a_server_is_asked_once_for_each_chunk_and_its_rows_tokens_and_costs_are_kept(
    workspace: Workspace, server: StandIn, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SERVER_KEY, KEY)
    folder = make(workspace, server, batch_size=3, input_price=2.0, output_price=10.0)
    code, state = work(folder)
    assert (code, state.state, state.phase_done, state.phase_total) == (0, "done", 4, 4)
    assert [(row.chunk, row.answer) for row in rows_of(folder)] == [(at, f"word{at}") for at in range(4)]
    assert sorted(prompt.split()[-1] for prompt in server.prompts) == ["word0", "word1", "word2", "word3"]
    assert server.bodies[0]["model"] == "small"
    assert server.bodies[0]["max_tokens"] == 768
    result = json.loads(folder.complete.read_text())
    assert (result["rows"], result["input_tokens"], result["output_tokens"]) == (4, 400, 80)
    assert result["cost"] == pytest.approx(400 * 2e-6 + 80 * 10e-6)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in everything_in(folder.path) + "".join(capfd.readouterr())
    assert SERVER_KEY not in os.environ  # no child of the worker inherits it


def test_what_passes_is_tried_again_and_a_wait_that_the_server_asks_for_is_kept(
    workspace: Workspace, server: StandIn
) -> None:
    garbage: list[Answer] = [(200, {}, b"<html>"), (200, {}, b'{"choices": []}'), (200, {}, b"\xff\xfe")]
    server.answers = [failure(500, "oops"), CLOSED, *garbage, completion(ROWS % "word0")]
    began = time.monotonic()
    folder = make(workspace, server, count=1)
    code, state = work(folder)
    assert (code, len(rows_of(folder)), len(server.bodies)) == (0, 1, 6)
    assert any("answers 500: oops. Trying again in" in words for words in state.warnings)
    assert any("sent no chat completion ('<html>')" in words for words in state.warnings)
    assert any("connection" in words and "failed" in words for words in state.warnings)
    assert time.monotonic() - began < 60
    heard: list[str] = []
    server.answers = [failure(429, "slow down", Retry_After="1"), completion("fine")]
    began = time.monotonic()
    assert client(server, tell=heard.append).ask("x").text == "fine"
    assert time.monotonic() - began > 0.95
    assert "429: slow down. Trying again in 1.0 s." in heard[0]
    soon = formatdate(time.time() + 1, usegmt=True)
    assert 0 <= (worker._asked_seconds(soon) or 0) <= 1
    assert worker._asked_seconds("soon") is None


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([failure(401, f"Incorrect API key provided: {KEY}")], r"refuses the API key \(401: .*\[API key\]\)"),
        ([failure(404, "no such model")], "has no model 'small', or no chat completions"),
        ([failure(400, "context length exceeded")], r"refuses the request \(400: context length exceeded\)"),
        ([failure(429, "insufficient_quota")], "has no credit"),
        ([failure(429, "later", Retry_After="86400")], "asks to wait 1 d 0 h|asks to wait 1 d"),
        ([(302, {"Location": "http://169.254.169.254/"}, b"")], "redirects to 'http://169.254.169.254/'"),
        ([failure(503, "down")] * 9, "answers 503: down. Gave up after 6 attempts"),
    ],
)
def test_what_does_not_pass_ends_the_job_with_a_sentence_and_without_the_key(
    server: StandIn, answers: list[Answer], words: str
) -> None:
    server.answers = list(answers)
    with pytest.raises(StudioError, match=words) as error:
        client(server).ask("x")
    assert error.value.hint
    assert KEY not in str(error.value)
    assert len(server.bodies) == min(6, len(answers))


def test_a_newer_model_gets_its_limit_under_its_new_name_and_no_temperature(server: StandIn) -> None:
    server.answers = [
        failure(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        failure(400, "Unsupported value: 'temperature' does not support 0.2 with this model."),
        completion("fine", tokens=None),
    ]
    reply = client(server).ask("x")
    assert (reply.text, reply.input_tokens) == ("fine", None)
    assert server.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_an_answer_that_never_ends_or_is_too_slow_is_given_up(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_ANSWER_BYTES", 1000)
    server.answers = [completion("x" * 2000)]
    with pytest.raises(StudioError, match="more than 0 MB"):
        client(server).ask("x")
    monkeypatch.setattr(worker, "TIMEOUT", worker.httpx.Timeout(0.1))
    monkeypatch.setattr(worker, "ATTEMPTS", 2)
    server.seconds = 0.3
    with pytest.raises(StudioError, match=r"did not answer in time\. Gave up after 2 attempts"):
        client(server).ask("x")


def test_a_key_that_is_refused_ends_the_job_which_resumes_where_it_was(
    workspace: Workspace, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [completion(ROWS % "word0"), completion(ROWS % "word1"), failure(401, "expired")]
    folder = make(workspace, server)
    code, state = work(folder)
    assert (code, state.state, len(rows_of(folder))) == (2, "failed", 2)
    assert "no API key was given (401: expired)" in state.message
    with folder.answers.open("a") as file:
        file.write('{"chunk": 2, "rows": [{"quest')  # as a kill leaves it
    monkeypatch.setenv(SERVER_KEY, KEY)
    code, state = work(folder, "--resume")
    assert (code, [row.chunk for row in rows_of(folder)]) == (0, [0, 1, 2, 3])
    assert [prompt.split()[-1] for prompt in server.prompts] == ["word0", "word1", "word2", "word2", "word3"]
    assert result_of(folder, documents.request_of(folder), "done")["rows"] == 4


def test_a_stop_keeps_answers_that_are_under_way_and_sends_no_more(workspace: Workspace, server: StandIn) -> None:
    server.seconds = 0.3
    folder = make(workspace, server, count=20, batch_size=2)

    def stop_in_between() -> None:
        while len(server.bodies) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_in_between, daemon=True).start()
    code, state = work(folder)
    assert (code, state.state) == (130, "stopped")
    assert 3 <= len(server.bodies) == len(list(folder.read_answers())) < 10
    assert not folder.complete.exists()


def test_answers_that_hold_no_rows_are_counted_and_shown_as_they_are(workspace: Workspace, server: StandIn) -> None:
    server.answers = [completion("I cannot help with that \ud800."), completion("", finish="length")]
    folder = make(workspace, server, count=3)
    assert work(folder)[0] == 0
    sums = totals(folder.read_answers())
    assert (sums.chunks, sums.rows, sums.unreadable, sums.cut) == (3, 1, 2, 1)
    assert next(folder.read_answers())["text"] == "I cannot help with that ?."


def test_requests_go_out_side_by_side_and_a_failure_loses_no_other_answer(server: StandIn) -> None:
    server.seconds = 0.1
    server.reply = lambda prompt: failure(400, "bad") if prompt == "p3" else completion(prompt)
    came: list[str] = []

    def collect() -> None:
        for position, reply in ask_all(client(server), [f"p{at}" for at in range(40)], at_once=4):
            assert reply.text == f"p{position}"
            came.append(reply.text)

    with pytest.raises(StudioError, match="400: bad"):
        collect()
    assert {*came, "p3"} == set(server.prompts)
    assert 3 <= len(came) < 12


@pytest.mark.slow
def test_the_built_in_model_writes_what_can_be_read_or_is_counted(workspace: Workspace) -> None:
    writing = Writing(batch_size=2, max_new_tokens=16, temperature=0.0, prompt="{chunk}")
    request = DocumentsRequest("demo on guide.md", ("guide.md",), "demo", writing)
    folder = documents.folders(workspace).create(request.to_dict())
    questions = ("What is the capital of France?", "Hello!", "Who are you?")
    write_chunks(folder.chunks, [Chunk(at, "guide.md", "", None, text, 5) for at, text in enumerate(questions)])
    code, state = work(folder)
    assert (code, state.phase_done, state.phase_unit) == (0, 3, "chunks")
    answers = list(folder.read_answers())
    assert all(answer["input_tokens"] > 0 and 0 < answer["output_tokens"] <= 16 for answer in answers)
    assert totals(answers).unreadable == 3
    assert all(answer["text"] for answer in answers)
    long = make(workspace, StandIn(), count=1)
    write_chunks(long.chunks, [Chunk(0, "guide.md", "", None, "word " * 5000, 5000)])
    facts = {**long.read_facts(), "server": "", "model": "demo"}
    long.facts.write_text(json.dumps(facts))
    code, state = work(long)
    assert code == 2
    assert "reads and writes at most 2,048" in state.message
    assert state.hint == "Lower the chunk size, or shorten the prompt."
