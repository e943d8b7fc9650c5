"""The export tab in a real browser: from a run to a merged model, there after a reload, gone when deleted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from lora_studio.exports import exports
from lora_studio.jobs.launcher import kill
from lora_studio.workspace import Workspace
from tests.adapters import noise_run
from tests.serving import Server, chromium, fits, open_tab, visited

pytestmark = pytest.mark.slow
PATIENCE = 180_000  # milliseconds for what takes a moment on a busy machine


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "workspace")
    noise_run(made)
    yield made
    for folder in exports(made):
        kill(folder)


def test_a_run_is_taken_away_as_a_merged_model(workspace: Workspace) -> None:
    server = Server(workspace.root)
    try:
        with chromium() as browser, visited(browser, server.url) as page:
            page.set_default_timeout(PATIENCE)
            open_tab(page, "Runs")
            page.locator("#run-export").click()
            cards = page.locator("#export-cards")
            expect(cards.get_by_role("radio", name="Merged model")).to_contain_text("about", timeout=PATIENCE)
            expect(page.get_by_text("Nothing taken away yet")).to_be_visible(timeout=PATIENCE)
            cards.get_by_role("radio", name="Merged model").click()
            page.get_by_label("Precision").select_option("float32")
            page.locator(".export-start").click()
            head = page.locator("#export-head")
            expect(head).to_contain_text("Noise: Merged model", timeout=PATIENCE)
            expect(head).to_contain_text("Finished after", timeout=PATIENCE)
            expect(head).to_contain_text("the same answer as base and adapter", timeout=PATIENCE)
            (folder,) = exports(workspace)
            assert folder.request().settings["dtype"] == "float32"

            page.reload()
            expect(head).to_contain_text("Finished after", timeout=PATIENCE)
            expect(page.get_by_label("Precision")).to_have_value("float32", timeout=PATIENCE)
            with page.expect_download() as download:
                page.get_by_label("Download config.json", exact=True).click()
            assert json.loads(download.value.path().read_text()) == json.loads(
                (folder.result / "config.json").read_text()
            )
            assert fits(page, 390)
            page.on("dialog", lambda dialog: dialog.accept())
            page.get_by_label("Delete Noise: Merged model").click()
            expect(page.get_by_text("Nothing taken away yet")).to_be_visible(timeout=PATIENCE)
            assert exports(workspace) == []
    finally:
        server.end()
