"""A download as a phase in bytes, counted by the bars of the Hub's library; the Hub here is this machine."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import hf_hub_download

from lora_studio.engine.chat.session import Calls
from lora_studio.engine.models.source import Download
from lora_studio.engine.runtime import EventLog
from lora_studio.jobs.events import PhaseStarted, Progress, from_line

WEIGHTS = bytes(3_000_000)


class Hub(BaseHTTPRequestHandler):
    """Serves one file of one model, as the Hub does."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(WEIGHTS).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(WEIGHTS)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(WEIGHTS)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the terminal."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def told(path: Path) -> list[PhaseStarted | Progress]:
    found = [from_line(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [event for event in found if isinstance(event, PhaseStarted | Progress)]


def test_a_file_from_the_hub_is_a_phase_that_counts_its_bytes(hub: str, tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    bars = Download(log).bar_class()
    file = hf_hub_download("some/model", "model.safetensors", endpoint=hub, cache_dir=tmp_path / "hub", tqdm_class=bars)
    assert Path(file).read_bytes() == WEIGHTS
    events = told(log.path)
    assert (events[0], events[-1]) == (
        PhaseStarted(events[0].time, "download", len(WEIGHTS), "bytes"),
        PhaseStarted(events[-1].time, "model"),
    )
    assert Progress(events[-2].time, len(WEIGHTS), len(WEIGHTS)) == events[-2]


def test_several_files_add_up_and_what_is_counted_twice_or_small_does_not(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    bars = Download(log).bar_class()
    first, second = (bars(total=total, unit="B", desc="Reconstructing") for total in (2_000_000, 4_000_000))
    small = bars(total=5_000, unit="B", desc="config.json")
    network = bars(total=6_000_000, unit="B", desc="Downloading bytes")
    files = bars(total=3, desc="Fetching 3 files")
    small.update(5_000)
    first.update(500_000)
    for bar, amount in ((network, 6_000_000), (second, 4_000_000), (files, 3), (first, 1_500_000)):
        bar.update(amount)
    events = told(log.path)
    assert events[0] == PhaseStarted(events[0].time, "download", 2_000_000, "bytes")  # the second is not known yet
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.done, last.total) == (6_000_000, 6_000_000)
    assert events[-1] == PhaseStarted(events[-1].time, "model")


def test_where_there_is_no_log_a_function_is_told_the_phases_and_bytes() -> None:
    calls: list[tuple[str, int, int]] = []
    bar = Download(Calls(lambda *told: calls.append(told)), "base").bar_class()(total=2_000_000, unit="B", desc="x")
    bar.update(2_000_000)
    assert calls == [
        ("download", 0, 2_000_000),
        ("download", 0, 2_000_000),
        ("download", 2_000_000, 2_000_000),
        ("base", 0, 0),
    ]


def test_a_model_that_is_here_already_has_no_download(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    bar = Download(log).bar_class()(total=2_000_000, initial=2_000_000, unit="B", desc="model.safetensors")
    bar.update(0)
    assert not told(log.path)
