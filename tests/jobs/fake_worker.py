"""A worker that trains nothing: it writes the events of a run, quickly, in the way that its first argument names.

fake_worker.py steps=40 RUN_FOLDER [--resume]     40 steps, a stop is obeyed; steps=30000 take ten minutes and more
fake_worker.py until=PATH RUN_FOLDER              goes on until there is such a file
fake_worker.py endless RUN_FOLDER [--resume]      goes on until it is stopped; resumed, it makes five steps
fake_worker.py deaf RUN_FOLDER                    never obeys a stop, while it trains
fake_worker.py deaf-early RUN_FOLDER              never obeys a stop, while it prepares data
fake_worker.py phase=data RUN_FOLDER              stays in that phase until it is stopped
fake_worker.py greedy RUN_FOLDER                  fills the disk with a checkpoint after another, the last one torn
fake_worker.py evaluates=40 RUN_FOLDER            evaluates each step, the better the nearer its rate is to 1e-3;
                                                  another rate goes on until it is stopped, once
fake_worker.py crash RUN_FOLDER                   ends without a last word
fake_worker.py wrong RUN_FOLDER                   reports wrong input and ends with exit code 2
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lora_studio.jobs.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    PhaseStarted,
    RunStarted,
    StepLogged,
    Warned,
    to_line,
)
from lora_studio.workspace import RunFolder


class FakeWorker:
    def __init__(self, mode: str, run: RunFolder, resume: bool) -> None:
        self.mode, self.run, self.stopping = mode, run, False
        self.first = len(run.checkpoint_folders()) if resume else 0
        signal.signal(signal.SIGTERM, self.obey if not mode.startswith("deaf") else signal.SIG_IGN)

    def obey(self, number: int, frame: object) -> None:
        self.stopping = True

    def emit(self, event: Event) -> None:
        with self.run.events.open("a", encoding="utf-8") as file:
            file.write(to_line(event))

    def planned(self) -> tuple[int, bool]:
        """The number of steps, and whether more are made until somebody asks for a stop."""
        kind, _, value = self.mode.partition("=")
        if kind == "endless":
            return (self.first + 5, False) if self.first else (30_000, True)
        if kind == "evaluates":
            return int(value), self.rate != 1e-3 and not self.first
        return (int(value), False) if value.isdecimal() else (30_000, True)

    @property
    def rate(self) -> float:
        from lora_studio.config.parsing import load_config  # a quarter of a second of CPU, which few modes need

        return load_config(self.run.config).training.learning_rate

    @property
    def enough(self) -> Path:
        kind, _, value = self.mode.partition("=")
        return Path(value if kind == "until" else self.run.path / "enough")

    def fill_the_disk(self) -> int:
        for step in range(1, 4):
            checkpoint = self.run.checkpoints / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "optimizer.pt").write_bytes(b"x" * 400_000)
            if step < 3:
                (checkpoint / "trainer_state.json").write_text("{}")
        time.sleep(600)
        return 1

    def work(self) -> int:
        print(f"working with {sys.argv[1:]}", flush=True)
        self.emit(RunStarted(time.time(), os.getpid(), "cpu", "float32", self.first))
        if self.mode == "wrong":
            self.emit(Finished(time.time(), "failed", message="The file holds no usable row.", hint="Look at it."))
            return 2
        if self.mode == "deaf":
            helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (self.run.path / "helper.pid").write_text(str(helper.pid))
        if self.mode == "greedy":
            return self.fill_the_disk()
        if self.mode.startswith("phase="):
            return self.stay_in(self.mode.partition("=")[2])
        if self.mode == "deaf-early":
            self.emit(PhaseStarted(time.time(), "data"))
            time.sleep(600)
        total, forever = self.planned()
        self.emit(PhaseStarted(time.time(), "train", total, "steps"))
        step = self.first
        while (step < total or forever) and not self.stopping:
            step += 1
            time.sleep(0.02)
            self.emit(StepLogged(time.time(), step, total, step / total, 1.0 / step, 1e-3, tokens=step * 10))
            if self.mode.startswith("evaluates"):
                self.emit(Evaluated(time.time(), step, step / total, 1 / step + abs(3 + math.log10(self.rate))))
            if self.enough.exists():
                break
            if self.mode == "crash" and step == 3:
                print("something terrible", file=sys.stderr, flush=True)
                os._exit(7)
        return self.finish(step)

    def stay_in(self, phase: str) -> int:
        self.emit(PhaseStarted(time.time(), phase))
        while not self.stopping:
            time.sleep(0.02)
        self.emit(Finished(time.time(), "stopped"))
        return 130

    def finish(self, step: int) -> int:
        state = "stopped" if self.stopping else "done"
        folder = self.run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        self.emit(CheckpointSaved(time.time(), step, folder.name))
        self.emit(Warned(time.time(), "This worker is a fake."))
        numbers = {"state": state, "steps": step, "train_loss": 1.0 / step, "eval_loss": None, "adapter": "adapter"}
        self.run.complete.write_text(json.dumps(numbers))
        self.emit(Finished(time.time(), state, step))
        return 130 if self.stopping else 0


if __name__ == "__main__":
    sys.exit(FakeWorker(sys.argv[1], RunFolder(Path(sys.argv[2])), "--resume" in sys.argv).work())
