"""A small Hugging Face Hub on loopback: knows users and repositories, takes uploads, and remembers every request.

It answers what the Hub's own library asks when a model is uploaded, and runs jobs (`fake_jobs`). Whatever is not asked
for today is answered 404.
"""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fake_jobs import Answer, Jobs

TOKEN, READER, STRANGER = "hf_writerwriterwriter1234", "hf_readerreaderreader1234", "hf_strangerstranger12345"
ANN = "hf_annannannannannannannan"
ROLES = {TOKEN: "write", READER: "read", STRANGER: "write", ANN: "write"}
NAMES = {STRANGER: "stranger", ANN: "ann"}
ORGANIZATIONS = {"acme": "write", "readers": "read", "poor": "admin"}
LARGE = 2_000  # bytes from which a file goes to the large files' store


@dataclass
class Asked:
    """One request: whether it bore a token is seen in its headers."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class FakeHub:
    """`repos` maps names to whether they are private, `files` (repository, path) to content."""

    url: str = ""
    requests: list[Asked] = field(default_factory=list)
    repos: dict[str, bool] = field(default_factory=dict)
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    jobs: Jobs = field(default_factory=lambda: Jobs(Path()))

    def answer(self, asked: Asked) -> Answer:
        """Status and JSON of an answer, or its bytes, and headers."""
        path = asked.path.partition("?")[0]
        if asked.method == "PUT" and path.startswith("/store/"):
            self.stored[path.rpartition("/")[2]] = asked.body
            return 200, {}
        account = NAMES.get(asked.token, "me")
        open_to_all = path.startswith("/xet/") or path == "/api/jobs/hardware"
        if open_to_all and (answer := self.jobs.answer(asked.method, asked.path, asked.body, account)):
            return answer
        if asked.token not in ROLES:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, self._whoami(account, ROLES[asked.token])
        if answer := self.jobs.answer(asked.method, asked.path, asked.body, account):
            return answer
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(asked)
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            return self._model(f"{owner}/{name}", rest, asked)
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._place(item) for item in _json(asked)["objects"]]}
        return 404, {"error": "Not Found"}

    def _whoami(self, name: str, role: str) -> dict[str, Any]:
        pays = self.jobs.pays
        organizations = [
            {"type": "org", "name": org, "fullname": org, "canPay": pays.get(org, True), "roleInOrg": right}
            for org, right in ORGANIZATIONS.items()
        ]
        return {
            "type": "user",
            "name": name,
            "fullname": name,
            "canPay": pays.get(name, True),
            "isPro": False,
            "orgs": organizations if name == "me" else [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
        }

    def _create(self, asked: Asked) -> tuple[int, Any]:
        wanted = _json(asked)
        name = f"{wanted['organization']}/{wanted['name']}"
        if asked.token == STRANGER:
            return 403, {
                "error": f"You don't have the rights to create a model under the namespace {wanted['organization']}"
            }
        self.repos[name] = wanted.get("visibility") == "private"
        return 200, {"url": f"{self.url}/{name}"}

    def _model(self, repo: str, rest: list[str], asked: Asked) -> tuple[int, Any]:
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if not rest:
            return 200, {"id": repo, "modelId": repo, "private": self.repos[repo], "sha": "0" * 40}
        if rest[0] == "preupload":
            kinds = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in _json(asked)["files"]
            ]
            return 200, {"files": kinds}
        if rest[0] == "commit":
            return 200, self._commit(repo, asked)
        return 404, {"error": "Not Found"}

    def _commit(self, repo: str, asked: Asked) -> dict[str, str]:
        for line in asked.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.messages.append(value["summary"])
            elif item["key"] == "file":
                self.files[repo, value["path"]] = base64.b64decode(value["content"])
            else:
                self.files[repo, value["path"]] = self.stored[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "actions": {"upload": {"href": f"{self.url}/store/{item['oid']}"}}}


def _json(asked: Asked) -> Any:
    return json.loads(asked.body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was stopped went away: nothing to tell."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A Hub that listens on loopback while the block lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, self._body(headers))
            hub.requests.append(asked)
            fault = next((fault for fault in hub.jobs.faults if fault.meets(asked.method, asked.path)), None)
            if fault is not None:
                fault.times -= 1
                if fault.after:
                    hub.answer(asked)
                if isinstance(fault.status, str):
                    time.sleep(fault.seconds)
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.give(fault.status, {"error": "Internal Error"}, {})
                return
            status, value, *more = hub.answer(asked)
            self.give(status, value, more[0] if more else {})

        def give(self, status: int, value: Any, more: dict[str, str]) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            for name, content in {"Content-Type": "application/json", **more}.items():
                self.send_header(name, content)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for method in ("GET", "POST", "PUT", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.serve)
    server = _Server(("127.0.0.1", 0), Handler)
    folder = TemporaryDirectory(prefix="fake-hub-", ignore_cleanup_errors=True)
    hub.jobs = Jobs(Path(folder.name))
    hub.jobs.url = hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.jobs.close()
        server.shutdown()
        server.server_close()
        thread.join()
        folder.cleanup()
