"""How long a large file takes to be looked at, and how much memory: as the page does it, in a child of its own.

    python -m benchmarks.big_file [--rows 1000000] [--kind jsonl|csv|parquet] [--tokenizer FOLDER]

Makes a file in a temporary folder, inspects it twice (the second time from the cache) and prints the time to the first
statistics, the whole time, the peak memory of the child, the longest time without a word of progress (which is how long
a cancel may take to be heard) by the clock and in work of its own, which a busy machine does not lengthen, and one JSON
object last.
"""

import argparse
import csv
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lora_studio.workspace import model_source

MAX_MEMORY_GB, FIRST_SECONDS, SILENT_SECONDS, SILENT_WORK_SECONDS = 1.5, 3.0, 2.0, 1.0
WORDS = ("the", "of", "model", "train", "row", "token", "quick", "brown", "42", "nothing", "because", "however")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=["jsonl", "csv", "parquet"], default="jsonl")
    parser.add_argument("--bytes-per-row", type=int, default=1000)
    parser.add_argument("--tokenizer", default=model_source("demo"), help="a folder with a tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"big.{args.kind}"
        write_file(path, args.rows, args.bytes_per_row)
        runs = {name: look(path, args.tokenizer, Path(folder) / "cache") for name in ("first", "again")}
        megabytes = path.stat().st_size / 1e6
    for name, run in runs.items():
        first = run["sample_seconds"] or run["seconds"]
        memory = f"{run['peak_gb']:.2f} GB at most, of which the libraries {run['base_gb']:.2f}"
        print(f"{name}: first statistics {first:.1f} s, {run['rows']:,} rows {run['seconds']:.1f} s, {memory}")
        print(f"  silent for {run['silent_seconds']:.1f} s at most ({run['silent_where']}), {run['reports']} reports")
        print(f"  of own work, silent for {run['silent_work_seconds']:.2f} s at most ({run['silent_work_where']})")
    goals = {"peak_gb": MAX_MEMORY_GB, "sample_seconds": FIRST_SECONDS, "silent_seconds": SILENT_SECONDS}
    goals["silent_work_seconds"] = SILENT_WORK_SECONDS
    print(json.dumps({"kind": args.kind, "rows": args.rows, "megabytes": round(megabytes, 1), **runs, "goals": goals}))


def write_file(path: Path, rows: int, size: int) -> None:
    """Questions and answers of changing length, in the form that the file's ending says."""
    if path.suffix == ".parquet":
        _write_parquet(path, rows, size)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(_rows(rows, size))
        else:
            file.writelines(json.dumps(row) + "\n" for row in _rows(rows, size))


def _write_parquet(path: Path, rows: int, size: int) -> None:
    """One row group, as the usual writers make of a million rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(_rows(rows, size))), path, compression="none", use_dictionary=False)


def _rows(rows: int, size: int) -> Iterator[dict[str, str]]:
    draw = random.Random(0)
    text = " ".join(draw.choice(WORDS) for _ in range(100_000))
    for number in range(rows):
        at, length = draw.randrange(len(text) - 4 * size), draw.randrange(size // 2, 3 * size // 2) - 60
        middle = at + length // 3
        yield {"question": f"{number}: {text[at:middle]}", "answer": text[middle : at + length]}


def look(path: Path, tokenizer: str, cache: Path) -> dict[str, Any]:
    """One look in a fresh process."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=_look, args=(path, tokenizer, cache, sender))
    child.start()
    result: dict[str, Any] = receiver.recv()
    child.join()
    return result


def _look(path: Path, tokenizer: str, cache: Path, answer: Connection) -> None:
    from transformers import AutoTokenizer

    from lora_studio.data.report import inspect

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    base, began, samples = _peak_gb(), time.perf_counter(), list[float]()
    reports: list[tuple[float, float, str]] = []

    def word(about: str) -> None:
        reports.append((time.perf_counter() - began, time.thread_time(), about))

    word("start")
    report = inspect(
        str(path),
        loaded,
        cache_folder=cache,
        on_progress=lambda phase, done, total: word(f"{phase} {done}"),
        on_sample=lambda _: samples.append(time.perf_counter() - began),
    )
    word("end")
    silent, work = (
        max((after[clock] - before[clock], f"{before[2]} to {after[2]}") for before, after in pairwise(reports))
        for clock in (0, 1)
    )
    answer.send(
        {
            "rows": report["rows"],
            "sample_seconds": round(samples[0], 2) if samples else None,
            "seconds": round(time.perf_counter() - began, 2),
            "silent_seconds": round(silent[0], 2),
            "silent_where": silent[1],
            "silent_work_seconds": round(work[0], 2),
            "silent_work_where": work[1],
            "reports": len(reports),
            "peak_gb": round(_peak_gb(), 3),
            "base_gb": round(base, 3),
        }
    )


def _peak_gb() -> float:
    """Not `ru_maxrss`, in which a process begins with the size of the one that started it: here the file's writer."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")) / 1e9


if __name__ == "__main__":
    main()
