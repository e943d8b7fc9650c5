"""`chat`: talks to adapters in the terminal, one alone or up to three beside each other and their base."""

import argparse
import os
import sys
import time

from lora_studio.cli.output import SAY_SECONDS, print_json, say
from lora_studio.cli.settings import overrides
from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import nest, parse
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import ADAPTER, BASE, MAX_ADAPTERS
from lora_studio.files import JsonObject
from lora_studio.jobs.devices import single_device
from lora_studio.jobs.protocol import ColumnAnswer, ColumnPrompt, Generate, Generated, Load, Loaded, Piece, Progress
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.adapters import adapter_folder, check_fit, read_card, together
from lora_studio.models.hardware import environment_of
from lora_studio.units import duration
from lora_studio.workspace import Workspace

Message = dict[str, str]


def chat(workspace: Workspace, args: argparse.Namespace) -> int:
    """Answers one prompt, or everything typed until the input ends."""
    settings = parse(nest(overrides(args))).generation.model_dump()
    folders = _folders(workspace, [args.adapter, *(args.beside or [])])
    device = Supervisor(workspace).allocation().for_session(choice=single_device(args.compute_device))
    with Session(workspace.logs_folder / "cli-chat.log", environment_of([device], os.environ)) as session:
        say("Loading model ...")
        loaded = session.call(Load(adapters=folders), on_progress=_Loading().show)
        for note in loaded.notes:
            say(f"  note: {note}")
        columns = [BASE] * args.compare + list(folders)
        talk = Talk(session, settings, args.system or loaded.system_prompt, columns)
        if args.prompt is not None:
            answers = talk.ask(args.prompt, quiet=args.json)
            if args.json:
                print_json(_result(folders, loaded, args.prompt, answers))
            return 0
        if args.json:
            raise StudioError("--json answers a single prompt.", "Give it with --prompt.")
        legend = ", ".join(f"{name} is {folder}" for name, folder in folders.items())
        say(f"{legend}, on {loaded.base}. Exit with Ctrl-D; /clear starts a new conversation.")
        _take_turns(talk)
    return 0


class _Loading:
    """Tells of a base that is fetched before it is loaded, which is the one long wait."""

    def __init__(self) -> None:
        self._said = 0.0

    def show(self, progress: Progress) -> None:
        if progress.phase == "download" and time.monotonic() - self._said >= SAY_SECONDS:
            self._said, seconds_left = time.monotonic(), progress.seconds_left
            mega = [number / 1e6 for number in (progress.done, progress.total, progress.rows_per_second)]
            speed = f", {mega[2]:,.1f} MB/s, {duration(seconds_left)} left" if seconds_left else ""
            say(f"  downloading the base model: {mega[0]:,.1f} of {mega[1]:,.1f} MB{speed}")


def _folders(workspace: Workspace, names: list[str]) -> dict[str, str]:
    """The folders of the adapters by the names of their columns. Raises `StudioError` unless all are of one base."""
    names = list(dict.fromkeys(names))
    if len(names) > MAX_ADAPTERS:
        raise StudioError(
            f"{len(names)} adapters were given.", f"At most {MAX_ADAPTERS} adapters can answer next to the base."
        )
    folders = [adapter_folder(workspace, name) for name in names]
    first = read_card(folders[0]).base or None
    for folder in folders:
        check_fit(folder, first)
    together([read_card(folder) for folder in folders])
    return {ADAPTER if number == 1 else f"{ADAPTER}{number}": str(folder) for number, folder in enumerate(folders, 1)}


class Talk:
    """A conversation with one or several columns, each with its own history."""

    def __init__(self, session: Session, settings: SettingValues, system: str | None, columns: list[str]) -> None:
        self._session = session
        self._settings = settings
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._columns = columns
        self._histories: dict[str, list[Message]] = {}
        self.clear()

    def clear(self) -> None:
        """Forgets what was said."""
        self._histories = {column: list(self._system) for column in self._columns}

    def ask(self, prompt: str, quiet: bool = False) -> dict[str, ColumnAnswer]:
        """Each column's answer with its numbers; unless `quiet` it is shown, a single one while it is made."""
        question = {"role": "user", "content": prompt}
        columns = [
            ColumnPrompt(adapter=None if column == BASE else column, messages=[*history, question])
            for column, history in self._histories.items()
        ]
        alone = len(columns) == 1
        answers: dict[str, ColumnAnswer] = {}
        for message in self._session.stream(Generate(columns=columns, settings=self._settings)):
            if isinstance(message, Piece) and alone and not quiet:
                print(message.texts[0], end="", flush=True)
            elif isinstance(message, Generated):
                answers = dict(zip(self._columns, message.columns, strict=True))
        for column, answer in answers.items():
            self._histories[column] += [question, {"role": "assistant", "content": answer.text}]
            if not quiet and not alone:
                print(f"{column + ':':<10}{answer.text}", flush=True)
        if alone and not quiet:
            print(flush=True)
        return answers


def _take_turns(talk: Talk) -> None:
    while True:
        try:
            prompt = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if prompt == "/clear":
            talk.clear()
        elif prompt:
            try:
                talk.ask(prompt)
            except KeyboardInterrupt:
                say("\n(stopped)")


def _result(folders: dict[str, str], loaded: Loaded, prompt: str, answers: dict[str, ColumnAnswer]) -> JsonObject:
    stats = {name: answer.model_dump(exclude={"text"}) for name, answer in answers.items()}
    return {
        "prompt": prompt,
        **{name: answer.text for name, answer in answers.items()},
        "stats": stats,
        "model": loaded.base,
        "adapter_folder": folders[ADAPTER],
        "adapter_folders": folders,
        "device": loaded.device,
        "dtype": loaded.dtype,
        "quantization": loaded.quantization,
        "notes": loaded.notes,
    }
