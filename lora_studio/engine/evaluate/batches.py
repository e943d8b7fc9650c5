"""How many rows an evaluation answers at once: as many as the device's free memory holds, fewer where it runs out.

What a row takes is reckoned from the model's config: keys and values of its prompt and of the longest answer in every
layer, what one layer computes of the prompt, and the scores of one position over the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lora_studio.config.sections import Generation
from lora_studio.engine.accelerator import Memory, device_kind, read_memory
from lora_studio.engine.chat import vllm
from lora_studio.engine.chat.generate import Column, Generating, prompt_ids
from lora_studio.engine.evaluate.answer import AskedRow, answer_batch, prompt_tokens
from lora_studio.engine.evaluate.tasks import Task
from lora_studio.engine.models.load import give_back_memory
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.engine.runtime import StopSignal, is_out_of_memory
from lora_studio.evaluate.job import check_engine
from lora_studio.files import JsonObject
from lora_studio.jobs.protocol import TRANSFORMERS, VLLM
from lora_studio.models.accelerators import DEVICE_KINDS
from lora_studio.models.shape import Architecture, architecture
from lora_studio.units import size

USUAL_ROWS = 16
"""On the CPU, where more rows take longer each, and for models whose numbers are unknown."""
MOST_ROWS = 256
ASKED_ROWS = 64
"""Rows asked of a server at once, which makes batches of its own."""
FREE_SHARE = 0.8
"""Of the free memory: the allocator cuts it into blocks, and the cache grows by copying (`DynamicCache`)."""
COPIES_OF_SCORES = 4
"""Scores of a position in float32: as computed, as a copy, sorted and as probabilities."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Rows answered at once. `words` says why, "" for the usual number; `fixed` that a person chose it."""

    rows: int
    words: str = ""
    fixed: bool = False


def row_bytes(model: Architecture, prompt: int, answer: int, item_bytes: int) -> int:
    """Bytes that one column of a row takes at most; `prompt` and `answer` in tokens, `item_bytes` is 2 for bfloat16.

    Keys and values of each token; a layer's own tensors: its input, its residual and the widest output of its linear
    modules, twice.
    """
    cached = model.cache_bytes(item_bytes) * (prompt + answer)
    widest = max((linear.outputs for linear in model.linears), default=4 * model.hidden)
    computed = prompt * (2 * model.hidden + 2 * widest)
    return cached + computed * item_bytes + COPIES_OF_SCORES * 4 * model.vocabulary


def choose_rows(
    chosen: int | None,
    model: Architecture | None,
    memory: Memory,
    *,
    columns: int,
    prompt: int,
    answer: int,
    item_bytes: int,
    is_gpu: bool,
) -> BatchSize:
    """A person's choice, or what the free memory holds; on the CPU no more than `USUAL_ROWS`.

    `prompt` is the longest one and `answer` the longest answer, in tokens. Memory that PyTorch holds without a tensor
    in it is free as well.
    """
    if chosen is not None:
        return BatchSize(chosen, fixed=True)
    if model is None:
        return BatchSize(USUAL_ROWS)
    held = memory.now - memory.allocated if is_gpu else 0
    free, needed = memory.free + held, columns * row_bytes(model, prompt, answer, item_bytes)
    most = MOST_ROWS if is_gpu else USUAL_ROWS
    rows = max(1, min(most, int(FREE_SHARE * free / needed)))
    if not is_gpu and rows == most:
        return BatchSize(rows)
    words = f"Batch size {rows}: {size(free)} of memory are free, and a row takes up to {size(needed)}."
    return BatchSize(rows, words)


def batch_size(
    loaded: LoadedModel,
    rows: Sequence[AskedRow],
    columns: Mapping[str, str | None],
    settings: Generation,
    chosen: int | None,
    engine: str = TRANSFORMERS,
) -> BatchSize:
    """How many of these rows are answered at once by the loaded model on its device, or asked of another engine."""
    if engine != TRANSFORMERS:
        return BatchSize(chosen or ASKED_ROWS, fixed=True)
    return choose_rows(
        chosen,
        architecture(loaded.base.config.to_dict()),
        read_memory(),
        columns=len(columns),
        prompt=max(map(prompt_tokens, rows), default=0),
        answer=settings.max_new_tokens,
        item_bytes=loaded.base.dtype.itemsize,
        is_gpu=DEVICE_KINDS[device_kind()].is_gpu,
    )


@contextmanager
def answering_by(
    engine: str,
    loaded: LoadedModel,
    rows: Sequence[AskedRow],
    folders: Mapping[str, str],
    *,
    revision: str | None,
    max_new_tokens: int,
    enable_thinking: bool | None,
    stop: StopSignal,
    tell: Callable[[str], None],
) -> Iterator[Generating | None]:
    """Inside, what answers the rows: None for the loaded model itself, else the server of another engine.

    `folders` are those of the columns' adapters ("" for the base). Raises `StudioError` where the engine can't be used.
    """
    if engine != VLLM:
        yield None
        return
    check_engine(engine, gpu=DEVICE_KINDS[device_kind()].is_gpu)
    first = sorted(rows, key=lambda row: row.row)[: vllm.COMPARED]
    longest_first = sorted(rows, key=prompt_tokens, reverse=True)[: vllm.COMPARED]
    prompts, longest = (
        [Column(name if folder else None, row.asked[name].messages) for row in some for name, folder in folders.items()]
        for some in (first, longest_first)
    )
    with vllm.answering(
        loaded,
        folders,
        prompts,
        revision=revision,
        max_new_tokens=max_new_tokens,
        enable_thinking=enable_thinking,
        longest=max(len(prompt_ids(loaded, column, enable_thinking)) for column in longest),
        check=stop.check,
        stop=lambda: stop.asked,
        tell=tell,
    ) as ask:
        yield ask


def answer_in_batches(
    loaded: LoadedModel,
    rows: Sequence[AskedRow],
    columns: Mapping[str, str | None],
    task: Task,
    settings: Generation,
    *,
    batch_size: int | BatchSize,
    enable_thinking: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda words: None,
    ask: Generating | None = None,
) -> Iterator[list[JsonObject]]:
    """Yields the answered rows batch by batch, as `predictions.jsonl` holds them, until `stop` returns true.

    Rows of similar length share a batch, the longest first, so that a lack of memory shows at once. A number of rows
    that nobody chose is halved then, which `tell` hears in a sentence, and the same rows are answered again. `ask` is
    what `answering_by` gives.
    """
    chosen = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size, fixed=True)
    rejected = {name: dict[int, np.ndarray]() for name in columns}
    longest_first = sorted(rows, key=lambda row: (-prompt_tokens(row), row.row))
    first, at_once = 0, chosen.rows
    while first < len(longest_first):
        batch, done = longest_first[first : first + at_once], list[JsonObject]()
        try:
            done = answer_batch(
                loaded,
                batch,
                columns,
                task,
                settings,
                seed=settings.seed + first,
                rejected=rejected,
                enable_thinking=enable_thinking,
                stop=stop,
                ask=ask,
            )
        except Exception as error:
            if chosen.fixed or len(batch) == 1 or not is_out_of_memory(error):
                raise
            at_once = len(batch) // 2
            tell(f"Out of memory with batch size {len(batch)}: it is now {at_once}.")
        if stop():
            return
        if not done:  # here, the error and the tensors that it held are gone
            give_back_memory()
            continue
        first += len(batch)
        yield done
