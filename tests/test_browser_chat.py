"""The chat tab in a real browser: columns stream together, people keep apart, votes, prompt sets, death and return."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

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
        expect(page.locator(".chat-column").nth(1)).to_be_visible(timeout=PATIENCE)
        yield page


def add_column(page: Page, words: str) -> None:
    page.locator("#chat-choice input").first.click()
    page.get_by_role("option").filter(has_text=words).first.click()
    page.keyboard.press("Escape")


def sample(page: Page, **values: str) -> None:
    """Sets sampling settings in their fold."""
    page.get_by_role("button", name="System prompt and sampling").click()
    for name, value in values.items():
        page.locator(f"#chat-{name} input, #chat-{name} textarea").first.fill(value)


def ask(page: Page, question: str) -> None:
    box = page.get_by_label("Your question")
    box.fill(question)
    box.press("Enter")


def answers(page: Page, column: int) -> list[str]:
    return page.locator(".chat-column").nth(column).locator(".ls-assistant .ls-said").all_inner_texts()


def answered(page: Page) -> None:
    for note in page.locator("#chat-board .ls-note").all():
        expect(note).to_contain_text("tokens/s", timeout=PATIENCE)


def children(server: Server) -> list[psutil.Process]:
    """The engine's processes of a server."""
    found = psutil.Process(server.process.pid).children()
    return [child for child in found if "lora_studio.engine.chat.session" in child.cmdline()]


def test_three_columns_stream_together_and_come_back_after_a_reload(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        expect(page.get_by_role("heading", name=HOSTILE, exact=True)).to_be_visible()
        add_column(page, "step 2")
        columns = page.locator(".chat-column")
        expect(columns).to_have_count(3)
        sample(page, max_new_tokens="20")
        example = page.locator("#chat-board [data-act=example]").first
        question = example.inner_text()
        example.click()
        for column in columns.all():
            expect(column.locator(".ls-user .ls-said")).to_have_text(question, timeout=PATIENCE)
            expect(column.locator(".ls-assistant .ls-said")).not_to_be_empty(timeout=PATIENCE)
        answered(page)
        expect(page.locator("#chat-status")).to_contain_text("In memory: demo with")

        ask(page, HOSTILE)
        expect(columns.nth(2).locator(".ls-user .ls-said").nth(1)).to_have_text(HOSTILE, timeout=PATIENCE)
        expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=PATIENCE)
        columns.nth(1).get_by_role("button", name="Edit").first.click()
        columns.nth(1).locator("textarea").fill("What colour is snow?")
        columns.nth(1).get_by_role("button", name="Ask this instead").click()
        expect(columns.nth(1).locator(".ls-user .ls-said")).to_have_text(["What colour is snow?"], timeout=PATIENCE)
        answered(page)
        expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=PATIENCE)
        page.get_by_role("button", name="Mark words that differ").click()
        expect(page.get_by_role("button", name="Mark words that differ")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Compare token by token").click()
        expect(page.locator("#chat-extra .ls-tok").first).to_be_visible(timeout=PATIENCE)

        said = [answers(page, column) for column in range(3)]
        assert [len(texts) for texts in said] == [2, 1, 2]
        page.reload()
        expect(columns.nth(2).locator(".ls-user .ls-said").nth(1)).to_have_text(HOSTILE, timeout=PATIENCE)
        assert [answers(page, column) for column in range(3)] == said
        assert fits(page, 390)
        tops = [column.bounding_box() or {} for column in columns.all()]
        assert [box["x"] for box in tops] == [tops[0]["x"]] * 3  # below each other
        page.locator("#chat-board [data-act=clear]").click()
        expect(page.locator("#chat-board .ls-bubble")).to_have_count(0, timeout=PATIENCE)


def test_a_prompt_set_and_a_blind_vote_leave_as_files(browser: Browser, server: Server, workspace: Workspace) -> None:
    with visit(browser, server) as page:
        sample(page, max_new_tokens="20")
        page.get_by_role("button", name="Prompt sets").click()
        page.get_by_label("Prompts, one a line").fill("What colour is snow?\nHow many legs has a dog?")
        page.get_by_label("Name", exact=True).last.fill("first")
        page.get_by_role("button", name="Keep", exact=True).click()
        expect(page.get_by_text("Kept as first.")).to_be_visible(timeout=PATIENCE)
        page.get_by_role("button", name="Ask them all").click()
        expect(page.get_by_text("2 prompts asked of 2 columns.")).to_be_visible(timeout=PATIENCE)
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download as JSONL").click()
        rows = [json.loads(line) for line in saved.value.path().read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["What colour is snow?", "How many legs has a dog?"]
        assert set(rows[0]["answers"]) == {"Base: demo", HOSTILE}

        page.get_by_role("button", name="Blind comparison").click()
        panel = page.locator("#chat-blind-panel")
        page.get_by_label("Question", exact=True).fill("What colour is grass?")
        page.get_by_role("button", name="Ask blindly").click()
        expect(panel.get_by_role("button", name="A is better")).to_be_visible(timeout=PATIENCE)
        assert "demo" not in panel.inner_text()
        panel.get_by_role("button", name="A is better").click()
        expect(panel.get_by_text("1 vote so far")).to_be_visible(timeout=PATIENCE)
        assert HOSTILE in panel.inner_text()
        expect(panel.get_by_role("button", name="is better")).to_have_count(0)
        assert len(workspace.votes.read_text().splitlines()) == 1


def test_two_people_chat_at_once_without_mixing(browser: Browser, server: Server) -> None:
    with visit(browser, server) as one, visit(browser, server) as other:
        add_column(other, "step 2")
        expect(other.locator(".chat-column")).to_have_count(3)
        for page, question in ((one, "What colour is snow?"), (other, "How many legs has a dog?")):
            sample(page, max_new_tokens="40")
            ask(page, question)
        for page, question, columns in ((one, "What colour is snow?", 2), (other, "How many legs has a dog?", 3)):
            answered(page)
            expect(page.locator(".chat-column")).to_have_count(columns)
            assert page.locator("#chat-board .ls-user .ls-said").all_inner_texts() == [question] * columns
            assert all(len(answers(page, column)) == 1 for column in range(columns))


def test_a_stop_an_engine_that_is_killed_and_an_unload(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        begun = time.monotonic()
        # So hot the end is as likely as any other token; with this seed it comes late.
        sample(page, max_new_tokens="3000", temperature="5", seed="5")
        answer = page.locator(".chat-column").nth(1).locator(".ls-assistant .ls-said")
        ask(page, "Tell me everything.")
        expect(answer).not_to_be_empty(timeout=PATIENCE)
        page.get_by_role("button", name="Stop", exact=True).first.click()
        expect(page.locator("#chat-board .ls-note").nth(1)).to_contain_text("stopped", timeout=PATIENCE)

        ask(page, "And more.")
        expect(answer.nth(1)).not_to_be_empty(timeout=PATIENCE)
        left = WARM_UP_SECONDS + 0.5 - (time.monotonic() - begun)  # then no child of the page's own comes any more
        page.wait_for_timeout(max(0.0, left) * 1000)
        for child in children(server):
            child.kill()
        expect(page.locator("#chat-said")).to_contain_text("ended unexpectedly", timeout=PATIENCE)
        assert len(answers(page, 1)) == 2
        page.locator("#chat-max_new_tokens input").fill("10")
        ask(page, "Are you there?")
        expect(answer.nth(2)).not_to_be_empty(timeout=PATIENCE)
        answered(page)
        assert len(children(server)) == 1
        page.get_by_role("button", name="Unload").click()
        expect(page.locator("#chat-status")).to_contain_text("No model is in memory", timeout=PATIENCE)
        assert children(server) == []
