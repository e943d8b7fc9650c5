"""The terminal's commands: flags from the schema, plain errors, exit codes, Ctrl-C, and JSON on stdout."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_studio.cli import COMMANDS, main, make_parser
from lora_studio.cli.data import steps_of
from lora_studio.cli.output import age, table
from lora_studio.cli.train import follow_to_end
from lora_studio.config.parsing import parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.errors import StudioError
from lora_studio.jobs.launchers.local import find, kill
from lora_studio.models.adapters import adapter_folder
from lora_studio.units import duration, size
from lora_studio.workspace import Workspace
from tests.cpu_time import CpuTime, of_children
from tests.jobs.conftest import fake_command, supervise, wait_until

__all__ = ["supervise"]

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "peft", "trl", "gradio", "datasets", "pandas", "numpy", "pydantic")


@pytest.fixture(autouse=True)
def _own_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(workspace.root))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    for run in workspace.runs():
        kill(run)


def terminal(*arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_studio", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check)


def last_json(text: str) -> dict[str, Any]:
    found = json.loads(text.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


# -- flags


def test_help_is_there_within_a_second() -> None:
    def seconds() -> float:
        with CpuTime(of_children) as spent:
            assert "train" in terminal("--help", check=True).stdout
        return spent.seconds

    assert min(seconds() for _ in range(3)) < 1.0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lora_studio.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize("command", ["train", "inspect", "chat", "runs", "presets", "check", "ui"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--workspace" in capsys.readouterr().out


def test_train_has_a_flag_for_every_setting() -> None:
    given = vars(make_parser().parse_args(["train"]))
    assert {name.removeprefix("setting:") for name in given if name.startswith("setting:")} == {
        setting.path for setting in settings()
    }


def test_an_unknown_flag_of_another_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--frobnicate"])
    assert ended.value.code == 2
    assert "--frobnicate" in capsys.readouterr().err


# -- check and presets


def test_check_prints_a_config_that_reads_back_to_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--lora.r", "64", "--data.max_samples", "none", "--training.packing", "true"]) == 0
    written = tmp_path / "config.yaml"
    written.write_text(capsys.readouterr().out)
    assert main(["check", str(written), "--json"]) == 0
    config = parse(last_json(capsys.readouterr().out)["config"])
    assert (config.lora.r, config.data.max_samples, config.training.packing) == (64, None, True)


def test_check_tells_every_problem_at_once_and_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["check", "demo", "--lora.rr", "3", "--training.learning_rate", "fast", "--data.max_length=2"])
    errors = capsys.readouterr().err
    assert code == 2
    assert "3 settings are invalid" in errors
    assert "did you mean `lora.r`" in errors
    assert all(path in errors for path in ("lora.rr", "training.learning_rate", "data.max_length"))


@pytest.mark.parametrize("command", ["train", "check", "estimate"])
def test_a_flag_of_another_name_keeps_its_value_and_is_told_what_is_meant(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--lora.rank", "8", "--max-seq-length", "512", "--load_in_4bit", "--lora.r", "4"]) == 2
    errors = capsys.readouterr().err
    assert "lora.rank: unknown setting; did you mean `lora.r`? (found '8')" in errors
    assert "did you mean `data.max_length`? (found '512')" in errors
    assert "did you mean `model.quantization` with the value 4bit?" in errors
    assert "No preset and no YAML file was given, so all other settings have their defaults." in errors
    assert main([command, "demo", "--lora.rank", "8"]) == 2
    assert "No preset" not in capsys.readouterr().err


def test_check_lists_the_problems_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--lora.r", "0", "--json"]) == 2
    found = last_json(capsys.readouterr().out)
    assert not found["ok"]
    assert [problem["path"] for problem in found["problems"]] == ["lora.r"]


def test_estimate_tells_memory_by_part_and_the_trained_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "demo", "--device", "cuda", "--memory", "24", "--json"]) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["verdict"], found["device"], found["available"]) == ("fits", "cuda", 24 * 1024**3)
    assert found["total"] == sum(found["parts"].values())
    assert main(["estimate", "demo"]) == 0
    words = capsys.readouterr().out
    assert "Trainable parameters: " in words
    assert "saves" in words
    assert "--training.gradient_checkpointing true" in words
    assert main(["estimate", "--model.name", "nobody/has-this-model"]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_the_checks_before_a_start_stop_a_run_that_would_not_get_far(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    start = ["train", "demo", "--workspace", str(workspace.root), "--data.train_file", str(empty)]
    assert main(start) == 2
    told = capsys.readouterr().err
    assert ". Data: FAILED." in told
    assert "--skip-preflight" in told
    assert workspace.runs() == []


def test_a_word_too_many_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "demo", "demo2"]) == 2
    assert "Unexpected argument 'demo2'" in capsys.readouterr().err


def test_a_file_of_another_trainer_becomes_a_config_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, written = tmp_path / "sft.yaml", tmp_path / "mine.yaml"
    file.write_text("stage: sft\nlora_rank: 8\ncutoff_len: 512\nplot_loss: true\ndeepspeed: z3.json\n")
    assert main(["import", str(file), "--lora.r", "4"]) == 0
    printed = capsys.readouterr()
    written.write_text(printed.out)
    assert main(["check", str(written), "--json"]) == 0
    config = last_json(capsys.readouterr().out)["config"]
    assert (config["lora"]["r"], config["data"]["max_length"], config["training"]["learning_rate"]) == (4, 512, 5e-5)
    for words in ("cutoff_len: 512 → data.max_length 512", "losses are always plotted", "deepspeed: z3.json"):
        assert words in printed.err
    assert "names no base model: add --model.name" in printed.err
    assert main(["import", str(file), "--out", str(tmp_path / "new.yaml"), "--preset", "brought", "--json"]) == 0
    answer = last_json(capsys.readouterr().out)
    assert (answer["ok"], answer["tool"], answer["settings"]["lora.lora_alpha"]) == (True, "llama-factory", 16)
    assert yaml.safe_load((tmp_path / "new.yaml").read_text())["data"]["max_length"] == 512
    assert main(["check", "brought"]) == 0


@pytest.mark.parametrize("command", ["check", "train", "estimate"])
def test_a_file_of_another_trainer_in_place_of_a_config_is_told_how_to_be_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lf.yaml"
    file.write_text("stage: sft\ncutoff_len: 512\n")
    assert main([command, str(file)]) == 2
    told = capsys.readouterr().err
    assert "did you mean `data.max_length`" in told
    assert f"`lora-studio import {file}` reads it" in told


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("stage: kto\ncutoff_len: 5", [], "stage: kto"),
        ("a: 1", [], "not recognized as a config of another trainer (found a)"),
        ("a: 1", ["--from", "nobody"], "There is no trainer 'nobody'"),
        ("cutoff_len: 0", [], "data.max_length: must be at least 8 (found 0)"),
        ("cutoff_len: 64", ["--out", "."], "already exists"),
        ("cutoff_len: 64", ["--out", "/proc/no/such.yaml"], "cannot be written"),
        ("cutoff_len: [", [], "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_in_a_sentence(
    text: str, more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(text)
    assert main(["import", str(file), *more]) == 2
    assert words in capsys.readouterr().err
    assert main(["import", str(file), *more, "--json"]) == 2
    assert "error" in last_json(capsys.readouterr().out)


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["presets", "show", "demo", "--json"]) == 0
    assert last_json(capsys.readouterr().out)["values"]["data"]["train_file"] == "pirate"


def test_an_unknown_preset_is_an_error_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "show", "nothing"]) == 2
    assert "demo" in capsys.readouterr().err


# -- errors


def test_a_users_mistake_is_two_sentences_and_no_traceback() -> None:
    result = terminal("runs", "show", "nothing")
    assert result.returncode == 2
    assert "There is no run" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_the_program_is_one_sentence_with_the_traceback_in_a_log(workspace: Workspace) -> None:
    program = (
        "import sys; from lora_studio.cli import main; from lora_studio.jobs.supervisor import Supervisor\n"
        "def fail(_): raise RuntimeError('nobody foresaw this')\n"
        "Supervisor.runs = fail\n"
        f"sys.exit(main(['runs', 'list', '--workspace', {str(workspace.root)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "cli.log" in result.stderr
    assert "RuntimeError: nobody foresaw this" in (workspace.logs_folder / "cli.log").read_text()


def test_output_that_nobody_reads_is_no_error() -> None:
    command = f"{sys.executable} -m lora_studio check | head -1"
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "title: ''\n"
    assert "Traceback" not in result.stderr


# -- following a run, with workers that train nothing


@pytest.mark.parametrize(
    ("mode", "code", "state"), [("steps=3", 0, "done"), ("crash", 1, "failed"), ("wrong", 2, "failed")]
)
def test_the_exit_code_tells_how_a_run_ended(
    mode: str, code: int, state: str, supervise: Any, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = supervise(mode)
    run = workspace.run(supervisor.launch(Config()))
    assert follow_to_end(supervisor, run, as_json=True) == code
    printed = capsys.readouterr()
    found = last_json(printed.out)
    assert (found["run"], found["state"]) == (run.id, state)
    assert set(found) >= {"run", "state", "steps", "train_loss", "eval_loss", "adapter"}
    assert run.id in printed.err


def test_the_story_of_a_run_names_phases_steps_and_the_end(
    supervise: Any, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = supervise("steps=4")
    follow_to_end(supervisor, workspace.run(supervisor.launch(Config())), as_json=False)
    told = capsys.readouterr()
    assert told.out == ""
    for words in ("training", "step 4/4", "note: This worker is a fake.", "Finished in", "chat"):
        assert words in told.err


def test_a_run_that_waits_says_for_whom(
    supervise: Any, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enough, told = tmp_path / "enough", ""

    def end_once_told() -> None:
        nonlocal told
        with suppress(AssertionError):  # then the test says what was told instead
            wait_until(lambda: "Queued" in hear())
        enough.touch()

    def hear() -> str:
        nonlocal told
        told += capsys.readouterr().err
        return told

    supervisor = supervise(f"until={enough}")
    supervisor.launch(Config(title="First"))
    second = supervisor.launch(Config())
    threading.Thread(target=end_once_told).start()
    assert follow_to_end(supervisor, workspace.run(second), as_json=False) == 0
    assert "Queued: The device is in use by the run First." in hear()


def follower(workspace: Workspace, mode: str) -> subprocess.Popen[str]:
    """A terminal that follows a run of a fake worker, as `train` does.

    It listens to Ctrl-C also where the tests themselves run in the background, which hands an ignored SIGINT down.
    """
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from lora_studio.cli.train import follow_to_end; from lora_studio.config.sections import Config\n"
        "from lora_studio.jobs.launchers.local import LocalLauncher\n"
        "from lora_studio.jobs.supervisor import Supervisor\n"
        "from lora_studio.workspace import Workspace\n"
        f"workspace = Workspace.find({str(workspace.root)!r})\n"
        f"supervisor = Supervisor(workspace, LocalLauncher({fake_command(mode)!r}))\n"
        "run = workspace.run(supervisor.launch(Config()))\n"
        "sys.exit(follow_to_end(supervisor, run, as_json=True))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until_training(workspace: Workspace) -> None:
    wait_until(lambda: bool(workspace.runs()) and workspace.runs()[0].events.is_file())
    wait_until(lambda: '"StepLogged"' in workspace.runs()[0].events.read_text())


@pytest.mark.slow
def test_ctrl_c_stops_the_run_and_waits_until_it_is_saved(workspace: Workspace) -> None:
    watching = follower(workspace, "steps=30000")
    until_training(workspace)
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=200)
    assert watching.returncode == 130
    assert last_json(out)["state"] == "stopped"
    assert "Stopping" in err
    assert len(workspace.runs()[0].checkpoint_folders()) == 1


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_worker_that_does_not_listen(workspace: Workspace) -> None:
    watching = follower(workspace, "deaf")
    until_training(workspace)
    watching.send_signal(signal.SIGINT)
    assert watching.stderr is not None
    assert any("Stopping" in line for line in watching.stderr)
    assert watching.poll() is None
    watching.send_signal(signal.SIGINT)
    out, _ = watching.communicate(timeout=200)
    assert (watching.returncode, last_json(out)["state"]) == (130, "stopped")
    assert find(workspace.runs()[0]) is None


def test_closing_the_terminal_leaves_the_run_going(workspace: Workspace) -> None:
    watching = follower(workspace, "steps=30000")
    until_training(workspace)
    watching.kill()
    watching.communicate(timeout=200)
    assert find(workspace.runs()[0]) is not None


# -- runs


def test_runs_are_listed_shown_stopped_and_deleted(
    supervise: Any, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs"]) == 0
    assert "no runs yet" in capsys.readouterr().err
    supervisor = supervise("steps=30000")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    assert main(["runs", "list"]) == 0
    assert run_id in capsys.readouterr().out
    assert main(["runs", "delete", run_id]) == 2
    assert "cannot be deleted" in capsys.readouterr().err
    assert main(["runs", "stop", "last", "--json"]) == 0
    assert last_json(capsys.readouterr().out)["state"] == "stopped"
    assert main(["runs", "show", run_id]) == 0
    assert "checkpoint-" in capsys.readouterr().out
    assert main(["runs", "show", run_id, "--json"]) == 0
    assert last_json(capsys.readouterr().out)["run"] == run_id
    wait_until(lambda: supervisor.busy() is None)
    assert main(["runs", "delete", run_id, "--json"]) == 2  # nobody sits at a terminal to be asked
    told = capsys.readouterr()
    assert run_id in told.err
    assert "--yes" in last_json(told.out)["hint"]
    assert main(["runs", "delete", run_id, "--yes"]) == 0
    assert workspace.runs() == []


def test_an_action_on_no_run_asks_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "stop"]) == 2
    assert "needs a run" in capsys.readouterr().err


def test_a_resumed_run_takes_no_new_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo", "--resume", "last"]) == 2
    assert "keeps its settings" in capsys.readouterr().err


# -- inspect and chat, the parts that need no model


def test_characters_are_counted_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "abc", "output": "de"}\n{"instruction": "abc", "output": null}\n')
    assert main(["inspect", str(file), "--char-only", "--json"]) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["rows"], found["bad_rows"], found["characters"]["max"]) == (1, 1, 5)
    assert main(["inspect", str(file), "--char-only"]) == 0
    assert "1 valid row, 1 invalid row" in capsys.readouterr().out


def test_an_example_is_shown_in_six_steps_with_trained_stretches_marked() -> None:
    tokens = [
        {"id": 8, "text": "Please ", "trained": False, "special": False, "kept": False},
        {"id": 9, "text": "do ", "trained": False, "special": False, "kept": False},
        {"id": 1, "text": "ask ", "trained": False, "special": False, "kept": True},
        {"id": 2, "text": "an", "trained": True, "special": False, "kept": True},
        {"id": 3, "text": "swer", "trained": True, "special": False, "kept": True},
    ]
    example = {
        "row": 4,
        "record": {"text": "x"},
        "messages": [{"role": "user", "content": "ask"}],
        "text": "ask answer",
        "tokens": tokens,
        "removed_tokens": 2,
        "kept_tokens": 3,
        "lost_trained_tokens": 0,
        "left_out": "",
        "full_length": 5,
        "trained_tokens": 2,
        "windows": 1,
        "window": 0,
    }
    lines = steps_of(example, {"file": "rows.jsonl"})
    assert [line[0] for line in lines if line[0].isdigit()] == list("123456")
    assert lines[-2:] == ["  - 'ask '", "  + 'answer'"]
    at = lines.index("5 truncation: 2 tokens removed, 3 kept")
    assert lines[at + 1] == "  x 'Please do '"


def test_an_adapter_is_found_by_folder_run_and_checkpoint(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.create_run("r", "{}", {})
    with pytest.raises(StudioError, match="no adapter yet"):
        adapter_folder(workspace, run.id)
    checkpoint = run.checkpoints / "checkpoint-5"
    for folder in (checkpoint, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    (checkpoint / "trainer_state.json").write_text("{}")
    assert adapter_folder(workspace, "last") == checkpoint
    assert adapter_folder(workspace, f"{run.id[:12]}/checkpoint-5") == checkpoint
    assert adapter_folder(workspace, str(tmp_path / "elsewhere")) == tmp_path / "elsewhere"
    assert adapter_folder(workspace, str(checkpoint)) == checkpoint
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    assert adapter_folder(workspace, str(run.path)) == run.adapter
    with pytest.raises(StudioError, match="It has: checkpoint-5"):
        adapter_folder(workspace, "last/checkpoint-6")
    with pytest.raises(StudioError, match="is not an adapter"):
        adapter_folder(workspace, str(tmp_path))


# -- texts


def test_times_and_tables_read_well() -> None:
    assert [duration(value) for value in (0.4, 59.4, 200, 7500)] == ["0.40 s", "59 s", "3 min 20 s", "2 h 5 min"]
    assert [size(value) for value in (95, 1908, 6_700_000)] == ["95 B", "1.9 kB", "6.7 MB"]
    assert [age(time.time() - value) for value in (1, 90, 7300, 200_000)] == [
        "just now",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]
    assert table(("name", "n"), [("a", 5), ("long", 10)]) == "name   n\na      5\nlong  10"
    assert table(("name",), []) == "name"


# -- the whole, with the engine


@pytest.mark.slow
def test_train_inspect_and_chat_work_end_to_end_and_print_json(workspace: Workspace) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    small = ("--training.max_steps", "4", "--data.max_samples", "40", "--evaluation.gen_eval_samples", "1")
    trained = last_json(terminal("train", "demo", "--json", *small, check=True).stdout)
    assert (trained["state"], trained["steps"]) == ("done", 4)
    assert set(trained) >= {"run", "state", "steps", "train_loss", "eval_loss", "adapter"}
    assert Path(trained["adapter"], "adapter_model.safetensors").is_file()
    asked = ("chat", trained["run"], "--prompt", "What is the capital of France?", "--json")
    asked += ("--beside", f"{trained['run']}/checkpoint-4")
    compared = last_json(terminal(*asked, "--compare", "--max-new-tokens", "8", check=True).stdout)
    assert compared["base"]
    assert compared["adapter"]
    assert set(compared["stats"]) == {"base", "adapter", "adapter2"}
    assert compared["adapter2"] == compared["adapter"]  # the last checkpoint is what the run handed out
    found = last_json(
        terminal("inspect", "pirate", "--model", "demo", "--max-length", "30", "--json", check=True).stdout
    )
    assert set(found) >= {"format", "rows", "bad_rows", "tokens", "truncated_rows", "lost_trained_tokens"}
    assert set(found["tokens"]) == {"min", "mean", "p50", "p90", "p95", "p99", "max"}
    assert found["truncated_rows"] > 0
    assert [run.id for run in workspace.runs()] == [trained["run"]]


def test_the_cache_is_shown_and_cleared(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.cache_folder.mkdir()
    (workspace.cache_folder / "entry").write_bytes(b"x" * 2_000_000)
    assert main(["cache", "--workspace", str(workspace.root)]) == 0
    assert "2.0 MB" in capsys.readouterr().out
    assert main(["cache", "clear", "--json", "--workspace", str(workspace.root)]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 2_000_000
    assert workspace.cache_size() == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_function_in_the_module_that_it_names(command: str) -> None:
    module, function = COMMANDS[command]
    assert callable(getattr(importlib.import_module(f"lora_studio.cli.{module}"), function))


def test_check_gives_advice_with_the_flags_that_follow_it(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--training.method", "dpo", "--training.learning_rate", "2e-4", "--model.name", "an/8b"]
    assert main(["check", *settings]) == 0
    shown = capsys.readouterr()
    assert "Set learning rate to 5e-6: --training.learning_rate 5e-06" in shown.err
    assert "Advice" not in shown.out
    assert main(["check", *settings, "--json"]) == 0
    advised = last_json(capsys.readouterr().out)["advice"]
    assert [item["settings"] for item in advised] == [{"training.learning_rate": 5e-6}]
    assert main(["check", "demo"]) == 0
    assert "Advice" not in capsys.readouterr().err
