"""Notes to a webhook when a job ends: a run, a group, an evaluation, an export. Slack, Discord, or plain JSON.

The address is a secret: it is in one file that its owner alone can read, and only its host is ever shown. Nothing but
that address is asked, and redirects are not followed. Whoever looks after a workspace sends; a marker in the job's
folder keeps two of them from sending the same.
"""

import json
import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, finite, fits, read_object
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS, STATES, TRAIN, Membership, ending_words, membership
from lora_studio.jobs.watcher import Follower
from lora_studio.units import duration, figure
from lora_studio.workspace import Workspace, write_atomically

_log = logging.getLogger(__name__)
FORMATS: Mapping[str, str] = {
    "auto": "Detect by address",
    "slack": "Slack",
    "discord": "Discord",
    "json": "JSON",
}
TIMEOUT, PAUSE, TRIES = 8.0, 2.0, 2
"""Seconds for an answer, seconds before the second try, and how often a note is sent at most."""
MAX_TEXT = 1900
"""Characters of a message: Discord takes 2,000."""
_FIELDS = {"url": (str,), "format": (str,), "since": (int, float), "error": (str,)}


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where notes go, and since when; `error` is what went wrong the last time, "" for nothing."""

    url: str
    format: str
    since: float
    error: str = ""

    @property
    def host(self) -> str:
        """All of the address that is ever shown."""
        return urlsplit(self.url).hostname or ""

    @property
    def shape(self) -> str:
        """The format that the address takes: slack, discord or json."""
        if self.format != "auto":
            return self.format
        if self.host == "hooks.slack.com":
            return "slack"
        on_discord = self.host in ("discord.com", "discordapp.com", "canary.discord.com", "ptb.discord.com")
        return "discord" if on_discord and "/webhooks/" in urlsplit(self.url).path else "json"


def _path(workspace: Workspace) -> Path:
    return workspace.root / "webhook.json"


def read_webhook(workspace: Workspace) -> Webhook | None:
    """The webhook of a workspace; None where there is none, or where its file is damaged."""
    try:
        values = read_object(_path(workspace))
        return Webhook(**values) if fits(values, _FIELDS) and values.keys() == _FIELDS.keys() else None
    except (OSError, ValueError):
        return None


def _write(workspace: Workspace, webhook: Webhook) -> None:
    write_atomically(_path(workspace), json.dumps(asdict(webhook)))  # made with mode 0600


def _check_owner(workspace: Workspace) -> None:
    if not workspace.policy.is_admin:
        raise StudioError("Only the owner can set the webhook.", "Use Notify me for notifications of your browser.")


def save_webhook(workspace: Workspace, url: str, format: str = "auto") -> Webhook:
    """Sends notes of jobs that end from now on to an address. Raises `StudioError` for what is no address."""
    _check_owner(workspace)
    url = url.strip()
    if format not in FORMATS:
        raise StudioError(f"{format!r} is not a format of notes.", f"Formats are: {', '.join(FORMATS)}.")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or any(sign.isspace() or not sign.isprintable() for sign in url):
        raise StudioError("This is not the address of a webhook.", "It begins with https:// and is a single word.")
    webhook = Webhook(url, format, time.time())
    _write(workspace, webhook)
    return webhook


def remove_webhook(workspace: Workspace) -> None:
    """Sends no more notes."""
    _check_owner(workspace)
    _path(workspace).unlink(missing_ok=True)


def send_test(workspace: Workspace) -> str:
    """Sends a note now, and says where. Raises `StudioError` where it did not arrive."""
    _check_owner(workspace)
    webhook = read_webhook(workspace)
    if webhook is None:
        raise StudioError("No webhook is set.", "Save its address first.")
    error = deliver(webhook, Note("Test", "This is a test from LoRA Studio.", {"event": "test"}), tries=1)
    _write(workspace, replace(webhook, error=error))
    if error:
        raise StudioError(f"The test did not arrive at {webhook.host}: {error}", "Check the address and its format.")
    return f"The test arrived at {webhook.host}."


@dataclass(frozen=True, slots=True)
class Note:
    """What is told: a title, a sentence, and the values of the JSON format."""

    title: str
    text: str
    values: JsonObject


def body_of(webhook: Webhook, note: Note) -> JsonObject:
    """The message as the address takes it."""
    text = f"{note.title}\n{note.text}".strip()[:MAX_TEXT]
    if webhook.shape == "slack":
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if webhook.shape == "discord":
        return {"content": text, "allowed_mentions": {"parse": []}}
    return {"title": note.title, "text": note.text, **finite(note.values)}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def deliver(webhook: Webhook, note: Note, tries: int = TRIES, pause: float = PAUSE) -> str:
    """Sends a note; why it did not arrive, "" where it did. The words never hold the address."""
    data = json.dumps(body_of(webhook, note)).encode("utf-8")
    headers = {"Content-Type": "application/json", "User-Agent": "LoRA-Studio"}
    opener = urllib.request.build_opener(_NoRedirect)
    error = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(pause)
        try:
            with opener.open(urllib.request.Request(webhook.url, data, headers), timeout=TIMEOUT):
                return ""
        except urllib.error.HTTPError as refused:
            error = f"it answered with HTTP {refused.code}."
            if refused.code < 500 and refused.code != 429:
                return error
        except (OSError, ValueError) as failed:
            reason = getattr(failed, "reason", None)
            words = getattr(reason, "strerror", None) or type(reason or failed).__name__
            error = "it did not answer in time." if isinstance(reason or failed, TimeoutError) else f"{words}."
    return error


def note_of(state: RunState) -> Note:
    """The note of a job that ended."""
    noun = KINDS[state.kind].noun
    message, hint = ending_words(state)
    facts = []
    if state.evaluations:
        facts.append(f"validation loss {figure(state.evaluations[-1].loss)}")
    elif state.steps:
        facts.append(f"training loss {figure(state.steps[-1].loss)}")
    if state.seconds:
        facts.append(f"after {duration(state.seconds)}")
    text = " ".join(filter(None, (message, hint, f"{', '.join(facts)}.".capitalize() if facts else "")))
    values = {
        "event": state.state,
        "kind": state.kind,
        "id": state.id,
        "name": state.title,
        "reason": state.reason,
        "message": message,
        "seconds": state.seconds,
        "validation_loss": state.evaluations[-1].loss if state.evaluations else None,
    }
    return Note(f"{noun.capitalize()} {state.title or state.id}: {STATES[state.state].lower()}", text, values)


def note_of_group(group: Membership, states: Sequence[RunState]) -> Note:
    """The note of a group whose last run ended."""
    counts = {words: sum(state.state == name for state in states) for name, words in STATES.items()}
    numbers = ", ".join(f"{number} {words.lower()}" for words, number in counts.items() if number)
    measured = [(state.best.loss, state.title) for state in states if state.best is not None]
    best = min(measured, default=None)
    text = f"{numbers}." + (f" Best: {best[1]}, validation loss {figure(best[0])}." if best else "")
    failed = all(state.state == "failed" for state in states)
    values = {
        "event": "failed" if failed else "done",
        "kind": "group",
        "id": group.id,
        "name": group.name,
        "runs": [state.id for state in states],
        "best": best[1] if best else None,
    }
    return Note(f"Group {group.name}: {'failed' if failed else 'ended'}", text, values)


class Notes:
    """Sends the notes of one workspace in a thread of its own, so that nobody waits for an address."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._told: set[tuple[str, float]] = set()
        self._waiting: queue.Queue[Note] = queue.Queue()
        self._thread: threading.Thread | None = None

    def look(self, followers: Sequence[Follower], queued: set[str]) -> None:
        """One look at all jobs: those that ended since the webhook was set are told of, each once."""
        webhook = read_webhook(self._workspace)
        if webhook is None:
            return
        for follower in followers:
            if not follower.known or follower.alive or follower.folder.id in queued:
                continue
            state = follower.in_short
            key = (state.id, state.finished or 0.0)
            if not state.final or key[1] < webhook.since or key in self._told:
                continue
            group = membership(follower.folder.read_facts()) if follower.kind is TRAIN else None
            note = note_of(state) if group is None else self._of_group(group, followers, queued)
            if note is not None:
                self._told.add(key)
                if _mark(follower.folder.path, f".noted-{key[1]:.3f}") and note.title:
                    self._send(note)

    def _of_group(self, group: Membership, followers: Sequence[Follower], queued: set[str]) -> Note | None:
        """The note of a group, from its oldest run alone; None while runs go on, without a title for other runs."""
        runs = [each for each in followers if each.kind is TRAIN and _group_of(each) == group.id]
        if any(each.alive or each.folder.id in queued or not each.in_short.final for each in runs):
            return None
        first = min(runs, key=lambda each: each.folder.id)
        last = max(each.in_short.finished or 0.0 for each in runs)
        told = _mark(first.folder.path, f".noted-group-{last:.3f}")
        return note_of_group(group, [each.in_short for each in runs]) if told else Note("", "", {})

    def _send(self, note: Note) -> None:
        self._waiting.put(note)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="notes", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            try:
                note = self._waiting.get(timeout=0.2)
            except queue.Empty:
                return
            webhook = read_webhook(self._workspace)
            if webhook is not None:
                error = deliver(webhook, note)
                if error and error != webhook.error:
                    _log.warning("A note could not be sent to %s: %s", webhook.host, error)
                if error != webhook.error and read_webhook(self._workspace) == webhook:
                    _write(self._workspace, replace(webhook, error=error))

    def close(self, seconds: float = TRIES * (TIMEOUT + PAUSE)) -> None:
        """Waits until what is to be sent was sent, but not longer than that."""
        if self._thread is not None:
            self._thread.join(seconds)


def _group_of(follower: Follower) -> str:
    group = membership(follower.folder.read_facts())
    return group.id if group else ""


def _mark(folder: Path, name: str) -> bool:
    """Whether nobody has told of this end yet; from now on somebody has."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return True
    except OSError:  # somebody has, or the folder was deleted, or the disk is full: nothing is told twice
        return False
