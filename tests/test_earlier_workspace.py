"""What an earlier studio kept and printed still counts: its workspace, moved elsewhere, is listed and worked with.

`tests/earlier` holds the workspace and what the studio that made it told of it; its README says how both were made.
"""

import json
import os
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat import prompts
from lora_studio.chat.choices import from_zip
from lora_studio.config.parsing import parse, read_yaml, resolve
from lora_studio.jobs.events import fold, from_line
from lora_studio.jobs.launchers.local import kill
from lora_studio.models.adapters import read_card
from lora_studio.workspace import Workspace
from tests.conftest import Say

EARLIER = Path(__file__).parent / "earlier"
COMMANDS: list[dict[str, Any]] = json.loads((EARLIER / "commands.json").read_text(encoding="utf-8"))
WRITING = {"delete", "clear"}
READING = [command for command in COMMANDS if not command["slow"] and not WRITING & set(command["words"])]
DELETING = [command for command in COMMANDS if WRITING & set(command["words"])]
WORKING = [command for command in COMMANDS if command["slow"]]
FOLDS: dict[str, Any] = json.loads((EARLIER / "folds.json").read_text(encoding="utf-8"))
PIRATE, STOPPED, POLITE = (
    f"20261129-{rest}" for rest in ("143836-pirate-a516", "144332-stopped-821f", "143905-polite-236a")
)


def unpack(root: Path) -> None:
    """Unpacks the earlier workspace, with the times of its files, by which runs are sorted."""
    with zipfile.ZipFile(EARLIER / "workspace.zip") as archive:
        for member in archive.infolist():
            made = time.mktime((*member.date_time, 0, 0, -1))
            os.utime(archive.extract(member, root), (made, made))


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Not where it was made: whatever names its folders by their old place leads nowhere. For tests that only read."""
    root = tmp_path_factory.mktemp("earlier") / "moved"
    unpack(root)
    return Workspace(root)


@pytest.fixture
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    """One that the test may change, unless it asks for the `unchanged` one."""
    if "unchanged" in request.fixturenames:
        yield request.getfixturevalue("unchanged")
        return
    unpack(tmp_path / "moved")
    moved = Workspace(tmp_path / "moved")
    yield moved
    for run in moved.runs():
        kill(run)


def shape(value: Any, path: str = "") -> dict[str, str]:
    """Each place of a JSON value with the kind of what stands there; all items of a list are one place."""
    if isinstance(value, dict) and value:
        return {place: kind for name, inner in value.items() for place, kind in shape(inner, f"{path}.{name}").items()}
    if isinstance(value, list) and value:
        found: dict[str, str] = {}
        for inner in value:
            found |= {
                place: kind
                for place, kind in shape(inner, f"{path}[]").items()
                if not (kind == "nothing" and place in found)
            }
        return found
    kinds = {dict: "object", list: "list", str: "text", bool: "truth", int: "number", float: "number"}
    return {path: kinds.get(type(value), "nothing")}


def lacking(before: Any, now: Any, path: str = "") -> list[str]:
    """What a value has no more, or otherwise; what was added is left out."""
    if isinstance(before, dict):
        if not isinstance(now, dict):
            return [f"{path}: {now!r} is no object"]
        missing = [f"{path}.{name} is gone" for name in before.keys() - now.keys()]
        return missing + [
            text for name in before.keys() & now.keys() for text in lacking(before[name], now[name], f"{path}.{name}")
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            text
            for number, (one, other) in enumerate(zip(before, now, strict=True))
            for text in lacking(one, other, f"{path}[{number}]")
        ]
    return [] if before == now else [f"{path}: {now!r} was {before!r}"]


def last_json(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-1])


def run_command(say: Say, workspace: Workspace, command: dict[str, Any]) -> tuple[Any, str]:
    """Runs one of the earlier command lines; its JSON, and what it is to be called in a failure."""
    words = [word.replace("WORKSPACE", str(workspace.root)) for word in command["words"]]
    code, out, err = say(*words, "--json")
    assert code == command["code"], f"{' '.join(words)}: {err}"
    return last_json(out), " ".join(words)


def check_shape(before: dict[str, str], printed: Any) -> None:
    """Nothing that was printed before is missing, or of another kind; a place may be empty for once."""
    now = shape(printed)
    above = {place.rpartition(cut)[0] for place in now for cut in ".[" if cut in place}
    gone = [place for place in before if place not in now and place not in above]
    other = {
        place: (kind, now[place])
        for place, kind in before.items()
        if place in now and now[place] not in (kind, "nothing") and kind != "nothing"
    }
    assert (gone, other) == ([], {})


# -- what is read


def test_the_comparisons_see_what_is_gone_and_what_is_another() -> None:
    assert lacking({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == [".a[1].b: 3 was 2"]
    assert lacking({"a": 1, "b": 2}, {"b": 2, "c": 3}) == [".a is gone"]
    for changed in ({"a": [{"b": 1}]}, {"a": [{"b": "1", "c": 1}]}, {}):
        with pytest.raises(AssertionError):
            check_shape(shape({"a": [{"b": 1, "c": 1}]}), changed)
    check_shape(shape({"a": [{"b": 1}]}), {"a": [{"b": None, "c": 1}], "d": 0})


@pytest.mark.parametrize("name", FOLDS)
def test_events_of_an_earlier_studio_come_to_what_they_came_to(unchanged: Workspace, name: str) -> None:
    lines = (unchanged.root / name / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = list(map(from_line, lines))
    assert all(event is not None for event in events)
    state = json.loads(json.dumps(asdict(fold(event for event in events if event is not None))))
    assert not lacking(FOLDS[name], state)


@pytest.mark.parametrize("run_id", [PIRATE, STOPPED, POLITE])
def test_configs_of_earlier_runs_say_the_same(unchanged: Workspace, run_id: str) -> None:
    values = read_yaml(unchanged.run(run_id).config)
    assert not lacking(values, parse(values).model_dump())


def test_presets_prompts_votes_and_what_a_person_wrote_are_there(unchanged: Workspace, say: Say) -> None:
    preset = resolve("short-pirate", {}, unchanged)
    assert (preset.lora.r, preset.training.max_steps, preset.training.learning_rate) == (2, 2, 1e-3)
    assert prompts.read_prompts(unchanged, "greetings") == ["Hello!", "Who are you?"]
    assert [(vote.names, vote.best) for vote in prompts.read_votes(unchanged)] == [(["Base", "pirate"], 1)]
    assert say("runs", "tag", "pirate")[1] == "for later, small\n"
    assert say("runs", "note", "pirate")[1] == "Six steps only: it has learned nothing yet.\n"


def test_measurements_of_an_earlier_run_come_as_csv_in_the_same_columns(unchanged: Workspace, say: Say) -> None:
    columns, *lines = say("runs", "csv", "pirate")[1].splitlines()
    assert columns.startswith("kind,step,epoch,loss,time,total_steps,learning_rate,grad_norm,token_accuracy,tokens,")
    assert len(lines) == 8


def test_the_list_tells_of_every_earlier_run(unchanged: Workspace, say: Say) -> None:
    rows = last_json(say("runs", "list", "--json")[1])["runs"]
    assert [(row["run"], row["state"], row["step"], row["total_steps"]) for row in rows] == [
        (STOPPED, "stopped", 3, 12),
        (POLITE, "done", 3, 3),
        (PIRATE, "done", 6, 6),
    ]


@pytest.mark.parametrize("command", READING, ids=lambda command: " ".join(command["words"]))
def test_json_has_all_that_it_had(unchanged: Workspace, say: Say, command: dict[str, Any]) -> None:
    printed, _ = run_command(say, unchanged, command)
    check_shape(command["shape"], printed)


def test_an_earlier_export_comes_back_as_an_adapter(workspace: Workspace) -> None:
    (archive,) = workspace.exports_folder.glob("*/result/pirate.zip")
    card = read_card(from_zip(archive, workspace, archive.name, "demo"))
    trained = read_card(workspace.run(PIRATE).adapter)
    assert replace(card, name="", values={}) == replace(trained, name="", values={})
    assert (card.base, card.prompt_style, card.r) == ("demo", "chat", 2)


@pytest.mark.parametrize("command", DELETING, ids=lambda command: " ".join(command["words"]))
def test_json_of_what_is_deleted_has_all_that_it_had(workspace: Workspace, say: Say, command: dict[str, Any]) -> None:
    printed, _ = run_command(say, workspace, command)
    check_shape(command["shape"], printed)


def test_the_stopped_run_still_has_its_checkpoint(unchanged: Workspace) -> None:
    assert [path.name for path in unchanged.run(STOPPED).checkpoint_folders()] == ["checkpoint-3"]


# -- what is worked with


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKING, ids=lambda command: " ".join(command["words"][:2]))
def test_an_earlier_workspace_is_worked_with(workspace: Workspace, say: Say, command: dict[str, Any]) -> None:
    printed, words = run_command(say, workspace, command)
    check_shape(command["shape"], printed)
    for place, value in command["values"].items():
        found = printed
        for name in place.split("."):
            found = found[name]
        assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), f"{words}: {place}"
