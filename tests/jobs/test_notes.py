"""Notes to a webhook: their shapes, that each end is told once, and that the address stays a secret."""

import json
import logging
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lora_studio.config.parsing import to_yaml
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, Finished, Reason, RunStarted, RunState, to_line
from lora_studio.jobs.kinds import Membership
from lora_studio.jobs.notes import (
    Note,
    Webhook,
    body_of,
    deliver,
    note_of,
    read_webhook,
    remove_webhook,
    save_webhook,
    send_test,
)
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Policy, RunFolder, Workspace

SECRET = "T0S3CR3T"


class Receiver:
    """A server that keeps what it is sent and answers with `codes`, one after another, then with 200."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.codes: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.paths.append(self.path)
                receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                code = receiver.codes.pop(0) if receiver.codes else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.server.shutdown()
    running.server.server_close()


def ended(workspace: Workspace, title: str, state: str = "done", group: Membership | None = None) -> RunFolder:
    """A run that has just ended."""
    facts = {"created": time.time() - 60, "group": group.as_facts()} if group else {"created": time.time() - 60}
    run = workspace.create_run(title, to_yaml(Config()), facts)
    now = time.time()
    reason = Reason.COMPLETED if state == "done" else Reason.OUT_OF_MEMORY
    events = [
        RunStarted(now - 9, 1, "cpu", "float32"),
        Evaluated(now - 1, 4, 1.0, 0.25),
        Finished(now, state, 4, reason=reason),
    ]
    run.events.write_text("".join(map(to_line, events)))
    return run


def look(workspace: Workspace) -> None:
    """A supervisor that looks once and waits until its notes were sent."""
    supervisor = Supervisor(workspace, tick_seconds=60)
    supervisor.runs()
    for follower in supervisor._followers.values():
        follower.read()
    supervisor.tick()
    supervisor._notes.look(list(supervisor._followers.values()), set())
    supervisor._notes.close()


def test_slack_discord_and_others_get_the_shape_that_they_take() -> None:
    note = Note("Run a<b: finished", "Loss 0.1 & less", {"kind": "train"})
    slack = Webhook("https://hooks.slack.com/services/a/b/c", "auto", 0.0)
    assert body_of(slack, note) == {"text": "Run a&lt;b: finished\nLoss 0.1 &amp; less"}
    discord = body_of(Webhook("https://discord.com/api/webhooks/1/x", "auto", 0.0), note)
    assert discord == {"content": "Run a<b: finished\nLoss 0.1 & less", "allowed_mentions": {"parse": []}}
    own = Webhook("https://example.org/hook", "auto", 0.0)
    assert body_of(own, note) == {"title": "Run a<b: finished", "text": "Loss 0.1 & less", "kind": "train"}
    assert Webhook("https://example.org/hook", "slack", 0.0).shape == "slack"
    assert Webhook("https://discord.com.example.org/api/webhooks/1", "auto", 0.0).shape == "json"


def test_the_address_is_in_one_file_that_its_owner_alone_reads(workspace: Workspace, receiver: Receiver) -> None:
    webhook = save_webhook(workspace, f" {receiver.url}\n")
    assert webhook.host == "127.0.0.1"
    file = workspace.root / "webhook.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ended(workspace, "first")
    look(workspace)
    holding = [
        path for path in workspace.root.rglob("*") if path.is_file() and SECRET in path.read_text(errors="replace")
    ]
    assert holding == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    remove_webhook(workspace)
    assert not file.exists()


def test_each_end_is_told_once_by_whoever_looks_and_none_from_before(workspace: Workspace, receiver: Receiver) -> None:
    ended(workspace, "before the webhook")
    time.sleep(0.01)
    save_webhook(workspace, receiver.url)
    ended(workspace, "good")
    ended(workspace, "bad", "failed")
    for _ in range(2):
        look(workspace)
    titles = sorted(str(body["title"]) for body in receiver.bodies)
    assert titles == ["Run bad: failed", "Run good: finished"]
    told = next(body for body in receiver.bodies if body["event"] == "done")
    assert (told["kind"], told["validation_loss"], told["name"]) == ("train", 0.25, "good")
    assert "Out of memory." in str(next(body["text"] for body in receiver.bodies if body["event"] == "failed"))


def test_a_group_is_told_of_once_when_its_last_run_ended(workspace: Workspace, receiver: Receiver) -> None:
    save_webhook(workspace, receiver.url)
    group = Membership("20260101-120000-abcd", "rates", {"lora.r": 8})
    for title in ("rates · r 8", "rates · r 16"):
        ended(workspace, title, group=group)
    look(workspace)
    look(workspace)
    assert [(body["title"], body["kind"]) for body in receiver.bodies] == [("Group rates: ended", "group")]
    assert "2 finished. Best: rates" in str(receiver.bodies[0]["text"])


def test_a_failed_delivery_is_tried_again_and_said_once(
    workspace: Workspace, receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.jobs.notes.PAUSE", 0.01)
    webhook = Webhook(receiver.url, "json", 0.0)
    receiver.codes = [503]
    assert deliver(webhook, Note("a", "b", {}), pause=0.01) == ""
    assert len(receiver.bodies) == 2
    save_webhook(workspace, receiver.url)
    receiver.codes = [404, 404]
    with caplog.at_level(logging.WARNING):
        for title in ("one", "two"):
            ended(workspace, title)
            look(workspace)
    assert [record.getMessage() for record in caplog.records if "note" in record.getMessage()] == [
        "A note could not be sent to 127.0.0.1: it answered with HTTP 404."
    ]
    kept = read_webhook(workspace)
    assert kept is not None
    assert kept.error == "it answered with HTTP 404."
    assert send_test(workspace) == "The test arrived at 127.0.0.1."
    assert read_webhook(workspace) == Webhook(receiver.url, "auto", kept.since)


def test_no_redirect_is_followed_and_no_words_hold_the_address(workspace: Workspace, receiver: Receiver) -> None:
    receiver.codes = [302]
    save_webhook(workspace, receiver.url)
    with pytest.raises(StudioError) as refused:
        send_test(workspace)
    assert receiver.paths == [f"/{SECRET}"]
    assert "HTTP 302" in str(refused.value)
    assert SECRET not in str(refused.value)
    save_webhook(workspace, f"http://127.0.0.1:9/{SECRET}")
    with pytest.raises(StudioError, match="did not arrive at") as unreachable:
        send_test(workspace)
    assert SECRET not in str(unreachable.value)


@pytest.mark.parametrize(
    "url", ["", "hooks.slack.com/x", "file:///etc/passwd", "https://", "https://a b", "http://[::1"]
)
def test_what_is_no_address_is_refused_without_repeating_it(workspace: Workspace, url: str) -> None:
    with pytest.raises(StudioError, match="not the address of a webhook"):
        save_webhook(workspace, url)
    assert read_webhook(workspace) is None


def test_only_the_owner_sets_tests_or_removes_the_webhook(workspace: Workspace) -> None:
    class Visitor(Policy):
        is_admin = False

    visitor = workspace.with_policy(Visitor)
    for act in (
        lambda: save_webhook(visitor, "https://example.org"),
        lambda: remove_webhook(visitor),
        lambda: send_test(visitor),
    ):
        with pytest.raises(StudioError, match="Only the owner"):
            act()


def test_a_note_says_what_ended_how_and_with_which_loss() -> None:
    state = RunState(id="1", title="pirate", state="done", reason=Reason.COMPLETED, seconds=75.0)
    state.evaluations.append(Evaluated(1.0, 4, 1.0, 0.5))
    note = note_of(state)
    assert (note.title, note.text) == ("Run pirate: finished", "Validation loss 0.5, after 1 min 15 s.")
