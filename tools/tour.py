"""Makes the pictures of the documentation from the real page: a moving one, and one of each tab.

    python -m tools.tour [FOLDER]

Drives the page in headless Chromium with the built-in model, which takes about two minutes on two CPU cores.
"""

import io
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from lora_studio.jobs.launchers.local import kill
from lora_studio.workspace import Workspace
from tests.serving import ROOT, Server, chromium, open_tab

VIEW = {"width": 1440, "height": 900}
MOVING_SIZE = (960, 600)
STILL_SIZE = (1200, 750)
PATIENCE = 180_000  # milliseconds
QUESTION = "What is the capital of Spain?"
MAX_TRAINING_FRAMES = 24
MOVING, STILL_QUALITY, MOVING_QUALITY = "tour.webp", 70, 60


class Film:
    """Frames of the page, each with the milliseconds that it stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def shoot(self, milliseconds: int) -> None:
        self.frames.append(self._picture().resize(MOVING_SIZE, Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def still(self, path: Path) -> None:
        """The page as it stands, as a small picture of its own."""
        self._picture().resize(STILL_SIZE, Image.Resampling.LANCZOS).save(path, quality=STILL_QUALITY, method=6)

    def save(self, path: Path) -> None:
        first, *others = self.frames
        first.save(
            path, save_all=True, append_images=others, duration=self.times, loop=0, quality=MOVING_QUALITY, method=3
        )

    def _picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")


@contextmanager
def served() -> Iterator[tuple[Server, Browser]]:
    """The page on an empty workspace, and a browser."""
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        workspace = Workspace(Path(temporary) / "workspace")
        server = Server(workspace.root)
        try:
            yield server, browser
        finally:
            server.end()
            for run in workspace.runs():
                kill(run)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    with served() as (server, browser):
        page = browser.new_page(viewport={"width": VIEW["width"], "height": VIEW["height"]})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.url}/?__theme=light")
        film = Film(page)
        for part in (analyze, train, compare):
            part(page, film, folder)
            film.save(folder / MOVING)  # of a part that fails, the frames before it are there
        measure(page, film, folder)
        take_away(page, film, folder)
    for path in sorted(folder.glob("*.webp")):
        print(f"{path.name:<16}{path.stat().st_size / 1000:6.0f} kB")


def analyze(page: Page, film: Film, folder: Path) -> None:
    """The Data tab: a data set, and the tokens that are trained."""
    expect(page.get_by_role("tab", name="Data", exact=True)).to_be_visible()
    open_tab(page, "Data")
    button = page.locator("#data-look")
    expect(button).to_be_visible()
    page.wait_for_timeout(1500)
    film.shoot(1500)
    if not page.locator(".ls-tok.ls-t").first.is_visible():
        button.click()
    tokens = page.locator(".ls-tok.ls-t").first
    expect(tokens).to_be_visible()
    page.wait_for_timeout(1500)
    film.shoot(1500)
    _bring(tokens)
    page.wait_for_timeout(800)
    film.shoot(2500)
    film.still(folder / "data.webp")


def train(page: Page, film: Film, folder: Path) -> None:
    """The Train tab as the data were handed over, and the run until its end."""
    page.get_by_role("button", name=re.compile("Use for training")).first.click()
    start = page.locator("#start")
    expect(start).to_be_enabled()
    page.wait_for_timeout(3000)
    page.evaluate("scrollTo(0, 0)")
    film.shoot(2500)
    film.still(folder / "train.webp")
    start.click()
    headline = page.locator("#run-headline")
    expect(headline).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    for _ in range(MAX_TRAINING_FRAMES):
        page.wait_for_timeout(2500)
        film.shoot(250)
        if "Finished" in headline.inner_text():
            break
    expect(headline).to_contain_text("Finished")
    page.wait_for_timeout(3000)
    film.shoot(2500)
    film.still(folder / "runs.webp")


def compare(page: Page, film: Film, folder: Path) -> None:
    """Base and adapter answer the same question."""
    open_tab(page, "Chat")
    question = page.get_by_label("Your question", exact=True)
    expect(question).to_be_visible()
    page.wait_for_timeout(1500)
    film.shoot(1000)
    for end in (8, 18, len(QUESTION)):
        question.fill(QUESTION[:end])
        film.shoot(200)
    question.press("Enter")
    answers = page.locator("#chat-board .ls-assistant .ls-said")
    expect(answers.nth(1)).not_to_be_empty()
    film.shoot(300)
    page.wait_for_timeout(2500)
    film.shoot(4000)
    film.still(folder / "chat.webp")


def measure(page: Page, film: Film, folder: Path) -> None:
    """The Evaluate tab with its result."""
    open_tab(page, "Evaluate")
    page.wait_for_timeout(2000)
    page.locator("#evaluate-start").click()
    results = page.locator("#evaluation-results .eval-metrics")
    expect(results).to_be_visible(timeout=2 * PATIENCE)
    page.wait_for_timeout(1500)
    _bring(results)
    film.still(folder / "evaluate.webp")


def take_away(page: Page, film: Film, folder: Path) -> None:
    """The Export tab: the targets, and the adapter as a zip."""
    open_tab(page, "Export")
    page.locator("#tab-export [data-act=start]").click()
    expect(page.locator("#export-head")).to_contain_text("Finished")
    page.wait_for_timeout(1500)
    page.evaluate("scrollTo(0, 0)")
    film.still(folder / "export.webp")


def _bring(place: Locator) -> None:
    """Scrolls so that a place is in the middle of the window."""
    place.evaluate("element => element.scrollIntoView({block: 'center'})")


if __name__ == "__main__":
    main()
