"""Tokenizer, base model and adapters into memory, with errors that say what is wrong with a model's name or files.

Code that comes with a model is never run, adapters are read from safetensors only, and nothing is fetched but the model
that was named.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
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

from lora_studio.errors import StudioError
from lora_studio.workspace import model_source

CARD = "studio.json"
TEXT_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# Tokens that models bring for padding or that never stand in a text, best first.
PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def device() -> torch.device:
    """The first CUDA GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(name: str) -> torch.dtype:
    """The number format of a `model.dtype` setting; auto is bf16 where the GPU has it, else fp16, else (CPU) fp32."""
    if name != "auto":
        chosen: torch.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]
        if chosen is torch.float16 and not torch.cuda.is_available():
            raise StudioError("float16 needs a CUDA GPU, and this machine shows none.", "Choose auto or float32.")
        return chosen
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def memory_bytes() -> int:
    """Most memory held so far: what PyTorch reserved on the GPU, or this process's resident memory on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return psutil.Process().memory_info().rss


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's name, with a padding token that exists in its vocabulary."""
    source = _checked_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loadable(name, revision, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _padding(tokenizer)
    return tokenizer


def _padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token to pad with. Labels are made by us, so that even the end token is never unlearned by padding with it."""
    vocabulary = tokenizer.get_vocab()
    for token in PAD_TOKENS:
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    if tokenizer.eos_token is None:
        raise StudioError(
            "The tokenizer has neither a padding nor an end token.", "Choose another model, or mend its tokenizer."
        )
    return tokenizer.eos_token


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str = "none",
    attn_implementation: str = "auto",
) -> PreTrainedModel:
    """The base model on this machine's device, in eval mode. Raises `StudioError` where it can't be had."""
    source = _checked_source(name)
    config = _read_config(name, source, revision)
    chosen = choose_dtype(dtype)
    flash = is_flash_attn_2_available() and chosen is not torch.float32 and torch.cuda.is_available()
    attention = ("flash_attention_2" if flash else None) if attn_implementation == "auto" else attn_implementation
    if attention == "flash_attention_2" and not flash:
        raise StudioError(
            "flash_attention_2 needs a CUDA GPU, 16-bit precision and the package flash-attn; not all are here.",
            "Choose auto or sdpa.",
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=chosen,
            device_map={"": device()},
            quantization_config=_quantization(quantization, chosen),
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
        ).eval()
    except (OSError, ValueError, ImportError) as error:
        if quantization != "none":
            raise StudioError(
                f"{name} can't be loaded in {quantization} here: {_first_line(error)}",
                "Choose quantization none, or a machine with a CUDA GPU.",
            ) from error
        raise _not_loadable(name, revision, error) from error


def _quantization(name: str, compute: torch.dtype) -> BitsAndBytesConfig | None:
    if name == "4bit":
        # QLoRA (Dettmers et al. 2023, arXiv:2305.14314): NF4, the quantization constants quantized again.
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if name == "8bit" else None


def _checked_source(name: str) -> str:
    """A folder or a Hub id; a name that can only be a folder must be one that holds a model."""
    source = model_source(name)
    path = Path(source)
    looks_local = source.startswith((".", "/", "~", "\\")) or source.count("/") > 1 or path.is_dir()
    if not looks_local:
        return source
    if not path.is_dir():
        raise StudioError(f"There is no model folder {source}.", "Give a folder with a config.json, or a Hub id.")
    if not (path / "config.json").is_file():
        adapter = (path / "adapter_config.json").is_file()
        found = "an adapter, not a model" if adapter else "no config.json, so no model"
        raise StudioError(f"The folder {source} holds {found}.", "Give the folder of a base model, or a Hub id.")
    return source


def _read_config(name: str, source: str, revision: str | None) -> PretrainedConfig:
    """The model's own config, refused early where the model is not one that writes text."""
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loadable(name, revision, error) from error
    named = config.architectures or []
    if named and not any(entry.endswith(TEXT_MODELS) for entry in named):
        raise StudioError(
            f"{name} is a {named[0]}, which does not write text.", "Choose a causal language model (…ForCausalLM)."
        )
    return config


def _not_loadable(name: str, revision: str | None, error: Exception) -> StudioError:
    """The library's many words for "it isn't there" in ours."""
    text, at = str(error), f" at revision {revision}" if revision else ""
    if "trust_remote_code" in text or "custom code" in text:
        return StudioError(
            f"{name} brings program code of its own, which LoRA Studio does not run.",
            "Choose a model whose architecture transformers knows.",
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return StudioError(f"transformers does not know the architecture of {name}.", _first_line(error))
    if "gated" in text or "401" in text:
        return StudioError(f"{name} is gated on the Hub.", "Accept its terms there and set HF_TOKEN before the start.")
    if Path(model_source(name)).is_dir():
        return StudioError(f"The model in {name} can't be read: {_first_line(error)}", "Is the folder whole?")
    return StudioError(
        f"The model {name!r}{at} is neither a folder here nor to be had from the Hub.",
        "Check the spelling and the network; without network only folders, models loaded before and `demo` work.",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


@dataclass
class LoadedModel:
    """A base with any number of adapters on top. `adapters` maps a column's name to peft's name for the adapter.

    `templates` holds the chat template (Jinja text) that each adapter was trained with, by column name; None stands for
    the base. `cards` are the adapters' studio.json.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    adapters: dict[str, str] = field(default_factory=dict)
    templates: dict[str | None, str] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def mixes(self) -> bool:
        """Whether base and adapters can answer in one batch; peft can't mix DoRA adapters."""
        return not any(self.model.peft_config[inner].use_dora for inner in self.adapters.values())


def load_with_adapters(
    name: str, adapters: Mapping[str, Path], *, revision: str | None = None, dtype: str, quantization: str
) -> LoadedModel:
    """The base and, on top of it, one adapter per column name."""
    from peft import PeftModel

    folders = {column: _adapter_folder(folder) for column, folder in adapters.items()}
    tokenizer = load_tokenizer(name, revision)
    loaded = LoadedModel(name, load_model(name, revision=revision, dtype=dtype, quantization=quantization), tokenizer)
    if isinstance(tokenizer.chat_template, str):
        loaded.templates[None] = tokenizer.chat_template
    for number, (column, folder) in enumerate(folders.items()):
        inner = f"adapter{number}"  # peft allows no dots in names, people do
        try:
            if number == 0:
                loaded.model = PeftModel.from_pretrained(loaded.model, str(folder), adapter_name=inner)
            else:
                loaded.model.load_adapter(str(folder), adapter_name=inner)
        except (RuntimeError, ValueError, KeyError) as error:
            raise StudioError(
                f"The adapter {folder.name} does not fit {name}: {_first_line(error)}",
                "Load the base that it was trained on.",
            ) from error
        loaded.adapters[column] = inner
        loaded.cards[column] = read_card(folder)
        template = folder / "chat_template.jinja"
        if template.is_file():
            loaded.templates[column] = template.read_text(encoding="utf-8")
    loaded.model.eval()
    return loaded


def _adapter_folder(folder: Path) -> Path:
    """The folder, checked to hold an adapter that can be read without pickles."""
    if not (folder / "adapter_config.json").is_file():
        raise StudioError(f"There is no adapter in {folder}.", "Choose a finished run or a checkpoint.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise StudioError(
            f"The adapter in {folder} is not stored as safetensors.",
            "Other formats can run code when read; convert it.",
        )
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """What training noted beside an adapter; empty for an adapter from elsewhere."""
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
