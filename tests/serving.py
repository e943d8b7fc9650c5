"""The page as a user gets it: `app.py` in a process of its own, and a Chromium to look at it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--force-prefers-reduced-motion"]
APP = (sys.executable, "app.py")
START_SECONDS = 180.0  # generous: test machines are busy
PATIENCE = 60_000  # milliseconds for what takes a moment on a busy machine
HOSTILE = "${document.title='hacked'} <script>document.title='hacked'</script> [link](http://e.vil) <b>bold</b>"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One start of `app.py` or of a program with its flags, on a workspace and, unless one is given, a free port."""

    def __init__(
        self, workspace: Path, port: int = 0, program: Sequence[str] = APP, folder: Path = ROOT, **environment: str
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = workspace.with_name(f"{workspace.name}-{self.port}.log")
        command = [*program, "--port", str(self.port), "--workspace", str(workspace)]
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except AssertionError:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - begun

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(self.url, timeout=START_SECONDS).close()  # a busy server answers every try
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError(f"no page after {START_SECONDS} s: {self.log.read_text()}")

    @property
    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)

    def kill(self) -> None:
        """Ends the server as a crash or the system would, without a word."""
        self.process.kill()
        self.process.wait(30)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium where there is one, else Playwright's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visited(browser: Browser, url: str) -> Iterator[Page]:
    """The page in a wide window; when it is left, no script has failed and none of the data has been run."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.get_by_role("tab", name="Data", exact=True)).to_be_visible(timeout=PATIENCE)
    yield page
    assert page.title() == "LoRA Studio"
    assert errors == []
    context.close()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def fits(page: Page, width: int) -> bool:
    """Whether nothing hangs over the side of a window that wide."""
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(500)
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
