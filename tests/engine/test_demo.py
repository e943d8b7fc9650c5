"""`python -m lora_studio.demo` trains, compares and prints what it found."""

from pathlib import Path

import pytest

from lora_studio.config.parsing import resolve
from lora_studio.config.sections import Config
from lora_studio.demo import __main__ as demo
from lora_studio.errors import StudioError
from lora_studio.jobs.events import PhaseStarted, RunState, StepLogged, fold
from lora_studio.workspace import Workspace


@pytest.mark.slow
def test_the_demo_prints_questions_with_both_answers_and_both_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(name: str) -> Config:
        return resolve(name, {"training.max_steps": 3, "data.max_samples": 24})

    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "resolve", short)
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("  Question  ") == printed.count("  Base  ") == printed.count("  Adapter  ") == demo.SHOWN
    assert "validation prompts: base " in printed
    assert [run.complete.is_file() for run in Workspace(tmp_path).runs()] == [True]


def test_a_failed_training_is_told_with_its_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: object) -> None:
        raise StudioError("It broke.", "Mend it.")

    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "train", fails)
    assert demo.main() == 1


def test_progress_is_one_line() -> None:
    assert demo.progress(RunState()) == "starting"
    state = fold([PhaseStarted(1.0, "data")])
    assert demo.progress(state) == "data"
    point = StepLogged(2.0, 3, 30, 0.1, 1.25, 1e-3, tokens_per_second=1234.0)
    assert demo.progress(fold([point], state)) == "step 3/30, loss 1.250, 1,234 tokens/s"
