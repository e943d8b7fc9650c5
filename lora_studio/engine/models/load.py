"""Loads base models with understandable errors, and shares out frozen weights among processes."""

import gc
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations import sdpa_attention

from lora_studio.engine.accelerator import auto_dtype, capability, device, device_kind, empty_cache, read_memory
from lora_studio.engine.models.source import (
    UNPACKED,
    Download,
    Phases,
    auto_class,
    checked_source,
    first_line,
    not_loadable,
    read_config,
    unpacking,
)
from lora_studio.errors import StudioError
from lora_studio.models.accelerators import (
    CPU,
    FLASH,
    FLEX_ATTENTION,
    FLOAT16,
    LONGEST_HEAD,
    SDPA,
    Attention,
    attention_lacks,
    automatic_attention,
    generation_lacks,
    is_flash,
    missing,
    repeats_keys,
)
from lora_studio.models.hub import may_run_code_of
from lora_studio.models.shape import stored_quantization
from lora_studio.units import count

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHOWN_TENSORS = 6
CAN_BE_FULL = ("(bitsandbytes)", "fp8", "mxfp4")
"""Quantizations that transformers can reverse, by the end of their name in `rounding_of`."""


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
    log: Phases | None = None,
    phase: str = "model",
    spread: bool = False,
    on_cpu: bool = False,
) -> PreTrainedModel:
    """The base model on this machine's device, in eval mode. Raises `StudioError` if it cannot be loaded.

    A PyTorch `dtype` is used as it is, even if it is slow here. `four_bit` holds the settings of 4-bit weights by their
    names in the config (`bnb_4bit_…`). A download is a phase of its own in `log`, which then returns to `phase`. With
    `spread` the layers are spread over all GPUs that this process may use; with `on_cpu` all of it is in the machine's
    memory.
    """
    source = checked_source(name)
    config = read_config(name, revision)
    stored = stored_quantization(config.to_dict())
    rounding = _rounding(name, stored, quantization)
    torch_dtype = dtype if isinstance(dtype, torch.dtype) else choose_dtype(dtype)
    attends = choose_attention(attn_implementation, config, torch_dtype)
    repeat_keys(torch_dtype)
    try:
        loaded: Any = auto_class(name, config).from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=torch_dtype,
            device_map="balanced" if spread else {"": "cpu" if on_cpu else device()},
            quantization_config=_quantization(
                "none" if stored != "none" else quantization, torch_dtype, **(four_bit or {})
            )
            or _dequantized(config),
            attn_implementation=attends,
            trust_remote_code=may_run_code_of(name),
            use_safetensors=True,
            tqdm_class=None if log is None else Download(log, phase).bar_class(),
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
    if rounding != "none" or hasattr(config.get_text_config(), "output_router_logits"):
        from lora_studio.engine.train_script import keep_unpacked, without_router_logits  # a second: trl, datasets

        keep_unpacked(model)
        without_router_logits(model)
    return cast("PreTrainedModel", model.eval())


def _rounding(name: str, stored: str, quantization: str) -> str:
    """The quantization that a base runs in: that of its files, else the one asked for. `StudioError` if it cannot."""
    if stored != "none" and quantization not in ("none", stored):
        raise StudioError(
            f"{name} is stored in {stored} and cannot be loaded in {quantization}.",
            f"Set model.quantization to {stored}, or use a 16-bit version of the base.",
        )
    rounding = quantization if stored == "none" else stored
    why = missing(device_kind(), rounding) or generation_lacks(rounding, capability())
    if why:
        raise StudioError(f"{name} cannot run in {rounding} here: {why}.", "Use a 16-bit base, without quantization.")
    return rounding


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


def learned_positions(model: Any) -> int | None:
    """The context length of a model with learned position embeddings, such as GPT-2 and OPT; None for all others."""
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe"))
    ]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if tables and limit else None


def choose_attention(setting: str, config: PretrainedConfig, dtype: torch.dtype) -> str | None:
    """The attention to load a model with; None leaves it to transformers, which takes SDPA where the model has it.

    Raises `StudioError` for one that this device, the installed packages or the model's class do not have.
    """
    if setting == "auto":
        best = _automatic(config, dtype).name
        return None if best == SDPA else best
    lacks = attention_lacks(setting, device_kind(), half=dtype is not torch.float32, capability=capability())
    if not lacks and setting in _unsupported(config):
        lacks = f"the model's class ({config.model_type}) does not support it"
    if lacks:
        raise StudioError(f"{setting} cannot run here: {lacks}.", "Use auto or sdpa.")
    return setting


def repeat_keys(dtype: torch.dtype) -> None:
    """Lets transformers repeat the keys that heads share before PyTorch's attention, where PyTorch has no fast kernel
    that reads them shared (`accelerators.repeats_keys`); for all models of this process until the next call."""
    repeats = repeats_keys(device_kind(), half=dtype is not torch.float32, capability=capability())
    sdpa_attention.use_gqa_in_sdpa = _repeated if repeats else SHARED_KEYS


SHARED_KEYS = sdpa_attention.use_gqa_in_sdpa


def _repeated(*_: Any) -> bool:
    return False


def _automatic(config: PretrainedConfig, dtype: torch.dtype) -> Attention:
    half = dtype is not torch.float32
    return automatic_attention(device_kind(), half=half, capability=capability(), unsupported=_unsupported(config))


def _unsupported(config: PretrainedConfig) -> list[str]:
    """The attention implementations that a model's class lacks; [] for a class that is not transformers' own."""
    classes: Any = auto_class(config.model_type, config)._model_mapping
    if type(config) not in classes:
        return []
    model = classes[type(config)]
    head = getattr(config.get_text_config(), "head_dim", None) or 0
    flash = model._supports_flash_attn and head <= LONGEST_HEAD
    kernels = model._compatible_flash_implementations  # a model may take certain kernels only
    has = {
        **{name: flash and (not kernels or name in kernels) for name in FLASH},
        FLEX_ATTENTION: model._supports_flex_attn,
        SDPA: model._supports_sdpa,
    }
    return [name for name, supported in has.items() if not supported]


def attention_words(model: PreTrainedModel, setting: str, dtype: torch.dtype) -> str:
    """The attention implementation of a loaded model, and the reason for it."""
    implementation = str(model.config._attn_implementation)
    if setting != "auto":
        return f"{implementation}, as configured"
    best = _automatic(model.config, dtype)
    if is_flash(best.name) or implementation == best.name:
        return f"{implementation}: {best.reason}"
    return f"{implementation}: the model has no other"


def _dequantized(config: PretrainedConfig) -> Any:
    stored = config.to_dict().get("quantization_config") or {}
    arguments = unpacking(stored)
    return None if arguments is None else UNPACKED[stored["quant_method"]](**arguments)


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


PROBE = (9, 7)
"""Tokens of the two rows of `why_rows_meet`."""
SAME, ALIKE = 0.01, 0.1
"""Shares of the largest logit. What a row does not see changes none of its logits; only a mixture of experts adds up in
another order. A row in a sequence and alone may differ as 16-bit numbers do."""


@torch.no_grad()
def why_rows_meet(model: PreTrainedModel) -> str:
    """Why the rows of one sequence would not stay apart in a model; "" where they do. Measured on the loaded model, by
    the logits of a row behind two others and alone: some models build their masks and positions without looking at
    `position_ids`, and layers with a state need kernels that start anew."""
    device: Any = model.get_input_embeddings().weight.device
    first, second = PROBE
    rows = torch.arange(3, 3 + first + second, device=device)[None]
    ends = torch.tensor([0, first, first + second], dtype=torch.int32, device=device)
    joined = {
        "position_ids": torch.cat([torch.arange(first), torch.arange(second)])[None].to(device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": first,
        "max_length_k": first,
        "seq_idx": torch.repeat_interleave(torch.arange(2, dtype=torch.int32), torch.tensor(PROBE))[None].to(device),
    }  # what trl's collator gives a model
    other = torch.cat([rows[:, :first].flip(1) + 1, rows[:, first:]], dim=1)
    try:
        after_one, after_other = (
            model(input_ids=ids, use_cache=False, **joined).logits[:, first:].float() for ids in (rows, other)
        )
    except (ValueError, TypeError) as error:
        return first_line(error).rstrip(".")
    alone = model(input_ids=rows[:, first:], use_cache=False).logits.float()
    largest = float(alone.abs().max())
    if float((after_one - after_other).abs().max()) > SAME * largest:
        return "its attention does not keep the rows of a sequence apart"
    if float((after_one - alone).abs().max()) > ALIKE * largest:
        return "its positions do not begin anew with each row of a sequence"
    return ""
