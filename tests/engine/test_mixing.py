"""A mix is what plain peft makes of the same adapters, and is an adapter like any other afterwards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lora_studio.cli import main
from lora_studio.engine.chat.analysis import Call
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.chat.session import SessionWorker, serve
from lora_studio.engine.models.mixing import mix_adapters
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.errors import StudioError
from lora_studio.export.card import Subject, model_card
from lora_studio.files import JsonObject
from lora_studio.jobs import protocol
from lora_studio.models.adapters import read_card
from lora_studio.models.mixing import METHODS, Mix, Parent, checked_mix, recipe_of
from lora_studio.workspace import Workspace
from tests.engine.kinds import bare, make, tiny_llama

IDS = torch.tensor([[5, 9, 21, 33, 4, 60]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Adapters that differ in what matters to a mix."""
    folder = tmp_path_factory.mktemp("adapters")
    modules = ["q_proj", "down_proj"]
    return {
        "first": make(base, folder / "first", 1, target_modules=modules),
        "second": make(base, folder / "second", 2, target_modules=modules, lora_alpha=2),
        "high": make(base, folder / "high", 3, target_modules=modules, r=6),
        "other": make(base, folder / "other", 4, target_modules=["v_proj", "q_proj"]),
        "layer": make(base, folder / "layer", 5, target_modules=modules, layers_to_transform=[1]),
        "pattern": make(base, folder / "pattern", 6, target_modules=r".*\.q_proj"),
        "rslora": make(base, folder / "rslora", 7, target_modules=modules, use_rslora=True, lora_alpha=3),
        "dora": make(base, folder / "dora", 8, target_modules=modules, use_dora=True),
        "whole": make(base, folder / "whole", 9, target_modules=modules, modules_to_save=["lm_head"]),
    }


def mix_of(adapters: Mapping[str, Path], weights: Mapping[str, float], method: str, **settings: Any) -> Mix:
    parents = [Parent(name, adapters[name], weight) for name, weight in weights.items()]
    return checked_mix(parents, method, **settings)


def peft_alone(base: Path, mix: Mix) -> Any:
    """peft's own mix on the loaded base."""
    first, *others = mix.parents
    model = PeftModel.from_pretrained(bare(base), str(first.folder), adapter_name="0")
    for at, parent in enumerate(others, 1):
        model.load_adapter(str(parent.folder), adapter_name=str(at))
    torch.manual_seed(mix.seed or 0)
    names, weights = list(map(str, range(len(mix.parents)))), [parent.weight for parent in mix.parents]
    settings = {"combination_type": mix.method, "density": mix.density, "svd_full_matrices": False}
    model.add_weighted_adapter(names, weights, "mix", **settings)
    model.set_adapter("mix")
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_logits_are_those_of_plain_peft_bit_for_bit(
    base: Path, adapters: Mapping[str, Path], tmp_path: Path, method: str
) -> None:
    mix = mix_of(adapters, {"first": 0.7, "second": -0.4}, method)
    mix_adapters(mix, tmp_path / "mix", base=str(base))
    expected = peft_alone(base, mix)
    for name, tensor in load_file(tmp_path / "mix" / "adapter_model.safetensors").items():
        place = name.replace(".weight", ".mix.weight")
        assert torch.equal(tensor, expected.get_parameter(place)), name
    loaded = PeftModel.from_pretrained(bare(base), str(tmp_path / "mix")).eval()
    assert torch.equal(logits(loaded), logits(expected))
    assert not torch.equal(logits(loaded), logits(bare(base)))


def change(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight of the base, by plain peft's merging in float64."""
    model = PeftModel.from_pretrained(bare(base).double(), str(adapter), autocast_adapter_dtype=False)
    before = {name: weight.clone() for name, weight in bare(base).double().named_parameters()}
    merged: Any = model.double().merge_and_unload()
    return {name: weight.detach() - before[name] for name, weight in merged.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("other", ["high", "other", "layer", "pattern", "rslora"])
def test_cat_adds_adapters_of_other_ranks_modules_layers_and_scales_exactly(
    base: Path, adapters: Mapping[str, Path], tmp_path: Path, other: str
) -> None:
    mix = mix_of(adapters, {other: 0.5, "first": -2.0}, "cat")
    notes = mix_adapters(mix, tmp_path / "mix", base=str(base))
    assert any("does not adapt" in note for note in notes) == (other in ("other", "layer", "pattern"))
    mixed, first, second = (change(base, path) for path in (tmp_path / "mix", adapters["first"], adapters[other]))
    for name, difference in mixed.items():
        assert torch.allclose(difference, 0.5 * second[name] - 2.0 * first[name], atol=1e-5), name


def test_a_mix_answers_beside_the_bare_base_and_its_parents_in_one_batch(
    base: Path, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    mix = mix_of(adapters, {"first": 1.5, "second": 0.5}, "ties", density=0.7)
    mix_adapters(mix, tmp_path / "mix", base=str(base))
    folders = {"first": adapters["first"], "second": adapters["second"], "mix": tmp_path / "mix"}
    loaded = load_base(str(base))
    add_adapters(loaded, folders)
    names = [None, *folders]
    assert loaded.shares(names)
    together = answers(loaded, names)
    assert together == [answers(loaded, [name])[0] for name in names]
    assert together[0] == answers(load_base(str(base)), [None])[0]
    assert len(set(together)) == 4


def answers(loaded: LoadedModel, names: list[str | None]) -> list[tuple[int, ...]]:
    columns = [Column(name, [{"role": "user", "content": "Which colour has the sky?"}]) for name in names]
    return [answer.ids for answer in generate(loaded, columns, greedy(loaded, 12))]


def test_the_recipe_is_recorded_and_dare_repeats_with_its_seed(
    base: Path, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    def weights(folder: str, seed: int) -> torch.Tensor:
        mix = mix_of(adapters, {"first": 0.6, "second": 0.4}, "dare_linear", density=0.5, seed=seed)
        mix_adapters(mix, tmp_path / folder, base=str(base))
        return torch.cat(
            [tensor.flatten() for tensor in load_file(tmp_path / folder / "adapter_model.safetensors").values()]
        )

    assert torch.equal(weights("again", 7), weights("first", 7))
    assert not torch.equal(weights("other", 8), weights("first-of-all", 7))
    recipe = recipe_of(read_card(tmp_path / "other").values)
    assert recipe is not None
    assert [(adapter.name, adapter.weight, len(adapter.sha256)) for adapter in recipe.adapters] == [
        ("first", 0.6, 64),
        ("second", 0.4, 64),
    ]
    assert (recipe.method, recipe.density, recipe.seed) == ("dare_linear", 0.5, 8)
    assert read_card(tmp_path / "other").base == str(base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "first-of-all", "other"]


@pytest.mark.parametrize(
    ("weights", "method", "words"),
    [
        ({"first": 1, "high": 1}, "linear", "first has rank 4, and high has rank 6: linear needs equal ranks. Use cat"),
        ({"first": 1, "high": 1}, "dare_ties", "dare_ties needs equal ranks"),
        ({"first": 1, "dora": 1}, "cat", "dora has DoRA's magnitudes, which cannot be mixed"),
        ({"first": 1, "whole": 1}, "cat", "whole has modules trained in full, which cannot be mixed"),
    ],
)
def test_what_peft_cannot_mix_is_refused_before_anything_is_computed(
    base: Path, adapters: Mapping[str, Path], tmp_path: Path, weights: dict[str, float], method: str, words: str
) -> None:
    with pytest.raises(StudioError) as caught:
        mix_adapters(mix_of(adapters, weights, method), tmp_path / "mix", base="a base that is not even looked for")
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert not list(tmp_path.iterdir())


class SessionHere:
    """Stands in for a session: does in this process what the child does with the same line."""

    def __init__(self, log: Path) -> None:
        self.worker = SessionWorker()

    def __enter__(self) -> "SessionHere":
        return self

    def __exit__(self, *_: object) -> None: ...

    def call(self, request: protocol.Request[Any]) -> Any:
        lines: list[JsonObject] = []
        call = Call(1, protocol.parse_request(json.loads(json.dumps(request.line(1)))), lines.append)
        serve(self.worker, call)
        answer = request.parse_answer(lines[-1])
        if isinstance(answer, protocol.Failure):
            raise StudioError(answer.message, answer.hint)
        return answer


def test_the_terminal_mixes_runs_and_folders_into_an_adapter_whose_card_tells_the_recipe(
    base: Path,
    adapters: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lora_studio.cli.mix.Session", SessionHere)
    workspace = Workspace(tmp_path / "workspace")
    first, second = (f"{adapters[name]}={weight}" for name, weight in (("first", 0.7), ("second", 0.3)))
    flags = ["--workspace", str(workspace.root), "--method", "dare_ties", "--density", "0.25"]
    assert main(["mix", first, second, *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    folder = workspace.adapters_folder / "first-second-dare_ties"
    assert Path(result["adapter"]) == folder
    assert (result["base"], result["r"], result["recipe"]["seed"]) == (str(base), 4, 42)
    card = model_card(folder, None, Subject("Mix", "owner/base"))
    assert "A LoRA adapter, mixed from 2 adapters with LoRA Studio on `owner/base`." in card
    assert "method `dare_ties`, density 0.25, seed 42." in card
    assert "| second | 0.3 | `" in card
    assert "AutoTokenizer.from_pretrained('owner/base')" in card, "these adapters have no tokenizer"
    assert main(["mix", first, second, *flags, "--out", str(folder)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["mix", first, str(adapters["second"]), *flags]) == 2
    assert "second has no weight." in capsys.readouterr().err
