"""Base and adapter as one model in safetensors, with tokenizer, chat template and generation config.

The base is loaded again in the chosen precision, so that quantization error does not become permanent. The adapter's
update of each matrix is computed in float32.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from lora_studio.engine.chat.generate import end_ids
from lora_studio.engine.export.context import (
    ExportContext,
    ExportResult,
    Spoken,
    ask,
    is_local,
    load_adapters,
    verdict,
    why_not,
)
from lora_studio.engine.models.load import DTYPES, check_in_full, rounding_of
from lora_studio.engine.models.multi_adapter import LoadedModel, load_base, put, put_in
from lora_studio.engine.models.source import read_config, without_weights
from lora_studio.errors import StudioError
from lora_studio.export.card import CARD_NAME, Subject, model_card
from lora_studio.export.targets import BYTES_A_WEIGHT
from lora_studio.models.adapter_files import WEIGHTS_FILE, cannot_merge, read_lora
from lora_studio.models.adapters import read_header
from lora_studio.models.shape import model_folder

COLUMN = "adapter"


def export(work: ExportContext, *, dtype: str, max_shard_size: str) -> ExportResult:
    """Exports the folder of a merged model."""
    check_mergeable(work)
    reason = why_not(work, BYTES_A_WEIGHT[dtype])
    loaded = load_adapters(work, {COLUMN: work.adapter}, DTYPES[dtype], in_full=True)
    own = None if reason else ask(loaded, COLUMN, work.card)
    merge(work, loaded)
    write(work, loaded, max_shard_size)
    write_card(work, dtype)
    del loaded  # one model in memory is enough
    tried, same = (reason, None) if own is None else try_merged(work, own, dtype)
    words = "A stand-alone model: any program that loads Hugging Face models can load the folder."
    notes = [note for note in (rounded_base(work), copy_processor(work)) if note]
    return ExportResult(words, tried=tried, same=same, notes=notes)


def check_mergeable(work: ExportContext) -> None:
    """Raises `StudioError` for an adapter that cannot be merged, and for a base that cannot be loaded in full
    precision."""
    settings = read_lora(work.adapter)
    instead = "Export the adapter instead (zip), which peft and LoRA Studio apply to its base."
    if kinds := cannot_merge(settings):
        raise StudioError(f"Adapters of type {' and '.join(kinds)} cannot be merged into the base.", instead)
    base, revision = str(work.card["base_model"]), work.card.get("revision")
    check_in_full(base, revision)
    if settings.get("lora_bias"):
        without = [path for path, part in adapted_parts(work, without_weights(base, revision)) if part.bias is None]
        if without:
            raise StudioError(
                f"The adapter adds a bias (lora_bias) to {without[0]}{' and others' if len(without) > 1 else ''}, "
                f"but {base} has no bias there, so it cannot be merged.",
                instead,
            )


def adapted_parts(work: ExportContext, model: Any) -> Iterator[tuple[str, Any]]:
    """The base's modules with the adapter's own bias, by path."""
    for name in read_header(work.adapter / WEIGHTS_FILE):
        if name.endswith(".lora_B.bias"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_B.bias")
            yield path, model.get_submodule(path)


def rounded_base(work: ExportContext) -> str:
    """A note if the base itself is stored quantized: its rounding error remains."""
    stored = rounding_of(str(work.card["base_model"]), work.card.get("revision"))
    if not stored:
        return ""
    return (
        f"The base is stored in {stored}. Its weights were dequantized, as in training, so the loss from "
        "quantization remains."
    )


def merge(work: ExportContext, loaded: LoadedModel) -> None:
    """Merges the adapter into the base's weights; afterwards `loaded` is a plain model."""
    model = _standing_for_good(loaded)
    untie(model)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    work.log.phase("merge", len(layers), "matrices")
    for number, layer in enumerate(layers, 1):
        layer.merge(safe_merge=True)
        work.log.progress(number, len(layers))
        work.stop.check()
    template, card, ends = loaded.template(COLUMN), loaded.cards[COLUMN], sorted(end_ids(loaded, COLUMN))
    loaded.model = model.merge_and_unload()  # also notes where embeddings and output layer are no longer one
    loaded.model.config.get_text_config().vocab_size = loaded.model.get_input_embeddings().weight.shape[0]
    loaded.model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    loaded.tokenizer = loaded.tokenizer_of(COLUMN)
    loaded.adapters, loaded.non_lora, loaded.cards, loaded.tokenizers = {}, {}, {COLUMN: card}, {}
    loaded.templates = {None: template}
    if not all(torch.isfinite(weight).all() for weight in loaded.model.parameters()):
        raise StudioError(
            f"In {str(loaded.model.dtype).removeprefix('torch.')}, some merged weights are not finite.",
            "Use bfloat16 or float32.",
        )


def _standing_for_good(loaded: LoadedModel) -> Any:
    """peft's model with the adapter's modules permanently in place of the base's."""
    if COLUMN not in loaded.non_lora:
        return loaded.model
    put(loaded.non_lora[COLUMN].around)
    put_in(loaded.non_lora[COLUMN].biases)
    return loaded.non_lora[COLUMN].model


def untie(model: Any) -> None:
    """Unties the output layer from the embeddings if only one of them is adapted."""
    inner = model.get_base_model()
    entry, output = inner.get_input_embeddings(), inner.get_output_embeddings()
    adapted = isinstance(entry, BaseTunerLayer) or isinstance(output, BaseTunerLayer)
    if output is None or not adapted:
        return
    first, last = _plain(entry), _plain(output)
    if first.weight is last.weight:
        last.weight = torch.nn.Parameter(last.weight.detach().clone(), requires_grad=False)


def _plain(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def write(work: ExportContext, loaded: LoadedModel, max_shard_size: str) -> None:
    """Writes weights, configs, tokenizer and template."""
    total = sum(weight.nbytes for weight in loaded.model.parameters())
    with work.growing(total):
        loaded.model.generation_config.pad_token_id = loaded.tokenizer.pad_token_id
        loaded.model.save_pretrained(str(work.out), max_shard_size=max_shard_size.replace(" ", "").upper())
        write_tokenizer(loaded.tokenizer, loaded.template(None), work)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str, work: ExportContext) -> None:
    """Writes the tokenizer with the template that the adapter was trained with."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(work.out))


PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)


def copy_processor(work: ExportContext) -> str:
    """Copies what turns images into tokens beside a multimodal model; a note where the base has none here."""
    base, revision = str(work.card["base_model"]), work.card.get("revision")
    config = read_config(base, revision)
    if config.get_text_config() is config:
        return ""
    folder = model_folder(base, revision)
    files = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()] if folder else []
    for file in files:
        shutil.copyfile(file, work.out / file.name)
    if files:
        return ""
    return f"The image processor of {base} is not on this machine: copy {PROCESSOR_FILES[0]} from it to read images."


def write_card(work: ExportContext, dtype: str) -> None:
    """Writes the model card; a local base is called by its folder's name."""
    base = str(work.card["base_model"])
    subject = Subject(work.title, Path(base).name if is_local(base) else base, merged=True, precision=dtype)
    (work.out / CARD_NAME).write_text(model_card(work.adapter, work.run, subject), encoding="utf-8")


def try_merged(work: ExportContext, own: Spoken, dtype: str) -> tuple[str, bool]:
    """Loads the merged model and compares its answers with those of base and adapter."""
    work.log.phase("try")
    merged = load_base(str(work.out), dtype=DTYPES[dtype])
    return verdict(own, ask(merged, None, work.card), exact=dtype == "float32")
