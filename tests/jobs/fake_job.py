"""A worker of whatever kind of job its folder is: one of the fakes, in the mode named for its kind.

fake_job.py runs:steps=40,evaluations:slow FOLDER [--resume]
"""

import runpy
import sys
from pathlib import Path

PROGRAMS = {
    "runs": "fake_worker.py",
    "evaluations": "fake_evaluator.py",
    "exports": "fake_exporter.py",
    "benchmarks": "fake_worker.py",
}

if __name__ == "__main__":
    modes = dict(each.split(":", 1) for each in sys.argv[1].split(","))
    kind = Path(sys.argv[2]).parent.name
    program = str(Path(__file__).with_name(PROGRAMS[kind]))
    sys.argv = [program, modes[kind], *sys.argv[2:]]
    runpy.run_path(program, run_name="__main__")
