"""Loads base models and tokenizers with understandable errors, downloads with progress, and shares out frozen weights.

Remote code runs only if the model was named for it at the start, and nothing else is downloaded.
"""

import copy
import gc
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available

from lora_studio.engine.accelerator import auto_dtype, device, device_kind, empty_cache, read_memory
from lora_studio.engine.train_script import keep_unpacked, without_router_logits
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.accelerators import CPU, FLASH_ATTENTION, FLOAT16, missing
from lora_studio.models.adapter_files import (
    SETTINGS_FILE,
    TOKENIZER_SETTINGS,
    VOCABULARIES,
    brings_tokenizer,
    read_object,
)
from lora_studio.models.hub import may_run_code_of, way_to_allow
from lora_studio.models.shape import stored_quantization
from lora_studio.units import count
from lora_studio.workspace import model_source

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHOWN_TENSORS = 6
CAN_BE_FULL = ("(bitsandbytes)", "fp8", "mxfp4")
"""Quantizations that transformers can reverse, by the end of their name in `rounding_of`."""
TEXT_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def choose_dtype(name: str) -> torch.dtype:
    """The dtype of a `model.dtype` setting; auto is what suits the device (`accelerator.auto_dtype`)."""
    if name == "auto":
        return auto_dtype()
    kind = device_kind()
    if name == FLOAT16 and kind == CPU:
        raise StudioError(f"float16 cannot run here: {missing(kind, FLOAT16)}.", "Use auto or float32.")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def memory_bytes() -> int:
    """Peak memory: reserved by PyTorch on a GPU, or this process's resident memory on the CPU."""
    memory = read_memory()
    return memory.now if device_kind() == CPU else memory.peak


def give_back_memory() -> None:
    """Frees what dropped models held, also on the device."""
    gc.collect()
    empty_cache()


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    quantization: str = "none",
    attn_implementation: str = "auto",
    four_bit: Mapping[str, Any] | None = None,
    tqdm_class: type | None = None,
    spread: bool = False,
    on_cpu: bool = False,
) -> PreTrainedModel:
    """The base model on this machine's device, in eval mode. Raises `StudioError` if it cannot be loaded.

    A PyTorch `dtype` is used as it is, even if it is slow here. `four_bit` holds the settings of 4-bit weights by their
    names in the config (`bnb_4bit_…`); `tqdm_class` is the progress bar of a download. With `spread` the layers are
    spread over all GPUs that this process may use; with `on_cpu` all of it is in the machine's memory.
    """
    source = checked_source(name)
    config = read_config(name, revision)
    stored = stored_quantization(config.to_dict())
    if stored != "none" and quantization not in ("none", stored):
        raise StudioError(
            f"{name} is stored in {stored} and cannot be loaded in {quantization}.",
            f"Set model.quantization to {stored}, or use a 16-bit version of the base.",
        )
    rounding = quantization if stored == "none" else stored
    if rounding != "none" and (why := missing(device_kind(), rounding)):
        raise StudioError(f"{name} cannot run in {rounding} here: {why}.", "Use a 16-bit base, without quantization.")
    torch_dtype = dtype if isinstance(dtype, torch.dtype) else choose_dtype(dtype)
    lacking = why_no_flash_attention(torch_dtype)
    attention = (None if lacking else "flash_attention_2") if attn_implementation == "auto" else attn_implementation
    if attention == "flash_attention_2" and lacking:
        raise StudioError(f"flash_attention_2 cannot run here: {lacking}.", "Use auto or sdpa.")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=torch_dtype,
            device_map="balanced" if spread else {"": "cpu" if on_cpu else device()},
            quantization_config=None
            if stored != "none"
            else _quantization(quantization, torch_dtype, **(four_bit or {})),
            attn_implementation=attention,
            trust_remote_code=may_run_code_of(name),
            use_safetensors=True,
            tqdm_class=tqdm_class,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told by `check_tensors` in words
        )
    except (OSError, ValueError, ImportError) as error:
        if quantization != "none":
            raise StudioError(
                f"{name} cannot be loaded in {quantization} here: {first_line(error)}",
                "Set quantization to none, or use a machine with a CUDA GPU.",
            ) from error
        raise not_loadable(name, revision, error) from error
    model, loading_info = loaded
    check_tensors(name, loading_info)
    keep_unpacked(model)
    without_router_logits(model)
    return cast("PreTrainedModel", model.eval())


def check_tensors(name: str, loading_info: Mapping[str, Any]) -> None:
    """Raises `StudioError` if a checkpoint lacks tensors, which transformers would initialize randomly.

    `loading_info` is transformers'; it omits tied tensors and those that are never saved.
    """
    missing, misfits = sorted(loading_info["missing_keys"]), sorted(item[0] for item in loading_info["mismatched_keys"])
    if not missing and not misfits:
        return
    problems = [f"lacks {_named(missing)}"] if missing else []
    problems += [f"has {_named(misfits)} in another shape than stated in its config.json"] if misfits else []
    raise StudioError(
        f"The checkpoint of {name} {' and '.join(problems)}: these weights would be random.",
        "Copy or download all of its files again. Save your own models with the output layer and all other layers.",
    )


def _named(tensors: list[str]) -> str:
    """Names of tensors, only the first few of many."""
    examples = ", ".join(tensors[:SHOWN_TENSORS])
    more = len(tensors) - SHOWN_TENSORS
    return f"{count(len(tensors), 'tensor')} ({examples}{f' and {more:,} more' if more > 0 else ''})"


def rounding_of(name: str, revision: str | None = None) -> str:
    """The quantization of the base's own files, such as "4 bits (bitsandbytes)"; "" if they are not quantized."""
    stored = read_config(name, revision).to_dict().get("quantization_config") or {}
    method = str(stored.get("quant_method") or "")
    if method == "bitsandbytes":
        return "4 bits (bitsandbytes)" if stored.get("load_in_4bit") else "8 bits (bitsandbytes)"
    return method


def check_in_full(name: str, revision: str | None = None) -> None:
    """Raises `StudioError` for a base whose quantization cannot be reversed here."""
    stored = rounding_of(name, revision)
    if stored and not stored.endswith(CAN_BE_FULL):
        raise StudioError(
            f"{name} is stored as {stored}, which cannot be dequantized here.",
            "Use the adapter with a 16-bit version of the base: set its name as the base (base_model in "
            "studio.json, base_model_name_or_path in adapter_config.json).",
        )


def make_full(model: PreTrainedModel) -> None:
    """Dequantizes weights to the model's precision, in place."""
    if "quantization_config" in model.config.to_dict():
        model.dequantize(dtype=model.config.dtype)
    plain: Any = model
    exact = {*(plain._keep_in_fp32_modules or ()), *(plain._keep_in_fp32_modules_strict or ())}
    for name, weight in model.named_parameters():
        if not any(part in name for part in exact):  # what was not rounded comes in the precision of its file
            weight.data = weight.data.to(model.config.dtype)
    plain._weight_conversions = (
        None  # those of the stored form, by which transformers would save: it takes the family's
    )


def without_weights(name: str, revision: str | None = None) -> PreTrainedModel:
    """The model of a config on the meta device, without memory for its weights."""
    config = read_config(name, revision)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=may_run_code_of(name))
    except (ValueError, ImportError) as error:
        raise not_loadable(name, revision, error) from error


def why_no_flash_attention(dtype: torch.dtype) -> str:
    """Why FlashAttention 2 cannot be used here; "" if it can."""
    if lacks := missing(device_kind(), FLASH_ATTENTION):
        return lacks
    if dtype is torch.float32:
        return "it needs 16-bit precision"
    return "" if is_flash_attn_2_available() else "the package flash-attn is not installed"


def attention_words(model: PreTrainedModel, setting: str, dtype: torch.dtype) -> str:
    """The attention implementation of a loaded model, and the reason for it."""
    implementation = model.config._attn_implementation
    if setting != "auto":
        return f"{implementation}, as configured"
    lacking = why_no_flash_attention(dtype)
    return f"{implementation}: FlashAttention 2 is not used, {lacking}" if lacking else implementation


def _quantization(
    name: str,
    dtype: torch.dtype,
    *,
    bnb_4bit_quant_type: str = "nf4",
    bnb_4bit_use_double_quant: bool = True,
    bnb_4bit_compute_dtype: str = "auto",
) -> BitsAndBytesConfig | None:
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314) is nf4 with double quantization."""
    if name == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=dtype if bnb_4bit_compute_dtype == "auto" else DTYPES[bnb_4bit_compute_dtype],
        )
    return BitsAndBytesConfig(load_in_8bit=True) if name == "8bit" else None


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


MIN_BYTES = 1_000_000  # an index or a config is here before anyone could read of it
_SECOND_COUNT = "ownloading bytes"  # the bar of what the network brings, beside that of what is written


class Phases(Protocol):
    """The receiver of a download's progress: an event log, or a substitute."""

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None: ...

    def progress(self, done: int, total: int) -> None: ...


class Calls:
    """Calls a function with phase, done and total, if there is no event log."""

    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self._tell, self._phase = tell, ""

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None:
        self._phase = phase
        self._tell(phase, 0, total)

    def progress(self, done: int, total: int) -> None:
        self._tell(self._phase, done, total)


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


def shard_base(model: PeftModel, name: str) -> None:
    """Gives each process a share of the frozen weights, which are whole only while their layer computes (FSDP2).

    What is trained stays whole in every process, where DDP averages its gradients: an adapter is small, and is saved
    and resumed as with DDP. An output layer that is not part of the decoder stays whole, too. Raises `StudioError` for
    a model whose layers are unknown, or whose weights the adapter changes in their place.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    base: Any = model.get_base_model()
    decoder = base.get_decoder()
    kinds = set(base._no_split_modules or ())
    layers = [module for module in decoder.modules() if type(module).__name__ in kinds]
    if not layers or decoder is base or any(isinstance(module, ParamWrapper) for module in model.modules()):
        raise StudioError(
            f"{name} cannot be trained with FSDP: its layers are unknown, or adapted in their place.",
            "Set compute.strategy to ddp or balanced.",
        )
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    mesh = init_device_mesh(device().type, (torch.distributed.get_world_size(),))
    for part in (*layers, decoder):
        fully_shard(part, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    vars(model)["_ddp_params_and_buffers_to_ignore"] = [*frozen, *(name for name, _ in model.named_buffers())]
