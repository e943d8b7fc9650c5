"""Names of an adapter's weights: those that different programs give the same place in a model, made alike.

The same text model is `model.layers...` alone, `model.language_model.layers...` in a multimodal checkpoint and
`language_model.model.layers...` in an older one; peft, compilers and wrappers put their own names around them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and activation checkpointing put anywhere into a name."""
LEADING = frozenset({"base_model", "model", "module", "language_model", "text_model", "transformer"})
"""Names that only hold a text model, at the start of a path."""
_OF_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(?:\..+)?")


def plain_name(name: str) -> str:
    """A weight's or module's name without what only wraps the model, and without the adapter's own name."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in LEADING:
        parts.pop(0)
    kept: list[str] = []
    for at, part in enumerate(parts):
        named = at and parts[at - 1].startswith("lora_") and part not in ("weight", "bias")
        if not named:  # peft's `lora_A.default.weight`
            kept.append(part)
    return ".".join(kept)


def lora_place(name: str) -> tuple[str, str] | None:
    """The module that a LoRA matrix is of, as the file names it, and which matrix it is; None for other weights."""
    match = _OF_LORA.fullmatch(name)
    return (match["module"], match["part"]) if match else None


def renamed(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The known name of each of these names that has one: the very same, else the only one that is plainly the same."""
    wanted = list(known)
    exact, often = frozenset(wanted), Counter(map(plain_name, wanted))
    plain = {plain_name(name): name for name in wanted if often[plain_name(name)] == 1}
    found = {name: name if name in exact else plain.get(plain_name(name), "") for name in names}
    return {name: place for name, place in found.items() if place}


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, in words."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def ranks_held(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The rank of each module's LoRA matrices in a file, by the module's name there."""
    held: dict[str, int] = {}
    for name, shape in shapes.items():
        place = lora_place(name)
        if place and place[1] in ("A", "embedding_A") and shape:
            held[place[0]] = int(shape[0])
    return held
