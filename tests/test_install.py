"""The line of progress while packages are installed, and what pip's output says about it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import install
from tools.install import Progress, package_count, size_words

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Collecting torch==2.13.0 (from -r requirements.txt (line 2))\n", "Looking up 1 of about 9: torch"),
        ("Collecting ruff[all]>=1 (from x)\n", "Looking up 1 of about 9: ruff"),
        ("  Downloading torch-2.13.0-cp311-cp311-manylinux.whl (190.4 MB)\n", "Downloading torch, 190.4 MB"),
        ("Downloading https://x.test/scipy-1.17.1-cp311.whl (35.1 MB)\n", "Downloading scipy, 35.1 MB"),
        ("  Using cached nvidia_ml_py-13.6-py3-none-any.whl (50 kB)\n", "Downloading nvidia-ml-py, 50 kB"),
        ("Installing collected packages: a, b, c\n", "Unpacking 3 packages, about a minute"),
        ("  Downloading torch-2.13.0-cp311.whl.metadata (28 kB)\n", ""),
        ("Requirement already satisfied: torch\n", ""),
    ],
)
def test_a_line_of_pip_is_read_for_what_it_says_of_progress(line: str, words: str) -> None:
    assert Progress(9).of_line(line) == words


def test_lookups_are_counted_by_name_and_never_above_the_total() -> None:
    progress = Progress(2)
    said = [progress.of_line(f"Collecting {name}\n") for name in ("a", "b", "a", "c")]
    assert said[-1] == "Looking up 2 of about 2: c"
    assert said[2] == "Looking up 2 of about 2: a"


def test_the_number_of_packages_is_that_of_the_lock_file_and_what_the_file_adds() -> None:
    usual, developer = (package_count(ROOT / name) for name in ("requirements.txt", "requirements-dev.txt"))
    assert 90 < usual < 200
    assert usual < developer


def test_the_download_is_larger_where_the_index_has_the_cuda_build() -> None:
    assert "CUDA" in size_words("Linux", "x86_64")
    assert "CUDA" not in size_words("Darwin", "arm64")


@pytest.mark.slow
def test_a_failed_installation_says_so_and_keeps_the_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wanted, log = tmp_path / "wanted.txt", tmp_path / "install.log"
    wanted.write_text("a-package-that-nobody-has==1.0\n", encoding="utf-8")
    assert install.install(wanted, log) != 0
    out, err = capfd.readouterr()
    assert out.startswith(f"Installing {wanted}: about ")
    assert "a-package-that-nobody-has" in err
    assert str(log) in err
    assert "a-package-that-nobody-has" in log.read_text(encoding="utf-8")


def test_it_needs_nothing_that_is_not_installed_yet() -> None:
    code = "import sys; import tools.install; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip" not in done.stdout
