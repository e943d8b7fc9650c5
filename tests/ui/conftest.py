"""What tests of the page share: Gradio as the page sets it up, and a quick look at a file without a child process."""

import functools
import json
from pathlib import Path

import gradio  # noqa: F401  # what is patched below
import pytest

from lora_studio.errors import StudioError
from lora_studio.jobs import session
from lora_studio.jobs.session import FileSummary
from lora_studio.ui.gradio_patches import read_signatures_once

read_signatures_once()  # as for every page; tests build parts of one some hundred times


@pytest.fixture
def looked_at_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are counted and read by the same function in this process: a child costs half a second of imports.

    `test_plan` and `test_no_data_is_opened` hold tests that have the child.
    """
    from lora_studio.data.preview import quick_look

    @functools.cache
    def count(path: Path, _changed: int, _size: int, options: str) -> FileSummary:
        try:
            look = quick_look(path, **json.loads(options))
        except StudioError:
            return FileSummary()
        return FileSummary(look["rows"] or None, look["reading"])

    monkeypatch.setattr(session, "_count", count)
