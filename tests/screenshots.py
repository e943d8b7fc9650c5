"""Shoots every tab at two widths, light and dark, empty and with a finished run, into screenshots/. Look at them.

python -m tests.screenshots [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from lora_studio.jobs.launchers.local import kill
from lora_studio.ui.app import TABS
from lora_studio.workspace import Workspace
from tests.serving import ROOT, Server, chromium, open_tab

SIZES = ((1440, 900), (390, 844))
PATIENCE = 120_000


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        workspace = Workspace(Path(temporary) / "workspace")
        server = Server(workspace.root)
        try:
            shoot_all(browser, server.url, folder, "empty")
            train(browser, server.url)
            shoot_all(browser, server.url, folder, "trained")
            shoot_all(browser, server.url, folder, "dark")
        finally:
            server.end()
            for run in workspace.runs():
                kill(run)
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


def shoot_all(browser: Browser, url: str, folder: Path, name: str) -> None:
    """Every tab, whole pages, in a fresh visit for each size."""
    theme = "dark" if name == "dark" else "light"
    for width, height in SIZES:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}/?__theme={theme}")
        expect(page.get_by_role("tab", name="Train", exact=True)).to_be_visible(timeout=PATIENCE)
        for _, tab, _ in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(2500)
            if name != "empty":
                FILL.get(tab, lambda _: None)(page)
            page.screenshot(path=folder / f"{name}-{tab.lower()}-{width}.png", full_page=True)
        page.close()


def train(browser: Browser, url: str) -> None:
    """The first preset's run, as a newcomer starts it."""
    page = browser.new_page(viewport={"width": SIZES[0][0], "height": SIZES[0][1]})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{url}/#train")
    page.locator("#start").click()
    expect(page.locator("#run-headline")).to_contain_text("Finished", timeout=10 * PATIENCE)
    page.close()


def look_at_data(page: Page) -> None:
    page.get_by_role("button", name="Analyze dataset", exact=True).click()
    expect(page.locator(".ls-tok.ls-t").first).to_be_visible(timeout=PATIENCE)


def ask(page: Page) -> None:
    answer = page.locator("#chat-board .ls-assistant .ls-said")
    if answer.count() == 0:
        page.get_by_label("Your question", exact=True).fill("What is the capital of France?")
        page.get_by_role("button", name="Send", exact=True).click()
    expect(answer.last).not_to_be_empty(timeout=PATIENCE)
    page.wait_for_timeout(2000)


def evaluate(page: Page) -> None:
    results = page.locator("#evaluation-results .eval-metrics")
    if results.count() == 0:
        page.locator("#tab-evaluate").get_by_role("button", name="Settings").click()
        page.get_by_label("Max rows", exact=True).fill("24")
        page.locator("#evaluate-start").click()
    expect(results).to_be_visible(timeout=10 * PATIENCE)
    page.wait_for_timeout(2000)


FILL = {"Data": look_at_data, "Chat": ask, "Evaluate": evaluate}

if __name__ == "__main__":
    main()
