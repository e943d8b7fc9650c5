"""The package as `pip install .` installs it: what the wheel holds, and that it works from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import pytest

from lora_studio import __version__
from tests.serving import Server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SOURCE = ("pyproject.toml", "setup.py", "requirements.txt", "LICENSE", "lora_studio", "presets", "docs")
BEGIN_SMALL = ("--training.max_steps", "2", "--data.max_samples", "16", "--evaluation.gen_eval_samples", "0")
OFFLINE = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for a build leaves its own folders beside the source."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCE:
        put = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        put(ROOT / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "-w", str(out), str(copy)]
    subprocess.run(build, check=True)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a clean environment with the wheel and, from here, the libraries it names."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    (own / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *OFFLINE, str(wheel)], check=True)
    return place / "bin"


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints, run in a folder and without the repository among the places of modules."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "LORA_STUDIO"))}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_whole_package_the_presets_and_the_documentation_and_nothing_else(wheel: Path) -> None:
    files = {path for path in (ROOT / "lora_studio").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    shipped = {f"lora_studio/shipped_presets/{path.name}" for path in (ROOT / "presets").iterdir()}
    pages = (path for path in (ROOT / "docs").rglob("*") if path.is_file())
    shipped |= {f"lora_studio/shipped_docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in pages}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(about).decode()
    assert names == {path.relative_to(ROOT).as_posix() for path in files} | shipped
    requirements = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    needed = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    assert needed == [line.split("#")[0].strip() for line in requirements]
    assert f"\nVersion: {__version__}\n" in metadata


def test_the_command_trains_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    where = run(tmp_path, programs / "python", "-c", "import lora_studio; print(lora_studio.__file__)")
    assert Path(where.strip()).is_relative_to(programs.parent)
    for studio in ([programs / "lora-studio"], [programs / "python", "-m", "lora_studio"]):
        assert run(tmp_path, *studio, "--version").strip() == __version__
    assert list(tmp_path.iterdir()) == []
    told = run(tmp_path, programs / "lora-studio", "train", "demo", *BEGIN_SMALL, "--json")
    result = json.loads(told.splitlines()[-1])
    assert (result["state"], result["steps"]) == ("done", 2)
    assert Path(result["adapter"]).is_relative_to(tmp_path / "workspace" / "runs")
    assert (Path(result["adapter"]) / "adapter_model.safetensors").is_file()


def test_the_command_serves_the_page_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    server = Server(empty / "workspace", program=(str(programs / "lora-studio"), "ui"), folder=empty, PYTHONPATH="")
    try:
        with urllib.request.urlopen(server.url, timeout=60) as answer:
            page = answer.read().decode()
        assert "LoRA Studio" in page
        assert "Pirate persona" in page  # a shipped data set
        with urllib.request.urlopen(f"{server.url}/docs/tutorials/own-csv", timeout=60) as answer:
            assert "Your own CSV in ten minutes" in answer.read().decode()
    finally:
        server.end()
