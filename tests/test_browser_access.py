"""What axe-core finds on every tab, with every fold open, in both themes and at both widths: nothing serious."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize, expect

from lora_studio.ui.app import TABS
from tests.serving import Server, chromium, open_tab

WIDE: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
CONTRAST = "color-contrast"
# All rules on a wide screen; what else can differ: colours in the dark, and what scrolls or is cut off on a phone.
LOOKS: tuple[tuple[str, ViewportSize, bool, dict[str, object]], ...] = (
    ("wide", WIDE, False, {}),
    ("dark", WIDE, True, {"runOnly": [CONTRAST]}),
    ("phone", PHONE, False, {"rules": {CONTRAST: {"enabled": False}}}),
)
EARLIER = Path(__file__).parent / "earlier" / "workspace.zip"
PATIENCE = 60_000
OPEN_FOLDS = """() => {
  for (const fold of document.querySelectorAll('.tabitem .label-wrap:not(.open)')) if (fold.offsetParent) fold.click();
  for (const fold of document.querySelectorAll('.tabitem details:not([open])')) if (fold.offsetParent) fold.open = true;
}"""
# Colours fade for as long as a busy machine takes; a frame has to pass until they begin to.
AFTER_TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
COLOURS_STAND = "() => !document.getAnimations().some((one) => one instanceof CSSTransition)"
SERIOUS = {"serious", "critical"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page on a workspace with finished and stopped runs, an evaluation and an export."""
    root = tmp_path_factory.mktemp("access") / "workspace"
    with zipfile.ZipFile(EARLIER) as archive:
        archive.extractall(root)
    server = Server(root)
    try:
        with chromium() as browser:
            visit = browser.new_page(viewport=WIDE)
            visit.set_default_timeout(PATIENCE)
            visit.goto(server.url)
            expect(visit.get_by_role("tab", name="Train", exact=True)).to_be_visible(timeout=PATIENCE)
            yield visit
    finally:
        server.end()
        shutil.rmtree(root)


@pytest.mark.parametrize("tab", [label for _, label, _ in TABS])
def test_axe_finds_nothing_serious(page: Page, tab: str) -> None:
    page.set_viewport_size(WIDE)
    page.evaluate("document.body.classList.remove('dark')")
    open_tab(page, tab)
    if tab == "Data":  # what stands there of a file that was read
        page.locator("#data-look").click()
        expect(page.locator(".ls-tok.ls-t").first).to_be_visible(timeout=PATIENCE)
    if tab == "Runs":
        expect(page.locator("#run-headline h2")).to_be_visible(timeout=PATIENCE)
    page.evaluate(OPEN_FOLDS)
    page.wait_for_timeout(800)  # folds open by an animation
    findings = []
    for name, size, dark, options in LOOKS:
        page.set_viewport_size(size)
        page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", dark)
        page.evaluate(AFTER_TWO_FRAMES)
        page.wait_for_function(COLOURS_STAND, timeout=PATIENCE)
        violations = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
        findings += [
            f"{name}: {violation['id']} {node['target']} {node['html'][:160]}"
            for violation in violations
            if violation["impact"] in SERIOUS
            for node in violation["nodes"]
        ]
    assert not findings, "\n".join(findings)
