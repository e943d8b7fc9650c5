"""llama.cpp's programs are run without a shell; their progress, failure and end are seen."""

import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lora_studio.engine.export.gguf import run_program
from lora_studio.engine.runtime import EventLog, Stopped, StopSignal
from lora_studio.errors import StudioError
from lora_studio.export.targets import commands, find_llama_cpp
from tests.llama_stand_in import write_llama_cpp


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model; touch pwned"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_model_becomes_a_file_and_progress_is_told(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    tools = find_llama_cpp({"LLAMA_CPP_DIR": str(write_llama_cpp(tmp_path / "llama.cpp")), "PATH": ""})
    assert tools is not None
    log, out, between = EventLog(tmp_path / "events.jsonl"), tmp_path / "out.gguf", tmp_path / "between.gguf"
    for command in commands("q4_k_m", str(model), str(out), str(between), tools):
        run_program(command, log, "The conversion")
    assert out.read_bytes().endswith(b"bf16Q4_K_M")
    state = log.state()
    assert (state.phase, state.phase_done, state.phase_total, state.phase_unit) == ("convert", 7, 7, "tensors")
    said = capfd.readouterr().out
    assert "Loading model" in said
    assert "secrets seen: []" in said
    assert not (tmp_path / "pwned").exists()


def test_a_program_that_fails_is_quoted(model: Path, tmp_path: Path) -> None:
    folder = write_llama_cpp(tmp_path / "llama.cpp")
    (model / "config.json").unlink()
    log = EventLog(tmp_path / "events.jsonl")
    command = [sys.executable, str(folder / "convert_hf_to_gguf.py"), str(model), "--outfile", "x", "--outtype", "f16"]
    with pytest.raises(StudioError, match=r"The conversion failed \(exit code 3\): no config.json"):
        run_program(command, log, "The conversion")
    with pytest.raises(StudioError, match="cannot be started"):
        run_program([str(tmp_path / "gone")], log, "The conversion")


def test_a_stop_ends_the_program_at_once(tmp_path: Path) -> None:
    stop, before = StopSignal(), signal.getsignal(signal.SIGTERM)
    log = EventLog(tmp_path / "events.jsonl")
    try:
        stop.listen()
        threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            run_program([sys.executable, "-c", "import time; time.sleep(600)"], log, "It")
        assert time.monotonic() - began < 300
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for child in psutil.Process().children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # it is gone already
            assert "time.sleep(600)" not in " ".join(child.cmdline())
