"""Public benchmarks with lm-evaluation-harness, if it is installed: the command, and starting it as a job.

The harness fetches its questions from the Hugging Face Hub.
"""

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.jobs.folder import BenchmarkFolder, JobFolders
from lora_studio.jobs.kinds import BENCHMARK
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import model_source

PACKAGE = "lm_eval"
TASKS = "hellaswag, arc_easy"


def installed() -> bool:
    """Whether this Python can run it."""
    return importlib.util.find_spec(PACKAGE) is not None


def command(adapter: Path, base: str, quantization: str, tasks: str, results: Path | str = "results") -> list[str]:
    """The words of the command. Raises `StudioError` for names that are no tasks."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names or not all(name.replace("_", "").replace("-", "").isalnum() for name in names):
        raise StudioError(f"{tasks!r} are no names of tasks.", f"Give names with commas between them, such as {TASKS}.")
    for part in (base, str(adapter)):
        if "," in part:  # where lm_eval's next argument begins: an adapter's own files say what its base is called
            raise StudioError(f"lm_eval can't be given a name with a comma: {part!r}.", "Name base and folder without.")
    bits = {"4bit": ",load_in_4bit=True", "8bit": ",load_in_8bit=True"}.get(quantization, "")
    model = f"pretrained={model_source(base)},peft={adapter},tokenizer={adapter}{bits}"
    words = ["--model", "hf", "--model_args", model, "--tasks", ",".join(names), "--apply_chat_template"]
    return [PACKAGE, *words, "--batch_size", "auto", "--output_path", str(results)]


def in_a_shell(words: Sequence[str]) -> str:
    """The command as it can be typed."""
    return shlex.join(words)


def start(supervisor: Supervisor, title: str, words: Sequence[str]) -> str:
    """Makes a benchmark's folder and starts it, or queues it while another job holds the device; its id.

    `words` are those of `command`. Raises `StudioError` where it can't be run.
    """
    workspace = supervisor.workspace
    workspace.policy.check_may("run benchmarks")
    if not installed():
        raise StudioError("lm-evaluation-harness is not installed.", "Install it: pip install lm_eval")
    folders = JobFolders(workspace, workspace.benchmarks_folder, BenchmarkFolder, BENCHMARK.noun)
    return supervisor.submit(BENCHMARK, lambda: folders.create({"title": title, "words": list(words)}))
