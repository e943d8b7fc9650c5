"""The commands of the terminal: `python -m lora_studio COMMAND`; `make_parser` lists them.

May import everything but engine; ui only in the command that serves it.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from types import TracebackType

from lora_studio import __version__
from lora_studio.access.serving import add_flags as add_serving_flags
from lora_studio.cli.output import PlainOutput, plain_output, program_of
from lora_studio.errors import EngineError, StudioError
from lora_studio.models.accelerators import AUTO, DEVICE_KINDS, LOCAL
from lora_studio.workspace import Workspace

FAILED, WRONG_INPUT, STOPPED = 1, 2, 130
COMMANDS = {
    "train": ("groups", "train"),
    "estimate": ("config", "estimate"),
    "inspect": ("data", "inspect"),
    "cache": ("data", "cache"),
    "rows": ("rows", "rows"),
    "chat": ("chat", "chat"),
    "evaluate": ("evaluate", "evaluate"),
    "export": ("export", "export"),
    "mix": ("mix", "mix"),
    "runs": ("jobs", "runs"),
    "groups": ("groups", "groups"),
    "find-lr": ("train", "find_lr"),
    "jobs": ("jobs", "jobs"),
    "devices": ("jobs", "devices"),
    "notify": ("jobs", "notify"),
    "presets": ("config", "list_or_show"),
    "check": ("config", "check"),
    "import": ("settings", "import_config"),
    "ui": ("serve", "serve"),
}
"""Module of this package and function of each command, imported when it is called: `--help` answers at once."""

RUN_ACTIONS = (
    "list",
    "show",
    "follow",
    "stop",
    "cancel",
    "resume",
    "delete",
    "queue",
    "up",
    "down",
    "tag",
    "note",
    "compare",
    "csv",
)
GROUP_ACTIONS = ("list", "show", "follow", "rename", "stop", "delete")
JOB_ACTIONS = ("list", "show", "follow", "stop", "cancel", "resume", "delete", "queue", "up", "down", "start")
ABOUT_JOBS = (
    "follow shows progress until the job ends; stop saves and ends it; cancel ends it at once; resume continues a "
    "run or an evaluation; queue lists queued jobs, up and down move one of them, start starts one beside others and "
    "however little memory is free"
)
CONFIG = "YAML file or preset (default: all defaults)"
AT_ONCE = "start even if other jobs use all devices and memory allows it (default: wait in the queue)"
DEVICE = "a GPU's number, or cpu (default: auto, the free GPU with the most memory)"
TARGET = "where it runs: local, or a target such as slurm:two (default: local)"
ADAPTER = "run (id, start of an id, name or `last`, optionally with /checkpoint-N) or adapter folder"
ABOUT_ACTIONS = (
    "follow shows progress until the run ends; stop saves a checkpoint and ends it; cancel ends it at once and "
    "keeps existing checkpoints; resume continues after either; queue lists queued runs, up and down move one of "
    "them; tag and note show or set the labels of a run; compare shows runs side by side; csv prints the metrics; "
    "show, follow, stop, cancel and delete also take the id of an evaluation or export, and resume that of an "
    "evaluation"
)
WITH_ALL_SETTINGS = ("train", "check", "import", "estimate", "find-lr")
WITH_OWN_SETTINGS = ("export", "rows")
"""Commands whose module says which settings they have, by `add_settings`."""
WITH_SETTINGS = (*WITH_ALL_SETTINGS, "inspect", "chat", "evaluate", "export", "rows")
"""Commands whose flags are made from the schema, which takes a moment to import."""


def make_parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands. Flags of settings are added only to commands named in `arguments` (None: to all)."""
    parser = argparse.ArgumentParser(
        prog="lora_studio",
        description="Fine-tune language models with LoRA and compare base and adapter side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--workspace", metavar="DIR", help=("folder of runs (default: LORA_STUDIO_HOME, else ./workspace)")
    )
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print a JSON object as the last line of stdout")

    def add(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, parents=[place, *parents], allow_abbrev=False)

    train = add("train", "train an adapter and follow the run; Ctrl-C saves and stops it", output)
    train.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG)
    train.add_argument("--skip-preflight", action="store_true", help="skip the checks before the start")
    train.add_argument("--resume", metavar="RUN", help="continue a stopped or failed run")
    _add_resume_flags(train)
    _add_try_flags(train)
    inspect = add("inspect", "show how a data file is parsed, tokenized and masked", output)
    _add_inspect_flags(inspect)
    about = "show or clear the cache of prepared data"
    add("cache", about, output).add_argument("action", nargs="?", choices=("show", "clear"), default="show")
    rows = _add_rows_flags(add("rows", "let a model write training rows about documents", output))
    find_lr = _with_config(add("find-lr", "suggest a learning rate by a short sweep of rising rates", output))
    estimate = add("estimate", "estimate memory by part, trainable parameters and the best savings", output)
    estimate.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG)
    estimate.add_argument("--device", choices=tuple(DEVICE_KINDS), help="estimate for another device than this one")
    estimate.add_argument("--memory", type=float, metavar="GIB", help="its memory in GiB (default: what is free here)")
    chat = add("chat", "chat with an adapter, or compare it with its base", output)
    _add_chat_flags(chat)
    evaluate = add("evaluate", "answer a test file with an adapter and its base, and compute metrics", output)
    _add_evaluate_flags(evaluate)
    export = add("export", "export an adapter for another program", output)
    _add_export_flags(export)
    _add_mix_flags(add("mix", "mix adapters of one base into a new adapter", output))
    runs = add("runs", "list, show, compare, tag, stop, resume or delete runs, and move them in the queue", output)
    _add_runs_flags(runs)
    _add_groups_flags(
        add("groups", "list, show, rename, stop or delete groups of runs that try several values", output)
    )
    jobs = add("jobs", "list, show, stop, resume or delete jobs of all kinds, and move them in the queue", output)
    _add_jobs_flags(jobs)
    add("devices", "list the devices with memory, load and who uses them", output)
    _add_notify_flags(add("notify", "show, set, test or remove the webhook that is told when a job ends", output))
    _add_presets_flags(add("presets", "list presets or show one", output))
    check = _with_config(add("check", "print the complete config, or all errors in it", output))
    before = "also check data, model, memory and disk, as before a start"
    check.add_argument("--preflight", action="store_true", help=before)
    imported = _add_import_flags(add("import", "read a config file of another trainer", output))
    _add_ui_flags(add("ui", "start the web page"))
    with_settings = (train, check, imported, estimate, find_lr, inspect, chat, evaluate, export, rows)
    _add_settings(with_settings, arguments)
    return parser


def _with_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG)
    return command


def _add_resume_flags(train: argparse.ArgumentParser) -> None:
    extra = "with --resume: train this many more epochs, even if the run is finished"
    train.add_argument("--extra-epochs", type=float, metavar="N", default=0.0, help=extra)
    other = "with --resume: continue although the data files have changed"
    train.add_argument("--other-rows", action="store_true", help=other)


def _add_try_flags(train: argparse.ArgumentParser) -> None:
    several = "train a group of runs: one for each combination of values, of up to three settings; repeat for each"
    train.add_argument("--try", dest="tries", action="append", metavar="SETTING=A,B", default=[], help=several)
    train.add_argument("--group-name", metavar="NAME", default="", help="with --try: the name of the group")
    weak = "with --try: stop runs early that are in the weaker half of the group (successive halving)"
    train.add_argument("--stop-weak", action="store_true", help=weak)


def _add_notify_flags(notify: argparse.ArgumentParser) -> None:
    about = "set reads the address from stdin; test sends a note now"
    notify.add_argument("action", nargs="?", choices=("show", "set", "test", "remove"), default="show", help=about)
    shape = "format of the notes (default: by the address)"
    notify.add_argument("--format", choices=("auto", "slack", "discord", "json"), default="auto", help=shape)


def _add_presets_flags(presets: argparse.ArgumentParser) -> None:
    presets.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    presets.add_argument("preset", nargs="?", metavar="PRESET")


def _add_ui_flags(ui: argparse.ArgumentParser) -> None:
    add_serving_flags(ui)
    ui.add_argument("--open", action="store_true", help="open the page in the browser")


def _add_chat_flags(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("adapter", metavar="RUN", help=ADAPTER)
    chat.add_argument("--compare", action="store_true", help="answer with the base model too")
    chat.add_argument(
        "--beside", action="append", metavar="RUN", help="another adapter of the same base (at most twice)"
    )
    chat.add_argument("--compute.device", dest="compute_device", metavar="NAME", default=AUTO, help=DEVICE)
    chat.add_argument("--prompt", metavar="TEXT", help="answer this prompt and exit")
    chat.add_argument("--system", metavar="TEXT", help="system prompt (default: that of the training)")


def _add_evaluate_flags(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("adapter", metavar="RUN", help=ADAPTER)
    evaluate.add_argument(
        "data", metavar="DATA", help="test file, built-in dataset, or `validation` for the run's validation rows"
    )
    evaluate.add_argument("--compare", action="store_true", help="answer with the base model too")
    evaluate.add_argument(
        "--beside", action="append", metavar="RUN", help="another adapter of the same base (at most twice)"
    )
    evaluate.add_argument("--max-samples", type=int, metavar="N", help="use only the first N rows of the file")
    evaluate.add_argument("--batch-size", type=int, metavar="N", help="batch size (default: what fits)")
    evaluate.add_argument("--engine", choices=["transformers", "vllm"], help="what answers (default: transformers)")
    evaluate.add_argument("--labels", metavar="LIST", default="", help="labels of the answers, such as Yes,No")
    reading = "column mapping (default: as in training, or detected)"
    evaluate.add_argument("--mapping", metavar="JSON", help=reading)
    evaluate.add_argument(
        "--encoding", metavar="NAME", help=("encoding of a DATA file that is not UTF-8 (default: detected)")
    )
    evaluate.add_argument("--out", metavar="DIR", help="also copy both files to this folder")
    evaluate.add_argument("--at-once", action="store_true", help=AT_ONCE)
    evaluate.add_argument("--compute.target", dest="compute_target", metavar="NAME", default=LOCAL, help=TARGET)
    evaluate.add_argument("--compute.device", dest="compute_device", metavar="NAME", default=AUTO, help=DEVICE)
    evaluate.add_argument("--resume", action="store_true", help="continue the same evaluation after it ended early")


def _add_export_flags(export: argparse.ArgumentParser) -> None:
    export.add_argument("adapter", metavar="RUN", help=ADAPTER)
    export.add_argument("--to", metavar="TARGET", required=True, help="export format; `list` shows all formats")
    export.add_argument(
        "--out", metavar="PATH", help=("path of the result (default: the exports folder of the workspace)")
    )
    export.add_argument("--at-once", action="store_true", help=AT_ONCE)
    export.add_argument("--compute.target", dest="compute_target", metavar="NAME", default=LOCAL, help=TARGET)
    export.add_argument("--no-trial", action="store_true", help="do not test the result by loading it")


def _add_mix_flags(mix: argparse.ArgumentParser) -> None:
    about = "adapter and its weight: a run (id, start of an id, name or `last`) or an adapter folder, such as last=0.7"
    mix.add_argument("adapters", nargs="+", metavar="RUN=WEIGHT", help=about)
    methods = "method of peft's add_weighted_adapter: linear, cat, svd, ties, dare_linear, dare_ties or magnitude_prune"
    mix.add_argument("--method", metavar="NAME", default="linear", help=f"{methods} (default: linear)")
    pruned = "share of the values that stay, for ties, dare_linear, dare_ties and magnitude_prune (default: 0.5)"
    mix.add_argument("--density", type=float, metavar="X", help=pruned)
    seed = "seed of what dare_linear and dare_ties drop (default: 42)"
    mix.add_argument("--seed", type=int, metavar="N", help=seed)
    mix.add_argument("--out", metavar="DIR", help="folder of the new adapter (default: one among external adapters)")


def _add_rows_flags(rows: argparse.ArgumentParser) -> argparse.ArgumentParser:
    rows.add_argument("documents", nargs="*", metavar="DOC", help="text, Markdown, PDF or DOCX file")
    rows.add_argument("--model", metavar="M", help="base model that writes, or the name of the server's model")
    rows.add_argument("--adapter", metavar="RUN", help=f"adapter that writes: {ADAPTER}")
    about = "base URL of an OpenAI-compatible server that writes; its key is read from LORA_STUDIO_SERVER_KEY"
    rows.add_argument("--server", metavar="URL", help=about)
    tokenizer = "with --server: model whose tokenizer counts the tokens of chunks (default: demo)"
    rows.add_argument("--tokenizer", metavar="M", default="demo", help=tokenizer)
    rows.add_argument("--prompt-file", metavar="FILE", help="text file with the prompt, in place of --prompt")
    rows.add_argument("--form", choices=("chat", "prompt"), default="chat", help="`messages`, or prompt and completion")
    rows.add_argument("--out", metavar="FILE", help="write the rows to a new JSONL file")
    rows.add_argument("--at-once", action="store_true", help=AT_ONCE)
    rows.add_argument("--resume", metavar="JOB", help="continue a job that ended early")
    return rows


def _add_runs_flags(runs: argparse.ArgumentParser) -> None:
    runs.add_argument("action", nargs="?", choices=RUN_ACTIONS, default="list", help=ABOUT_ACTIONS)
    runs.add_argument("run", nargs="?", metavar="RUN", help='id, start of an id, name, or "last"')
    runs.add_argument("more", nargs="*", metavar="MORE", help="other runs to compare, the tags, or the note")
    runs.add_argument("--yes", action="store_true", help="delete without asking")


def _add_groups_flags(groups: argparse.ArgumentParser) -> None:
    groups.add_argument("action", nargs="?", choices=GROUP_ACTIONS, default="list")
    groups.add_argument("group", nargs="?", metavar="GROUP", help='id, start of an id, name, or "last"')
    groups.add_argument("name", nargs="*", metavar="NAME", help="with rename: the new name")
    groups.add_argument("--metric", default="", metavar="NAME", help="metric to sort by (default: validation loss)")
    groups.add_argument("--yes", action="store_true", help="delete without asking")


def _add_jobs_flags(jobs: argparse.ArgumentParser) -> None:
    jobs.add_argument("action", nargs="?", choices=JOB_ACTIONS, default="list", help=ABOUT_JOBS)
    jobs.add_argument("job", nargs="?", metavar="JOB", help="id of a job of any kind")
    jobs.add_argument("--yes", action="store_true", help="delete without asking")


def _add_inspect_flags(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("data", metavar="DATA", help="file or built-in dataset")
    inspect.add_argument(
        "--model",
        metavar="M",
        default="demo",
        help=("model whose tokenizer and chat template are used (default: demo)"),
    )
    inspect.add_argument(
        "--validation-file", metavar="DATA", help=("file of validation rows, instead of a split of DATA")
    )
    inspect.add_argument(
        "--show-examples", type=int, metavar="N", default=1, help=("number of rows shown step by step")
    )
    inspect.add_argument(
        "--save-bad-rows", metavar="FILE", help=("write all invalid rows to a new file, as JSON lines")
    )
    inspect.add_argument("--char-only", action="store_true", help="count characters only, without a tokenizer")
    inspect.add_argument(
        "--percentiles", metavar="LIST", default="", help="additional percentiles of row lengths, such as 75,99.9"
    )


def _add_import_flags(imported: argparse.ArgumentParser) -> argparse.ArgumentParser:
    about = (
        "YAML or JSON file of LLaMA-Factory, axolotl, trl, ms-swift or Unsloth Studio, or peft's adapter_config.json"
    )
    imported.add_argument("file", metavar="FILE", help=about)
    imported.add_argument(
        "--from", dest="tool", metavar="TOOL", default="", help="trainer (default: recognized by the keys)"
    )
    imported.add_argument(
        "--dataset-info", metavar="FILE", help="LLaMA-Factory's dataset_info.json (default: looked for beside FILE)"
    )
    imported.add_argument("--out", metavar="FILE", help="write the config to a new YAML file (default: print it)")
    imported.add_argument("--preset", metavar="NAME", help="save the config as a preset")
    return imported


def _add_settings(with_settings: Sequence[argparse.ArgumentParser], arguments: Sequence[str] | None) -> None:
    parsers = dict(zip(WITH_SETTINGS, with_settings, strict=True))
    commands = [name for name in WITH_SETTINGS if arguments is None or name in arguments]
    if not commands:
        return
    from lora_studio.cli.settings import add_all, add_section

    for name in commands:
        if name in WITH_ALL_SETTINGS:
            add_all(parsers[name])
        elif name in WITH_OWN_SETTINGS:
            importlib.import_module(f"lora_studio.cli.{COMMANDS[name][0]}").add_settings(parsers[name])
        else:
            add_section(parsers[name], "data" if name == "inspect" else "generation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a fault may be shown with half a character
    with plain_output():
        return _answered(arguments)


def _answered(arguments: list[str]) -> int:
    parser = make_parser(arguments)
    args, unknown = parser.parse_known_args(with_values(parser, arguments))
    args.unknown = unknown
    if args.unknown and args.command not in WITH_ALL_SETTINGS:
        parser.error(f"unrecognized arguments: {' '.join(args.unknown)}")
    for stream in (sys.stderr, sys.stdout):
        if isinstance(stream, PlainOutput) and not (stream is sys.stdout and vars(args).get("json")):
            stream.program, stream.workspace = program_of(sys.orig_argv), args.workspace or ""
    try:
        return _run(args)
    except StudioError as error:
        print(error, file=sys.stderr)
        if vars(args).get("json"):
            print(json.dumps({"error": error.message, "hint": error.hint}, ensure_ascii=False), flush=True)
        return FAILED if isinstance(error, EngineError) else WRONG_INPUT
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def with_values(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The arguments, with what follows a flag that no command has as the flag's value (`--lora.rank=8`).

    argparse would take it for the config, and say nothing of the flag.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    command = next((commands.choices[word] for word in arguments if word in commands.choices), parser)
    flags = command._option_string_actions
    joined: list[str] = []
    for word in arguments:
        before = joined[-1] if joined else ""
        strange = before.startswith("--") and "=" not in before and before not in flags and before != "--"
        if strange and not word.startswith("--"):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


def _run(args: argparse.Namespace) -> int:
    workspace = Workspace.find(args.workspace)
    _log_defects(workspace)
    module, function = COMMANDS[args.command]
    command = getattr(importlib.import_module(f"lora_studio.cli.{module}"), function)
    return int(command(workspace, args))


def _log_defects(workspace: Workspace) -> None:
    """From here on an error of the program itself is one sentence in the terminal and a traceback in a log file."""
    log = workspace.logs_folder / "cli.log"

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        import traceback

        with log.open("a", encoding="utf-8") as file:
            traceback.print_exception(kind, error, trace, file=file)
        print(f"Internal error: {kind.__name__}: {error}. Details are in {log}.", file=sys.stderr)

    sys.excepthook = tell
