"""Uploads are deleted by those whose they are, and stay while something reads them."""

import json
from pathlib import Path

import pytest

from lora_studio.access.policy import delete_upload
from lora_studio.config.parsing import parse, to_yaml
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as request
from lora_studio.ui.data.report import uploads
from lora_studio.workspace import Workspace
from tests.access.test_visitors import Visit, upload


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


def test_a_visitor_deletes_an_upload_of_their_own_and_nobody_elses(visit: Visit, tmp_path: Path) -> None:
    files = {name: upload(visit, name, tmp_path) for name in ("bert", "carl")}
    for name in (str(files["carl"]), str(visit.by("bert").user_folder), f"{files['bert'].parent}/../drafts"):
        with pytest.raises(StudioError, match="no longer among your uploads"):
            delete_upload(visit.by("bert"), name)
    assert 'aria-label="Delete bert.jsonl"' in uploads(visit.by("bert"))
    delete_upload(visit.by("bert"), str(files["bert"]))
    assert "No uploaded files." in uploads(visit.by("bert"))
    assert list(files["bert"].parent.iterdir()) == []
    delete_upload(visit.by("anna"), str(files["carl"]))
    assert not files["carl"].exists()


def test_an_upload_stays_until_the_run_or_evaluation_that_reads_it_has_ended(
    workspace: Workspace, tmp_path: Path
) -> None:
    sources = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for source in sources:
        source.write_text("{}")
    folder = workspace.save_uploads(sources)
    config = parse({"data": {"train_file": "pirate", "validation_file": str(folder / "b.jsonl")}})
    run = workspace.create_run("Pirate", to_yaml(config), {})
    with pytest.raises(StudioError, match="“Pirate” is not finished and uses a-and-1-more"):
        delete_upload(workspace, str(folder))
    run.complete.write_text("{}")
    asked = {"title": "a test", "data": str(folder), "columns": [], "labels": [], "labels_from": ""}
    job = request.folders(workspace).create({**asked, "measuring": {}, "generation": {}})
    with pytest.raises(StudioError, match="“a test” is not finished"):
        delete_upload(workspace, str(folder))
    job.complete.write_text(json.dumps({}))
    delete_upload(workspace, str(folder))
    assert workspace.uploads() == []
