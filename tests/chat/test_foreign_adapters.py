"""Adapters from elsewhere: what is taken out of a zip, and what is refused with its reason."""

import json
import stat
import zipfile
from pathlib import Path

import pytest

from lora_studio.access.policy import Users
from lora_studio.chat import choices
from lora_studio.errors import StudioError
from lora_studio.models.adapters import read_card
from lora_studio.workspace import Workspace
from tests.adapters import files, safetensors, shapes_on, write, zipped


def take(workspace: Workspace, archive: Path, base: str | None = None) -> Path:
    return choices.from_zip(archive, workspace, archive.name, base)


def test_an_adapter_comes_out_of_a_zip_with_what_runs_no_code_alone(workspace: Workspace, tmp_path: Path) -> None:
    card = json.dumps({"base_model": "demo", "system_prompt": "Arr.", "prompt_style": "chat"}).encode()
    given = files() | {"studio.json": card, "training_args.bin": b"pickle", "run.py": b"print()"}
    archive = zipped(tmp_path / "my adapter.zip", {f"deep/inside/{name}": content for name, content in given.items()})
    folder = take(workspace, archive)
    assert folder.parent == workspace.adapters_folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "studio.json",
    ]
    assert read_card(folder).system_prompt == "Arr."
    assert choices.imported(workspace) == [folder]
    assert take(workspace, archive) != folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.json", "outside of its folder"),
        ("/etc/evil.json", "outside of its folder"),
        ("a/../../evil.json", "outside of its folder"),
        ("C:/evil.json", "outside of its folder"),
        ("..\\evil.json", "outside of its folder"),
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(workspace: Workspace, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(StudioError, match=words):
        take(workspace, zipped(tmp_path / "a.zip", files() | {name: b"{}"}))
    assert choices.imported(workspace) == []


def test_a_link_in_a_zip_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", files())
    with zipfile.ZipFile(archive, "a") as opened:
        link = zipfile.ZipInfo("tokenizer.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(StudioError, match="contains a link"):
        take(workspace, archive)


def test_a_bomb_is_refused_before_it_goes_off(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="not plausible"):
        take(workspace, zipped(tmp_path / "a.zip", files() | {"tokenizer.json": bytes(50_000_000)}))
    with pytest.raises(StudioError, match="an adapter has a few"):
        take(workspace, zipped(tmp_path / "b.zip", files() | {f"{number}.txt": b"" for number in range(600)}))
    assert not workspace.adapters_folder.exists()


def test_a_file_that_lies_about_its_size_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", files() | {"README.md": b"x" * 1000}, zipfile.ZIP_STORED)
    content = archive.read_bytes()
    lie = content.replace((1000).to_bytes(4, "little") * 2, (1000).to_bytes(4, "little") + (10).to_bytes(4, "little"))
    assert lie != content
    archive.write_bytes(lie)
    with pytest.raises(StudioError, match=r"not a valid zip file|larger than stated in the zip"):
        take(workspace, archive)
    assert choices.imported(workspace) == []


def test_pickled_weights_are_refused_by_name(workspace: Workspace, tmp_path: Path) -> None:
    given = {"adapter_config.json": files()["adapter_config.json"], "adapter_model.bin": b"\x80\x04"}
    with pytest.raises(StudioError, match=r"only adapter_model\.bin, which can run code"):
        take(workspace, zipped(tmp_path / "a.zip", given))


def test_another_task_kind_or_base_is_refused_with_the_reason(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="trained for SEQ_CLS"):
        take(workspace, zipped(tmp_path / "a.zip", files(task_type="SEQ_CLS")))
    with pytest.raises(StudioError, match="unsupported type XLORA"):
        take(workspace, zipped(tmp_path / "b.zip", files(peft_type="XLORA")))
    with pytest.raises(StudioError, match=r"trained on Qwen/Qwen3-8B; the columns here use demo"):
        take(workspace, zipped(tmp_path / "c.zip", files(base_model_name_or_path="Qwen/Qwen3-8B")), "demo")
    with pytest.raises(StudioError, match="base /nowhere/model is not on this machine"):
        take(workspace, zipped(tmp_path / "d.zip", files(base_model_name_or_path="/nowhere/model")))
    assert choices.imported(workspace) == []


def test_matrices_that_do_not_fit_the_base_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    wide = {name: [shape[0], shape[1] + 8] if "lora_A" in name else shape for name, shape in shapes_on().items()}
    with pytest.raises(StudioError, match="columns; demo needs"):
        take(workspace, zipped(tmp_path / "a.zip", files(wide)))
    deep = {name.replace(".layers.0.", ".layers.77."): shape for name, shape in shapes_on().items()}
    with pytest.raises(StudioError, match="weights for layer 78"):
        take(workspace, zipped(tmp_path / "b.zip", files(deep)))


@pytest.mark.parametrize("settings", [{"r": 60_000}, {"rank_pattern": {"q_proj": 60_000}}], ids=str)
def test_settings_that_ask_for_more_than_the_weights_hold_are_refused(
    workspace: Workspace, tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(StudioError, match=r"states rank 60,000, but its largest matrix has 2 rows"):
        take(workspace, zipped(tmp_path / "a.zip", files(**settings)))


WIDE = 192


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ([4, WIDE], {"num_virtual_tokens": 10**6}),
        ([4, WIDE + 8], {"num_virtual_tokens": 4}),
        ([4, WIDE], {"num_virtual_tokens": 4, "token_dim": 10**6}),
        ([4, WIDE], {"num_virtual_tokens": 4, "peft_type": "PREFIX_TUNING"}),
    ],
    ids=str,
)
def test_virtual_tokens_that_do_not_fit_the_base_are_refused(
    workspace: Workspace, tmp_path: Path, shape: list[int], settings: dict[str, object]
) -> None:
    given = files({"prompt_embeddings": [4, WIDE]}, peft_type="PROMPT_TUNING", num_virtual_tokens=4)
    take(workspace, zipped(tmp_path / "a.zip", given))
    given = files({"prompt_embeddings": shape}, **{"peft_type": "PROMPT_TUNING"} | settings)
    with pytest.raises(StudioError, match="virtual tokens have the shape"):
        take(workspace, zipped(tmp_path / "b.zip", given))


@pytest.mark.parametrize("weights", [b"", b"\xff" * 64, safetensors({"a": [4, 4]})[:-3], b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_weights_are_refused(workspace: Workspace, tmp_path: Path, weights: bytes) -> None:
    given = files() | {"adapter_model.safetensors": weights}
    with pytest.raises(StudioError, match="safetensors"):
        take(workspace, zipped(tmp_path / "a.zip", given))
    assert choices.imported(workspace) == []


def test_what_is_no_zip_or_holds_no_adapter_is_a_sentence(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(StudioError, match="not a valid zip file"):
        take(workspace, tmp_path / "a.zip")
    with pytest.raises(StudioError, match=r"contains no adapter_config\.json"):
        take(workspace, zipped(tmp_path / "b.zip", {"README.md": b"hello"}))
    two = {f"{folder}/{name}": content for folder in "ab" for name, content in files().items()}
    with pytest.raises(StudioError, match="several adapters"):
        take(workspace, zipped(tmp_path / "c.zip", two))
    with pytest.raises(StudioError, match="cannot be read"):
        take(workspace, zipped(tmp_path / "d.zip", files() | {"adapter_config.json": b"{"}))


def test_a_folder_is_checked_as_a_zip_is(workspace: Workspace, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", files())
    assert choices.from_folder(str(folder), workspace, "demo") == folder
    with pytest.raises(StudioError, match="does not exist"):
        choices.from_folder(str(tmp_path / "gone"), workspace)
    with pytest.raises(StudioError, match="There is no adapter in"):
        choices.from_folder(str(tmp_path), workspace)


def test_whether_a_base_is_there_is_not_told_where_it_may_not_be_read(tmp_path: Path) -> None:
    there = tmp_path / "models" / "base"
    there.mkdir(parents=True)
    (there / "config.json").write_text('{"model_type": "qwen3"}')
    workspace = Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: "bert")
    said = []
    for base in (there, tmp_path / "models" / "none"):
        config = json.dumps({**json.loads(files()["adapter_config.json"]), "base_model_name_or_path": str(base)})
        archive = zipped(tmp_path / f"{base.name}.zip", files() | {"adapter_config.json": config.encode()})
        with pytest.raises(StudioError) as refused:
            take(workspace, archive)
        said.append(str(refused.value).replace(str(base), "it"))
    assert said[0] == said[1]
    assert "outside the folders that visitors may use" in said[0]
    assert list(workspace.adapters_folder.iterdir()) == []


def test_the_hub_is_not_asked_offline_nor_for_nonsense(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StudioError, match="HF_HUB_OFFLINE disables"):
        choices.from_hub("hub:owner/name", workspace)
    with pytest.raises(StudioError, match="is not a valid name of an adapter"):
        choices.from_hub("hub:../etc", workspace)
