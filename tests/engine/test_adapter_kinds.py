"""Every pair of kinds of adapters, side by side on one base, computes what plain peft computes with each alone."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base, remove_adapters
from tests.engine.kinds import KINDS, alone, bare, logits, make, tiny_llama
from tests.engine.test_generate import ask

IDS = torch.tensor([[5, 9, 30, 41, 2, 40, 1, 77], [3, 2, 40, 8, 9, 10, 11, 12]])
NAMES = (*KINDS, "tying twice")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A base, and an adapter of each kind on it."""
    place = tmp_path_factory.mktemp("kinds")
    base = tiny_llama(place / "base", tied=request.param)
    folders = {name: make(base, place / name, seed=number, **KINDS[name]) for number, name in enumerate(KINDS, 1)}
    folders["tying twice"] = make(base, place / "tying2", seed=77, **KINDS["tying"])
    return base, folders


def computed(loaded: LoadedModel, column: str | None) -> torch.Tensor:
    with loaded.use_adapter(column) as model:
        return logits(model, IDS)


@pytest.mark.slow
def test_every_kind_after_every_other_computes_what_it_computes_alone(world: tuple[Path, dict[str, Path]]) -> None:
    base, folders = world
    expected: dict[str | None, Any] = {name: alone(base, folder, IDS) for name, folder in folders.items()}
    expected[None] = logits(bare(base), IDS)
    assert all((expected[name] - expected[None]).abs().max() > 0.1 for name in folders), "an adapter that does nothing"
    tied = bare(base).config.tie_word_embeddings
    order = NAMES[::-1] if tied else NAMES
    loaded = load_base(str(base))
    add_adapters(loaded, {name: folders[name] for name in order})
    assert loaded.notes == {name: [] for name in order}
    before = None
    for column in itertools.chain.from_iterable(itertools.combinations((None, *order), 2)):  # each pair, both ways
        assert torch.equal(computed(loaded, column), expected[column]), (column, "after", before)
        before = column
    for at, gone in enumerate(order, 1):
        loaded = remove_adapters(loaded, [gone])
        for column in (None, *order[at:]):
            assert torch.equal(computed(loaded, column), expected[column]), (column, "after", gone, "left")


@pytest.mark.slow
def test_kinds_that_share_no_batch_answer_one_after_the_other(world: tuple[Path, dict[str, Path]]) -> None:
    base, folders = world
    names = ("plain", "tokens", "rslora", "bias", "patterns", "parameters")
    loaded = load_base(str(base))
    add_adapters(loaded, {name: folders[name] for name in names})
    assert loaded.shares([None, "plain", "rslora", "patterns"])
    assert loaded.groups([None, *names]) == [[0, 1, 3, 5], [2], [4], [6]]
    together = generate(loaded, [Column(name, ask("Who?")) for name in (None, *names)], greedy(loaded, 5))
    for name, answer in zip((None, *names), together, strict=True):
        assert answer.ids == generate(loaded, [Column(name, ask("Who?"))], greedy(loaded, 5))[0].ids, name
