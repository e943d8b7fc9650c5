"""Whether the page serves many visitors at once: errors, how long its actions take, and what the server's memory does.

    python -m benchmarks.visitors [--seconds 180] [--lookers 10] [--uploaders 5] [--chatters 5]

Starts a server of its own with a login for each visitor. Lookers open the page and follow the runs as its timer does,
once a second; uploaders bring a file and open the page again; chatters talk to the built-in model, which answers one at
a time. Prints one JSON object last. Everything goes over HTTP as a browser sends it.
"""

import argparse
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0
PASSWORD = "benchmark"


class Visitor:
    """One who has the page open, as the server sees it: its events by what triggers them, fired over HTTP."""

    def __init__(self, url: str, name: str = "", password: str = "") -> None:
        self.http = httpx.Client(base_url=url, timeout=PATIENCE)
        self.session = secrets.token_hex(6)
        if password:
            self.http.post("/login", data={"username": name, "password": password}).raise_for_status()
        config = self.http.get("/config").raise_for_status().json()
        self.events: list[dict[str, Any]] = config["dependencies"]
        self._props: dict[int, dict[str, Any]] = {part["id"]: part["props"] for part in config["components"]}

    def triggered(self, event: str, **props: str) -> list[int]:
        """The numbers of what is triggered by an event ("load", "tick", "click") of a component with these props."""
        numbers = []
        for number, entry in enumerate(self.events):
            for target, name in entry["targets"]:
                known = self._props.get(target, {})
                if name == event and all(known.get(key) == value for key, value in props.items()):
                    numbers.append(number)
                    break
        return numbers

    def painting(self, event: str, elem_id: str) -> list[int]:
        """Of those triggered by an event, the ones that write to the component of that id."""
        return [
            number
            for number in self.triggered(event)
            if any(self._props.get(part, {}).get("elem_id") == elem_id for part in self.events[number]["outputs"])
        ]

    def opening(self) -> list[int]:
        """What the server is asked when the page opens."""
        return [number for number in self.triggered("load") if self.events[number]["backend_fn"]]

    def named(self, name: str) -> int:
        """The number of an endpoint for programs."""
        return next(number for number, entry in enumerate(self.events) if entry["api_name"] == name)

    def shown(self, number: int) -> list[Any]:
        """What an event is given by a page on which nothing was changed; where a script gives it, a name of its own."""
        if self.events[number]["js"]:
            return [self.session for _ in self.events[number]["inputs"]]
        return [self._props.get(part, {}).get("value") for part in self.events[number]["inputs"]]

    def fire(self, number: int, data: Sequence[Any] | None = None, event_data: Any = None) -> list[dict[str, Any]]:
        """All that the server says of an event until it is over. Raises where the transport fails."""
        sent = {
            "data": self.shown(number) if data is None else list(data),
            "fn_index": self.events[number]["id"],
            "session_hash": self.session,
            "event_data": event_data,
            "trigger_id": None,
        }
        event = self.http.post("/gradio_api/queue/join", json=sent).raise_for_status().json()["event_id"]
        messages = []
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            lines.raise_for_status()
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("event_id") == event:
                    messages.append(message)
                    if message["msg"] == "process_completed":
                        return messages
                elif message.get("msg") in ("close_stream", "unexpected_error"):
                    break
        raise ConnectionError(f"The stream ended before event {number} did: {messages}")

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """A file on its way to the page, as an event takes it."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)}).raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def failed(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether an event ended in an error."""
    return not messages[-1].get("success", False)


@dataclass
class Tally:
    """What the visitors met. Seconds by kind of action; errors as words."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, kind: str, act: Callable[[], list[dict[str, Any]]]) -> None:
        """Does one thing and keeps how long it took, or what went wrong."""
        begun = time.monotonic()
        wrong = ""
        try:
            messages = act()
            wrong = f"{kind}: {messages[-1]['output']}" if failed(messages) else ""
        except (httpx.HTTPError, ConnectionError, KeyError) as error:
            wrong = f"{kind}: {error!r}"
        with self.lock:
            self.seconds.setdefault(kind, []).append(time.monotonic() - begun)
            if wrong:
                self.errors.append(wrong[:300])


def look(visitor: Visitor, tally: Tally, end: float) -> None:
    """Opens the page, then follows the runs as its timer does."""
    for number in visitor.opening():
        tally.timed("open", partial(visitor.fire, number))
    tick = visitor.painting("tick", "run-list")[0]
    begun = 0.0
    while begun < end:
        begun = time.monotonic()
        tally.timed("tick", partial(visitor.fire, tick))
        time.sleep(max(0.0, 1.0 - (time.monotonic() - begun)))


def bring(visitor: Visitor, tally: Tally, end: float) -> None:
    """Uploads files of some hundred rows, one after the other, as a person would."""
    kept = visitor.triggered("upload", elem_id="data-upload")[0]
    row = json.dumps({"question": "What is it? " * 20, "answer": "It is this. " * 20}) + "\n"
    number = 0
    while time.monotonic() < end:
        number += 1
        content = (row * 300).encode() + b"\n" * number  # another file each time
        tally.timed("upload", partial(bring_one, visitor, kept, content))
        time.sleep(2.0)


def bring_one(visitor: Visitor, kept: int, content: bytes) -> list[dict[str, Any]]:
    return visitor.fire(kept, [[visitor.upload("rows.jsonl", content)]])


def talk(visitor: Visitor, tally: Tally, end: float) -> None:
    """Asks the built-in model; all who ask wait for each other."""
    chat = visitor.named("chat")
    while time.monotonic() < end:
        asked = ["Where is the library?", "demo", None, None, {"max_new_tokens": 16}]
        tally.timed("answer", partial(visitor.fire, chat, asked))
        time.sleep(1.0)


PARTS: dict[str, Callable[[Visitor, Tally, float], None]] = {"lookers": look, "uploaders": bring, "chatters": talk}


@contextmanager
def served(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own with a login for each name, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = ",".join(f"{name}:{PASSWORD}" for name in names)
    command = [sys.executable, "app.py", "--port", str(port), "--workspace", str(folder / "workspace")]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "LORA_STUDIO_USERS": users}, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(url, timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None:
                    raise ConnectionError((folder / "server.log").read_text()) from None
                time.sleep(0.2)
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


def measure(seconds: float, people: dict[str, int]) -> dict[str, Any]:
    """Lets so many of each kind visit a server of its own for so long, and says what came of it."""
    names = [(kind, f"{kind}-{number}") for kind, count in people.items() for number in range(count)]
    everybody = ["owner", *(name for _, name in names)]
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), everybody) as (url, server):
        visitors = [(kind, Visitor(url, name, PASSWORD)) for kind, name in names]
        return visit(visitors, server, seconds) | {"people": people, "seconds": seconds}


def visit(visitors: Sequence[tuple[str, Visitor]], server: psutil.Process, seconds: float) -> dict[str, Any]:
    """Lets visitors do what is their kind's, all at once, and says what came of it."""
    tally, end = Tally(), time.monotonic() + seconds
    threads = [threading.Thread(target=PARTS[kind], args=(visitor, tally, end)) for kind, visitor in visitors]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(round(server.memory_info().rss / 1e6, 1))
        time.sleep(max(seconds / 36, 0.2))
    return summary(tally, memory)


def summary(tally: Tally, memory: Sequence[float]) -> dict[str, Any]:
    """The figures. Page actions are all but the model's answers. Growth leaves out the first third: caches fill."""
    page = [second for kind, taken in tally.seconds.items() if kind != "answer" for second in taken]
    third = max(1, len(memory) // 3)
    return {
        "errors": len(tally.errors),
        "first_errors": tally.errors[:5],
        "page_actions": len(page),
        "page_p95_seconds": percentile(page, 95),
        "by_kind": {
            kind: {
                "count": len(taken),
                "median_seconds": round(statistics.median(taken), 3),
                "p95_seconds": percentile(taken, 95),
            }
            for kind, taken in sorted(tally.seconds.items())
        },
        "memory_mb": list(memory),
        "memory_growth_mb": round(statistics.median(memory[-third:]) - statistics.median(memory[third : 2 * third]), 1)
        if len(memory) >= 3
        else 0.0,
    }


def percentile(values: Sequence[float], share: int) -> float:
    """The value that so many of a hundred do not exceed."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 3) if ordered else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0)
    for kind, count in (("lookers", 10), ("uploaders", 5), ("chatters", 5)):
        parser.add_argument(f"--{kind}", type=int, default=count)
    args = parser.parse_args()
    results = measure(args.seconds, {kind: vars(args)[kind] for kind in PARTS})
    for kind, figures in results["by_kind"].items():
        print(
            f"{kind:8} {figures['count']:5} times, median {figures['median_seconds']} s, p95 {figures['p95_seconds']} s"
        )
    print(f"page actions: p95 {results['page_p95_seconds']} s; errors: {results['errors']} {results['first_errors']}")
    print(f"server's memory, MB: {results['memory_mb']}; growth {results['memory_growth_mb']}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
