"""The page as a whole: who may reach it, and what its process loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.ui import build


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_password(host: str) -> None:
    assert build.check_exposure(host, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_need_one(host: str) -> None:
    with pytest.raises(StudioError, match="no password"):
        build.check_exposure(host, None)
    assert build.check_exposure(host, "secret") is None


def test_only_the_right_password_opens_the_page() -> None:
    login = build._login("geheim ü")
    assert login is not None
    assert login("anyone", "geheim ü")
    assert not login("anyone", "geheim")
    assert build._login(None) is None


@pytest.mark.slow
def test_the_built_page_loads_no_torch_and_asks_nothing_of_anyone(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from pathlib import Path
from lora_studio.jobs.client import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.build import page
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
workspace = Workspace(Path({str(tmp_path)!r}))
log = workspace.logs_folder / "log"
demo = page(Studio(workspace, Supervisor(workspace), Session(log), Session(log)))
heavy = {{"torch", "transformers", "peft", "trl"}} & {{name.split(".")[0] for name in sys.modules}}
public = [fn.api_name for fn in demo.fns.values() if fn.api_visibility == "public"]
print(sorted(heavy), public, demo.analytics_enabled)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[] [] False"
