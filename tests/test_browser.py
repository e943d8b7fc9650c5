"""The main job in a real browser: upload, look, train, watch, reload, chat; and what the page must never do."""

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from lora_studio.jobs.events import read_state
from lora_studio.jobs.launchers.local import find, kill
from lora_studio.ui.app import TABS
from lora_studio.ui.form import DRAFT
from lora_studio.workspace import RunFolder, Workspace, shipped_data
from tests.serving import PATIENCE, Server, open_tab

pytestmark = pytest.mark.slow
POINTS = "document.querySelector('#chart .chart')?.data?.[0].x.length ?? 0"


class Visit:
    """A page with what went wrong on it and where it sent requests."""

    def __init__(self, browser: Browser, url: str, width: int = 1440, height: int = 900) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.events: list[str] = []  # what it asked of the server, by the name of the handler
        with urllib.request.urlopen(urllib.parse.urljoin(url, "/config")) as answer:
            names = {event["id"]: str(event["api_name"]) for event in json.load(answer)["dependencies"]}
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.note(request, names))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        expect(self.page.get_by_role("tab", name="Train", exact=True)).to_be_visible(timeout=PATIENCE)

    def note(self, request: Request, names: dict[int, str]) -> None:
        self.requests.append(request.url)
        if request.url.partition("?")[0].endswith("/queue/join"):
            self.events.append(names[json.loads(request.post_data or "")["fn_index"]])


@contextmanager
def serving(workspace: Workspace, port: int = 0) -> Iterator[Server]:
    """A server that leaves no run behind."""
    running = Server(workspace.root, port)
    try:
        yield running
    finally:
        running.end()
        for run in workspace.runs():
            kill(run)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What the tests share, in their order: empty at first, then with the run of the main job."""
    return Workspace(tmp_path_factory.mktemp("studio") / "workspace")


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    with serving(workspace) as running:
        yield running


def points(page: Page) -> int:
    """Points of the training curve as the chart holds them."""
    return int(page.evaluate(POINTS))


def wait_for_points(page: Page, more_than: int) -> int:
    page.wait_for_function(f"({POINTS}) > {more_than}", timeout=3 * PATIENCE)
    return points(page)


UNDER_THE_BUTTON = """() => {
  document.querySelector('#header').style.height = '500px';  // room to bring a field of text below the button
  document.querySelector('#set-model-name :is(input, textarea)').scrollIntoView({block: 'end'});
  const box = document.querySelector('#start').getBoundingClientRect();
  return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).closest('[id]').id;
}"""


def set_epochs(page: Page, epochs: int) -> None:
    page.locator("#set-training-num_train_epochs input").fill(str(epochs))


def start_long_run(page: Page) -> None:
    """Starts a run that goes on until it is stopped."""
    open_tab(page, "Train")
    set_epochs(page, 400)
    expect(page.locator("#plan")).to_contain_text("11,600", timeout=PATIENCE)
    page.locator("#set-training-num_train_epochs input").press("Control+Enter")
    expect(page.locator("#run-headline")).to_contain_text("pirate", timeout=PATIENCE)


def test_a_phone_scrolls_no_tab_sideways_and_reads_twelve_inputs_at_most(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server.url, width=390, height=844)
    for _, name, _ in TABS * 2:  # each is drawn when it is opened first, and has long been painted when it comes again
        open_tab(visit.page, name)
        visit.page.wait_for_timeout(400)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390, name
    open_tab(visit.page, "Train")
    fields = visit.page.locator("#form .form > .block:visible")
    assert 6 <= fields.count() <= 12
    hit = visit.page.evaluate(UNDER_THE_BUTTON)  # Playwright would scroll a button that is covered into sight
    assert hit == "start"
    visit.context.close()


def test_the_question_mark_opens_the_documentation_of_the_tab_in_sight(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server.url)
    for tab, page in (("Runs", "charts"), ("Data", "data-formats")):
        open_tab(visit.page, tab)
        expect(visit.page).to_have_url(re.compile(f"#{tab.lower()}$"))
        with visit.context.expect_page() as opened:
            visit.page.get_by_role("link", name="Help for this tab").click()
        expect(opened.value).to_have_url(f"{server.url}/docs/{page}")
        expect(opened.value.get_by_role("heading", level=1)).to_be_visible()
        opened.value.close()
    assert not [request for request in visit.requests if not request.startswith(server.url)]
    visit.context.close()


def test_leaving_the_list_of_presets_changes_nothing_and_a_choice_can_be_undone(
    browser: Browser, server: Server
) -> None:
    visit = Visit(browser, server.url + "/#train")
    rate, presets = visit.page.locator("#set-training-learning_rate input"), visit.page.locator("#preset input")
    rate.fill("3e-4")
    for leave in ("Tab", "Escape"):
        presets.click()
        visit.page.keyboard.press(leave)
        if leave == "Tab":  # not to the list of choices, which vanishes
            expect(visit.page.locator("#form-yaml-open")).to_be_focused()
        visit.page.locator("#set-title input").click()
        visit.page.wait_for_timeout(500)
    expect(rate).to_have_value("3e-4")
    presets.click()
    visit.page.get_by_role("option", name="cpu", exact=True).click()
    expect(visit.page.locator("#form-changes")).to_contain_text("Learning rate: 3e-4 → 2e-4", timeout=PATIENCE)
    expect(rate).to_have_value("2e-4")
    visit.page.locator("#form-undo").click()
    expect(rate).to_have_value("3e-4", timeout=PATIENCE)
    # What differs from the recipe can be reset by itself.
    reset = visit.page.locator("#set-training-learning_rate .field-reset")
    expect(reset).to_have_attribute("title", "Recipe: 0.001", timeout=PATIENCE)
    reset.click()
    expect(rate).to_have_value("0.001", timeout=PATIENCE)
    expect(reset).to_have_count(0, timeout=PATIENCE)
    # A recipe brings its method, and fields that only this method has.
    visit.page.locator(".recipe", has_text="Preference").click()
    expect(visit.page.locator("#form-changes")).to_contain_text("Method: SFT (answers) → DPO (pairs)", timeout=PATIENCE)
    # A search opens the group of a setting, by names of other programs too, and marks it.
    query = visit.page.locator("#settings-search input")
    for words, field in (("cutoff_len", "data-max_length"), ("dpo beta", "preference-beta")):
        query.fill(words)
        expect(visit.page.locator(f"#set-{field}[data-marked]")).to_be_in_viewport(timeout=PATIENCE)
    expect(visit.page.locator("#set-training-packing")).to_be_hidden()
    # The devices of this machine are offered.
    query.fill("gpu_ids")
    device = visit.page.locator("#set-compute-device input")
    expect(device).to_be_in_viewport(timeout=PATIENCE)
    device.click()
    visit.page.get_by_role("option", name="CPU").click()
    expect(device).to_have_value(re.compile(r"^CPU · [0-9.]+ GiB free$"), timeout=PATIENCE)
    # The help of a setting lies above its label, which is as wide as the field.
    visit.page.locator("#set-compute-processes .field-help").hover()
    expect(visit.page.locator("#set-compute-processes-tip")).to_be_visible()
    # Processes share a step, so that the effective batch counts them.
    processes, batch = (
        visit.page.locator(f"#set-{path}") for path in ("compute-processes", "training-per_device_train_batch_size")
    )
    processes.locator("input, textarea").fill("2")
    expect(batch).to_contain_text("× 2 = ", timeout=PATIENCE)
    processes.locator("input, textarea").fill("auto")
    expect(batch).not_to_contain_text("× 2 = ", timeout=PATIENCE)
    # A file of another trainer fills the form too, and says what became of its keys.
    with visit.page.expect_file_chooser() as chooser:
        visit.page.locator("#form-yaml-open").click()
    config = {
        "name": "sft.yaml",
        "mimeType": "text/yaml",
        "buffer": b"stage: sft\ncutoff_len: 333\ndeepspeed: z3.json\n",
    }
    chooser.value.set_files([config])
    notice = visit.page.locator("#form-changes")
    expect(notice).to_contain_text("LLaMA-Factory file sft.yaml", timeout=PATIENCE)
    expect(notice).to_contain_text("No counterpart (1)")
    length = visit.page.locator("#set-data-max_length input")
    expect(length).to_have_value("333")
    visit.page.locator("#form-undo").click()
    expect(length).not_to_have_value("333", timeout=PATIENCE)
    # What is pasted counts as what is typed, in a fold that was closed until now, too.
    visit.page.locator("#tries > button").click()
    visit.page.locator("#try-values-2").get_by_role("textbox").fill("8, 16")
    visit.page.locator("#try-values-0").get_by_role("textbox").fill("1e-4, 3e-4, 1e-3")
    expect(visit.page.locator("#try-start")).to_have_text("Start 3 runs", timeout=PATIENCE)
    expect(visit.page.locator("#try-note-2")).to_have_text("Choose the setting that these values are for.")
    visit.context.close()


def test_a_page_that_is_left_open_asks_for_the_tab_in_sight_alone(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server.url)
    for _, name, _ in TABS:
        open_tab(visit.page, name)
        visit.page.wait_for_timeout(400)
    open_tab(visit.page, "Data")  # which has no timer
    visit.page.wait_for_timeout(4000)
    visit.events.clear()
    visit.page.wait_for_timeout(6000)
    assert 1 <= len(visit.events) <= 4, f"the line on the running run, every two seconds, and not {visit.events}"
    visit.context.close()


def test_the_page_is_light(server: Server) -> None:
    assert server.megabytes < 270  # after a visit to every tab
    with urllib.request.urlopen(server.url + "/config") as answer:
        events = json.load(answer)["dependencies"]
    silent = [event for event in events if event["show_progress"] == "hidden" and event["backend_fn"]]
    assert silent
    assert {tuple(event["show_progress_on"]) for event in silent} == {tuple(silent[0]["show_progress_on"])}


def test_the_main_job_from_upload_to_two_different_answers(
    browser: Browser, server: Server, workspace: Workspace, tmp_path: Path
) -> None:
    upload = tmp_path / "my pirates.jsonl"
    lines = shipped_data()["pirate"].train.read_text(encoding="utf-8").splitlines(keepends=True)
    upload.write_text("".join(lines[:120]), encoding="utf-8")
    visit = Visit(browser, server.url)
    page = visit.page
    beside = visit.context.new_page()
    beside.goto(f"{server.url}/#chat")
    expect(beside.locator("#tab-chat")).to_contain_text("No adapter yet", timeout=PATIENCE)

    open_tab(page, "Data")
    page.locator("#tab-data input[type=file]").set_input_files(upload)
    expect(page.locator("#tab-data")).to_contain_text("120", timeout=2 * PATIENCE)
    expect(page.locator("#lengths .bars .point").first).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".ls-tok.ls-t").first).to_be_visible(timeout=PATIENCE)

    page.get_by_role("button", name="Use for training", exact=True).click()
    expect(page.locator("#set-data-train_file input")).to_have_value("my-pirates.jsonl", timeout=PATIENCE)
    rate = page.locator("#set-training-learning_rate input")
    rate.fill("fast")
    page.locator("#start").click()
    expect(page.locator("#set-training-learning_rate .field-error")).to_contain_text("number", timeout=PATIENCE)
    assert not workspace.runs()
    rate.fill("1e-3")
    set_epochs(page, 4)
    expect(page.locator("#set-training-learning_rate .field-error")).to_have_count(0, timeout=PATIENCE)
    page.locator("#start").dblclick()

    expect(page.locator("#run-headline")).to_contain_text("my-pirates", timeout=PATIENCE)
    seen = wait_for_points(page, 2)
    page.evaluate("Plotly.relayout(document.querySelector('#chart .chart'), {'xaxis.range': [0, 20]})")
    seen = wait_for_points(page, seen)
    assert page.evaluate("document.querySelector('#chart .chart').layout.xaxis.range") == [0, 20]
    page.set_viewport_size({"width": 390, "height": 844})  # as a phone that is turned
    page.wait_for_function("document.querySelector('#chart .chart').layout.width <= 390", timeout=PATIENCE)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.reload()
    expect(page.locator("#run-headline")).to_contain_text("my-pirates", timeout=PATIENCE)
    wait_for_points(page, seen - 1)
    # A chat that was open before offers the first checkpoint of the run by itself.
    expect(beside.get_by_label("Adapter of column 2")).to_be_visible(timeout=10 * PATIENCE)
    beside.close()
    expect(page.locator("#run-headline")).to_contain_text("Finished", timeout=10 * PATIENCE)
    assert len(workspace.runs()) == 1

    page.locator("#run-chat").click()
    page.get_by_label("Your question", exact=True).fill("What is the capital of France?")
    page.get_by_role("button", name="Send", exact=True).click()
    said = [page.locator(f'.chat-cell[data-at="{column}"] .ls-assistant .ls-said') for column in (0, 1)]
    expect(said[0]).to_have_text(re.compile("."), timeout=3 * PATIENCE)
    expect(page.locator("#chat-board .ls-note").last).to_contain_text("tokens/s", timeout=PATIENCE)
    base, adapter = (answer.inner_text().strip() for answer in said)
    assert base
    assert adapter
    assert base != adapter

    assert not visit.errors
    away = [url for url in visit.requests if not re.match(rf"{server.url}(/|$)|data:|blob:", url)]
    assert not away
    visit.context.close()


def test_a_run_in_two_processes_started_from_the_page_ends_with_its_chart(
    browser: Browser, server: Server, workspace: Workspace
) -> None:
    before = {run.id for run in workspace.runs()}
    visit = Visit(browser, server.url + "/#train")
    page = visit.page
    query = page.locator("#settings-search input")
    for words, path, value in (
        ("max_samples", "data-max_samples", "24"),
        ("max_steps", "training-max_steps", "3"),
        ("processes", "compute-processes", "2"),
    ):
        query.fill(words)
        field = page.locator(f"#set-{path}").locator("input, textarea").first
        expect(field).to_be_in_viewport(timeout=PATIENCE)
        field.fill(value)
    expect(page.locator("#set-training-per_device_train_batch_size")).to_contain_text("× 2 = ", timeout=PATIENCE)
    page.locator("#start").click()
    headline = page.locator("#run-headline")  # the run before has one, too, and more steps
    expect(headline).to_contain_text(re.compile(r"Finished\s*3 of 3 steps"), timeout=10 * PATIENCE)
    assert wait_for_points(page, 2) == 3
    (run,) = [run for run in workspace.runs() if run.id not in before]
    state = read_state(run.events)
    assert (state.state, state.processes, state.step) == ("done", 2, 3)
    assert not visit.errors
    visit.context.close()


def test_a_title_that_looks_like_code_is_only_text(browser: Browser, server: Server, workspace: Workspace) -> None:
    title = '<img src=x onerror="window.hit=1">${window.hit=2}{{value}}'
    run = workspace.create_run(title, "title: x\n", {"created": time.time() - 999})
    assert json.loads(run.facts.read_text())["title"] == title
    visit = Visit(browser, server.url + "/#runs")
    listed = visit.page.locator(f'#run-list [data-act="open"][data-value="{run.id}"]')
    expect(listed).to_have_text(title, timeout=PATIENCE)
    listed.click()
    expect(visit.page.locator("#run-headline h2")).to_have_text(title, timeout=PATIENCE)
    assert visit.page.evaluate("window.hit") is None
    visit.context.close()


def test_the_form_comes_back_after_a_reload_as_it_was_typed(
    browser: Browser, server: Server, workspace: Workspace
) -> None:
    visit = Visit(browser, server.url + "/#train")
    page = visit.page
    page.locator("#set-title input").fill("Half a na")
    page.locator("#set-training-learning_rate input").fill("2e-")
    for _ in range(100):
        if "2e-" in str(workspace.read_draft(DRAFT)):
            break
        page.wait_for_timeout(200)
    page.reload()
    expect(page.locator("#set-title input")).to_have_value("Half a na", timeout=PATIENCE)
    expect(page.locator("#set-training-learning_rate input")).to_have_value("2e-")
    visit.context.close()


def test_a_page_tells_that_its_server_was_killed_and_the_next_server_finds_the_run_and_stops_it(
    browser: Browser, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    with serving(workspace) as server:
        visit = Visit(browser, server.url)
        start_long_run(visit.page)
        wait_for_points(visit.page, 1)
        step_aside(run := workspace.run("last"))
        server.kill()
        expect(visit.page.locator("#no-server")).to_contain_text("does not answer", timeout=PATIENCE)
        before = run.events.stat().st_size
        end = time.monotonic() + PATIENCE / 1000
        while run.events.stat().st_size <= before:
            assert time.monotonic() < end, "the worker ended with the server"
            time.sleep(0.2)
        with serving(workspace, server.port):
            expect(visit.page.locator("#no-server")).to_have_count(0, timeout=PATIENCE)
            visit.errors.clear()  # of the time without a server
            stop_resume_and_delete(visit.page, run)
            assert not workspace.runs()
            assert not visit.errors
            visit.context.close()


def step_aside(run: RunFolder) -> None:
    """Lets server and browser go before the run, whose steps nobody waits for."""
    if worker := find(run):
        worker.nice(15)


def stop_resume_and_delete(page: Page, run: RunFolder) -> None:
    expect(page.locator("#status")).to_contain_text("demo-pirate-1 is", timeout=PATIENCE)
    for tab in ("Runs", "Chat", "Data", "Runs"):  # faster than the server answers what each of them asks for
        open_tab(page, tab)
    wait_for_points(page, wait_for_points(page, 1))
    page.locator("#run-stop").click()
    expect(page.locator("#run-headline")).to_contain_text("Stopped", timeout=PATIENCE)
    page.locator('#run-verdict [data-act="resume"]').click()
    expect(page.locator("#run-stop")).to_be_visible(timeout=PATIENCE)
    page.locator("#run-stop").click()
    expect(page.locator("#run-headline")).to_contain_text("Stopped", timeout=PATIENCE)
    while find(run):  # its last word is said a moment before it is gone, and the server looks now and then
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    page.locator("#run-more").click()
    page.locator("#run-delete").click()
    page.locator("#run-delete-yes").click()
    expect(page.locator("#run-list")).to_contain_text("No run yet", timeout=PATIENCE)
