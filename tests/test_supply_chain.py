"""The packages that the studio runs on: locked with their hashes as requirements.txt names them, and audited."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import audit
from tests.audit import CLEAN, HOLES, NOT_AUDITED, judged

ROOT = Path(__file__).parent.parent
CPU, CUDA = ROOT / "requirements-cpu.lock", ROOT / "requirements-cuda.lock"
OF_TORCH = re.compile(r"torch|triton|(nvidia|cuda)-(?!ml-py).*")


def names_in(path: Path) -> dict[str, str]:
    """Versions by name, in lower case, of a requirements or lock file."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_the_lock_files_hold_what_requirements_names() -> None:
    asked = names_in(ROOT / "requirements.txt")
    assert len(asked) > 20
    for lock, left_out in ((CUDA, set()), (CPU, {"torch"})):
        locked = names_in(lock)
        assert {name: locked.get(name) for name in asked if name not in left_out} == {
            name: version for name, version in asked.items() if name not in left_out
        }, f"{lock.name} is not of this requirements.txt: make lock"


def test_both_lock_files_agree_but_for_torch_and_what_it_brings() -> None:
    whole, without = names_in(CUDA), names_in(CPU)
    assert {name: version for name, version in whole.items() if not OF_TORCH.fullmatch(name)} == without
    assert {"torch", "triton"} <= whole.keys()


@pytest.mark.parametrize("lock", [CPU, CUDA], ids=lambda lock: lock.name)
def test_every_locked_package_has_hashes(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= len(names_in(lock)) > 50  # a version for each kind of system where they differ
    assert not [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]
    assert not re.search(r"://|--(extra-)?index|--find-links|file:", text), "a lock file names no place of one machine"


def test_no_file_of_the_repository_names_a_package_index_of_one_machine() -> None:
    files = [*ROOT.glob("requirements*"), ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "pyproject.toml"]
    public = {"https://download.pytorch.org/whl/cpu", "https://download.pytorch.org/whl/cu130", "http://127.0.0.1:7860"}
    for path in files:
        found = set(re.findall(r"https?://[^\s\"',)]+|file:/\S*", path.read_text(encoding="utf-8")))
        assert not {place.rstrip(".'") for place in found if "127.0.0.1" not in place} - public, path.name


def test_the_image_installs_nothing_but_torch_without_a_hash() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install ([^\\&\n]+)", text)
    assert ["--index-url" in one or "--require-hashes" in one for one in installs] == [True, True]


def test_an_audit_passes_only_where_every_package_was_looked_up() -> None:
    clean = {"name": "a", "version": "1", "vulns": []}
    hole = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "not found"}
    for packages, code, words in (
        ([clean], CLEAN, "No known hole in 1 packages"),
        ([clean, hole], HOLES, "b 2: CVE-1, mended in 3"),
        ([clean, skipped], NOT_AUDITED, "NOT AUDITED: 1 of 2 packages could not be looked up (c)"),
        ([hole, skipped], HOLES, "NOT AUDITED"),
        ([], NOT_AUDITED, "NOT AUDITED"),
    ):
        found, said = judged({"dependencies": packages})
        assert found == code
        assert words in "\n".join(said)


def test_an_audit_without_a_network_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nConnectionError: no route to the index")
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: failed)
    assert audit.main() == NOT_AUDITED
    assert capsys.readouterr().out.startswith(
        "NOT AUDITED: the list of vulnerabilities could not be asked.\nConnection"
    )
