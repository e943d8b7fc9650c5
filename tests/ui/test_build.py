"""The page as a whole: what its process loads, and what an idle page costs."""

import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = ["list_runs", "start_run", "run_status", "stop_run", "metrics", "chat"]


@pytest.mark.slow
def test_the_built_page_loads_no_torch_and_asks_nothing_of_anyone(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.app import page
from lora_studio.ui.serve import queue
from lora_studio.ui.gradio_patches import STUB_WRITER, write_no_stub
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
workspace = Workspace(Path({str(tmp_path)!r}))
log = workspace.logs_folder / "log"
demo = page(Studio(workspace, Supervisor(workspace), Session(log), Session(log)))
slow = {{"torch", "transformers", "peft", "trl", "authlib", "cryptography"}}
heavy = slow & {{name.split(".")[0] for name in sys.modules}}
public = [fn.api_name for fn in demo.fns.values() if fn.api_visibility == "public"]
queue(demo)
from gradio import component_meta
called = component_meta.ComponentMeta.__new__.__code__.co_names
print(STUB_WRITER in called, getattr(component_meta, STUB_WRITER) is write_no_stub)
print(sorted(heavy), public, demo.analytics_enabled, demo._queue.sleep_when_free >= 0.02)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stubs, loaded = result.stdout.strip().splitlines()[-2:]
    assert stubs == "True True", "Gradio writes its stubs anew at each start, which takes two seconds"
    assert loaded == f"[] {PUBLIC} False True"
