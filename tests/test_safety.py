"""A running server with a login for each visitor: what they reach of each other and of the machine, and what leaves it.

The server and its children run with every connection beyond this machine refused and written down, and with secrets in
the environment that must turn up nowhere.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.visitors import Visitor, failed, visit
from lora_studio.access.accounts import API_KEY, USERS
from lora_studio.access.serving import MAX_UPLOAD
from lora_studio.jobs.launchers.local import kill
from lora_studio.workspace import RunFolder, Workspace
from tests.serving import Server

pytestmark = pytest.mark.slow
MARK = "s3cret"
PASSWORDS = {name: f"{MARK}-{name}" for name in ("anna", "bert", "carl")}
TITLE = "bert's treasure"
GUARD = """
import os, socket, sys
def noted(what):
    with open(os.environ["REFUSED_CONNECTIONS"], "a") as file:
        file.write(f"{what} {sys.orig_argv}\\n")
def near(host):
    return host in (None, "", b"", "localhost", "::1", "0.0.0.0", "::") or str(host).startswith("127.")
def guarded(method):
    def connect(self, address):
        if isinstance(address, tuple) and not near(address[0]):
            noted(address)
            raise OSError("refused by the test")
        return method(self, address)
    return connect
socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
looked_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    if not near(host):
        noted(host)
        raise socket.gaierror("refused by the test")
    return looked_up(host, *rest, **named)
socket.getaddrinfo = getaddrinfo
noted("on guard")
"""


class World:
    """The server, its visitors, and bert's run."""

    def __init__(self, folder: Path) -> None:
        guard = folder / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(GUARD)
        self.refused = folder / "refused"
        self.uploads = folder / "gradio"
        self.workspace = Workspace(folder / "workspace")
        self.server = Server(
            self.workspace.root,
            **{
                USERS: ",".join(f"{name}:{password}" for name, password in PASSWORDS.items()),
                API_KEY: f"{MARK}-key-of-some-length",
                MAX_UPLOAD: "0.001",
                "HF_TOKEN": f"hf_{MARK}",
                "HF_HUB_OFFLINE": "0",
                "PYTHONPATH": str(guard),
                "REFUSED_CONNECTIONS": str(self.refused),
                "GRADIO_TEMP_DIR": str(self.uploads),
            },
        )
        self.visitors = {name: Visitor(self.server.url, name, word) for name, word in PASSWORDS.items()}
        self.commands: set[str] = set()
        self.environments: list[dict[str, str]] = []

    def ask(self, name: str, endpoint: str, *given: Any) -> tuple[bool, str]:
        """Whether an endpoint for programs did what a visitor asked, and all that it said."""
        visitor = self.visitors[name]
        said = visitor.fire(visitor.named(endpoint), given)
        return not failed(said), json.dumps(said)

    def train(self) -> RunFolder:
        """Bert's run, from start to end, while the processes that belong to it are looked at."""
        settings = {"title": TITLE, "training.max_steps": 1, "data.max_samples": 8, "data.max_eval_samples": 2}
        started, words = self.ask("bert", "start_run", "demo", settings, True)
        assert started, words
        (run,) = self.workspace.runs()
        end = time.monotonic() + 400
        while not run.complete.exists():
            assert time.monotonic() < end, run.log.read_text()
            self._look_at_processes()
            time.sleep(0.3)
        return run

    def _look_at_processes(self) -> None:
        for child in psutil.Process(self.server.process.pid).children(recursive=True):
            try:
                self.commands.add(" ".join(child.cmdline()))
                self.environments.append(child.environ())
            except psutil.Error:
                continue  # it ended meanwhile

    def painted(self, name: str) -> str:
        """All that the page shows a visitor when it is opened and when its timers tick, as JSON."""
        visitor = self.visitors[name]
        ticks = [number for number in visitor.triggered("tick") if visitor.events[number]["backend_fn"]]
        asked = [*visitor.opening(), *ticks, *ticks]
        return json.dumps([visitor.fire(number) for number in asked])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("safety"))
    yield found
    found.server.end()
    for run in found.workspace.runs():
        kill(run)


@pytest.fixture(scope="module")
def run(world: World) -> RunFolder:
    return world.train()


def test_each_visitor_sees_their_own_run_and_the_owner_all(world: World, run: RunFolder) -> None:
    for name, seen in (("bert", True), ("carl", False), ("anna", True)):
        assert (run.id in world.ask(name, "list_runs", "")[1]) is seen
        for endpoint in ("run_status", "metrics", "stop_run"):
            assert world.ask(name, endpoint, run.id)[0] is seen
    for name, seen in (("bert", True), ("carl", False), ("anna", True)):
        shown = world.painted(name)
        assert (run.id in shown) is seen
        assert ("treasure" in shown) is seen
    models = httpx.get(f"{world.server.url}/v1/models", cookies=world.visitors["carl"].http.cookies).json()
    assert run.id not in json.dumps(models)


def test_an_adapter_answers_its_maker_and_nobody_else(world: World, run: RunFolder) -> None:
    answered, words = world.ask("bert", "chat", "Who are you?", run.id, None, None, {"max_new_tokens": 4})
    assert answered, words
    for name in (run.id, str(run.adapter)):
        refused, _ = world.ask("carl", "chat", "Who are you?", name, None, None, {"max_new_tokens": 4})
        assert not refused
    asked = {"model": run.id, "messages": [{"role": "user", "content": "Hi"}]}
    carl = world.visitors["carl"].http.cookies
    assert httpx.post(f"{world.server.url}/v1/chat/completions", json=asked, cookies=carl).status_code in (400, 404)


def test_a_file_is_looked_at_by_whoever_uploaded_it(world: World) -> None:
    bert, carl = world.visitors["bert"], world.visitors["carl"]
    kept = bert.triggered("upload", elem_id="data-upload")[0]
    row = json.dumps({"question": "Where?", "answer": "In bert's garden."}) + "\n"
    assert not failed(bert.fire(kept, [[bert.upload("notes.jsonl", row.encode() * 20)]]))
    (file,) = (world.workspace.root / "users" / "bert" / "uploads").iterdir()
    sent = bert.upload("more.jsonl", row.encode())["path"]
    for visitor, found in ((bert, 200), (carl, 403)):
        assert visitor.http.get(f"/gradio_api/file={sent}").status_code == found
    look = bert.triggered("click", value="Analyze dataset")[0]
    asked = bert.shown(look)
    for visitor, name, seen in ((bert, str(file), True), (carl, str(file), False), (carl, "/etc/passwd", False)):
        said = json.dumps(visitor.fire(look, [name, *asked[1:]]))
        assert ("garden" in said) is seen
        assert ("outside the folders that visitors may use" in said) is not seen
    assert "notes.jsonl" not in world.painted("carl")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "{workspace}/queue.json", "{adapter}"])
def test_the_server_hands_out_no_file_that_was_not_made_for_a_visitor(world: World, run: RunFolder, path: str) -> None:
    wanted = path.format(workspace=world.workspace.root, adapter=run.adapter / "adapter_config.json")
    carl = world.visitors["carl"]
    for place in (
        "gradio_api/file=",
        "gradio_api/file/",
        "file=",
        "static/",
        "assets/",
        "theme.css?",
        "gradio_api/stream/",
    ):
        answer = carl.http.get(f"/{place}{wanted}")
        assert answer.status_code >= 400 or "root:" not in answer.text
        assert answer.status_code != 200 or "peft_type" not in answer.text
    forged = {"path": wanted, "orig_name": "x.jsonl", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        carl.fire(carl.triggered("upload", elem_id="data-upload")[0], [[forged]])


def test_an_upload_over_the_limit_is_refused_in_words(world: World) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        world.visitors["carl"].upload("big.jsonl", b"x" * 1_100_000)
    assert refused.value.response.status_code == 413
    assert "size" in refused.value.response.text.lower()


def test_the_page_of_another_site_learns_nothing_of_the_server(world: World) -> None:
    asked = {
        "origin": "http://evil.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, x-forwarded-host",
    }
    cookies = world.visitors["carl"].http.cookies
    for method, place in (("OPTIONS", "gradio_api/queue/join"), ("GET", "v1/models")):
        answer = httpx.request(method, f"{world.server.url}/{place}", headers=asked, cookies=cookies)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_many_visitors_at_once_meet_no_error(world: World) -> None:
    kinds = ["lookers"] * 3 + ["uploaders"] * 2 + ["chatters"] * 2
    people = [(kind, list(PASSWORDS)[number % 3]) for number, kind in enumerate(kinds)]
    visitors = [(kind, Visitor(world.server.url, name, PASSWORDS[name])) for kind, name in people]
    found = visit(visitors, psutil.Process(world.server.process.pid), seconds=3.0)
    assert found["first_errors"] == []
    assert set(found["by_kind"]) == {"open", "tick", "upload", "answer"}
    assert found["memory_mb"]


def test_nothing_was_sent_beyond_this_machine(world: World, run: RunFolder) -> None:
    said = world.refused.read_text().splitlines()
    programs = " ".join(line for line in said if line.startswith("on guard"))
    assert all(name in programs for name in ("app.py", "engine.train.worker", "engine.chat.session"))
    assert [line for line in said if not line.startswith("on guard")] == []


def test_secrets_are_in_no_file_no_command_and_no_childs_reach(world: World, run: RunFolder) -> None:
    places = [world.workspace.root, world.uploads, world.server.log, world.refused]
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    assert run.log in files
    assert [path for path in files if MARK.encode() in path.read_bytes()] == []
    assert any("engine.train.worker" in command for command in world.commands)
    assert [command for command in world.commands if MARK in command] == []
    children = [found for found in world.environments if found]
    assert children
    assert not [name for found in children for name in (USERS, API_KEY) if name in found]
    assert os.environ.get("HF_TOKEN") != f"hf_{MARK}"
