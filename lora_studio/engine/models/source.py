"""What of a base model is read without its weights: where it lies, its config and its tokenizer; and the progress of a
download.

Errors are understandable, remote code runs only if the model was named for it at the start, and nothing else is
downloaded. Does not import peft or trl: who analyzes data waits for no library that trains.
"""

import copy
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import (
    SETTINGS_FILE,
    TOKENIZER_SETTINGS,
    VOCABULARIES,
    brings_tokenizer,
    read_object,
)
from lora_studio.models.hub import may_run_code_of, way_to_allow
from lora_studio.workspace import model_source

TEXT_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def read_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """The model's config; refused early if the model does not generate text."""
    try:
        config = AutoConfig.from_pretrained(
            checked_source(name), revision=revision, trust_remote_code=may_run_code_of(name)
        )
    except (OSError, ValueError, KeyError) as error:
        raise not_loadable(name, revision, error) from error
    architectures = config.architectures or []
    if architectures and not any(entry.endswith(TEXT_MODELS) for entry in architectures):
        raise StudioError(
            f"{name} is a {architectures[0]}, which does not generate text.",
            "Choose a causal language model (…ForCausalLM).",
        )
    return config


UNPACKED: Mapping[str, type[Any]] = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
"""What a base may be stored in that is unpacked to 16 bits when it is loaded, with transformers' configs for it. There
is no backward pass through the packed experts of mxfp4, as gpt-oss has them; products in FP8 need kernels, which
transformers fetches from the Hub as code, on GPUs from compute capability 8.9 on."""


def unpacking(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arguments with which a base is unpacked; None for all that is loaded as it is stored. `stored` is the
    quantization_config of its config.json."""
    method = str(stored.get("quant_method") or "")
    if method not in UNPACKED:
        return None
    skipped = stored.get("modules_to_not_convert")  # transformers would forget them
    return {"dequantize": True, **({"modules_to_not_convert": skipped} if method == "fp8" and skipped else {})}


def checked_source(name: str) -> str:
    """A folder or a Hub id; a name that can only be a folder has to contain a model."""
    source = model_source(name)
    path = Path(source)
    looks_local = source.startswith((".", "/", "~", "\\")) or source.count("/") > 1 or os.path.isdir(source)
    if not looks_local:
        return source
    if not os.path.isdir(source):
        raise StudioError(f"There is no model folder {source}.", "Give a folder with a config.json, or a Hub id.")
    if not (path / "config.json").is_file():
        adapter = (path / SETTINGS_FILE).is_file()
        content = "an adapter, not a model" if adapter else "no config.json"
        raise StudioError(f"The folder {source} contains {content}.", "Give the folder of a base model, or a Hub id.")
    return source


def not_loadable(name: str, revision: str | None, error: Exception) -> StudioError:
    """Converts the libraries' many errors for a missing model to one of ours."""
    text, at = str(error), f" at revision {revision}" if revision else ""
    if "trust_remote_code" in text or "custom code" in text:
        return StudioError(
            f"{name} contains custom code, which LoRA Studio does not run.",
            way_to_allow(name),
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return StudioError(f"transformers does not support the architecture of {name}.", first_line(error))
    if "gated" in text or "401" in text:
        return StudioError(
            f"{name} is gated on the Hub.", "Accept its terms on the Hub and set HF_TOKEN before the start."
        )
    if os.path.isdir(model_source(name)):
        return StudioError(
            f"The model in {name} cannot be read: {first_line(error)}", "Check that the folder is complete."
        )
    return StudioError(
        f"The model {name!r}{at} is neither a local folder nor available on the Hub.",
        "Check the spelling and the network. Without a network, only folders, cached models and `demo` work.",
    )


def first_line(error: Exception) -> str:
    """The first line of an error, or two if the first only introduces the second."""
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return " ".join(text.split())[:300]


def without_weights(name: str, revision: str | None = None) -> PreTrainedModel:
    """The model of a config on the meta device, without memory for its weights."""
    config = read_config(name, revision)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(name, config).from_config(
                config, trust_remote_code=may_run_code_of(name)
            )
            return model
    except (ValueError, ImportError) as error:
        raise not_loadable(name, revision, error) from error


def auto_class(name: str, config: PretrainedConfig) -> Any:
    """The class that loads all of a checkpoint: of a multimodal model also the parts that are not text, which stay as
    they are. Raises `StudioError` for a model that is neither causal nor multimodal."""
    called = (config.architectures or [type(config).__name__])[0]
    if config.get_text_config() is not config and not called.endswith("ForCausalLM"):
        if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder:
            return AutoModelForImageTextToText
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise StudioError(f"{name} is a {called}, whose language model cannot be trained alone.", ANOTHER)
    if config.is_encoder_decoder:
        raise StudioError(f"{name} is a {called}, which has an encoder and a decoder.", ANOTHER)
    return AutoModelForCausalLM


ANOTHER = "Choose a causal language model (…ForCausalLM), or a multimodal one of transformers."


MIN_BYTES = 1_000_000  # an index or a config is here before anyone could read of it
_SECOND_COUNT = "ownloading bytes"  # the bar of what the network brings, beside that of what is written


class Phases(Protocol):
    """The receiver of a download's progress: an event log, or a substitute."""

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None: ...

    def progress(self, done: int, total: int) -> None: ...


class Download:
    """Sums the progress bars of all files into one phase, and returns to the previous phase when all are complete."""

    def __init__(self, log: Phases, back_to: str = "model") -> None:
        self._log = log
        self._back_to = back_to
        self._lock = threading.Lock()
        self._bars: list[Any] = []
        self._going_on = False

    def bar_class(self) -> type[tqdm]:
        """The `tqdm_class` for huggingface_hub."""
        download = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})
                self.counts = kwargs.get("unit") == "B" and not str(kwargs.get("desc")).endswith(_SECOND_COUNT)
                if self.counts:
                    download._bars.append(self)
                    download._tell()

            def update(self, n: float | None = 1) -> bool | None:
                self.n += n or 0
                if self.counts:
                    download._tell()
                return None

        return Bar

    def _tell(self) -> None:
        with self._lock:
            large = [bar for bar in self._bars if (bar.total or 0) >= MIN_BYTES]
            done, total = sum(int(bar.n) for bar in large), sum(int(bar.total) for bar in large)
            if not large:
                return
            if not self._going_on and done < total:
                self._going_on = True
                self._log.phase("download", total, "bytes")
            if self._going_on:
                self._log.progress(done, total)
            if self._going_on and done >= total:
                self._going_on = False
                self._log.phase(self._back_to)


MAX_TOKENIZER_BYTES = 200_000_000
# Tokens that models bring for padding or that never stand in a text, best first.
PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's name, with a padding token that exists in its vocabulary."""
    source = checked_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=may_run_code_of(name))
    except (OSError, ValueError, KeyError) as error:
        raise not_loadable(name, revision, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _padding(tokenizer)
    return tokenizer


def adapter_tokenizer(folder: Path, base: PreTrainedTokenizerBase, rows: int) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer that an adapter was trained with, and why its own is not used; "" if it is used or there is none.

    Its own is used if all its ids are below `rows`, the size of the embeddings, and it agrees with the base's on shared
    tokens; otherwise, and if both are equal, the result is `base` itself.
    """
    if not brings_tokenizer(folder):
        return base, ""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return _with_end(base, read_object(folder / TOKENIZER_SETTINGS)), ""
    try:
        if (folder / "tokenizer.json").is_file() and "vocab" not in read_object(
            folder / "tokenizer.json", MAX_TOKENIZER_BYTES
        )["model"]:
            raise ValueError("tokenizer.json has no vocabulary")
        own = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (StudioError, OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        return (
            base,
            f"The tokenizer of {folder.name} cannot be read ({first_line(error)}). The base's tokenizer is used.",
        )
    if why := _why_not(own.get_vocab(), base.get_vocab(), rows):
        return base, f"The tokenizer of {folder.name} does not fit: {why}. The base's tokenizer is used."
    if own.pad_token_id is None:
        own.pad_token = base.pad_token if base.pad_token in own.get_vocab() else _padding(own)
    return (base, "") if _same(own, base) else (own, "")


def _with_end(base: PreTrainedTokenizerBase, settings: JsonObject) -> PreTrainedTokenizerBase:
    """The base's tokenizer with the end token of an adapter that has only a tokenizer_config.json."""
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if not isinstance(end, str) or end == base.eos_token or end not in base.get_vocab():
        return base
    own = copy.deepcopy(base)
    own.eos_token = end
    return own


def _why_not(own: dict[str, int], base: dict[str, int], rows: int) -> str:
    """Why a vocabulary does not fit embeddings with that many rows; "" if it fits."""
    highest = max(own.values(), default=-1)
    if highest >= rows:
        return f"its token ids go up to {highest:,}, but the model has embeddings for {rows:,} tokens"
    shared = [token for token in own if token in base]
    different = sum(own[token] != base[token] for token in shared)
    if different or 2 * len(shared) < len(base):
        return f"{different or len(base) - len(shared):,} of the base's {len(base):,} tokens differ"
    return ""


def _same(tokenizer: Any, other: Any) -> bool:
    """Whether two tokenizers encode every text the same way, including its end."""
    if tokenizer.special_tokens_map != other.special_tokens_map or not (tokenizer.is_fast and other.is_fast):
        return False
    first, second = (json.loads(item.backend_tokenizer.to_str()) for item in (tokenizer, other))
    return {**first, "truncation": None, "padding": None} == {**second, "truncation": None, "padding": None}


def _padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """A padding token. Labels are explicit here, so padding with the end token does not make the model unlearn it."""
    vocabulary = tokenizer.get_vocab()
    for token in PAD_TOKENS:
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    if tokenizer.eos_token is None:
        raise StudioError(
            "The tokenizer has neither a padding token nor an end token.", "Choose another model, or fix its tokenizer."
        )
    return tokenizer.eos_token
