"""A click on one tab that opens another one, in a real browser: it shows what was asked for, also after a reload."""

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from lora_studio.jobs.events import CheckpointSaved, to_line
from lora_studio.workspace import RunFolder, Workspace
from tests.adapters import noise_run
from tests.serving import Server, open_tab, visited

pytestmark = pytest.mark.slow
PATIENCE = 180_000  # milliseconds for what takes a moment on a busy machine


@pytest.fixture
def runs(workspace: Workspace) -> list[RunFolder]:
    """Two finished runs, the older one first."""
    made = [noise_run(workspace, title, steps=(2,)) for title in ("Older", "Newer")]
    for run in made:
        begun, ended = run.events.read_text(encoding="utf-8").splitlines(keepends=True)
        saved = to_line(CheckpointSaved(time.time() - 1, 2, "checkpoint-2"))
        run.events.write_text(begun + saved + ended, encoding="utf-8")
    return made


@pytest.fixture
def server(workspace: Workspace, runs: list[RunFolder]) -> Iterator[Server]:
    running = Server(workspace.root)
    yield running
    running.end()


def test_a_click_opens_chat_export_and_evaluation_of_the_run_that_it_was_on(
    browser: Browser, server: Server, runs: list[RunFolder]
) -> None:
    older = runs[0].id
    with visited(browser, server.url) as page:
        page.set_default_timeout(PATIENCE)
        choose(page, older)
        page.locator("#run-chat").click()
        titles(page, ["Base: demo", "Older"])

        choose(page, older)
        page.get_by_role("tab", name="Checkpoints").click()
        page.locator(f'#run-checkpoints [data-act="chat"][data-value="{older}/checkpoint-2"]').click()
        titles(page, ["Base: demo", "Older, step 2"])

        choose(page, older)
        page.get_by_role("tab", name="Evaluations").click()
        page.get_by_role("button", name="Evaluate this run…").click()
        evaluated = page.locator("#evaluate-adapters")
        expect(evaluated).to_contain_text("Older (finished", timeout=PATIENCE)

        choose(page, older)
        page.locator("#run-export").click()
        exported, name = page.locator("#export-adapter input"), f"Older (finished, {when(older)})"
        expect(exported).to_have_value(name, timeout=PATIENCE)

        page.reload()
        open_tab(page, "Export")
        expect(exported).to_have_value(name, timeout=PATIENCE)
        open_tab(page, "Evaluate")
        expect(evaluated).to_contain_text("Older (finished", timeout=PATIENCE)
        open_tab(page, "Chat")
        titles(page, ["Base: demo", "Older, step 2"])


def choose(page: Page, run: str) -> None:
    """A run is looked at."""
    open_tab(page, "Runs")
    page.locator(f'#run-list [data-act="open"][data-value="{run}"]').click()
    expect(page.locator("#run-headline h2")).to_have_text("Older", timeout=PATIENCE)


def titles(page: Page, expected: list[str]) -> None:
    """The columns of the chat."""
    heads = page.locator("#chat-heads h3, #chat-heads option:checked")
    expect(heads).to_have_text(expected, timeout=PATIENCE)


def when(run: str) -> str:
    """Day and time of a run's id."""
    return f"{run[:4]}-{run[4:6]}-{run[6:8]} {run[9:11]}:{run[11:13]}"
