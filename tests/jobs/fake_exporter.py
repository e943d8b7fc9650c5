"""An exporter that makes nothing of the kind: it writes files and events as its first argument says.

fake_exporter.py quick FOLDER    a file, then done
fake_exporter.py part FOLDER     the same without what was asked for
fake_exporter.py slow FOLDER     writes until it is asked to stop
fake_exporter.py secret FOLDER   says how long the secret in its environment is
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from lora_studio.jobs.events import Event, Finished, PhaseStarted, Progress, RunStarted, to_line
from lora_studio.jobs.kinds import ExportFolder


def main(mode: str, folder: ExportFolder) -> int:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))

    def emit(event: Event) -> None:
        with folder.events.open("a", encoding="utf-8") as file:
            file.write(to_line(event))

    emit(RunStarted(time.time(), os.getpid(), "cpu", ""))
    emit(PhaseStarted(time.time(), "write", 1000, "bytes"))
    folder.unfinished.mkdir()
    (folder.unfinished / "half").write_text("x")
    for number in range(12_000 if mode == "slow" else 1):
        emit(Progress(time.time(), min(number + 1, 1000), 1000))
        time.sleep(0.05)
        if asked:
            emit(Finished(time.time(), "stopped", message="Stopped on request."))
            return 130
    folder.unfinished.rename(folder.result)
    told: dict[str, object] = {"words": "", "command": "", "link": "", "tried": "", "notes": [], "seconds": 0.1}
    if mode == "part":
        told["missing"] = "it.gguf"
    found = {**told, "bytes": len(os.environ.get("HF_TOKEN", "")), "place": str(folder.result)}
    folder.complete.write_text(json.dumps(found), encoding="utf-8")
    emit(Finished(time.time(), "done"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], ExportFolder(Path(sys.argv[2]))))
