"""An evaluator that answers nothing: it writes rows and events as its first argument says.

fake_evaluator.py rows=3 FOLDER [--resume]    three rows, then done
fake_evaluator.py slow FOLDER [--resume]      a row every twentieth of a second until it is asked to stop
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from lora_studio.jobs.events import Event, Finished, PhaseStarted, Progress, RunStarted, to_line
from lora_studio.jobs.kinds import EvaluationFolder


def main(mode: str, folder: EvaluationFolder) -> int:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))

    def emit(event: Event) -> None:
        with folder.events.open("a", encoding="utf-8") as file:
            file.write(to_line(event))

    there = len(list(folder.rows()))
    total = int(mode.partition("=")[2] or 12_000)
    emit(RunStarted(time.time(), os.getpid(), "cpu", "float32", there))
    emit(PhaseStarted(time.time(), "answer", total, "rows"))
    for number in range(there, total):
        with folder.predictions.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": number}) + "\n")
        emit(Progress(time.time(), number + 1, total))
        time.sleep(0.05)
        if asked:
            emit(Finished(time.time(), "stopped", message="Stopped on request."))
            return 130
    emit(Finished(time.time(), "done"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], EvaluationFolder(Path(sys.argv[2]))))
