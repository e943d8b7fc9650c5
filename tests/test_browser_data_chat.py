"""The data and the chat tab in a real browser: hostile files, the cut line by keyboard, answers, stop, reload."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

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


def settled(page: Page, words: Locator) -> str:
    """The words once they have stopped changing."""
    before = ""
    while before != (now := words.inner_text()):
        before = now
        page.wait_for_timeout(1500)
    return now


def upload(page: Page, path: Path) -> None:
    page.locator("#tab-data input[type=file]").first.set_input_files(str(path))


def test_a_hostile_file_is_shown_as_text_and_its_cuts_are_counted(page: Page, tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"{HOSTILE} {i}?", "answer": "word " * (i + 1)}) for i in range(60)]
    rows[3] = '{"question": "cut off'
    rows[7] = json.dumps({"question": HOSTILE, "answer": ""})
    path = tmp_path / "evil <b>.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    upload(page, path)
    tab = page.locator("#tab-data")
    expect(tab.get_by_text("2 rows can't be used")).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-words")).to_contain_text("question is the user's turn, answer the assistant's")
    expect(tab.locator(".ls-bubble.ls-user")).to_contain_text(f"{HOSTILE} 0?")
    trained = tab.locator(".ls-tokens .ls-tok.ls-t").all_inner_texts()
    assert "".join(trained).replace("↵", "") == "word·<|im_end|>"

    cut = tab.get_by_label("range slider for Cut line (tokens)")
    cut.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    expect(tab.get_by_text("are cut,")).to_contain_text("trained token", timeout=PATIENCE)
    expect(tab.locator(".ls-hist rect.ls-over").first).to_be_visible()
    use = tab.get_by_role("button", name="as the longest row")
    length = "".join(filter(str.isdigit, settled(page, use)))
    use.click()
    expect(tab.get_by_label("Longest row")).to_have_value(length, timeout=PATIENCE)
    expect(use).to_be_hidden(timeout=PATIENCE)

    tab.get_by_role("button", name="Next", exact=True).click()
    expect(tab.locator(".ls-where")).to_contain_text("Conversation 2 of 58 (row 2 of the file)", timeout=PATIENCE)
    with page.expect_download() as saved:
        tab.get_by_text("Download bad rows").click()
    bad = [json.loads(line) for line in Path(saved.value.path()).read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in bad] == [4, 8]

    page.reload()
    expect(tab.get_by_text("2 rows can't be used")).to_be_visible(timeout=PATIENCE)
    expect(tab.get_by_label("Longest row")).to_have_value(length)
    assert fits(page, 390)
    tab.get_by_role("button", name="Train on this").click()
    expect(page.locator("#tab-train")).to_be_visible(timeout=PATIENCE)


def test_a_file_that_can_not_be_read_is_a_sentence_and_the_next_one_works(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    upload(page, tmp_path / "empty.csv")
    tab = page.locator("#tab-data")
    expect(tab.get_by_text("empty.csv is empty")).to_be_visible(timeout=PATIENCE)
    tab.get_by_label("Data", exact=True).click()
    page.get_by_role("option", name="Machine manual (built in)").click()
    expect(tab.get_by_text("Every row of the file can be used.")).to_be_visible(timeout=PATIENCE)
    expect(tab.get_by_text("empty.csv is empty")).to_be_hidden()


def test_a_reading_is_asked_for_corrected_by_hand_and_seen_in_what_is_trained(page: Page, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "output": f"out {i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(40)]
    path = tmp_path / "both.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    upload(page, path)
    tab = page.locator("#tab-data")
    expect(tab.get_by_text("The rows hold answers and comparisons")).to_be_visible(timeout=PATIENCE)
    tab.get_by_label("“chosen” the better answer").click()
    expect(tab.get_by_text("for learning by comparison")).to_be_visible(timeout=PATIENCE)
    expect(tab.get_by_label("“output” the assistant's")).to_be_checked()

    tab.get_by_text("Correct the reading").click()
    choose(page, "#reading-assistant", "chosen")
    tab.get_by_label("User's turn from several columns").fill("Say {question}")
    tab.get_by_role("button", name="Use this reading").click()
    expect(tab.locator(".ls-bubble.ls-user .ls-said")).to_have_text("Say 0?", timeout=PATIENCE)
    assert "".join(tab.locator(".ls-tokens .ls-tok.ls-t").all_inner_texts()).replace("·", " ") == "good 0<|im_end|>"
    expect(tab.get_by_text("for learning by comparison")).to_be_hidden()
    assert fits(page, 390)

    page.reload()
    expect(tab.locator(".ls-words")).to_contain_text("Read as you said", timeout=PATIENCE)
    tab.get_by_role("button", name="Train on this").click()
    page.locator("#tab-train").get_by_text("As a config file").click()
    expect(page.locator("#form-yaml")).to_contain_text("user_template: Say {question}", timeout=PATIENCE)
    open_tab(page, "Data")
    tab.get_by_text("Correct the reading").click()
    tab.get_by_role("button", name="Back to what was recognised").click()
    expect(tab.locator(".ls-words")).to_contain_text("output the assistant's", timeout=PATIENCE)


def test_a_large_file_is_first_looked_at_then_whole_and_a_folder_can_be_typed(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(40_000):
            file.write(
                json.dumps({"question": f"What is {i}?", "answer": f"It is {i}. " + "so it goes on " * 8}) + "\n"
            )
    tab = page.locator("#tab-data")
    type_source(page, str(path))
    expect(tab.get_by_text("First look: ")).to_be_visible(timeout=PATIENCE)
    tab.get_by_role("button", name="Stop", exact=True).click()
    expect(tab.get_by_text("Stopped. The file is still chosen.")).to_be_visible(timeout=PATIENCE)
    tab.get_by_role("button", name="Look at this data").click()
    expect(tab.locator(".ls-where")).to_contain_text("of 40,000", timeout=2 * PATIENCE)
    expect(tab.get_by_text("First look: ")).to_be_hidden()
    expect(tab.get_by_text("An epoch has")).to_be_visible()

    (tmp_path / "parts").mkdir()
    for name in ("a", "b"):
        row = json.dumps({"question": name, "answer": "yes"})
        (tmp_path / "parts" / f"{name}.jsonl").write_text(f"{row}\n{row}\n")
    type_source(page, str(tmp_path / "parts"))
    expect(tab.get_by_text("The folder's data files are read: a.jsonl, b.jsonl.")).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-findings")).to_contain_text("1 row repeats an earlier row")
    tab.get_by_text("Prepared data on this disk").click()
    tab.get_by_role("button", name="Clear", exact=True).click()
    expect(tab.get_by_text("Nothing is kept at the moment.")).to_be_visible(timeout=PATIENCE)


def choose(page: Page, dropdown: str, option: str) -> None:
    page.locator(f"{dropdown} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def type_source(page: Page, name: str) -> None:
    box = page.locator("#tab-data").get_by_label("Data", exact=True)
    box.click()
    box.fill(name)
    box.press("Enter")


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


def test_hostile_column_names_and_formulas_in_a_table_are_text(page: Page, tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://e.vil","${document.title=\'hacked\'}")'
    path = tmp_path / "names.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", HOSTILE, "=1+1", "{{value}}", "@SUM(A1)"])
        writer.writerows([f"{formula} {number}", f"answer {number}", formula, "+1", "-2", "@x"] for number in range(20))
    upload(page, path)
    tab = page.locator("#tab-data")
    expect(tab.locator(".ls-words")).to_contain_text("question is the user's turn", timeout=PATIENCE)
    expect(tab.locator(".ls-bubble.ls-user")).to_contain_text(f"{formula} 0")
    expect(tab.get_by_text(HOSTILE).first).to_be_attached()
    assert tab.locator("script, a[href*='e.vil']").count() == 0
