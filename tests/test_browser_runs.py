"""The buttons of the runs tab in a real browser, on run folders written by hand: each is pressed and its effect looked
at. A process that only waits holds the device: whatever a button starts stands in the queue and trains nothing.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from lora_studio.config.parsing import parse, read_yaml, to_yaml
from lora_studio.config.sections import Config
from lora_studio.jobs.events import Evaluated, Event, Finished, PhaseStarted, RunStarted, StepLogged, to_line
from lora_studio.jobs.launchers.local import LocalWorker, find
from lora_studio.jobs.queue import QueueEntry, read_queue
from lora_studio.ui.form import DRAFT
from lora_studio.workspace import RunFolder, Workspace
from tests.serving import PATIENCE, Server, open_tab, visited

pytestmark = pytest.mark.slow
RETRY = {"title": "2 rows at once", "cost": "", "settings": {"training.per_device_train_batch_size": 2}}


def written(workspace: Workspace, title: str, age: float, config: Config, *end: Event) -> RunFolder:
    """A run of six steps, begun so many seconds ago."""
    run = workspace.create_run(title, to_yaml(config), {"created": time.time() - age})
    began = time.time() - age
    points = [StepLogged(began + step, step, 6, step / 2, loss=2.0 / step, learning_rate=1e-3) for step in range(1, 7)]
    events = [RunStarted(began, 1, "cpu", "float32"), PhaseStarted(began, "train", 6, "steps"), *points, *end]
    run.events.write_text("".join(map(to_line, events)))
    return run


def with_adapter(run: RunFolder, config: Config) -> None:
    """What stands for an adapter and a checkpoint; nothing here loads them."""
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "demo",
        "r": config.lora.r,
        "target_modules": ["q_proj"],
    }
    for folder in (run.adapter, run.checkpoints / "checkpoint-6"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        (folder / "adapter_model.safetensors").write_bytes(b"x")
    (run.checkpoints / "checkpoint-6" / "trainer_state.json").write_text("{}")


@pytest.fixture
def holder(workspace: Workspace) -> Iterator[RunFolder]:
    """A run that goes on for as long as the test: its worker sleeps."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    run = written(workspace, "holder", 60.0, Config())
    began = psutil.Process(process.pid).create_time()
    run.worker.write_text(json.dumps(asdict(LocalWorker(process.pid, began, began))))
    yield run
    process.kill()
    process.wait(10)


@pytest.fixture
def runs(workspace: Workspace, holder: RunFolder) -> dict[str, RunFolder]:
    """One run that ran out of memory, and one that is done and learnt its rows by heart."""
    small, long = (parse({"title": name, "training": {"num_train_epochs": 3}, "lora": {"r": r}}) for name, r in NAMED)
    short = written(workspace, "short", 3600.0, small, Finished(time.time() - 3500, "failed", 6, "Out of memory."))
    short.complete.write_text(json.dumps({"state": "failed", "retry": RETRY}))
    rising = [Evaluated(1.0, step, step / 2, loss) for step, loss in ((2, 0.6), (4, 0.9), (6, 1.2))]
    heart = written(workspace, "heart", 1800.0, long, *rising, Finished(time.time() - 1700, "done", 6))
    with_adapter(heart, long)
    return {"short": short, "heart": heart, "holder": holder}


NAMED = (("short", 4), ("heart", 8))


@pytest.fixture
def server(workspace: Workspace, runs: dict[str, RunFolder]) -> Iterator[Server]:
    """The page on these runs, ended before the device is free."""
    running = Server(workspace.root)
    yield running
    running.end()


def choose(page: Page, run: RunFolder, title: str) -> None:
    open_tab(page, "Runs")
    page.locator(f'#run-list [data-act="open"][data-value="{run.id}"]').click()
    expect(page.locator("#run-headline h2")).to_have_text(title, timeout=PATIENCE)


def choose_more(page: Page, action: str) -> None:
    """A choice of the run's menu."""
    page.locator("#run-more").click()
    page.locator(f"#run-{action}").click()
    expect(page.locator("#run-menu")).to_be_hidden()


def waiting(page: Page, workspace: Workspace, number: int) -> list[QueueEntry]:
    """The queue once so many runs wait in it, on the page beside the one that works, and on the disk."""
    expect(page.locator("#run-queue li")).to_have_count(number + 1, timeout=PATIENCE)
    return read_queue(workspace)


def test_every_button_of_a_run_does_what_it_says(
    browser: Browser, server: Server, workspace: Workspace, runs: dict[str, RunFolder]
) -> None:
    with visited(browser, server.url + "/#runs") as page:
        press_every_button(page, server, workspace, runs["short"], runs["heart"])
        cancel_what_goes_on(page, runs["holder"])


def press_every_button(page: Page, server: Server, workspace: Workspace, short: RunFolder, heart: RunFolder) -> None:
    """The whole visit."""
    expect(page.locator("#run-headline h2")).to_have_text("holder", timeout=PATIENCE)

    # Out of memory: the button starts the same run, smaller.
    choose(page, short, "short")
    page.get_by_role("button", name="Start again with 2 rows at once", exact=True).click()
    (retry,) = waiting(page, workspace, 1)
    changed = parse(read_yaml(workspace.run(retry.job).config))
    assert changed.training.per_device_train_batch_size == 2
    assert changed.lora.r == 4

    # Health: its change stands in the form, with the run's own settings.
    choose(page, heart, "heart")
    expect(page.locator("#run-verdict")).to_contain_text("Overfitting")
    page.locator('#run-verdict [data-value="overfitting"]').click()
    epochs = page.locator("#set-training-num_train_epochs input")
    expect(epochs).to_have_value("1", timeout=PATIENCE)
    expect(page.locator("#set-lora-r input")).to_have_value("8")
    note = page.locator("#set-training-per_device_train_batch_size .field-note")
    expect(note).to_have_text("Effective batch: 4 × 4 = 16 rows.", timeout=PATIENCE)

    # Duplicate and edit: all of the run's settings, and nothing of what stood in the form.
    choose(page, heart, "heart")
    choose_more(page, "again")
    expect(epochs).to_have_value("3", timeout=PATIENCE)
    expect(page.locator("#set-title input")).to_have_value("heart")
    page.locator("#set-training-per_device_train_batch_size input").fill("8")
    expect(note).to_have_text("Effective batch: 8 × 4 = 32 rows.", timeout=PATIENCE)

    # Further: more epochs of the same run, or a new run from its adapter.
    choose(page, heart, "heart")
    choose_more(page, "further")
    page.locator("#run-continue").click()
    expect(page.locator("#set-title input")).to_have_value("heart, continued", timeout=PATIENCE)
    assert workspace.read_draft(DRAFT)["values"]["model.adapter_name_or_path"] == heart.id
    open_tab(page, "Runs")
    page.locator("#run-epochs input").fill("2")
    page.locator("#run-extend").click()
    assert waiting(page, workspace, 2) == [retry, QueueEntry(heart.id, resume=True, extra_epochs=2.0)]
    expect(page.locator("#run-queue li").last).to_contain_text("2 more epochs")

    # The queue: up, down, out.
    page.locator(f'#run-queue [data-act="up"][data-value="{heart.id}"]').click()
    expect(page.locator("#run-queue li").nth(1)).to_contain_text("heart", timeout=PATIENCE)
    assert [entry.job for entry in read_queue(workspace)] == [heart.id, retry.job]
    page.locator(f'#run-queue [data-act="down"][data-value="{heart.id}"]').click()
    expect(page.locator("#run-queue li").last).to_contain_text("heart", timeout=PATIENCE)
    assert [entry.job for entry in read_queue(workspace)] == [retry.job, heart.id]
    page.locator(f'#run-queue [data-act="out"][data-value="{retry.job}"]').click()
    assert [entry.job for entry in waiting(page, workspace, 1)] == [heart.id]
    page.locator(f'#run-queue [data-act="out"][data-value="{heart.id}"]').click()
    expect(page.locator("#run-queue li")).to_have_count(0, timeout=PATIENCE)
    assert read_queue(workspace) == []

    # Two runs beside each other.
    for run in (short, heart):
        page.locator(f'#run-list [data-act="tick"][data-value="{run.id}"]').click()
    expect(page.locator("#compare-words")).to_contain_text("2 runs compared", timeout=PATIENCE)
    expect(page.locator("#compare-settings")).to_contain_text("LoRA rank")
    expect(page.locator("#compare-results")).to_contain_text("Lowest validation loss")

    # A link to a run: the address names the run that is open, opens it, and is there after a reload.
    choose(page, heart, "heart")
    assert page.url == f"{server.url}/#runs/{heart.id}"
    page.evaluate(f"location.hash = '#runs/{short.id}'")
    expect(page.locator("#run-headline h2")).to_have_text("short", timeout=PATIENCE)
    page.reload()
    expect(page.locator("#run-headline h2")).to_have_text("short", timeout=PATIENCE)
    assert page.url == f"{server.url}/#runs/{short.id}"

    # Arrow keys move between the tabs of the page and of the run.
    page.get_by_role("tab", name="Samples").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Checkpoints")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", name="Report")).to_be_focused()
    page.get_by_role("tab", name="Runs", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Train", exact=True)).to_have_attribute("aria-selected", "true")

    # On a phone the list is behind the run.
    open_tab(page, "Runs")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("#run-list")).to_be_hidden()
    page.get_by_role("button", name="All runs").click()
    page.locator(f'#run-list [data-act="open"][data-value="{heart.id}"]').click()
    expect(page.locator("#run-headline h2")).to_have_text("heart", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1440, "height": 900})

    # By now the child that looks at data is there, without anyone having asked for anything.
    children = [" ".join(child.cmdline()) for child in psutil.Process(server.process.pid).children()]
    assert any("lora_studio.engine.chat.session" in words for words in children)


def cancel_what_goes_on(page: Page, holder: RunFolder) -> None:
    """Last, for then the device is free: a run that goes on ends at once, without a step more."""
    choose(page, holder, "holder")
    choose_more(page, "cancel")
    expect(page.locator("#run-headline")).to_contain_text("Stopped", timeout=PATIENCE)
    expect(page.get_by_text("Cancelled at once")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#run-stop")).to_be_hidden()
    expect(page.locator("#run-verdict").get_by_role("button", name="Resume", exact=True)).to_be_visible()
    assert find(holder) is None
