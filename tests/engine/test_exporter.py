"""The child that takes adapters away: its result is whole or not there, and its last word says what happened."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lora_studio.engine.export import worker
from lora_studio.engine.runtime import FAILED, STOPPED, WRONG_INPUT, Stopped, is_full
from lora_studio.export.job import create, make_request
from lora_studio.jobs.kinds import ExportFolder
from lora_studio.workspace import RunFolder
from tests.cpu_time import CpuTime, of_children, of_process

from .exporting import last_event, run_exporter, take_away, texts_in, workspace_of


def unpacked(archive: Path, to: Path) -> Path:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(to)
    (folder,) = to.iterdir()
    return folder


def test_a_zip_holds_the_adapter_its_report_and_nothing_of_this_machine(
    trained: RunFolder, base: Path, data_file: Path, tmp_path: Path
) -> None:
    folder = take_away(trained, "zip", base_name="Owner/Tiny", trial=False)
    (archive,) = folder.result.iterdir()
    inside = unpacked(archive, tmp_path / "there")
    assert {path.name for path in inside.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "studio.json",
        "tokenizer.json",
        "chat_template.jinja",
        "report.md",
        "README.md",
    }
    assert not [path.name for path in inside.iterdir() if path.suffix in (".bin", ".pt")]
    texts = texts_in(inside)
    assert yaml.safe_load(texts["README.md"].split("---\n")[1])["base_model"] == "Owner/Tiny"
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "Owner/Tiny"
    assert json.loads(texts["studio.json"])["base_model"] == "Owner/Tiny"
    private = [str(base.parent), str(data_file.parent), str(trained.path.parent)]
    assert not [(name, path) for name, text in texts.items() for path in private if path in text]
    own, other = (load_file(place / "adapter_model.safetensors") for place in (trained.adapter, inside))
    assert all((own[name] == other[name]).all() for name in own)
    assert len(own) == len(other) > 0


def test_a_base_that_is_a_folder_here_is_asked_about(trained: RunFolder) -> None:
    folder = take_away(trained, "zip")
    assert "a folder that only exists on this machine" in last_event(folder).message
    assert "--base-name" in last_event(folder).hint
    assert not folder.result.exists()
    kept = take_away(trained, "zip", keep_local_base=True)
    assert last_event(kept).state == "done"
    assert kept.read_result()["same"] is True
    assert "a folder on this machine" in kept.read_result()["notes"][0]


def test_a_result_can_be_put_elsewhere_as_a_file_or_a_folder(trained: RunFolder, tmp_path: Path) -> None:
    options = {"base_name": "Owner/Tiny", "trial": False}
    file, folder = tmp_path / "mine.zip", tmp_path / "mine"
    assert take_away(trained, "zip", out=str(file), **options).result == file
    assert zipfile.is_zipfile(file)
    folder.mkdir()
    take_away(trained, "zip", out=str(folder), **options)
    assert [path.suffix for path in folder.iterdir()] == [".zip"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.zip"]


def test_an_adapter_that_went_away_before_the_start_is_said_plainly(trained: RunFolder, tmp_path: Path) -> None:
    request = make_request(workspace_of(trained), trained.id, "merged")
    folder = create(workspace_of(trained), request)
    facts = folder.read_facts() | {"folder": str(tmp_path / "gone")}
    folder.facts.write_text(json.dumps(facts), encoding="utf-8")
    assert run_exporter(folder) == WRONG_INPUT
    assert "no longer exists" in last_event(folder).message


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stopped()], ids=["full disk", "stop"])
def test_what_ends_in_the_middle_leaves_nothing_half_written(
    error: BaseException, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(work: object, **settings: object) -> None:
        (folder.unfinished / "half").write_text("x")
        raise error

    folder = create(workspace_of(trained), make_request(workspace_of(trained), trained.id, "merged"))
    monkeypatch.setattr(worker, "program", lambda target: halfway)
    code = run_exporter(folder)
    full = isinstance(error, OSError) and is_full(error, folder.path)
    assert code == (FAILED if full else STOPPED)
    assert ("is full" in last_event(folder).message) is full
    assert not folder.unfinished.exists()
    assert not folder.result.exists()


@pytest.mark.slow
def test_a_stop_from_outside_ends_it_within_seconds(trained: RunFolder) -> None:
    folder = create(workspace_of(trained), make_request(workspace_of(trained), trained.id, "merged"))
    child = subprocess.Popen([sys.executable, "-m", "lora_studio.engine.export.worker", str(folder.path)])
    while not (folder.events.is_file() and '"model"' in folder.events.read_text()):
        time.sleep(0.05)
        assert child.poll() is None
    before = of_process(child.pid)
    with CpuTime(of_children) as whole:
        child.terminate()
        assert child.wait(200) == STOPPED
    assert whole.seconds - before < 5
    assert not ExportFolder(folder.path).unfinished.exists()
