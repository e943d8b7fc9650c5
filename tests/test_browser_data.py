"""The data tab in a real browser: hostile and large files, a reading corrected, the cut line, windows, bad rows."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.serving import HOSTILE, PATIENCE, Server, fits, open_tab, visited

pytestmark = pytest.mark.slow
CHART = "document.querySelector('#lengths .chart')"
CUT_PLACES = f"""() => {{
  const buttons = [...document.querySelectorAll('#tab-data button')];
  const used = buttons.find(node => /^Use [0-9,]+ token/.test(node.innerText));
  return [{CHART}.layout.annotations.at(-1).text, used ? used.innerText : '', {CHART}.getAttribute('aria-label')]
    .map(words => (words.match(/(?:trying |Use |At )([0-9]+)/) || ['', ''])[1]);
}}"""
DROP = """(zone, [name, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([content], name));
  for (const kind of ['dragenter', 'dragover', 'drop'])
    zone.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("studio") / "workspace")
    yield running
    running.end()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with visited(browser, server.url) as opened:
        expect(opened.get_by_role("button", name="Analyze dataset")).to_be_visible(timeout=PATIENCE)
        yield opened


def at_rest(page: Page) -> str:
    """The length that chart, button and sentence all name, once the cut line has stopped moving."""
    before: list[str] = []
    for _ in range(PATIENCE // 1000):
        places = page.evaluate(CUT_PLACES)
        if places == before and places[0] and len(set(places)) == 1:
            return str(places[0])
        before = places
        page.wait_for_timeout(1000)
    raise AssertionError(f"chart, button and sentence go on to name {before}")


def upload(page: Page, path: Path) -> None:
    page.locator("#tab-data input[type=file]").first.set_input_files(str(path))


def choose(page: Page, dropdown: str, option: str) -> None:
    box = page.locator(f"{dropdown} input")
    box.click()
    page.get_by_role("option", name=option, exact=True).click()
    box.blur()
    expect(page.get_by_role("option")).to_have_count(0)


def type_source(page: Page, name: str) -> None:
    box = page.locator("#tab-data").get_by_label("Dataset", exact=True)
    box.click()
    box.fill(name)
    box.press("Enter")


def test_a_hostile_file_is_dropped_shown_as_text_and_its_cuts_are_counted(page: Page) -> None:
    rows = [json.dumps({"question": f"{HOSTILE} {i}?", "answer": "word " * (i + 1)}) for i in range(60)]
    rows[3] = '{"question": "cut off'
    rows[7] = json.dumps({"question": HOSTILE, "answer": ""})
    tab = page.locator("#tab-data")
    zone = tab.locator("button:has(input[type=file])").first
    zone.evaluate(DROP, ["evil <b>.jsonl", "\n".join(rows)])
    expect(tab.get_by_text("2 invalid rows are skipped")).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-words").first).to_contain_text("question is the user turn, answer the assistant turn")
    expect(tab.locator(".ls-bubble.ls-user")).to_contain_text(f"{HOSTILE} 0?")
    trained = tab.locator(".ls-tokens .ls-tok.ls-t").all_inner_texts()
    assert "".join(trained).replace("↵", "") == "word·<|im_end|>"
    expect(tab.locator(".ls-tokens .ls-tok.ls-s").first).to_have_text("<|im_start|>")

    cut = tab.get_by_label("range slider for Try a max length (tokens)")
    expect(tab.get_by_text("nothing is cut")).to_contain_text(f"At {int(cut.input_value()):,} tokens")
    drawn = page.evaluate_handle(CHART)
    box = tab.locator("#lengths .nsewdrag").bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    closer = page.evaluate(f"{CHART}.layout.xaxis.range")
    cut.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(tab.get_by_text("are cut,")).to_contain_text("trained token", timeout=PATIENCE)
    use = tab.get_by_role("button", name=re.compile("^Use [0-9,]+ token"))
    length = at_rest(page)
    assert page.evaluate(f"{CHART}.layout.xaxis.range") == closer
    assert drawn.evaluate(f"chart => chart === {CHART}")
    use.click()
    expect(tab.get_by_label("Max length (tokens)", exact=True)).to_have_value(length, timeout=PATIENCE)
    expect(use).to_be_hidden(timeout=PATIENCE)

    tab.get_by_role("button", name="Next", exact=True).click()
    expect(tab.locator(".ls-where")).to_contain_text("Example 2 of 58 (row 2 of the file)", timeout=PATIENCE)
    tab.get_by_role("spinbutton", name="Example").fill("58")
    tab.get_by_role("spinbutton", name="Example").press("Enter")
    expect(tab.locator(".ls-tokens .ls-tok.ls-x").first).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-legend .ls-x")).to_have_text("cut off")
    expect(tab.get_by_text("what is kept")).to_be_visible()
    with page.expect_download() as saved:
        tab.get_by_role("button", name="Download invalid rows").click()
    bad = [json.loads(line) for line in Path(saved.value.path()).read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in bad] == [4, 8]

    train = tab.get_by_role("button", name="Use for training")
    page.locator("#bad-rows").get_by_label("stop").click()
    expect(tab.get_by_text("data.bad_rows is set to stop")).to_be_visible(timeout=PATIENCE)
    expect(train).to_be_disabled()
    page.reload()
    expect(tab.get_by_text("data.bad_rows is set to stop")).to_be_visible(timeout=PATIENCE)
    expect(tab.get_by_label("Max length (tokens)", exact=True)).to_have_value(length)
    assert fits(page, 390)
    page.locator("#bad-rows").get_by_label("skip").click()
    train.click()
    expect(page.locator("#tab-train")).to_be_visible(timeout=PATIENCE)


def test_a_file_that_nobody_can_read_is_a_sentence_and_read_as_a_person_says(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    upload(page, tmp_path / "empty.csv")
    tab = page.locator("#tab-data")
    expect(tab.get_by_text("empty.csv is empty")).to_be_visible(timeout=PATIENCE)
    turns = [
        [{"role": "customer", "content": f"Where is {i}?"}, {"role": "agent", "content": f"{i} is here."}]
        for i in range(9)
    ]
    (tmp_path / "desk.jsonl").write_text("\n".join(json.dumps({"talk": talk, "id": 1}) for talk in turns))
    upload(page, tmp_path / "desk.jsonl")
    expect(tab.get_by_text("a message has an unknown role")).to_be_visible(timeout=PATIENCE)
    expect(tab.get_by_text("empty.csv is empty")).to_be_hidden()
    expect(tab.get_by_role("button", name="Use for training")).to_be_hidden()
    choose(page, "#reading-role-user", "customer")
    choose(page, "#reading-role-assistant", "agent")
    expect(page.locator("#reading-tried .ls-bubble.ls-assistant").first).to_contain_text("0 is here.", timeout=PATIENCE)
    tab.get_by_role("button", name="Apply mapping").click()
    expect(tab.get_by_text("No invalid rows.")).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-reading .ls-bubble.ls-assistant .ls-said").last).to_have_text("0 is here.")
    tab.get_by_label("Dataset", exact=True).click()
    page.get_by_role("option", name="Machine manual (built in)").click()
    expect(tab.locator(".ls-reading .ls-bubble.ls-assistant .ls-said").last).not_to_have_text(
        "0 is here.", timeout=PATIENCE
    )


def test_a_reading_is_asked_for_corrected_by_hand_and_seen_in_what_is_trained(page: Page, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "output": f"out {i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(40)]
    path = tmp_path / "both.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    upload(page, path)
    tab = page.locator("#tab-data")
    expect(tab.get_by_text("The rows contain answers and preference pairs")).to_be_visible(timeout=PATIENCE)
    tab.get_by_label("“chosen” the chosen answer").click()
    expect(tab.get_by_text("Preference pairs for DPO")).to_be_visible(timeout=PATIENCE)
    tab.get_by_label("“output” the assistant turn").click()
    expect(tab.locator(".ls-words").first).to_contain_text("output the assistant turn", timeout=PATIENCE)

    tab.get_by_text("Fix column mapping").click()
    choose(page, "#reading-assistant", "chosen")
    tab.get_by_label("User prompt from several columns").fill("Say {question}")
    page.keyboard.press("Tab")
    expect(page.locator("#reading-tried .ls-bubble.ls-user").first).to_contain_text("Say 0?", timeout=PATIENCE)
    tab.get_by_role("button", name="Apply mapping").click()
    expect(tab.locator(".ls-reading .ls-bubble.ls-user .ls-said").last).to_have_text("Say 0?", timeout=PATIENCE)
    assert "".join(tab.locator(".ls-tokens .ls-tok.ls-t").all_inner_texts()).replace("·", " ") == "good 0<|im_end|>"
    assert fits(page, 390)

    page.reload()
    expect(tab.locator(".ls-result").first).to_contain_text("Your column mapping", timeout=PATIENCE)
    tab.get_by_role("button", name="Use for training").click()
    page.locator("#tab-train").get_by_text("Config file (YAML)").click()
    expect(page.locator("#form-yaml")).to_contain_text("user_template: Say {question}", timeout=PATIENCE)
    open_tab(page, "Data")
    tab.get_by_text("Fix column mapping").click()
    tab.get_by_role("button", name="Reset to detected mapping").click()
    expect(tab.locator(".ls-words").first).to_contain_text("output the assistant turn", timeout=PATIENCE)


def test_the_windows_of_a_long_text_are_turned_like_pages(page: Page, tmp_path: Path) -> None:
    (tmp_path / "book.jsonl").write_text(json.dumps({"text": " ".join(f"word {i}" for i in range(900))}))
    upload(page, tmp_path / "book.jsonl")
    tab = page.locator("#tab-data")
    where = tab.locator(".ls-where")
    expect(where).to_contain_text("part 1 of ", timeout=PATIENCE)
    first = tab.locator(".ls-tokens").inner_text()
    tab.get_by_role("button", name="Next part").click()
    expect(where).to_contain_text("part 2 of ", timeout=PATIENCE)
    assert tab.locator(".ls-tokens").inner_text() != first
    tab.get_by_role("button", name="Previous part").click()
    expect(where).to_contain_text("part 1 of ", timeout=PATIENCE)
    expect(tab.get_by_role("button", name="Previous part")).to_be_disabled()
    row = {"question": "word " * 1500, "answer": "Here it ends."}
    (tmp_path / "long.jsonl").write_text(json.dumps(row))
    upload(page, tmp_path / "long.jsonl")
    expect(tab.get_by_text("what is kept")).to_be_visible(timeout=PATIENCE)
    tokens = tab.locator(".ls-tokens")
    expect(tokens).not_to_have_js_property("scrollTop", 0)  # the kept part is in sight, after many that are cut off
    tokens.scroll_into_view_if_needed()
    expect(tokens.locator(".ls-tok:not(.ls-x)").first).to_be_in_viewport()


def many_questions(path: Path, rows: int, note: str = "") -> Path:
    with path.open("w", encoding="utf-8") as file:
        rest = {"note": note} if note else {}
        file.writelines(
            json.dumps({"question": f"Is it {i}?", "answer": f"It is {i}.", **rest}) + "\n" for i in range(rows)
        )
    return path


def test_the_reading_of_a_large_file_can_be_stopped_after_the_first_look(page: Page, tmp_path: Path) -> None:
    tab = page.locator("#tab-data")
    type_source(page, str(many_questions(tmp_path / "endless.jsonl", 400_000)))
    expect(tab.get_by_text("Preview: ")).to_be_visible(timeout=PATIENCE)
    tab.get_by_role("button", name="Stop", exact=True).click()
    expect(tab.get_by_text("Stopped. The dataset is still chosen.")).to_be_visible(timeout=PATIENCE)
    expect(tab.get_by_role("button", name="Analyze dataset")).to_be_enabled()


def test_a_large_file_is_first_looked_at_then_whole_while_the_page_answers(page: Page, tmp_path: Path) -> None:
    tab = page.locator("#tab-data")
    type_source(page, str(many_questions(tmp_path / "large.jsonl", 25_000, "not for training " * 15)))
    expect(tab.get_by_text("Preview: ")).to_be_visible(timeout=PATIENCE)
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_visible()
    open_tab(page, "Data")
    whole = tab.locator(".ls-where", has_text="of 25,000")
    expect(tab.get_by_text("rows/s").or_(whole).first).to_be_visible(timeout=PATIENCE)
    expect(whole).to_be_visible(timeout=4 * PATIENCE)
    expect(tab.get_by_text("Preview: ")).to_be_hidden()
    tab.get_by_role("button", name="Percentiles, packing, steps ▼").click()
    expect(tab.get_by_text("Epoch: ")).to_be_visible(timeout=PATIENCE)


def test_a_folder_is_typed_and_what_the_train_tab_lacked_is_known_then(page: Page, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("a", "b"):
        row = json.dumps({"question": name, "answer": "yes"})
        (tmp_path / "parts" / f"{name}.jsonl").write_text(f"{row}\n{row}\n")
    tab = page.locator("#tab-data")
    type_source(page, str(tmp_path / "parts"))
    expect(tab.get_by_text("Data files read from the folder: a.jsonl, b.jsonl.")).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-findings")).to_contain_text("1 row repeats an earlier row")
    rows = str(tab.locator(".ls-result span").first.get_attribute("title")).split()[0]
    tab.get_by_role("button", name="Use for training").click()
    expect(page.locator("#plan")).to_contain_text(f"Training rows{rows}", timeout=PATIENCE)
    open_tab(page, "Data")
    tab.get_by_role("button", name="Cache ▼").click()
    tab.get_by_role("button", name="Clear cache", exact=True).click()
    expect(tab.get_by_text("The cache is empty.")).to_be_visible(timeout=PATIENCE)


def test_hostile_column_names_and_formulas_in_a_table_are_text(page: Page, tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://e.vil","${document.title=\'hacked\'}")'
    path = tmp_path / "names.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", HOSTILE, "=1+1", "{{value}}", "@SUM(A1)"])
        writer.writerows([f"{formula} {number}", f"answer {number}", formula, "+1", "-2", "@x"] for number in range(20))
    upload(page, path)
    tab = page.locator("#tab-data")
    expect(tab.locator(".ls-words").first).to_contain_text("question is the user turn", timeout=PATIENCE)
    expect(tab.locator(".ls-bubble.ls-user")).to_contain_text(f"{formula} 0", timeout=PATIENCE)
    expect(tab.get_by_text(HOSTILE).first).to_be_attached()
    assert tab.locator("script, a[href*='e.vil']").count() == 0

    page.once("dialog", lambda asked: asked.accept())
    tab.get_by_role("button", name="Uploaded files ▼").click()
    tab.get_by_role("button", name="Delete names.csv", exact=True).click()
    expect(tab.get_by_text("names.csv was deleted.")).to_be_visible(timeout=PATIENCE)
    expect(tab.locator(".ls-words")).to_be_hidden()
    expect(tab.get_by_label("Dataset", exact=True)).to_have_value("Pirate persona (built in)")
