"""A mix of adapters before it is computed: the methods of peft's `add_weighted_adapter`, and what cannot be mixed.

Reads JSON files and the headers of the weights only; `engine.models.mixing` computes the mix.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import (
    KINDS,
    LORA,
    WEIGHTS_FILE,
    MixedAdapter,
    MixRecipe,
    extras,
    first_names,
    plain_name,
    ranks_held,
    read_settings,
)
from lora_studio.models.adapters import AdapterCard, read_card, read_header, together
from lora_studio.units import count


@dataclass(frozen=True, slots=True)
class Method:
    """A `combination_type` of peft. `prunes`: it takes a density. `random`: it draws what is dropped, by a seed.

    `any_rank`: the adapters may have different ranks.
    """

    about: str
    prunes: bool = False
    random: bool = False
    any_rank: bool = False


METHODS: Mapping[str, Method] = {
    "linear": Method("Weighted sum of the A and of the B matrices. Fast, approximate."),
    "cat": Method("Exact weighted sum. The ranks add up.", any_rank=True),
    "svd": Method("Weighted sum, reduced to the highest rank. Slow for large models.", any_rank=True),
    "ties": Method("Prunes small values, then keeps those with the majority sign.", prunes=True),
    "dare_linear": Method("Drops random values and rescales the rest, then linear.", prunes=True, random=True),
    "dare_ties": Method("Drops random values and rescales the rest, then ties.", prunes=True, random=True),
    "magnitude_prune": Method("Prunes small values, then linear.", prunes=True),
}
"""Ties: Yadav et al. 2023, arXiv:2306.01708. Dare: Yu et al. 2023, arXiv:2311.03099. All but cat and svd work on the A
and the B matrices one by one, so that their product is not the weighted sum of the adapters' products."""
DEFAULT_METHOD, DEFAULT_DENSITY, DEFAULT_SEED = "linear", 0.5, 42
MAX_WEIGHT, MAX_PARENTS = 10.0, 8


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter to mix: its name, folder and weight; `run` is the id of the run that trained it, "" for none."""

    name: str
    folder: Path
    weight: float
    run: str = ""


@dataclass(frozen=True, slots=True)
class Mix:
    """What is to be mixed, and how. `density` and `seed` are None where the method uses none."""

    parents: tuple[Parent, ...]
    method: str = DEFAULT_METHOD
    density: float | None = None
    seed: int | None = None

    @property
    def title(self) -> str:
        """The recipe in a line."""
        return title_of([(parent.name, parent.weight) for parent in self.parents], self.method)

    @property
    def short_name(self) -> str:
        """A name for the folder of the mix."""
        return "-".join([*(parent.name.replace("/", " ") for parent in self.parents), self.method])

    def recipe(self, digests: Sequence[str]) -> JsonObject:
        """What studio.json records of it; `digests` are those of the adapters' weights."""
        adapters = [
            MixedAdapter(name=parent.name, weight=parent.weight, run=parent.run, sha256=digest)
            for parent, digest in zip(self.parents, digests, strict=True)
        ]
        recipe = MixRecipe(adapters=adapters, method=self.method, density=self.density, seed=self.seed)
        return recipe.model_dump(exclude_none=True)


def title_of(adapters: Sequence[tuple[str, float]], method: str) -> str:
    """A recipe in a line, from names and weights."""
    return f"{' + '.join(f'{weight:g} {name}' for name, weight in adapters)} ({method})"


def recipe_of(card: JsonObject) -> MixRecipe | None:
    """The recipe in the values of a studio.json that was read; None for an adapter that was trained."""
    recipe = card.get("mixed_from")
    return MixRecipe.model_validate(recipe) if recipe else None


def recipe_words(recipe: MixRecipe) -> str:
    """A recipe in a line, with its settings."""
    settings = [f"density {recipe.density:g}"] if recipe.density is not None else []
    settings += [f"seed {recipe.seed}"] if recipe.seed is not None else []
    title = title_of([(adapter.name, adapter.weight) for adapter in recipe.adapters], recipe.method)
    return f"{title[:-1]}, {', '.join(settings)})" if settings else title


def checked_mix(
    parents: Sequence[Parent], method: str = DEFAULT_METHOD, density: float | None = None, seed: int | None = None
) -> Mix:
    """The mix with the defaults of its method. Raises `StudioError` for numbers that make no mix.

    A density or seed for a method that uses none is refused.
    """
    if method not in METHODS:
        raise StudioError(f"There is no method {method!r}.", f"Methods: {', '.join(METHODS)}.")
    prunes, random = METHODS[method].prunes, METHODS[method].random
    if density is not None and not prunes:
        pruning = ", ".join(name for name, item in METHODS.items() if item.prunes)
        raise StudioError(f"The method {method} has no density.", f"Methods with a density: {pruning}.")
    if density is not None and not 0 < density <= 1:
        raise StudioError(f"The density is {density:g}.", "Set a value above 0, and at most 1.")
    if seed is not None and not random:
        raise StudioError(
            f"The method {method} draws no random numbers, so it has no seed.", "Omit it, or use a dare method."
        )
    if seed is not None and not 0 <= seed < 2**32:
        raise StudioError(f"The seed is {seed}.", "Set a whole number from 0 to 4,294,967,295.")
    if len(parents) < 2:
        raise StudioError("A mix needs at least two adapters.", "Add another adapter of the same base.")
    if len(parents) > MAX_PARENTS:
        raise StudioError(f"{len(parents)} adapters were given; a mix has at most {MAX_PARENTS}.", "Remove some.")
    for at, parent in enumerate(parents):
        if any(parent.folder == other.folder for other in parents[:at]):
            raise StudioError(f"{parent.name} is in the mix twice.", "Give each adapter once.")
        if not math.isfinite(parent.weight) or abs(parent.weight) > MAX_WEIGHT:
            raise StudioError(
                f"The weight of {parent.name} is {parent.weight:g}.",
                f"Set a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}.",
            )
        if parent.weight == 0:
            raise StudioError(f"The weight of {parent.name} is 0.", "Remove it from the mix, or set another weight.")
    parents = _distinct(parents)
    used_density = (DEFAULT_DENSITY if density is None else density) if prunes else None
    used_seed = (DEFAULT_SEED if seed is None else seed) if random else None
    return Mix(tuple(parents), method, used_density, used_seed)


def _distinct(parents: Sequence[Parent]) -> list[Parent]:
    """The adapters with a number behind a name that an earlier one has as well."""
    names: list[str] = []
    for parent in parents:
        earlier = sum(name == parent.name for name in (other.name for other in parents[: len(names)]))
        names.append(f"{parent.name} ({earlier + 1})" if earlier else parent.name)
    return [replace(parent, name=name) for parent, name in zip(parents, names, strict=True)]


def check_parents(mix: Mix) -> list[str]:
    """What to know of adapters before they are mixed. Raises `StudioError` where peft cannot mix them."""
    settings = {parent.name: read_settings(parent.folder) for parent in mix.parents}
    for name, values in settings.items():
        if values["peft_type"] != LORA:
            raise StudioError(f"{name} is {KINDS[values['peft_type']]}.", "Only LoRA adapters can be mixed.")
        if features := extras(values):
            raise StudioError(
                f"{name} has {' and '.join(features)}, which cannot be mixed.",
                "Use adapters that consist of LoRA matrices only.",
            )
    cards = [replace(read_card(parent.folder), name=parent.name) for parent in mix.parents]
    notes = together(cards)
    ranks = {parent.name: _ranks(parent.folder) for parent in mix.parents}
    if not METHODS[mix.method].any_rank:
        _check_ranks(ranks, mix.method)
    return [*notes, *_module_notes(ranks), *_prompt_notes(cards)]


def _ranks(folder: Path) -> Mapping[str, int]:
    """The rank of each adapted module, by the module's name without prefixes."""
    shapes = {name: tuple(tensor["shape"]) for name, tensor in read_header(folder / WEIGHTS_FILE).items()}
    return {plain_name(module): rank for module, rank in ranks_held(shapes).items()}


def _check_ranks(ranks: Mapping[str, Mapping[str, int]], method: str) -> None:
    """The matrices of these methods are added one by one, so that all need the same shape."""
    hint = "Use cat or svd, which mix adapters of any rank."
    of_adapter = {name: sorted(set(modules.values())) for name, modules in ranks.items()}
    for name, different in of_adapter.items():
        if len(different) > 1:
            listed = ", ".join(map(str, different))
            raise StudioError(
                f"The modules of {name} have different ranks ({listed}), which {method} cannot mix.", hint
            )
    (first, (rank, *_)), *later = of_adapter.items()
    for name, (other, *_) in later:
        if other != rank:
            raise StudioError(
                f"{first} has rank {rank}, and {name} has rank {other}: {method} needs equal ranks.", hint
            )


def _module_notes(ranks: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Which adapters change modules that others leave alone: there, only some of the mix counts."""
    every = set().union(*ranks.values())
    notes = []
    for name, modules in ranks.items():
        lacking = sorted(every - set(modules))
        if lacking:
            notes.append(
                f"{name} does not adapt {count(len(lacking), 'module')} that others do ({first_names(lacking, 2)}). "
                "There, only the others are mixed."
            )
    return notes


def _prompt_notes(cards: Sequence[AdapterCard]) -> list[str]:
    """Prompts that differ: the mix uses those of its first adapter."""
    first, *later = cards
    notes = []
    for other in later:
        if other.template != first.template:
            notes.append(f"{other.name} was trained with another chat template than {first.name}, which the mix uses.")
        elif other.system_prompt != first.system_prompt:
            notes.append(f"{other.name} was trained with another system prompt than {first.name}, which the mix uses.")
    return notes
