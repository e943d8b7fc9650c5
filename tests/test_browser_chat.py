"""The chat tab in a real browser: both columns answer, stop, and come back after a reload."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from lora_studio.workspace import Workspace
from tests.serving import ROOT, Server, chromium, open_tab

pytestmark = pytest.mark.slow
PATIENCE = 60_000  # milliseconds for what takes a moment on a busy machine
HOSTILE = "${document.title='hacked'} <script>document.title='hacked'</script> [link](http://e.vil) <b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one run of four steps: an adapter that answers, well or not."""
    root = tmp_path_factory.mktemp("studio") / "workspace"
    options = ["--workspace", str(root), "--title", HOSTILE, "--training.max_steps", "4"]
    command = [sys.executable, "-m", "lora_studio", "train", "demo", *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return Workspace(root)


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    running = Server(workspace.root)
    yield running
    running.end()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    expect(opened.get_by_role("tab", name="Data", exact=True)).to_be_visible(timeout=PATIENCE)
    yield opened
    assert opened.title() == "LoRA Studio"
    assert errors == []
    context.close()


def fits(page: Page, width: int) -> bool:
    """Whether nothing hangs over the side of a window that wide."""
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(500)
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_both_columns_answer_stop_and_come_back_after_a_reload(page: Page) -> None:
    open_tab(page, "Chat")
    base, adapter = page.locator("#chat-base"), page.locator("#chat-adapter")
    expect(page.get_by_text(f"Adapter: {HOSTILE}", exact=True)).to_be_visible(timeout=PATIENCE)
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("Longest answer").fill("20")
    example = page.locator(".ls-examples button").first
    question = example.inner_text()
    example.click()
    for column in (base, adapter):
        expect(column.locator(".ls-user .ls-said")).to_have_text(question, timeout=PATIENCE)
        expect(column.locator(".ls-assistant .ls-said")).not_to_be_empty(timeout=PATIENCE)
    expect(page.locator(".ls-note").first).to_contain_text("tokens/s", timeout=PATIENCE)
    expect(page.locator("#tab-chat").get_by_text("In memory: demo with")).to_be_visible()

    box = page.get_by_label("Your question")
    box.fill(HOSTILE)
    box.press("Enter")
    expect(adapter.locator(".ls-user .ls-said").nth(1)).to_have_text(HOSTILE, timeout=PATIENCE)
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=PATIENCE)
    answers = adapter.locator(".ls-assistant .ls-said").all_inner_texts()
    page.reload()
    expect(adapter.locator(".ls-user .ls-said").nth(1)).to_have_text(HOSTILE, timeout=PATIENCE)
    assert adapter.locator(".ls-assistant .ls-said").all_inner_texts() == answers
    page.get_by_text("System prompt and sampling").click()
    expect(page.get_by_label("Longest answer")).to_have_value("20")
    assert fits(page, 390)
    first, second = base.bounding_box(), adapter.bounding_box()
    assert first is not None
    assert second is not None
    assert second["y"] >= first["y"] + first["height"]

    page.get_by_role("button", name="Clear").click()
    expect(adapter.locator(".ls-bubble")).to_have_count(0, timeout=PATIENCE)
    page.get_by_role("button", name="Unload").click()
    expect(page.get_by_text("No model is in memory")).to_be_visible(timeout=PATIENCE)
