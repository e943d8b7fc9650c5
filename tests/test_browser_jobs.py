"""Evaluations and exports in a real browser, on one server: made, there after a reload, gone when deleted."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from lora_studio.evaluate.job import evaluations
from lora_studio.export.job import folders, request_of
from lora_studio.jobs.launchers.local import kill
from lora_studio.workspace import Workspace
from tests.adapters import noise_run
from tests.serving import Server, fits, open_tab, visited

pytestmark = pytest.mark.slow
PATIENCE = 180_000  # milliseconds for what takes a moment on a busy machine
ROWS = 12


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with one finished run, whose adapter is noise: it often spoils what the base would say."""
    made = Workspace(tmp_path_factory.mktemp("studio") / "workspace")
    noise_run(made)
    yield made
    for folder in (*evaluations(made), *folders(made).all()):
        kill(folder)


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    running = Server(workspace.root)
    yield running
    running.end()


def test_an_evaluation_shows_where_base_and_adapter_disagree_and_survives_a_reload(
    browser: Browser, server: Server, workspace: Workspace
) -> None:
    with visited(browser, server.url) as page:
        page.set_default_timeout(PATIENCE)
        open_tab(page, "Evaluate")
        expect(page.get_by_text("No evaluation yet")).to_be_visible(timeout=PATIENCE)
        page.get_by_label("Test data").click()
        page.get_by_role("option", name="Film recommender").click()
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_label("Max rows", exact=True)).to_have_value("")
        page.get_by_label("Max rows", exact=True).fill(str(ROWS))
        page.get_by_label("Max new tokens", exact=True).fill("6")
        page.locator("#evaluate-start").click()
        head = page.locator("#evaluation-head")
        expect(head).to_contain_text("Noise and base on Film recommender", timeout=PATIENCE)
        expect(head).to_contain_text("Finished", timeout=PATIENCE)
        expect(head.locator(".job-verdict")).to_contain_text(f"n = {ROWS}", timeout=PATIENCE)
        results = page.locator("#evaluation-results")
        row = results.locator("tr", has_text="Accuracy").first  # before token accuracy
        expect(row).to_contain_text("significant", timeout=PATIENCE)
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
            page.get_by_role("button", name="Download answers").click()
        assert download.value.path().read_bytes() == folder.predictions.read_bytes()
        assert fits(page, 390)


def test_a_run_is_taken_away_as_a_merged_model(browser: Browser, server: Server, workspace: Workspace) -> None:
    with visited(browser, server.url) as page:
        page.set_default_timeout(PATIENCE)
        open_tab(page, "Runs")
        page.locator("#run-export").click()
        cards = page.locator("#export-cards")
        expect(cards.get_by_role("radio", name="Merged model")).to_contain_text("about", timeout=PATIENCE)
        expect(page.get_by_text("No export yet")).to_be_visible(timeout=PATIENCE)
        cards.get_by_role("radio", name="Merged model").click()
        page.get_by_label("Precision").select_option("float32")
        page.locator(".export-start").click()
        head = page.locator("#export-head")
        expect(head).to_contain_text("Noise: Merged model", timeout=PATIENCE)
        expect(head).to_contain_text("Finished after", timeout=PATIENCE)
        expect(head).to_contain_text("the answer equals that of base and adapter", timeout=PATIENCE)
        (folder,) = folders(workspace).all()
        assert request_of(folder).settings["dtype"] == "float32"

        page.reload()
        expect(head).to_contain_text("Finished after", timeout=PATIENCE)
        expect(page.get_by_label("Precision")).to_have_value("float32", timeout=PATIENCE)
        with page.expect_download() as download:
            page.get_by_label("Download config.json", exact=True).click()
        assert json.loads(download.value.path().read_text()) == json.loads((folder.result / "config.json").read_text())
        assert fits(page, 390)
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_label("Delete Noise: Merged model").click()
        expect(page.get_by_text("No export yet")).to_be_visible(timeout=PATIENCE)
        assert folders(workspace).all() == []
