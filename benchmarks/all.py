"""Runs the benchmarks of the documentation one after the other and writes their table into `docs/measured.md`.

    python -m benchmarks.all [--only NAME ...] [--quick] [--minutes 25] [--table FILE]      (make bench)

Takes at most `--minutes`; meant for a machine that does nothing else, and says how much else it did. Each benchmark is
a process of its own with a limit of its own. One that fails or takes too long is named in the table, and the next one
begins. `--quick` tries the tool with few steps; its figures mean nothing. Where LORA_STUDIO_REAL names a folder with
`tokenizers/` and `datasets/`, data is prepared and trained on with Alpaca's rows and Qwen3's tokenizer, elsewhere with
those that are built in. Prints the table, and one JSON object last; the exit code is 1 if any benchmark failed.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
LIBRARIES = ("torch", "transformers", "peft", "trl", "tokenizers", "gradio")
MARKS = "<!-- bench -->", "<!-- /bench -->"
_REAL = "LORA_STUDIO_REAL"
_ALPACA = f"${_REAL}/datasets/llama-factory/alpaca_en_demo.json"
_QWEN = f"${_REAL}/tokenizers/qwen3"


@dataclass(frozen=True)
class Figure:
    """One row of the table: what it is, where it stands in a benchmark's JSON, and how it is written.

    `goal` is what it has to reach: at least, or at most where `at_most` is set.
    """

    what: str
    value: Callable[[Any], float]
    form: str = "{:.2f}"
    goal: float | None = None
    at_most: bool = False

    def reached(self, value: float) -> bool | None:
        """Whether a value reaches the goal, as precisely as it is written; None without a goal."""
        if self.goal is None:
            return None
        own, goal = (float(f"{number:.3g}") for number in (value, self.goal))
        return own <= goal if self.at_most else own >= goal


@dataclass(frozen=True)
class Benchmark:
    """A module of this package with its arguments, those for a quick try, its limit in seconds, and its figures.

    `real` are arguments that are added where there are real data.
    """

    name: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    seconds: int
    figures: tuple[Figure, ...]
    real: tuple[str, ...] = ()

    def command(self, *, quick: bool) -> list[str]:
        """The words after `python`, with the variable for the folder of real data as a name."""
        real = self.real if os.environ.get(_REAL) else ()
        return ["-m", f"benchmarks.{self.name}", *(self.quick if quick else self.arguments), *real]


@dataclass
class Outcome:
    """What became of a benchmark: its JSON, or why there is none; `others` is the share of the cores others used."""

    benchmark: Benchmark
    command: list[str]
    seconds: float = 0.0
    others: float = 0.0
    failed: str = ""
    result: Any = field(default=None)


BENCHMARKS = (
    Benchmark(
        "prepare",
        ("--rounds", "5"),
        ("--rounds", "1", "--rows", "800"),
        240,
        (
            Figure("preparing data: rows/s against TRL's", lambda it: it["ours_to"]["trl"], "{:.2f} times", 4.5),
            Figure("against the tokenizer alone", lambda it: it["ours_to"]["tokenizer"], "{:.2f} times", 0.65),
            Figure("78,000 rows at the second start", lambda it: it["start_seconds"][1], "{:.2f} s", 1.0, True),
        ),
        ("--data", _ALPACA, "--tokenizer", _QWEN),
    ),
    Benchmark(
        "train",
        ("--steps", "24"),
        ("--steps", "3"),
        420,
        (
            Figure(
                "training: real tokens/s against TRL's defaults",
                lambda it: it["ours_to"]["trl_defaults"],
                "{:.2f} times",
                2.3,
            ),
            Figure("against a bare loop", lambda it: it["ours_to"]["bare_loop"], "{:.2f} times", 1.05),
            Figure(
                "packed, against TRL's defaults",
                lambda it: (
                    it["contenders"]["ours_packed"]["tokens_per_second"]
                    / it["contenders"]["trl_defaults"]["tokens_per_second"]
                ),
                "{:.2f} times",
            ),
        ),
        ("--data", _ALPACA),
    ),
    Benchmark(
        "chat",
        ("--rounds", "3"),
        ("--rounds", "1", "--tokens", "4", "--prompt", "8", "--model", "demo"),
        330,
        (
            Figure(
                "chat: base and adapter together, of the time of one after the other",
                lambda it: it["ratios"]["together"],
                "{:.2f}",
                0.80,
                True,
            ),
            Figure(
                "the last column's first token, of the same",
                lambda it: it["ratios"]["last_first_token"],
                "{:.2f}",
                0.3,
                True,
            ),
            Figure(
                "memory of a further column, of the base's",
                lambda it: it["ratios"]["further_column_memory"],
                "{:.3f}",
                0.05,
                True,
            ),
        ),
    ),
    Benchmark(
        "big_file",
        ("--rows", "200000"),
        ("--rows", "6000"),
        120,
        (
            Figure(
                "200,000 rows of 1 kB: first statistics",
                lambda it: it["first"]["sample_seconds"] or it["first"]["seconds"],
                "{:.1f} s",
            ),
            Figure("all of them", lambda it: it["first"]["seconds"], "{:.0f} s"),
            Figure("memory at most", lambda it: it["first"]["peak_gb"], "{:.2f} GB"),
        ),
    ),
    Benchmark(
        "chat_page",
        (),
        ("--runs", "5", "--tokens", "20", "--rounds", "1"),
        120,
        (
            Figure(
                "chat page: CPU time of an answer with 500 runs, against one run",
                lambda it: it["ratio"],
                "{:.2f} times",
            ),
        ),
    ),
    Benchmark(
        "overhead",
        (),
        (),
        150,
        (
            Figure(
                "what callbacks cost a step, at 50 steps a second",
                lambda it: it["at_50_steps_a_second_percent"],
                "{:.2f} %",
                1.0,
                True,
            ),
            Figure("events and charts, of a training's time", lambda it: it["together_percent"], "{:.1f} %"),
        ),
    ),
    Benchmark(
        "ranks",
        ("--only", "random", "--steps", "30"),
        ("--only", "random", "--steps", "2"),
        120,
        (
            Figure(
                "two processes against one: largest difference of a loss",
                lambda it: it["cases"]["random"]["largest"],
                "{:.1e}",
                1e-4,
                True,
            ),
        ),
    ),
    Benchmark(
        "serve",
        ("--rounds", "2"),
        ("--rounds", "1", "--tokens", "8", "--requests", "1"),
        150,
        (Figure("/v1: tokens/s of eight clients against one", lambda it: it["ratio"], "{:.2f} times", 2.5),),
    ),
    Benchmark(
        "visitors",
        ("--seconds", "60"),
        ("--seconds", "5", "--lookers", "1", "--uploaders", "1", "--chatters", "1"),
        150,
        (
            Figure(
                "twenty visitors at once: errors",
                lambda it: it["errors"],
                "{:.0f}",
                0,
                True,
            ),
            Figure("95 of 100 page actions within", lambda it: it["page_p95_seconds"], "{:.2f} s"),
        ),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in BENCHMARKS])
    parser.add_argument("--quick", action="store_true", help="few steps: tries the tool, measures nothing")
    parser.add_argument("--minutes", type=float, default=25.0, help="the most that all take together (default: 25)")
    parser.add_argument("--table", type=Path, help="a page with the marks of the table, which is written there")
    args = parser.parse_args()
    if args.quick and args.table:
        parser.error("--quick measures nothing that belongs into a page.")
    ends = time.monotonic() + 60 * args.minutes
    chosen = [each for each in BENCHMARKS if not args.only or each.name in args.only]
    outcomes = list[Outcome]()
    for number, benchmark in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {benchmark.name} (at most {benchmark.seconds} s)", file=sys.stderr, flush=True)
        outcomes.append(run(benchmark, ends - time.monotonic(), quick=args.quick))
        last = outcomes[-1]
        print(f"      {last.failed or 'done'} after {last.seconds:.0f} s", file=sys.stderr, flush=True)
    text = page_part(outcomes)
    print(text)
    if args.table:
        write(args.table, text)
    print(json.dumps({each.benchmark.name: each.result or {"failed": each.failed} for each in outcomes}))
    sys.exit(any(each.failed for each in outcomes))


def run(benchmark: Benchmark, seconds_left: float, *, quick: bool) -> Outcome:
    """Runs a benchmark to its end, its limit, or that of all; whatever it started ends with it."""
    outcome = Outcome(benchmark, benchmark.command(quick=quick))
    limit = min(benchmark.seconds, seconds_left)
    if limit <= 0:
        outcome.failed = "no time was left for it"
        return outcome
    words = [os.path.expandvars(word) for word in outcome.command]
    began, busy = time.monotonic(), cpu_seconds()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            outcome.failed = f"not done within {limit:.0f} s"
        finally:
            end(process)
        outcome.seconds = time.monotonic() - began
        of_all, own = (after - before for after, before in zip(cpu_seconds(), busy, strict=True))
        outcome.others = max(0.0, of_all - own) / (outcome.seconds * (os.cpu_count() or 1))
        output.seek(0)
        errors.seek(0)
        take_result(outcome, process.returncode, output.read(), errors.read())
    return outcome


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a benchmark that still runs with all that it started, held contenders and servers included."""
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)  # lets it end its servers and remove its folders
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def take_result(outcome: Outcome, code: int, output: str, errors: str) -> None:
    """Reads the JSON of the last line, and every figure out of it; what is missing makes the benchmark a failed one."""
    if outcome.failed:
        return
    try:
        result = json.loads(output.splitlines()[-1])
        for figure in outcome.benchmark.figures:
            figure.form.format(figure.value(result))
    except (IndexError, LookupError, TypeError, ValueError) as error:
        last = (errors.strip() or output.strip() or repr(error)).splitlines()[-1]
        outcome.failed = f"failed (exit code {code}): {last[:200]}"
    else:
        outcome.result = result


def cpu_seconds() -> tuple[float, float]:
    """CPU time of the machine, and that of this process's ended children, in seconds."""
    times = psutil.cpu_times()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.user + times.nice + times.system, ended.ru_utime + ended.ru_stime


def machine() -> str:
    """Cores and processor in words, without the machine's name."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}; no GPU is used"


def page_part(outcomes: Sequence[Outcome]) -> str:
    """The part of the page: the machine, and a row for each figure."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    lines = [
        f"Written by `make bench` on {date.today().isoformat()}: {machine()}, memory {memory}. Libraries: {versions}.",
        "",
        "| what | result | goal | reached | command | others' CPU |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        command = f"`python {' '.join(outcome.command)}`"
        for number, figure in enumerate(outcome.benchmark.figures):
            value = None if outcome.failed else figure.value(outcome.result)
            goal = "" if figure.goal is None else f"at {'most' if figure.at_most else 'least'} {figure.goal:g}"
            reached = "" if value is None else {True: "yes", False: "no", None: ""}[figure.reached(value)]
            result = as_cell(outcome.failed) if value is None else figure.form.format(value)
            cells = [figure.what, result, goal, reached]
            lines.append(
                f"| {' | '.join([*cells, *((command, f'{outcome.others:.0%}') if not number else ('', ''))])} |"
            )
    return "\n".join(lines)


def as_cell(words: str) -> str:
    """Words that a program printed, as a cell of a Markdown table."""
    return words.replace("|", "\\|").replace("<", "&lt;")


def write(page: Path, text: str) -> None:
    """Writes the table between its marks."""
    begin, end = MARKS
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    if end not in rest:
        sys.exit(f"{page} needs the marks {begin} and {end}.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
