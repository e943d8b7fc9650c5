"""The endpoint as programs use it: the official `openai` client asks a server, behind which a session plays answers."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from openai.types.chat import ChatCompletionMessageParam
from starlette.applications import Starlette

from lora_studio.api import openai as openai_api
from lora_studio.chat.choices import ModelSelection
from lora_studio.errors import EngineError, StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.protocol import ColumnPrompt, JoinBatch, Piece
from lora_studio.models.hardware import Device
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace
from tests.chat.test_chat_choices import make_run
from tests.ui.fake_session import FakeSession
from tests.ui.test_chatting import ANSWER, LOADED, FakeSupervisor

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
PATIENCE = 200.0


def script(method: str, **params: Any) -> Iterator[dict[str, Any] | StudioError]:
    """Says Arr; of a question "long" without an end, of "broken" and "wrong" what is the matter."""
    if method == "load":
        yield LOADED
        return
    questions = [column["messages"][-1]["content"] for column in params["columns"]]
    if len(questions) > 1 or questions[0] == "wrong":
        yield from in_batch(questions)
        return
    yield piece("Ar", 1)
    if questions == ["broken"]:
        yield EngineError("The process that answers ended unexpectedly.")
    while questions == ["long"] and not ENOUGH.is_set():
        time.sleep(0.01)
        yield piece("r", 1)
        for position, request in enumerate(JOINED, start=1):
            answer = ANSWER | {"text": f"Joined, {request.columns[0].messages[-1]['content']}"}
            yield {"kind": "ended", "position": position, "answer": answer}
    yield piece("r", 2)
    yield {"kind": "ended", "position": 0, "answer": ANSWER | {"text": "Arr", "prompt_tokens": 7}}
    yield {"kind": "result", "columns": []} if method == "generate" else {"kind": "result"}


def piece(text: str, tokens: int) -> dict[str, Any]:
    return {"kind": "piece", "positions": [0], "texts": [text], "tokens": [tokens]}


JOINED: list[JoinBatch] = []
"""What joined the batch that is being answered."""
ENOUGH = threading.Event()
"""Ends a long answer."""


LEFT = threading.Event()
"""Set once a client of a slow batch left."""


def in_batch(questions: list[str]) -> Iterator[dict[str, Any]]:
    """Each gets its answer, the wrong one what is the matter; slow ones once somebody left."""
    count = len(questions)
    if questions != ["wrong"]:
        yield {"kind": "piece", "positions": list(range(count)), "texts": ["Arr"] * count, "tokens": [1] * count}
    if any(question.startswith("slow") for question in questions):
        LEFT.wait(PATIENCE)
    for at, question in enumerate(questions):
        if question == "wrong":
            yield {"kind": "ended", "position": at, "message": "The conversation has 9 tokens; demo reads at most 8."}
        else:
            yield {"kind": "ended", "position": at, "answer": ANSWER | {"text": f"Arr, {question}"}}
    yield {"kind": "result"}


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return make_run(workspace, "Pirate", adapter=True, system_prompt="Be a pirate.")


@pytest.fixture
def studio(workspace: Workspace, run: RunFolder) -> Studio:
    session: Any = FakeSession(script)  # type: ignore[arg-type]
    session.joined = JOINED
    JOINED.clear()
    ENOUGH.clear()
    supervisor: Any = FakeSupervisor([RunState(run.id, "Pirate", "done")])
    return Studio(workspace, supervisor, session, session)


@contextmanager
def served(studio: Studio) -> Iterator[str]:
    """The endpoint's address."""
    app = Starlette(routes=openai_api.routes(studio))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(PATIENCE)


@pytest.fixture
def url(studio: Studio) -> Iterator[str]:
    with served(studio) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as found:
        yield found


def until(true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_official_client_lists_models_and_gets_answers(
    client: openai.OpenAI, studio: Studio, run: RunFolder
) -> None:
    assert [model.id for model in client.models.list()] == ["demo", run.id]
    assert client.models.retrieve(run.id).owned_by == "lora-studio"
    answer = client.chat.completions.create(
        model=run.id, messages=HELLO, temperature=0.5, max_completion_tokens=9, seed=1, stop=["\n\n"]
    )
    assert answer.choices[0].message.content == "Arr"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    session: Any = studio.chat
    (load, loaded), (generate, asked) = session.asked
    assert (load, generate) == ("load", "generate_batch")
    assert loaded["adapters"] == {run.id: str(run.adapter)}
    (column,) = asked["columns"]
    assert column["stop"] == ["\n\n"]
    assert column["settings"]["max_new_tokens"] == 9
    assert column["messages"][0]["content"] == "Be a pirate."


def test_a_stream_brings_pieces_the_end_and_the_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "Arr"
    assert len([text for text in texts if text]) == 2
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1


def test_errors_have_their_status_and_openais_shape(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'") as missing:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="at most 5"):
        client.chat.completions.create(model="demo", messages=HELLO, temperature=9)
    wrong: list[ChatCompletionMessageParam] = [{"role": "user", "content": "wrong"}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="reads at most 8"):
            client.chat.completions.create(model="demo", messages=wrong, stream=stream)
    broken: list[ChatCompletionMessageParam] = [{"role": "user", "content": "broken"}]
    with pytest.raises(openai.InternalServerError, match="ended unexpectedly"):
        client.chat.completions.create(model="demo", messages=broken)
    with pytest.raises(openai.APIError, match="ended unexpectedly"):
        list(client.chat.completions.create(model="demo", messages=broken, stream=True))
    assert httpx.post(f"{url}/chat/completions", content="{}").status_code == 415
    no_json = httpx.post(f"{url}/chat/completions", content="{", headers={"Content-Type": "application/json"})
    assert (no_json.status_code, no_json.json()["error"]["type"]) == (400, "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="There is no POST /v1/completions") as unknown:
        client.completions.create(model="demo", prompt="Hello")
    assert unknown.value.code == "unknown_url"
    assert "GET /v1/models and POST" in httpx.get(f"{url}/chat/completions").json()["error"]["message"]
    large = httpx.post(f"{url}/chat/completions", json={"model": "x" * openai_api.MAX_BYTES})
    assert large.status_code == 413


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_client_hangs_up(url: str, studio: Studio, stream: bool) -> None:
    session: Any = studio.chat
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "long"}], "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=PATIENCE) as client:
        client.sendall(head.encode() + body)
        until(lambda: session.asked and session.asked[-1][0] == "generate_batch")
        if stream:
            assert client.recv(1)
        assert session.left_early == 0
    until(lambda: session.left_early == 1)
    assert session.stops <= 1


@contextmanager
def person_is_answered(studio: Studio) -> Iterator[None]:
    """Inside, a person on the page has the turn."""
    asked = [ColumnPrompt(messages=[{"role": "user", "content": "long"}])]
    answers = studio.engine.answer("page a window", ModelSelection("demo"), asked, {})
    with contextlib.closing(answers):
        assert any(isinstance(answer, Piece) for answer in answers)
        yield


def test_requests_that_wait_together_are_answered_in_one_batch_each_by_its_own_settings(
    client: openai.OpenAI, url: str, studio: Studio, run: RunFolder
) -> None:
    results: dict[str, str | None] = {}

    def ask(question: str, model: str, temperature: float) -> None:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
        try:
            answer = client.chat.completions.create(model=model, messages=messages, temperature=temperature, stop="#")
            results[question] = answer.choices[0].message.content
        except openai.BadRequestError as error:
            results[question] = str(error.body["message"])  # type: ignore[index]

    waiting = [("Hello", "demo", 0.0), ("Hi", run.id, 0.5), ("wrong", "demo", 1.0)]
    with person_is_answered(studio):
        threads = [threading.Thread(target=ask, args=request) for request in waiting]
        for thread in threads:
            thread.start()
        until(lambda: len(vars(studio.engine)["_questions"]) == 3)
        assert results == {}
    for thread in threads:
        thread.join(PATIENCE)
    assert results["Hello"] == "Arr, Hello"
    assert results["Hi"] == "Arr, Hi"
    assert "reads at most 8" in str(results["wrong"])
    session: Any = studio.chat
    (params,) = [params for method, params in session.asked if method == "generate_batch"]
    columns = {column["messages"][-1]["content"]: column for column in params["columns"]}
    assert {name: column["settings"]["temperature"] for name, column in columns.items()} == {
        "Hello": 0.0,
        "Hi": 0.5,
        "wrong": 1.0,
    }
    assert columns["Hi"]["adapter"] == run.id
    assert columns["Hello"]["stop"] == ["#"]


def test_a_request_joins_those_that_are_being_answered_unless_somebody_else_waits(
    client: openai.OpenAI, url: str, studio: Studio, run: RunFolder
) -> None:
    session: Any = studio.chat

    def ask(question: str, model: str = "demo") -> str | None:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
        return client.chat.completions.create(model=model, messages=messages, stop="#").choices[0].message.content

    long = {"model": "demo", "messages": [{"role": "user", "content": "long"}], "stream": True}
    with (
        ThreadPoolExecutor() as pool,
        httpx.stream("POST", f"{url}/chat/completions", json=long, timeout=None) as first,
    ):
        lines = first.iter_lines()  # kept: without it the client hangs up
        next(lines)
        assert [ask("one"), ask("two")] == ["Joined, one", "Joined, two"]
        (load, _), (_, batch) = session.asked
        assert load == "load"
        assert [request.batch for request in JOINED] == [batch["batch"]] * 2
        assert JOINED[0].columns[0].stop == ["#"]
        # Its adapter is not in memory: it waits, and who comes later does not overtake it.
        waiting = [pool.submit(ask, "three", run.id)]
        until(lambda: len(vars(studio.engine)["_questions"]) == 1)
        waiting.append(pool.submit(ask, "four"))
        until(lambda: len(vars(studio.engine)["_questions"]) == 2)
        assert len(JOINED) == 2
        ENOUGH.set()
        assert {each.result(PATIENCE) for each in waiting} <= {"Arr", "Arr, three", "Arr, four"}
    ENOUGH.clear()
    JOINED.clear()
    with (
        ThreadPoolExecutor() as pool,
        httpx.stream("POST", f"{url}/chat/completions", json=long, timeout=None) as first,
    ):
        lines = first.iter_lines()  # kept: without it the client hangs up
        next(lines)
        asked = [ColumnPrompt(messages=HELLO)]  # type: ignore[arg-type]
        page = pool.submit(lambda: list(studio.engine.answer("page a window", ModelSelection("demo"), asked, {})))
        until(lambda: "page a window" in vars(studio.engine)["_waiting"])
        late = pool.submit(ask, "late")
        until(lambda: len(vars(studio.engine)["_questions"]) == 1)
        ENOUGH.set()
        page.result(PATIENCE)
        assert late.result(PATIENCE) == "Arr"
    assert JOINED == []


def test_a_request_that_came_too_late_to_join_is_answered_in_the_next_batch(
    client: openai.OpenAI, url: str, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = studio.chat
    monkeypatch.setattr(session, "join", lambda request: ENOUGH.set())  # the batch ended, and knows nothing of it
    long = {"model": "demo", "messages": [{"role": "user", "content": "long"}], "stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=long, timeout=None) as first:
        lines = first.iter_lines()  # kept: without it the client hangs up
        next(lines)
        assert client.chat.completions.create(model="demo", messages=HELLO).choices[0].message.content == "Arr"
    assert [method for method, _ in session.asked] == ["load", "generate_batch", "generate_batch"]


def test_requests_that_can_not_be_loaded_together_are_answered_alone(
    client: openai.OpenAI, studio: Studio, run: RunFolder
) -> None:
    session: Any = studio.chat

    def one_at_a_time(method: str, **params: Any) -> Iterator[dict[str, Any] | StudioError]:
        if method == "generate_batch" and len(params["columns"]) > 1:
            yield StudioError("They do not fit together.", "")
        yield from script(method, **params)

    session.script = one_at_a_time
    with ThreadPoolExecutor() as pool, person_is_answered(studio):
        waiting = [pool.submit(client.chat.completions.create, model=name, messages=HELLO) for name in ("demo", run.id)]
        until(lambda: len(vars(studio.engine)["_questions"]) == 2)
        ENOUGH.set()
    assert [each.result(PATIENCE).choices[0].message.content for each in waiting] == ["Arr", "Arr"]


def test_who_leaves_a_batch_ends_only_their_own_answer(url: str, studio: Studio) -> None:
    session: Any = studio.chat
    answers: list[str] = []

    def body(question: str) -> dict[str, Any]:
        return {"model": "demo", "messages": [{"role": "user", "content": question}]}

    def stay() -> None:
        answers.append(httpx.post(f"{url}/chat/completions", json=body("slow too"), timeout=PATIENCE).text)

    leaver = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0))
    LEFT.clear()
    with person_is_answered(studio):
        stays = threading.Thread(target=stay)
        stays.start()
        text = json.dumps(body("slow"))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n"
        leaver.sendall(f"{head}Content-Type: application/json\r\n\r\n{text}".encode())
        until(lambda: len(vars(studio.engine)["_questions"]) == 2)
    until(lambda: any(method == "generate_batch" for method, _ in session.asked))
    leaver.close()
    until(lambda: session.stopped_columns)
    LEFT.set()
    stays.join(PATIENCE)
    assert "Arr, slow too" in answers[0]
    (batch,) = [params for method, params in session.asked if method == "generate_batch"]
    position = [column["messages"][-1]["content"] for column in batch["columns"]].index("slow")
    assert session.stopped_columns == [(batch["batch"], position)]


def test_who_waits_too_long_is_told_to_come_again(
    client: openai.OpenAI, url: str, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    with person_is_answered(studio), monkeypatch.context() as patch:
        patch.setattr(openai_api, "WAIT_SECONDS", 0.0)
        with pytest.raises(openai.InternalServerError, match="Other requests are being answered") as error:
            client.chat.completions.create(model="demo", messages=HELLO)
        assert (error.value.status_code, error.value.response.headers["retry-after"]) == (503, "10")
    long = {"model": "demo", "messages": [{"role": "user", "content": "long"}], "stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=long, timeout=PATIENCE) as first:
        lines = first.iter_lines()
        next(lines)
        monkeypatch.setattr(openai_api, "MAX_AT_ONCE", 1)
        with pytest.raises(openai.InternalServerError, match="already waiting"):
            client.chat.completions.create(model="demo", messages=HELLO)


def test_a_program_does_not_take_the_base_from_a_person_who_chats(
    client: openai.OpenAI, studio: Studio, run: RunFolder, tmp_path: Path
) -> None:
    other = ModelSelection("owner/other-base")
    list(studio.engine.load("a person", other, force=True))
    with pytest.raises(openai.ConflictError, match="holds owner/other-base") as error:
        client.chat.completions.create(model="demo", messages=HELLO)
    assert error.value.code == "model_held"
    list(studio.engine.unload("a person"))
    assert client.chat.completions.create(model="demo", messages=HELLO).choices[0].message.content == "Arr"
    list(studio.engine.load("a person", other, force=True))  # a person may always


def test_what_will_hardly_fit_is_refused_with_the_figures(client: openai.OpenAI, studio: Studio) -> None:
    supervisor: Any = studio.supervisor
    supervisor.cards = [Device("CPU", "cpu", 10**9, 10**6)]
    with pytest.raises(openai.InternalServerError, match=r"1\.0 MB are free") as error:
        client.chat.completions.create(model="demo", messages=HELLO)
    assert (error.value.status_code, error.value.code) == (503, "memory")


def test_base_and_run_are_answered_out_of_one_memory(client: openai.OpenAI, studio: Studio, run: RunFolder) -> None:
    for model in (run.id, "demo", run.id):
        client.chat.completions.create(model=model, messages=HELLO)
    session: Any = studio.chat
    assert [method for method, _ in session.asked] == ["load", "generate_batch", "generate_batch", "generate_batch"]
    assert [params["columns"][0]["adapter"] for _, params in session.asked[1:]] == [run.id, None, run.id]
