"""Load and temperature where the machine tells them, and nothing where it does not."""

import stat
import time
from pathlib import Path

import pytest

from lora_studio.models import hardware
from lora_studio.models.hardware import Reading, Sensors, gpu_reading, parse_reading


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        ("57, 61\n", Reading(57.0, 61.0)),
        ("[N/A], 40", Reading(None, 40.0)),
        ("No devices were found", Reading()),
        ("", Reading()),
    ],
)
def test_what_the_tool_prints_is_read(line: str, reading: Reading) -> None:
    assert parse_reading(line) == reading


def test_the_card_that_is_asked_for_is_read_by_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$1" in --id=GPU-1) echo "57, 61";; *) exit 6;; esac\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpu_reading("GPU-1") == Reading(57.0, 61.0)
    assert gpu_reading("GPU-2") == Reading()


def test_a_machine_without_the_tool_tells_nothing_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_reading("GPU-1") == Reading()


def test_the_thread_keeps_the_last_reading_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_reading", lambda: Reading(12.5))
    watching = Sensors(seconds=0.01)
    assert watching.last == Reading()
    watching.start()
    end = time.monotonic() + 10
    while watching.last == Reading() and time.monotonic() < end:
        time.sleep(0.01)
    watching.close()
    assert watching.last == Reading(12.5)
