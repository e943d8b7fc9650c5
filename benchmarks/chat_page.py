"""What a streamed answer costs the web server: CPU time and files opened, with one run in the workspace and with many.

    python -m benchmarks.chat_page [--runs 500] [--tokens 200] [--rounds 7]

Asks the chat page's own handler, with the page's own supervisor, and a session in the place of the model that answers a
token at a time, as fast as they are taken. What Gradio adds for each piece is the same with any number of runs and is
left out, so the ratio is of the studio's own work. Both workspaces take turns in one process, after a question that
does not count, and the median of the rounds' ratios counts. The last line is one JSON object.
"""

import argparse
import builtins
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Self
from unittest import mock

import gradio as gr
import numpy as np
from safetensors.numpy import save_file

from lora_studio.chat.conversation import ChatState
from lora_studio.config.parsing import parse, to_yaml
from lora_studio.jobs.events import Finished, RunStarted, to_line
from lora_studio.jobs.protocol import Piece, Request
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.chat import tab
from lora_studio.ui.chat.handlers import Chat
from lora_studio.ui.form import SAMPLING, to_widget
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace

WHO = "a" * 24
PIECE = " word"
ENDED = {"tokens_per_second": 40.0, "first_token_seconds": 0.1, "finish": "eos"}
LOADED = {"kind": "result", "base": "demo", "device": "cpu", "dtype": "float32", "memory_bytes": 0, "mixes": True}
CHECKPOINTS = (20, 40)
COUNTED = ("files_opened", "folders_listed", "updates")


class Player:
    """Stands in for the session child: loads at once and answers one token a piece."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.running, self.busy = tokens, False, False

    def stream(self, request: Request[Any], *, beat: bool = False) -> Iterator[Any]:
        self.running = True
        if request.method == "load":
            yield request.parse_answer(LOADED)
            return
        columns = len(request.to_fields()["columns"])
        for at in range(self.tokens):
            yield Piece(texts=[PIECE] * columns, tokens=[at + 1] * columns)
        column = {"text": PIECE * self.tokens, "tokens": self.tokens, **ENDED}
        yield request.parse_answer({"kind": "result", "columns": [column] * columns})

    def move_to(self, env: Mapping[str, str]) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.running = False


class Opened:
    """Counts the files that this process opens within the block, and the folders that it lists.

    Python's functions for both are replaced and put back: an audit hook stays, and slows whatever comes after.
    """

    def __enter__(self) -> Self:
        self.files = self.folders = 0
        self._replaced = ExitStack()
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
            self._replaced.enter_context(mock.patch.object(module, name, self._counting(getattr(module, name))))
        return self

    def __exit__(self, *_error: object) -> None:
        self._replaced.close()

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        counted = "files" if function.__name__ == "open" else "folders"

        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(self, counted, getattr(self, counted) + 1)
            return function(*args, **kwargs)

        return call


def workspace_of(folder: Path, runs: int) -> Workspace:
    """A workspace with so many finished runs of the built-in model, each with an adapter and two checkpoints."""
    workspace = Workspace(folder)
    for at in range(runs):
        title = f"Run {at}"
        run = workspace.create_run(title, to_yaml(parse({"title": title, "data": {"train_file": "pirate"}})), {})
        for place in (run.adapter, *(run.checkpoints / f"checkpoint-{step}" for step in CHECKPOINTS)):
            place.mkdir(parents=True)
            settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "demo", "r": 2}
            (place / "adapter_config.json").write_text(json.dumps(settings))
            (place / "studio.json").write_text(json.dumps({"base_model": "demo"}))
            (place / "trainer_state.json").write_text("{}")
            save_file({"weight": np.zeros(1, np.float32)}, place / "adapter_model.safetensors")
        events = (RunStarted(time.time(), 1, "cpu", "float32"), Finished(time.time(), "done", 40))
        run.events.write_text("".join(map(to_line, events)))
    return workspace


def chat_of(workspace: Workspace, tokens: int) -> Chat:
    """The chat page on a workspace; its newest adapter has a column beside the base."""
    player: Any = Player(tokens)
    supervisor = Supervisor(workspace)
    with gr.Blocks():
        chat = Chat(Studio(workspace, supervisor, player, player), tab.draw()[0])
    chat.keep(WHO, ChatState(adapters=[supervisor.runs()[0].id]))
    return chat


def ask(chat: Chat) -> dict[str, float]:
    """One question in an empty conversation, until its answer is whole."""
    chat.keep(WHO, ChatState(adapters=chat.talk(WHO).adapters))
    sampling = [to_widget(setting, setting.default) for setting in SAMPLING]
    with Opened() as opened:
        cpu = time.process_time()
        updates = sum(1 for _ in chat.send(WHO, "Where is the library?", "", *sampling))
        cpu = time.process_time() - cpu
    return {"cpu_seconds": cpu, "files_opened": opened.files, "folders_listed": opened.folders, "updates": updates}


def measure(runs: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Figures of both workspaces, and the ratio of their CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        chats = {number: chat_of(workspace_of(Path(folder) / str(number), number), tokens) for number in (1, runs)}
        for chat in chats.values():
            ask(chat)
        taken = [{number: ask(chat) for number, chat in chats.items()} for _ in range(rounds)]
    result: dict[str, Any] = {
        f"runs_{number}": {
            "cpu_ms": round(1000 * median(each[number]["cpu_seconds"] for each in taken), 1),
            **{name: median(each[number][name] for each in taken) for name in COUNTED},
        }
        for number in chats
    }
    ratios = [each[runs]["cpu_seconds"] / each[1]["cpu_seconds"] for each in taken]
    return result | {"ratio": round(median(ratios), 2), "tokens": tokens, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    result = measure(args.runs, args.tokens, args.rounds)
    print(f"{'runs':>5}  {'CPU, ms':>9}  {'files opened':>12}  {'folders listed':>14}  {'updates of the page':>19}")
    for number in (1, args.runs):
        row = result[f"runs_{number}"]
        counts = f"{row['files_opened']:12.0f}  {row['folders_listed']:14.0f}  {row['updates']:19.0f}"
        print(f"{number:5}  {row['cpu_ms']:9.1f}  {counts}")
    print(f"ratio of CPU time: {result['ratio']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
