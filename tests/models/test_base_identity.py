"""A base is known by its place or by config and weights, and never by the last name of its folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_studio.errors import StudioError
from lora_studio.models.adapters import changed, check_fit, fingerprint, read_card, same_base, together, written_at
from lora_studio.workspace import demo_folder
from tests.adapters import files, write

CONFIG = {"model_type": "llama", "hidden_size": 4, "transformers_version": "5.1"}


def base(folder: Path, seed: int = 1, shards: int = 1, **config: object) -> Path:
    """A folder with a config and a few random matrices, in so many files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    numbers = np.random.default_rng(seed)
    tensors = {f"layer.{at}": numbers.normal(size=(40, 50)).astype(np.float32) for at in range(4)}
    for shard in range(shards):
        part = {name: tensor for at, (name, tensor) in enumerate(tensors.items()) if at % shards == shard}
        save_file(part, folder / f"model-{shard}.safetensors")
    return folder


def test_two_folders_of_one_last_name_are_two_models(tmp_path: Path) -> None:
    one, other = base(tmp_path / "A" / "base"), base(tmp_path / "B" / "base", seed=2)
    assert same_base(str(one), str(other)) is False
    settings = {"base_model_name_or_path": str(other)}
    adapter = write(tmp_path / "adapter", files(**settings))
    with pytest.raises(StudioError, match=r"trained on .*B/base; the columns here use .*A/base") as raised:
        check_fit(adapter, str(one))
    assert "different models with the same last name" in raised.value.hint
    ours = write(tmp_path / "ours", files(base_model_name_or_path=str(one)))
    with pytest.raises(StudioError, match="different models with the same last name"):
        together([read_card(ours), read_card(adapter)])


def test_a_copy_moved_resharded_or_saved_anew_is_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = base(tmp_path / "here" / "base")
    assert same_base(str(one), str(base(tmp_path / "elsewhere", shards=2, transformers_version="5.2")))
    assert same_base("demo", str(shutil.copytree(demo_folder() / "model", tmp_path / "copy")))
    monkeypatch.chdir(tmp_path)
    assert same_base(str(one), "here/base")
    (tmp_path / "link").symlink_to(one)
    assert same_base(str(one), str(tmp_path / "link"))


def test_another_config_or_one_changed_matrix_is_another_model(tmp_path: Path) -> None:
    one = base(tmp_path / "one")
    assert same_base(str(one), str(base(tmp_path / "two", rope_theta=5e5))) is False
    changed = shutil.copytree(one, tmp_path / "three")
    content = bytearray((changed / "model-0.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model-0.safetensors").write_bytes(content)
    assert same_base(str(one), str(changed)) is False


def test_a_base_that_left_its_place_is_known_by_what_training_noted(tmp_path: Path) -> None:
    one, other = base(tmp_path / "old" / "base"), base(tmp_path / "other" / "base", seed=2)
    noted = fingerprint(str(one))
    one.rename(tmp_path / "new")
    assert same_base(str(one), str(tmp_path / "new"), noted) is True
    assert same_base(str(one), str(other), noted) is False
    assert same_base(str(one), str(other)) is None
    assert fingerprint(str(one)) == ""


def test_ids_of_the_hub_that_are_not_here_are_never_one_by_their_last_name(tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", files(base_model_name_or_path="owner/base"))
    with pytest.raises(StudioError, match="the columns here use other/base"):
        check_fit(adapter, "other/base")


def test_another_precision_and_what_nothing_proves_are_told(tmp_path: Path) -> None:
    one, copy = base(tmp_path / "one"), base(tmp_path / "copies" / "model")
    full = write(tmp_path / "full", files(base_model_name_or_path=str(one)))
    rounded = write(tmp_path / "rounded", files(base_model_name_or_path=str(one)))
    (rounded / "studio.json").write_text(json.dumps({"base_model": str(one), "quantization": "4bit"}))
    (told,) = together([read_card(full), read_card(rounded)])
    assert "rounded was trained on the base in 4 bits. Here it runs on the unquantized base" in told
    ours = write(tmp_path / "ours", files(base_model_name_or_path=str(copy)))
    theirs = write(tmp_path / "theirs", files(base_model_name_or_path="owner/model"))
    (told,) = together([read_card(ours), read_card(theirs)])
    assert "assumed to be a copy because of its name" in told


def test_a_base_that_changed_in_its_place_is_told(tmp_path: Path) -> None:
    one = base(tmp_path / "base")
    settings = files(base_model_name_or_path=str(one))
    card = replace(read_card(write(tmp_path / "adapter", settings)), base_fingerprint=fingerprint(str(one)))
    assert changed(card, str(one)) == ""
    shutil.rmtree(one)
    assert changed(card, str(one)) == "", "nobody knows"
    base(one, seed=2)
    assert "its config or weights differ" in changed(card, str(one))
    assert changed(replace(card, base_fingerprint=""), str(one)) == ""


def test_an_adapter_that_was_deleted_meanwhile_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="The adapter's weights cannot be read") as error:
        written_at(tmp_path)
    assert "deleted or moved" in error.value.hint
