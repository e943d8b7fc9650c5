"""The image and the Space, as far as files tell. `make docker-check` follows the image's steps, which takes minutes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from lora_studio.jobs.launchers.local import child_environment

ROOT = Path(__file__).parent.parent
STEPS = [(step["instruction"], step["value"]) for step in DockerfileParser(str(ROOT)).structure]


def values(instruction: str) -> list[str]:
    return [value for name, value in STEPS if name == instruction]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([str(hadolint), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_runs_as_user_1000_whose_program_files_are_not_its_own() -> None:
    names = [name for name, _ in STEPS]
    assert values("USER") == ["1000"]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("COPY", "RUN"))
    assert "--chown" not in "".join(values("COPY"))
    assert "HEALTHCHECK" in names
    assert values("VOLUME") == ["/data"]


def test_the_readme_s_front_matter_makes_the_repository_a_space() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["sdk"] == "docker"
    assert [str(front["app_port"])] == values("EXPOSE")
    assert f"LORA_STUDIO_PORT={front['app_port']}" in " ".join(values("ENV"))
    assert len(front["short_description"]) <= 60
    assert front["license"] == "apache-2.0"


def test_what_the_image_copies_is_let_through_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {source for value in values("COPY") for source in value.split()[:-1]}
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_no_secret_stands_in_the_image() -> None:
    assert not re.search(r"TOKEN|PASSWORD|KEY|SECRET", " ".join(values("ENV") + values("ARG")), re.IGNORECASE)


@pytest.mark.parametrize("mounted", [True, False])
def test_things_are_kept_on_data_where_it_is_mounted_and_else_at_home(tmp_path: Path, mounted: bool) -> None:
    programs, home, data = (tmp_path / name for name in ("bin", "home", "data"))
    for folder in (programs, home, data):
        folder.mkdir()
    script = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}" "$@"\n')
    (programs / "mountpoint").write_text(f"#!/bin/sh\nexit {0 if mounted else 1}\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    given = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "LORA_STUDIO_DATA": str(data)}
    given["HF_ENDPOINT"] = "https://hub.example"
    command = ["sh", str(ROOT / "container.sh"), "--max-upload-gb", "1"]
    environment, arguments = json.loads(subprocess.run(command, env=given, capture_output=True, check=True).stdout)
    place = data if mounted else home
    assert environment["LORA_STUDIO_HOME"] == str(place / "workspace")
    assert environment["HF_HOME"] == str(place / "huggingface")
    assert environment["HF_ENDPOINT"] == "https://hub.example"
    assert Path(environment["TMPDIR"]).is_relative_to(home)
    assert arguments == ["app.py", "--max-upload-gb", "1"]


def test_a_mirror_of_the_hub_reaches_every_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert child_environment()["HF_ENDPOINT"] == "https://hub.example"
