"""What all tests share: no network, no telemetry, a workspace of their own, and which optional tests run."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_studio.ui.gradio_patches import leave_stubs_alone
from lora_studio.workspace import Workspace

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Say = Callable[..., tuple[int, str, str]]

os.environ.update(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", TOKENIZERS_PARALLELISM="false")
leave_stubs_alone()  # before a file of tests imports Gradio
gc.disable()  # while the files of tests import everything there is, of which nothing becomes garbage


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests on real files out where the folder that holds them is not named.

    Files that take long come first, so that of several processes of tests none is left alone with one at the end.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    if os.environ.get("LORA_STUDIO_REAL"):
        return
    real = [item for item in items if item.get_closest_marker("real")]
    config.hook.pytest_deselected(items=real)
    items[:] = [item for item in items if not item.get_closest_marker("real")]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # what tests make is small and gone soon: the usual 700 cost a twelfth of the time
    gc.enable()


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Takes back what a program that a test runs in this process sets: a worker narrows the GPUs that it may see."""
    before = dict(os.environ)
    yield
    now = dict(os.environ)
    for name in now.keys() | before.keys():
        if name == "PYTEST_CURRENT_TEST" or now.get(name) == before.get(name):
            continue
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def say(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command of the terminal in the workspace and gives exit code, stdout, stderr."""
    from lora_studio.cli import main

    def command(*words: str) -> tuple[int, str, str]:
        code = main([*words, "--workspace", str(workspace.root)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from tests.serving import chromium  # Playwright, which only tests of the page need

    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real tokenizers and data sets (see CONTRIBUTING, Tests)."""
    return Path(os.environ["LORA_STUDIO_REAL"])
