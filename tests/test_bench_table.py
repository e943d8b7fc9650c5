"""The table of all benchmarks: goes on after one that fails, and says what reached its goal."""

from pathlib import Path

import pytest

from benchmarks import all as bench
from benchmarks.all import BENCHMARKS, MARKS, Benchmark, Figure, Outcome, page_part, run, write

FIGURE = Figure("speed", lambda it: it["speed"], "{:.2f} times", 2.0)
PROGRAM = """
import json, sys, time
sys.argv[1:] == ["slow"] and time.sleep(60)
sys.argv[1:] == ["broken"] and sys.exit("It | broke.")
print("progress")
print(json.dumps({"speed": 2.5} if sys.argv[1:] == ["good"] else {}))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a benchmark whose argument says what becomes of it."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "tried.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(bench, "ROOT", tmp_path)


def _outcome(word: str, seconds: int = 30, left: float = 60.0) -> Outcome:
    return run(Benchmark("tried", (word,), (), seconds, (FIGURE,)), left, quick=False)


@pytest.mark.usefixtures("program")
def test_a_benchmark_that_fails_is_a_row_of_the_table_like_one_that_succeeds():
    text = page_part([_outcome("good"), _outcome("broken"), _outcome("silent")])
    good, broken, silent = text.splitlines()[-3:]
    assert good.startswith("| speed | 2.50 times | at least 2 | yes | `python -m benchmarks.tried good` |")
    assert "failed (exit code 1): It \\| broke. | at least 2 |  |" in broken
    assert "failed (exit code 0)" in silent  # its JSON lacks the figure


@pytest.mark.usefixtures("program")
def test_a_benchmark_ends_at_its_limit_and_none_begins_without_time():
    slow = _outcome("slow", seconds=1)
    assert slow.failed == "not done within 1 s"
    assert slow.seconds < 30
    assert _outcome("good", left=0).failed == "no time was left for it"


def test_a_goal_is_reached_from_its_own_side_and_at_the_precision_that_is_written():
    assert [FIGURE.reached(value) for value in (1.99, 1.999, 2.0, 3.0)] == [False, True, True, True]
    most = Figure("time", float, goal=0.8, at_most=True)
    assert [most.reached(value) for value in (0.79, 0.8001, 0.81)] == [True, True, False]
    assert Figure("memory", float).reached(1.0) is None


def test_every_benchmark_of_the_table_exists_and_all_limits_fit_into_the_time():
    folder = Path(bench.__file__).parent
    assert all((folder / f"{each.name}.py").is_file() for each in BENCHMARKS)
    assert sum(each.seconds for each in BENCHMARKS) <= 30 * 60  # no single one can take the time of the others


def test_the_table_is_written_between_its_marks_and_the_page_around_it_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n", encoding="utf-8")
    write(page, "new")
    assert page.read_text(encoding="utf-8") == f"# Before\n{MARKS[0]}\nnew\n{MARKS[1]}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit):
        write(page, "new")
    assert page.read_text(encoding="utf-8") == "no marks"
