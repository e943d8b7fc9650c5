"""The evaluate tab in a real browser: an evaluation with disagreements, which come back after a reload."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from lora_studio.evaluations import evaluations
from lora_studio.jobs.launcher import kill
from lora_studio.workspace import Workspace
from tests.adapters import noise_run
from tests.serving import Server, chromium, open_tab

pytestmark = pytest.mark.slow
PATIENCE = 120_000  # milliseconds for what takes a moment on a busy machine
ROWS = 12


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with one finished run, whose adapter is noise: it often spoils what the base would say."""
    made = Workspace(tmp_path / "workspace")
    noise_run(made)
    yield made
    for folder in evaluations(made):
        kill(folder)


def test_an_evaluation_shows_where_base_and_adapter_disagree_and_survives_a_reload(workspace: Workspace) -> None:
    server = Server(workspace.root)
    try:
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(PATIENCE)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(server.url)
            open_tab(page, "Evaluate")
            expect(page.get_by_text("No evaluation yet")).to_be_visible(timeout=PATIENCE)
            page.get_by_label("Test data").click()
            page.get_by_role("option", name="Film recommender").click()
            page.get_by_role("button", name="Settings").click()
            expect(page.get_by_label("Most rows", exact=True)).to_have_value("")
            page.get_by_label("Most rows", exact=True).fill(str(ROWS))
            page.get_by_label("Longest answer", exact=True).fill("6")
            page.locator("#evaluate-start").click()
            head = page.locator("#evaluation-head")
            expect(head).to_contain_text("Noise on Film recommender", timeout=PATIENCE)
            expect(head).to_contain_text("Finished", timeout=PATIENCE)
            results = page.locator("#evaluation-results")
            expect(results.locator("tr", has_text="an answer without a label")).to_contain_text(
                "chance", timeout=PATIENCE
            )
            expect(results.get_by_label("Confusion matrix of Noise")).to_be_visible()

            rows = page.locator("#evaluation-rows")
            assert rows.locator("tbody tr").count() == ROWS
            lost = rows.get_by_role("button", name="Base right, Noise wrong")
            count = int(lost.inner_text().rpartition("(")[2].rstrip(")"))
            (folder,) = evaluations(workspace)
            answered = list(folder.rows())
            assert count == sum(row["base"]["right"] and not row["adapter"]["right"] for row in answered) > 0
            prompt = rows.locator("tbody tr").first.locator("details")
            prompt.locator("summary").click()
            lost.click()
            expect(rows.locator("tbody tr")).to_have_count(count, timeout=PATIENCE)
            expect(rows.locator("tbody td.bad")).to_have_count(count)
            rows.get_by_role("button", name="All rows").click()
            expect(rows.locator("tbody tr")).to_have_count(ROWS, timeout=PATIENCE)
            expect(prompt).to_have_attribute("open", "")  # what was opened stays so when the table is drawn anew

            page.reload()
            expect(head).to_contain_text("Finished", timeout=PATIENCE)
            expect(rows.locator("tbody tr")).to_have_count(ROWS, timeout=PATIENCE)
            with page.expect_download() as download:
                page.get_by_role("button", name="Download all answers").click()
            assert download.value.path().read_bytes() == folder.predictions.read_bytes()
            page.set_viewport_size({"width": 390, "height": 844})
            page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert errors == []
    finally:
        server.end()
