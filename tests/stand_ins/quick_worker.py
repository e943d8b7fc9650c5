"""The worker of `tests/jobs/fake_worker.py`, as a job on the Hub starts it: its mode is the title of the run."""

import runpy
import sys
from pathlib import Path

import yaml

mode = yaml.safe_load((Path(sys.argv[1]) / "config.yaml").read_text(encoding="utf-8"))["title"]
program = Path(__file__).parents[1] / "jobs" / "fake_worker.py"
sys.argv = [str(program), mode, *sys.argv[1:]]
runpy.run_path(str(program), run_name="__main__")
