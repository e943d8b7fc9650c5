"""The chat tab in a real browser: columns stream together, people keep apart, votes, prompt sets, death and return."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from lora_studio.ui.app import WARM_UP_SECONDS
from lora_studio.workspace import Workspace
from tests.adapters import noise_run
from tests.serving import HOSTILE, Server, fits, visited

pytestmark = pytest.mark.slow
PATIENCE = 180_000  # milliseconds: an engine starts slowly on a busy machine


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one run and a checkpoint at half way: adapters that answer nearly as the base."""
    made = Workspace(tmp_path_factory.mktemp("studio") / "workspace")
    noise_run(made, HOSTILE, "pirate", deviation=0.05, steps=(2,))
    return made


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    running = Server(workspace.root)
    yield running
    running.end()


@contextmanager
def visit(browser: Browser, server: Server) -> Iterator[Page]:
    """A browser of its own on the chat tab; nothing may go wrong in it."""
    with visited(browser, f"{server.url}/#chat") as page:
        page.set_default_timeout(PATIENCE)
        expect(page.locator(".chat-head").nth(1)).to_be_visible(timeout=PATIENCE)
        yield page


def add_column(page: Page) -> None:
    """Another column, with the next adapter of the same base."""
    heads = page.locator(".chat-head")
    before = heads.count()
    page.get_by_role("button", name="Add column").click()
    expect(heads).to_have_count(before + 1, timeout=PATIENCE)


def settings(page: Page) -> None:
    """Opens the drawer."""
    page.locator("#chat-tools").get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_be_visible()


def sample(page: Page, **values: str) -> None:
    """Sets sampling settings in the drawer, and closes it."""
    settings(page)
    for name, value in values.items():
        page.locator(f"#chat-{name} input, #chat-{name} textarea").first.fill(value)
    page.get_by_role("button", name="Close", exact=True).click()


def ask(page: Page, question: str) -> None:
    box = page.get_by_label("Your question")
    box.fill(question)
    box.press("Enter")


def cells(page: Page, column: int) -> Locator:
    """A column's answers."""
    return page.locator(f'.chat-cell[data-at="{column}"]')


def answers(page: Page, column: int) -> list[str]:
    return cells(page, column).locator(".ls-assistant .ls-said").all_inner_texts()


def questions(page: Page) -> list[str]:
    return page.locator("#chat-board .ls-user .ls-said").all_inner_texts()


def waits_for_its_opening(page: Page) -> bool:
    """Whether the settings take no input while the tab opens again, and take it afterwards."""
    drawer = page.locator("#chat-drawer")
    drawer.evaluate(
        """(drawer) => {
            window.inert = [];
            const note = () => window.inert.push(drawer.inert);
            new MutationObserver(note).observe(drawer, { attributes: true, attributeFilter: ['inert'] });
        }"""
    )
    page.get_by_role("tab", name="Runs").click()
    page.get_by_role("tab", name="Chat").click()
    page.wait_for_function("window.inert.length === 2")
    return page.evaluate("window.inert") == [True, False]


def answered(page: Page) -> None:
    expect(page.locator("#chat-send")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#chat-board .ls-note").first).to_be_visible(timeout=PATIENCE)
    for note in page.locator("#chat-board .ls-note").all():
        expect(note).to_contain_text("tokens/s", timeout=PATIENCE)


def children(server: Server) -> list[psutil.Process]:
    """The engine's processes of a server."""
    found = psutil.Process(server.process.pid).children()
    return [child for child in found if "lora_studio.engine.chat.session" in child.cmdline()]


def test_three_columns_stream_together_and_come_back_after_a_reload(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        expect(page.get_by_label("Adapter of column 2").locator("option:checked")).to_contain_text(HOSTILE)
        add_column(page)
        expect(page.get_by_label("Adapter of column 3").locator("option:checked")).to_contain_text("step 2")
        sample(page, max_new_tokens="20")
        example = page.locator("#chat-board [data-act=example]").first
        question = example.inner_text()
        example.click()
        for column in range(3):
            expect(cells(page, column).locator(".ls-assistant .ls-said")).not_to_be_empty(timeout=PATIENCE)
        answered(page)
        assert questions(page) == [question]  # once, above all columns
        expect(page.locator("#chat-status")).to_contain_text("demo + ")

        box = page.get_by_label("Your question")
        box.fill("Two")
        box.press("Shift+Enter")
        box.type("lines")
        box.press("Control+Enter")
        expect(page.locator("#chat-board .ls-user .ls-said").nth(1)).to_have_text("Two\nlines", timeout=PATIENCE)
        answered(page)
        expect(box).to_have_value("")
        page.get_by_role("button", name="Edit").nth(1).click()
        page.get_by_label("Edit the question").fill(HOSTILE)
        page.get_by_role("button", name="Ask edited question").click()
        expect(page.locator("#chat-board .ls-user .ls-said").nth(1)).to_have_text(HOSTILE, timeout=PATIENCE)
        answered(page)
        cells(page, 1).last.get_by_role("button", name="Undo").click()
        expect(cells(page, 1).last).to_contain_text("Not asked", timeout=PATIENCE)
        page.get_by_role("button", name="Highlight differences").click()
        expect(page.get_by_role("button", name="Highlight differences")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Token probabilities").click()
        expect(page.locator("#chat-extra .ls-tok").first).to_be_visible(timeout=PATIENCE)
        page.get_by_role("button", name="Share").click()
        with page.expect_download() as shared:
            page.get_by_role("button", name="Download Markdown").click()
        assert shared.value.path().read_text().count(f"> {question}") == 1

        texts = [answers(page, column) for column in range(3)]
        assert [len(column) for column in texts] == [2, 1, 2]
        box.fill("Not asked\nyet")
        page.reload()
        expect(box).to_have_value("Not asked\nyet", timeout=PATIENCE)
        expect(page.locator("#chat-board .ls-user .ls-said").nth(1)).to_have_text(HOSTILE, timeout=PATIENCE)
        assert [answers(page, column) for column in range(3)] == texts
        window, composer = (page.locator(name).bounding_box() or {} for name in ("#chat-window", "#chat-composer"))
        assert window["y"] + window["height"] <= composer["y"] < 900 - composer["height"]
        assert fits(page, 390)
        boxes = [cells(page, column).first.bounding_box() or {} for column in range(3)]
        assert [box["x"] for box in boxes] == [boxes[0]["x"]] * 3  # below each other
        composer = page.locator("#chat-composer").bounding_box() or {}
        assert 700 < composer["y"] + composer["height"] <= 844
        page.locator("#chat-tools [data-act=clear]").click()
        expect(page.locator("#chat-board .chat-cell")).to_have_count(0, timeout=PATIENCE)


def test_a_prompt_set_and_a_blind_vote_leave_as_files(browser: Browser, server: Server, workspace: Workspace) -> None:
    with visit(browser, server) as page:
        sample(page, max_new_tokens="20")
        settings(page)
        page.get_by_role("button", name="Prompt sets").click()
        page.get_by_label("Prompts, one per line").fill("What colour is snow?\nHow many legs has a dog?")
        page.get_by_label("Set name").fill("first")
        page.get_by_role("button", name="Save set").click()
        expect(page.get_by_text("Saved as first.")).to_be_visible(timeout=PATIENCE)
        page.get_by_role("button", name="Run prompt set").click()
        expect(page.get_by_text("2 prompts answered by 2 columns.")).to_be_visible(timeout=PATIENCE)
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download JSONL").click()
        rows = [json.loads(line) for line in saved.value.path().read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["What colour is snow?", "How many legs has a dog?"]
        assert set(rows[0]["answers"]) == {"Base: demo", HOSTILE}

        page.get_by_role("button", name="Blind", exact=True).click()
        expect(page.locator("#chat-heads")).to_contain_text("unnamed", timeout=PATIENCE)
        panel = page.locator("#chat-board")
        ask(page, "What colour is grass?")
        expect(panel.get_by_role("button", name="A is better")).to_be_visible(timeout=PATIENCE)
        assert "demo" not in panel.inner_text()
        panel.get_by_role("button", name="A is better").click()
        expect(panel.get_by_text("1 vote so far")).to_be_visible(timeout=PATIENCE)
        assert HOSTILE in panel.inner_text()
        expect(panel.get_by_role("button", name="is better")).to_have_count(0)
        assert len(workspace.votes.read_text().splitlines()) == 1


def test_two_people_chat_at_once_without_mixing(browser: Browser, server: Server) -> None:
    with visit(browser, server) as one, visit(browser, server) as other:
        add_column(other)
        assert waits_for_its_opening(other)
        for page, question in ((one, "What colour is snow?"), (other, "How many legs has a dog?")):
            sample(page, max_new_tokens="40")
            ask(page, question)
        for page, question, columns in ((one, "What colour is snow?", 2), (other, "How many legs has a dog?", 3)):
            answered(page)
            expect(page.locator(".chat-cell")).to_have_count(columns)
            assert questions(page) == [question]
            assert all(len(answers(page, column)) == 1 for column in range(columns))


def test_a_stop_an_engine_that_is_killed_and_an_unload(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        begun = time.monotonic()
        # So hot the end is as likely as any other token; with this seed it comes late.
        sample(page, max_new_tokens="3000", temperature="5", seed="5")
        answer = cells(page, 1).locator(".ls-assistant .ls-said")
        ask(page, "Tell me everything.")
        expect(answer).not_to_be_empty(timeout=PATIENCE)
        expect(page.locator("#chat-send")).to_be_hidden()
        page.locator("#chat-stop").click()
        expect(page.locator("#chat-board .ls-note").nth(1)).to_contain_text("stopped", timeout=PATIENCE)

        ask(page, "And more.")
        expect(answer.nth(1)).not_to_be_empty(timeout=PATIENCE)
        left = WARM_UP_SECONDS + 0.5 - (time.monotonic() - begun)  # then no child of the page's own comes any more
        page.wait_for_timeout(max(0.0, left) * 1000)
        for child in children(server):
            child.kill()
        expect(page.locator("#chat-message")).to_contain_text("ended unexpectedly", timeout=PATIENCE)
        assert len(answers(page, 1)) == 2
        sample(page, max_new_tokens="10")
        ask(page, "Are you there?")
        expect(answer.nth(2)).not_to_be_empty(timeout=PATIENCE)
        answered(page)
        assert len(children(server)) == 1
        page.get_by_role("button", name="Unload").click()
        expect(page.locator("#chat-status")).to_contain_text("Not loaded", timeout=PATIENCE)
        assert children(server) == []
