"""Hostile text wherever a person or a model can put some, in a real browser behind a login: nothing of it is run.

What the page keeps in the browser is looked at as well.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from lora_studio.access.accounts import PASSWORD
from lora_studio.access.serving import MAX_UPLOAD
from lora_studio.chat import prompts
from lora_studio.config.parsing import parse, save_preset
from lora_studio.runs.summary import Tags, write_tags
from lora_studio.workspace import Workspace
from tests.chat.test_chat_choices import make_run
from tests.serving import HOSTILE, PATIENCE, Server, open_tab

pytestmark = pytest.mark.slow
WORD, TOKEN = "a password of some length", "hf_typedtypedtyped12"
EVIL = f"{HOSTILE} <img src=x onerror=\"document.title='hacked'\"> [x](javascript:document.title='hacked') {{{{7*7}}}}"
EVENTS = Path(__file__).parent / "events" / "healthy.jsonl"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A run, a preset, prompts, votes and a conversation that are all hostile."""
    found = Workspace(tmp_path / "workspace")
    run = make_run(found, HOSTILE, adapter=True)
    shutil.copyfile(EVENTS, run.events)
    run.log.write_text(EVIL)
    write_tags(run, Tags((EVIL[:30],), EVIL))
    save_preset(found, "evil", parse({"lora": {"r": 4}}), EVIL)
    prompts.save(found, "evil", [EVIL])
    prompts.keep(found, prompts.Vote(1.0, "demo", [{"role": "user", "content": EVIL}], [EVIL, "b"], [EVIL, "so"], 0))
    return found


@pytest.fixture
def page(workspace: Workspace, browser: Browser) -> Iterator[Page]:
    server = Server(workspace.root, **{PASSWORD: WORD, MAX_UPLOAD: "0.001"})
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog opened: {dialog.message}"))
    page.goto(server.url)
    yield page
    context.close()
    server.end()


def test_hostile_text_is_shown_and_never_run_and_no_secret_stays_in_the_browser(
    page: Page, workspace: Workspace
) -> None:
    page.get_by_label("Name").fill("owner")
    page.get_by_label("Password").fill(WORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("tab", name="Runs", exact=True)).to_be_visible(timeout=PATIENCE)
    page.locator("#data-upload input").set_input_files(
        {"name": "big.jsonl", "mimeType": "", "buffer": b" " * 1_100_000}
    )
    expect(page.get_by_text("maximum allowed size").first).to_be_visible(timeout=PATIENCE)
    open_tab(page, "Runs")
    expect(page.get_by_role("heading", name=HOSTILE, exact=True)).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#run-list")).to_contain_text(HOSTILE, timeout=PATIENCE)
    open_tab(page, "Train")
    page.locator("#preset input").click()
    page.get_by_role("option", name="evil", exact=True).click()
    expect(page.locator("#preset-about")).to_contain_text(EVIL, timeout=PATIENCE)
    open_tab(page, "Chat")
    page.locator("#chat-tools").get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Prompt sets").click()
    page.get_by_label("Saved set").click()
    page.get_by_role("option", name="evil", exact=True).click()
    expect(page.get_by_label("Prompts, one per line")).to_have_value(EVIL, timeout=PATIENCE)
    page.get_by_role("button", name="Blind", exact=True).click()
    expect(page.locator("#chat-board")).to_contain_text("{{7*7}}", timeout=PATIENCE)
    with page.expect_download() as pairs:
        page.get_by_role("button", name="Download 1 preference pair").click()
    assert json.loads(pairs.value.path().read_text())["chosen"][0]["content"] == EVIL
    open_tab(page, "Export")
    page.locator("#export-cards").get_by_role("radio", name="Hugging Face Hub").click()
    form = page.locator("#export-form")
    form.get_by_label("Token", exact=True).fill(TOKEN)
    form.get_by_label("Repository", exact=True).fill("me/kept")
    form.get_by_label("License", exact=True).fill("mit")  # leaves the field before, whose form is kept
    open_tab(page, "Evaluate")
    page.wait_for_timeout(1000)
    written = [path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()]
    assert any(b"me/kept" in content for content in written)
    assert not any(TOKEN.encode() in content for content in written)
    assert page.title() == "LoRA Studio"
    assert page.locator("img[src='x'], a[href^='javascript:'], a[href='http://e.vil']").count() == 0
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert WORD not in kept
    assert TOKEN not in kept
    assert json.loads(kept)[2] == ""  # no script can read who is logged in
