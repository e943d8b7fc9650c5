"""The forms in which an adapter can be taken away: what each is for, how large it will be, and its settings.

The program of a target stands in `engine/export_NAME.py`; form, flags and documentation are made from what stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lora_studio.schema import Section, setting

BYTES_A_WEIGHT = {"bfloat16": 2, "float16": 2, "float32": 4}
TEXT_BYTES = 100_000
"""What scripts, templates and the like come to at most."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the size of an export follows from.

    `adapter` is what goes with an adapter, in bytes; `parameters` counts the base's, None where its config is not here.
    """

    adapter: int
    parameters: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """One form. `what` says what it is for in a sentence; `size` gives bytes, None where they can't be known.

    `suffix` is that of the one file that it consists of; "" for a folder. `needs_run` says that an adapter without its
    run is not enough.
    """

    name: str
    title: str
    what: str
    settings: type[Section]
    size: Callable[[Sizes, Any], int | None]
    suffix: str = ""
    needs_run: bool = False


def _base_name() -> Any:
    return setting(
        "",
        "Name of the base",
        "What others call the base model, such as Qwen/Qwen3-0.6B; needed where it is a folder on this machine.",
        max_length=300,
    )


class Zip(Section):
    """The adapter to pass on."""

    base_name: str = _base_name()
    keep_local_base: bool = setting(
        False, "Keep the folder's name", "Leave the base as a folder of this machine, which others do not have."
    )


class Merged(Section):
    """Base and adapter as one model."""

    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16",
        "Precision",
        "The base is read anew in it, never in 4 or 8 bits; float32 is exact and twice as large.",
    )
    max_shard_size: str = setting(
        "5GB", "Largest file", "Weights are cut into files of at most this size, such as 5GB or 500MB.", max_length=20
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "zip",
            "Adapter as a zip",
            "To keep or pass on: the adapter with tokenizer, chat template and report, for whoever has the same base.",
            Zip,
            lambda sizes, _: sizes.adapter + TEXT_BYTES,
            suffix=".zip",
        ),
        Target(
            "merged",
            "Merged model",
            "One whole model that any program reads as it reads the base; needs no knowledge of LoRA.",
            Merged,
            lambda sizes, chosen: _whole(sizes, BYTES_A_WEIGHT[chosen.dtype]),
        ),
    )
}


def _whole(sizes: Sizes, bytes_a_weight: float) -> int | None:
    """A whole model with its tokenizer, which is what the adapter's folder holds beside the weights."""
    return None if sizes.parameters is None else int(sizes.parameters * bytes_a_weight) + sizes.adapter
