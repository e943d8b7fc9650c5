"""What can be asked of an export, how large it will be, and what its folder keeps."""

from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.export.job import checked, create, folders, make_request, needed_bytes, request_of
from lora_studio.export.targets import TARGETS, Sizes, sizes_of
from lora_studio.jobs.kinds import remove
from lora_studio.models.adapter_files import carried
from lora_studio.workspace import Workspace
from tests.adapters import files, write


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write(tmp_path / "adapter", {**files(), "training_args.bin": b"pickle", ".env": b"secret"})


def test_only_the_files_of_an_adapter_go_with_it(adapter: Path) -> None:
    (adapter / "chat_template.jinja").symlink_to("/etc/hostname")
    assert [path.name for path in carried(adapter)] == ["adapter_config.json", "adapter_model.safetensors"]


def test_sizes_follow_from_adapter_base_and_precision(workspace: Workspace, adapter: Path) -> None:
    sizes = sizes_of(adapter)
    assert sizes.parameters is not None
    merged = make_request(workspace, str(adapter), "merged", settings={"dtype": "float32"})
    assert needed_bytes(workspace, merged) == 4 * sizes.parameters + sizes.adapter
    assert (
        sizes.adapter
        < (needed_bytes(workspace, make_request(workspace, str(adapter), "zip")) or 0)
        < sizes.adapter + 200_000
    )


BILLION = Sizes(adapter=0, parameters=10**9, family="Qwen3ForCausalLM", llama_cpp=True)


@pytest.mark.parametrize(
    ("target", "settings", "sizes", "large", "room"),
    [
        ("gguf", {"quantization": "q8_0"}, BILLION, 1.0625, 3.0625),
        ("gguf", {"quantization": "q4_k_m"}, BILLION, 0.6125, 4.6125),
        ("gguf", {"quantization": "q4_k_m"}, replace(BILLION, llama_cpp=False), 2, 2),
        ("ollama", {}, BILLION, 1.0625, 3.0625),
        ("ollama", {"weights": "safetensors"}, BILLION, 2, 2),
        ("ollama", {}, replace(BILLION, family="LlamaForCausalLM"), 2, 2),
        ("merged", {"dtype": "float32"}, BILLION, 4, 4),
        ("gguf", {}, replace(BILLION, parameters=None), None, None),
    ],
)
def test_the_size_is_that_of_the_result_and_the_disk_holds_what_lies_there_on_the_way(
    target: str, settings: dict[str, str], sizes: Sizes, large: float | None, room: float | None
) -> None:
    form = TARGETS[target]
    chosen = checked(form, settings)
    found = form.size(sizes, chosen), form.room_for(sizes, chosen)
    assert found == tuple(octets if octets is None else octets * 10**9 for octets in (large, room))


def test_what_was_asked_for_is_read_back(workspace: Workspace, adapter: Path, tmp_path: Path) -> None:
    request = make_request(workspace, str(adapter), "merged", out=str(tmp_path / "out"), trial=False)
    folder = create(workspace, request)
    assert request_of(folder) == request
    assert (folder.result, folder.unfinished.parent) == (tmp_path / "out", tmp_path)
    assert [found.id for found in folders(workspace).all()] == [folder.id]
    remove(folder)
    assert folders(workspace).all() == []


def test_what_cannot_be_made_is_refused_with_all_that_is_wrong(
    workspace: Workspace, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(StudioError, match="no export format 'cake'"):
        make_request(workspace, str(adapter), "cake")
    with pytest.raises(StudioError, match=r"Precision must be .* no setting colour"):
        make_request(workspace, str(adapter), "merged", settings={"dtype": "int3", "colour": "red"})
    for size in ("5potatoes", "0GB", "-1GB", "5", "GB", "5.GB"):
        with pytest.raises(StudioError, match=r"Max shard size must be a whole number of GB, MB or KB"):
            make_request(workspace, str(adapter), "merged", settings={"max_shard_size": size})
    assert make_request(workspace, str(adapter), "merged", settings={"max_shard_size": " 500 mb"}).settings
    with pytest.raises(StudioError, match="already exists"):
        make_request(workspace, str(adapter), "zip", out=str(adapter))
    with pytest.raises(StudioError, match="does not exist"):
        make_request(workspace, str(adapter), "zip", out=str(tmp_path / "no" / "where"))


def test_too_little_room_on_the_disk_is_said_before_anything_starts(
    workspace: Workspace, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(workspace, str(adapter), "merged")
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 15_000_000}))
    with pytest.raises(StudioError, match=r"needs about \d+ MB plus 20 MB .* has 15 MB free"):
        create(workspace, request)
    assert folders(workspace).all() == []


def test_every_form_says_what_it_is_for(adapter: Path) -> None:
    for name, target in TARGETS.items():
        assert name == target.name
        assert target.description.endswith(".")
        assert target.size(sizes_of(adapter), target.settings())
