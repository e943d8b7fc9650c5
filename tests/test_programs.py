"""Programs at a running server behind a login: the named endpoints, and OpenAI's client with the real engine."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import httpx
import openai
import psutil
import pytest

from lora_studio.jobs.launchers.local import kill
from lora_studio.workspace import RunFolder, Workspace
from tests.chat.test_chat_choices import make_run
from tests.serving import Server
from tests.ui.test_build import PUBLIC

pytestmark = pytest.mark.slow
PASSWORD, KEY = "correct horse", "a key of some length"
EVENTS = Path(__file__).parent / "events" / "healthy.jsonl"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("programs") / "workspace")


@pytest.fixture(scope="module")
def run(workspace: Workspace) -> RunFolder:
    """A finished run, whose adapter changes nothing."""
    made = make_run(workspace, "Pirate", adapter=True)
    shutil.copyfile(EVENTS, made.events)
    return made


@pytest.fixture(scope="module")
def server(workspace: Workspace, run: RunFolder) -> Iterator[Server]:
    running = Server(workspace.root, LORA_STUDIO_PASSWORD=PASSWORD, LORA_STUDIO_API_KEY=KEY)
    yield running
    running.end()
    for each in workspace.runs():
        kill(each)


def test_the_page_offers_six_named_endpoints_and_no_more(server: Server, workspace: Workspace, run: RunFolder) -> None:
    with pytest.raises(Exception, match="credentials were not provided"):
        gradio_client.Client(server.url, verbose=False)
    client = gradio_client.Client(server.url, auth=("me", PASSWORD), verbose=False)
    offered = client.view_api(return_format="dict", print_info=False)
    assert isinstance(offered, dict)
    assert sorted(offered["named_endpoints"]) == sorted(f"/{name}" for name in PUBLIC)
    assert offered["unnamed_endpoints"] == {}
    for endpoint in offered["named_endpoints"].values():
        assert endpoint["description"].endswith(".")
        assert all(parameter["type"] for parameter in endpoint["parameters"])

    assert [row["run"] for row in client.predict("pirate", api_name="/list_runs")] == [run.id]
    assert client.predict("no such words", api_name="/list_runs") == []
    measured = client.predict(run.id, api_name="/metrics")
    assert {row["kind"] for row in measured} == {"step", "evaluation"}
    assert client.predict(run.id[:20], api_name="/run_status")["state"] == "done"
    with pytest.raises(Exception, match="There is no run"):
        client.predict("nothing", api_name="/run_status")
    with pytest.raises(Exception, match="must be at least"):
        client.predict("demo", {"training.max_steps": -9}, api_name="/start_run")
    with pytest.raises(Exception, match="no preset '/etc/passwd'"):
        client.predict("/etc/passwd", api_name="/start_run")

    begun = client.predict("demo", {"training.max_steps": 50, "title": "Asked for"}, api_name="/start_run")
    assert begun["state"] in ("queued", "running")
    assert workspace.run(begun["run"]).read_facts()["title"] == "Asked for"
    assert client.predict(begun["run"], api_name="/stop_run")["state"] in ("stopping", "stopped")
    end = time.monotonic() + PATIENCE
    while client.predict(begun["run"], api_name="/run_status")["state"] != "stopped":
        assert time.monotonic() < end
        time.sleep(0.5)

    job = client.submit("What is the capital of Italy?", api_name="/chat")
    pieces = list(job)
    assert "Rome" in pieces[-1]
    assert len(pieces) > 1


def test_the_official_openai_client_talks_to_base_and_run(server: Server, run: RunFolder) -> None:
    url = f"{server.url}/v1"
    for key in ("wrong", PASSWORD):
        with pytest.raises(openai.AuthenticationError, match="LORA_STUDIO_API_KEY"):
            openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list()
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE)
    assert [model.id for model in client.models.list()] == ["demo", run.id]
    said = []
    for model in ("demo", run.id):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "What is the capital of Italy?"}], max_tokens=20
        )
        said.append(answer.choices[0].message.content)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 5
    assert said[0] == said[1]
    assert "Rome" in (said[0] or "")
    cut = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "What is the capital of Italy?"}], stop="Rome"
    )
    assert "Rome" not in (cut.choices[0].message.content or "")
    assert cut.choices[0].finish_reason == "stop"


def test_the_page_s_login_opens_the_endpoint_too(server: Server) -> None:
    with httpx.Client(base_url=server.url) as visitor:
        assert visitor.get("/v1/models").status_code == 401
        visitor.post("/login", data={"username": "me", "password": PASSWORD})
        assert visitor.get("/v1/models").json()["data"][0]["id"] == "demo"
        foreign = {"Origin": "https://elsewhere.example"}
        assert visitor.post("/v1/chat/completions", json={}, headers=foreign).status_code == 403


def test_a_client_that_hangs_up_frees_the_engine_within_a_token(server: Server) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    question = [{"role": "user", "content": "What is the capital of Italy?"}]
    long = {"model": "demo", "messages": question, "max_tokens": 1000, "temperature": 5, "seed": 3}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=PATIENCE) as client:
        begun = time.monotonic()
        whole = client.post("/chat/completions", json=long).json()
        seconds = time.monotonic() - begun
        assert whole["usage"]["completion_tokens"] > 100
        with client.stream("POST", "/chat/completions", json=long | {"stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
        begun = time.monotonic()
        client.post("/chat/completions", json=long | {"max_tokens": 1})
        assert time.monotonic() - begun < seconds / 2


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Server]:
    """A public Space, as far as a Space tells by its environment; it listens on this machine alone."""
    running = Server(tmp_path / "workspace", SYSTEM="spaces", SPACE_ID="anna/studio", LORA_STUDIO_HOST="127.0.0.1")
    yield running
    running.end()


def test_a_space_without_a_login_keeps_its_limits_whichever_way_a_guest_comes(space: Server) -> None:
    client = gradio_client.Client(space.url, verbose=False)
    for settings in ({"model.name": "owner/other"}, {"training.max_steps": 9000}, {"data.train_file": "/etc/passwd"}):
        with pytest.raises(Exception, match="guests"):
            client.predict("demo", settings, api_name="/start_run")
    assert client.predict(api_name="/list_runs") == []
    told = httpx.get(f"{space.url}/config").text
    assert all(words in told for words in ("public demo", "500 rows, 600 steps, and one run each"))
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5000}
    refused = httpx.post(f"{space.url}/v1/chat/completions", json=asked)
    assert (refused.status_code, "limited to 512 tokens per answer" in refused.text) == (400, True)
    with httpx.Client(base_url=space.url) as other:  # a browser, which is told apart by its cookie
        other.get("/")
        assert other.cookies
        assert [model["id"] for model in other.get("/v1/models").json()["data"]] == ["demo"]
        file = {"path": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}
        joined = {"data": [[file]], "fn_index": 0, "session_hash": client.session_hash}
        assert "files are not fetched" in other.post("/gradio_api/queue/join", json=joined).text
        assert other.post("/gradio_api/queue/join", json=joined | {"data": [""]}).status_code == 401  # not its page
        events = [event for event in other.get("/config").json()["dependencies"] if event["backend_fn"]]
        for queues, found in ((True, 404), (False, 200)):
            event = next(event for event in events if event["queue"] is queues and len(event["inputs"]) < 2)
            asked_past_the_queue = {"data": [""] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "own"}
            assert other.post("/gradio_api/run/predict", json=asked_past_the_queue).status_code == found
    assert "Traceback" not in space.log.read_text()
    assert "HOT_RELOAD" not in space.log.read_text()


def test_the_key_is_nothing_that_children_know(server: Server) -> None:
    for child in psutil.Process(server.process.pid).children(recursive=True):
        assert KEY not in child.environ().values()
        assert PASSWORD not in child.environ().values()
