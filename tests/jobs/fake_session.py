"""A session child that answers without a model: it echoes, counts, fails or dies as it is asked to."""

import json
import os
import queue
import sys
import threading
import time
from typing import Any

requests: "queue.SimpleQueue[dict[str, Any] | None]" = queue.SimpleQueue()
stop = threading.Event()


def read() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["method"] == "stop":
            stop.set()
        else:
            requests.put(request)
    requests.put(None)


def answer(request: dict[str, Any], kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"id": request["id"], "kind": kind, **values}) + "\n")
    sys.stdout.flush()


def serve(request: dict[str, Any]) -> None:
    stop.clear()
    params = request.get("params", {})
    match request["method"]:
        case "rest":
            answer(request, "result")
        case "echo":
            answer(request, "result", pid=os.getpid(), **params)
        case "count":
            done = 0
            for done in range(1, params["to"] + 1):
                answer(request, "progress", phase="count", done=done)
                time.sleep(0.01)
                if stop.is_set():
                    break
            answer(request, "result", done=done)
        case "half":
            answer(request, "result")
        case "fail":
            answer(request, "error", message="The model cannot be found.", hint="Check its name.")
        case "die":
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(1)
        case "babble":
            print("Loading weights: 100%", flush=True)
            time.sleep(600)
        case "hang":
            time.sleep(600)


threading.Thread(target=read, daemon=True).start()
while (request := requests.get()) is not None:
    serve(request)
