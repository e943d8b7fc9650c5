"""A server that speaks OpenAI's chat completions in the test's own process, and misbehaves as it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
ROWS = '[{"question": "What is said?", "answer": "%s"}]'


def completion(text: str, finish: str = "stop", tokens: tuple[int, int] | None = (100, 20)) -> Answer:
    """A chat completion as OpenAI's servers send it."""
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if tokens:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return 200, {}, json.dumps(body).encode()


def failure(status: int, message: str, **headers: str) -> Answer:
    """An error as OpenAI's servers send it."""
    return status, headers, json.dumps({"error": {"message": message}}).encode()


CLOSED: Answer = (0, {}, b"")
"""The connection is closed without an answer."""


@dataclass
class StandIn:
    """What the server was asked, and what it answers: the first of `answers` once each, then what `reply` makes of the
    prompt. `seconds` pass before each answer."""

    address: str = ""
    answers: list[Answer] = field(default_factory=list)
    reply: Callable[[str], Answer] = lambda prompt: completion(ROWS % prompt.split()[-1])
    seconds: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def openai_server() -> Iterator[StandIn]:
    """Serves on a free port of this machine."""
    stand_in, lock = StandIn(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stand_in.bodies.append(body)
                stand_in.keys.append(self.headers.get("Authorization", ""))
                answer = stand_in.answers.pop(0) if stand_in.answers else None
            time.sleep(stand_in.seconds)
            status, headers, content = answer or stand_in.reply(body["messages"][0]["content"])
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    stand_in.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
