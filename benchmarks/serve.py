"""Whether requests to `/v1` that come at once are answered together: tokens/s of several clients against one.

    python -m benchmarks.serve [--clients 8] [--tokens 64] [--rounds 3] [--mixed]

Starts a server of its own with the built-in model and an adapter of two steps. Each client sends a request and, once it
is answered, the next; base and adapter in turn, greedily. Requests join the batch at work. One client and all of them
take turns, after a round that loads the model. Prints one JSON object last: the medians of tokens/s and
their ratio.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
PATIENCE = 600.0
ALIKE = (
    "Copy this: garden river stone cloud mouse pear dog apple sun tree lake moon",
    "Copy this: apple moon garden lake tree dog sun pear cloud stone river mouse",
    "Copy this: stone cloud dog moon river apple mouse garden tree lake pear sun",
    "Copy this: lake sun pear mouse apple tree moon river stone dog cloud garden",
)
MIXED = ("What is the capital of Italy?", ALIKE[0], "Sort from Z to A: mouse, pear, dog", "Count from 1 to 9.")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        models = [model["id"] for model in httpx.get(f"{url}/models", timeout=PATIENCE).json()["data"]]
        measure(url, models, 1, options)
        rounds: list[tuple[float, float]] = []
        for number in range(options.rounds):
            pair = measure(url, models, 1, options), measure(url, models, options.clients, options)
            rounds.append(pair)
            words = f"{pair[0]:.0f} tokens/s with one client, {pair[1]:.0f} with {options.clients}"
            print(f"round {number + 1}: {words}, ratio {pair[1] / pair[0]:.2f}", flush=True)
    one, several = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(together / alone for alone, together in rounds)
    numbers = {"clients": options.clients, "one": round(one, 1), "several": round(several, 1), "ratio": round(ratio, 2)}
    print(json.dumps({"models": models, "mixed": options.mixed, **numbers}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=4, help="requests of each client in a round (default: 4)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer at most (default: 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed", action="store_true", help="answers of very different lengths (default: alike)")
    return parser.parse_args()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server whose workspace has a run of a few steps on the built-in model."""
    command = [sys.executable, "-m", "lora_studio"]
    place = ["--workspace", str(folder)]
    flags = ["--training.max_steps", "2", "--data.max_samples", "40", "--training.save_strategy", "no"]
    trained = subprocess.run([*command, "train", "demo", *flags, *place], cwd=ROOT, capture_output=True, text=True)
    if trained.returncode:
        sys.exit(trained.stderr[-2000:])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    ui = [*command, "ui", "--port", str(port), *place]
    server = subprocess.Popen(ui, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
    url = f"http://127.0.0.1:{port}/v1"
    try:
        until_ready(url)
        yield url
    finally:
        server.terminate()
        server.wait()
        log.close()


def until_ready(url: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/models", timeout=PATIENCE).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    sys.exit("The server does not answer.")


def measure(url: str, models: list[str], clients: int, options: argparse.Namespace) -> float:
    """Tokens per second of all clients together."""
    tokens = [0] * clients
    questions = MIXED if options.mixed else ALIKE

    def client(number: int) -> None:
        with httpx.Client(timeout=PATIENCE) as http:
            for at in range(options.requests):
                question = questions[(number + at) % len(questions)]
                body = {
                    "model": models[(number + at) % len(models)],
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": options.tokens,
                    "temperature": 0,
                }
                answer = http.post(f"{url}/chat/completions", json=body).raise_for_status().json()
                tokens[number] += answer["usage"]["completion_tokens"]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
