"""The memory that a training step takes, counted without a GPU, beside what the estimate says.

    python -m benchmarks.memory_table [--models NAME ...] [--whole] [--table FILE]

The studio's own trainer makes a step of a real shape. Floating-point numbers are fake tensors, which have shapes and no
data; the batch is real. `Count` adds up the storages that are alive after each operation of PyTorch. The operations are
those of the CPU but for the ones that a CUDA GPU does otherwise, which `as_on_cuda` replaces and names. The peak is
compared with the estimate without its part "System": driver and fragmentation are not tensors. The layers of a model
are alike, so a step is counted with two and with three of them, and each further one adds the difference; `--whole`
counts all of them, which comes to the same and takes ten times as long. The last line is one JSON object.
"""

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import logging
from trl import SFTConfig

from lora_studio.config.parsing import nest, parse
from lora_studio.config.sections import Config
from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.train.settings import packing_values, trainer_values
from lora_studio.engine.train.trainers import StudioTrainer
from lora_studio.engine.train_script import without_router_logits
from lora_studio.files import JsonObject
from lora_studio.models.accelerators import CUDA
from lora_studio.models.memory import estimate
from lora_studio.models.shape import architecture
from lora_studio.units import GIB

QWEN3 = {
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, tuple[JsonObject, int, int]] = {
    "Qwen3-0.6B": ({**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}, 4, 1024),
    "Qwen3-1.7B": ({**QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}, 4, 1024),
    "Qwen3-8B": (
        {
            **QWEN3,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        2,
        2048,
    ),
    "Llama-3.1-8B": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": False,
        },
        2,
        2048,
    ),
    "Qwen3-30B-A3B": (
        {
            **QWEN3,
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        },
        2,
        1024,
    ),
}
"""The published config.json of each model, what decides the sizes of it, with rows and tokens of a batch."""
GOAL = 0.1
ATEN = torch.ops.aten
BLOCK = 512  # bytes; PyTorch's allocator gives whole ones (c10/cuda/CUDACachingAllocator)


class Count(TorchDispatchMode):
    """Bytes of all storages that are alive, and their most so far. New numbers with a point are fake."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        if not any(isinstance(value, FakeTensor) for value in tensors):
            result = func(*args, **kwargs) if tensors else self._made(func, args, kwargs)
        elif func is ATEN._local_scalar_dense.default:
            return {torch.bool: True, torch.float32: 1.0, torch.bfloat16: 1.0}.get(args[0].dtype, 1)
        else:
            result = self._faked(func, args, kwargs)
        self._see(result)
        return result

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A new tensor: indices and masks are real, so that what depends on them is known."""
        with self.fake:
            result = func(*args, **kwargs)
        outputs = [value for value in tree_iter(result) if isinstance(value, torch.Tensor)]
        return result if any(value.is_floating_point() for value in outputs) else func(*args, **kwargs)

    def _faked(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is ATEN.index.Tensor:
            args = (args[0], [places for index in args[1] for places in whole_numbers(index)])
        elif func is ATEN.masked_select.default:
            with self.fake:
                return args[0].new_empty(int(args[1].sum()))
        elif func is torch.ops.bitsandbytes.gemm_4bit.default:
            # backends/cuda/ops.py: for more than some 1,500 rows the matrix is unpacked, then multiplied.
            weights = math.prod(args[2])
            self.peak = max(self.peak, self.now + 2 * weights + 4 * weights // args[4])
        with self.fake:
            return func(*args, **kwargs)

    def _see(self, result: Any) -> None:
        for value in tree_iter(result):
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key in self._alive:
                continue
            self._alive[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            weakref.finalize(storage, self._freed, key)
            self.now += self._alive[key]
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def whole_numbers(index: Any) -> tuple[Any, ...]:
    """A mask as the places that it marks, as PyTorch's own kernels take it."""
    return index.nonzero().unbind(1) if index is not None and index.dtype is torch.bool else (index,)


def attention_on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What PyTorch's `scaled_dot_product_attention` calls on CUDA in 16 bits: FlashAttention, or under a mask, which
    that does not take, the memory-efficient kernel with the mask as numbers (aten/src/ATen/native/transformers)."""
    if attn_mask is None:
        return ATEN._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    bias = bias.expand(*query.shape[:2], *bias.shape[2:])
    return ATEN._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout_p, scale=scale)[0]


def dropout_on_cuda(
    numbers: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """PyTorch's fused dropout, which keeps a byte for each number."""
    return ATEN.native_dropout(numbers, p, True)[0] if training and p else numbers


def moved(module: Any, change: Any, recurse: bool = True) -> Any:
    """`torch.nn.Module._apply`, which wants to swap fake tensors and can't where something refers to them."""
    for child in module.children() if recurse else ():
        moved(child, change)
    for kind, names in ((torch.nn.Parameter, module._parameters), (lambda tensor, _: tensor, module._buffers)):
        for name, tensor in names.items():
            if tensor is not None and (new := change(tensor)) is not tensor:
                names[name] = kind(new, tensor.requires_grad)
    return module


def in_place(*_: Any, **__: Any) -> None:
    """A kernel that writes into what it is given, and allocates nothing."""


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """The operations that a CUDA GPU does otherwise than the CPU: attention, dropout, and trl's kernels in Triton."""
    enabled = torch.is_autocast_enabled
    changes = {
        "torch.is_autocast_enabled": lambda device="cpu": enabled(device),  # of CUDA, where no device is named
        "torch.nn.Module._apply": moved,
        "torch.nn.functional.scaled_dot_product_attention": attention_on_cuda,
        "torch.nn.functional.dropout": dropout_on_cuda,
        "lora_studio.engine.train.trainers.on_cpu": lambda: False,
        "lora_studio.engine.train.trainers.measured_later": lambda accelerator: (
            nullcontext()
        ),  # none holds a fake tensor
        "trl.trainer.utils._use_triton": lambda device: True,
        "trl.kernels.chunked_logprob._forward_tile": in_place,
        "trl.kernels.chunked_logprob._backward_tile": in_place,
        "trl.kernels.chunked_logprob._addmm_fp32": in_place,
    }
    with ExitStack() as stack:
        for name, replacement in changes.items():
            stack.enter_context(patch(name, replacement))
        yield


def quantized(model: Any) -> None:
    """The linear modules of the layers in 4 bits: bitsandbytes' own modules, filled by its own quantization."""
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or module is model.get_output_embeddings():
            continue
        packed, state = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
        with _disable_current_modes(), torch.device("meta"):
            inside = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16)
        weight: Any = torch.nn.Parameter(packed, requires_grad=False)  # no Params4bit: it can't hold a fake tensor
        weight.quant_state, weight.quant_type, weight.compress_statistics = state, "nf4", True
        inside.weight = weight
        inside.bias = module.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, inside)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    model.is_loaded_in_4bit = model.is_quantized = True


def trainer_of(config: Config, numbers: JsonObject, folder: str) -> StudioTrainer:
    """The trainer of a run with that config, on a model of that shape; as in `engine.train.program`, for a GPU."""
    family = {name: value for name, value in numbers.items() if name != "model_type"}
    shape = AutoConfig.for_model(numbers["model_type"], **family)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa")
    without_router_logits(model)
    if config.model.quantization == "4bit":
        quantized(model)
    lora = config.lora
    adapted = add_adapter(
        model,
        base="counted",
        revision=None,
        target=lora.target_modules,
        seed=0,
        **lora.model_dump(exclude={"target_modules", "loraplus_lr_ratio"}),
    )
    values = trainer_values(
        config, "bfloat16", kind=CUDA, measured=False, checkpointing=config.training.gradient_checkpointing is True
    )
    settings = SFTConfig(
        output_dir=folder,
        report_to=[],
        **packing_values(config, padding_free=False),
        **values
        | {"use_cpu": True, "bf16": True, "max_steps": 1, "dataloader_pin_memory": False, "save_strategy": "no"},
    )
    trainer = StudioTrainer(
        model=adapted, args=settings, train_dataset=rows_of(config), processing_class=load_tokenizer("demo"), card={}
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def rows_of(config: Config) -> Dataset:
    """Rows that fill `max_length`, or to be padded: of each batch one does and the others lack a token."""
    longest, size = config.data.max_length, config.training.per_device_train_batch_size
    lengths = [longest - (row % size > 0 and not config.training.packing) for row in range(size * 2)]
    ids = [[10] * length for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def counted_peak(config: Config, numbers: JsonObject) -> int:
    """The most bytes of storages in a step of the trainer that is not its first: the optimizer has its state."""
    with tempfile.TemporaryDirectory() as folder, as_on_cuda(), Count() as count:
        trainer = trainer_of(config, numbers, folder)
        optimizer = trainer.create_optimizer()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        count.peak = count.now
        trainer.train()
    return count.peak


def settings_of(rows: int, tokens: int, quantization: str, checkpointing: bool, packing: bool) -> Config:
    """The studio's defaults but for what the table varies."""
    return parse(
        nest(
            {
                "model.quantization": quantization,
                "training.gradient_checkpointing": checkpointing,
                "training.packing": packing,
                "training.per_device_train_batch_size": rows,
                "training.gradient_accumulation_steps": 1,
                "data.max_length": tokens,
            }
        )
    )


def compared(config: Config, numbers: JsonObject, whole: bool = True) -> tuple[int, int]:
    """Bytes of the counted peak, and of the estimate without its part "System"."""
    shape = architecture(numbers)
    assert shape is not None
    expected = estimate(config, shape, CUDA)
    return peak_of(config, numbers, whole), expected.total - expected.parts["overhead"]


def peak_of(config: Config, numbers: JsonObject, whole: bool) -> int:
    """Bytes of the peak, counted with all layers or continued from two and three of them."""
    if whole:
        return counted_peak(config, numbers)
    two, three = (counted_peak(config, {**numbers, "num_hidden_layers": layers}) for layers in (2, 3))
    return two + (numbers["num_hidden_layers"] - 2) * (three - two)


def table(cases: Sequence[JsonObject]) -> str:
    """Markdown: how it was counted, and a row for each case."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl", "bitsandbytes"))
    furthest = max(abs(case["ratio"] - 1) for case in cases)
    lines = [
        "# Memory",
        "",
        "How far the memory estimate is from a training step of models of real sizes. Written by "
        "`python -m benchmarks.memory_table --table docs/memory.md`, which needs no GPU: the studio's own trainer "
        "makes a step with tensors that have shapes and no data (PyTorch's fake tensors), and the storages that are "
        "alive are counted after each operation: with two layers and with three, whose difference each further layer "
        f"adds. The furthest estimate is {furthest:.1%} off. Libraries: {versions}.",
        "",
        "Counted as on a CUDA GPU: weights in bfloat16, a 32-bit adapter under autocast, AdamW. Attention is "
        "PyTorch's (`sdpa`): FlashAttention where there is no mask, as in padded batches, and the memory-efficient "
        "kernel with the mask as numbers for packed ones. Dropout is the fused one, and TRL's loss writes into its "
        "buffers as its Triton kernels do. 4-bit weights are packed by bitsandbytes' own code (nf4, double "
        "quantization); its product of many rows unpacks the matrix first, which is added. The estimate stands here "
        "without its part System: the driver, the workspace of cuBLAS and what the allocator can't use again are not "
        "tensors. No GPU has confirmed the figures yet.",
        "",
        "LoRA with rank 16 on all linear modules, the other settings as they come. Padded batches have rows of two "
        "lengths. GiB are 1,024³ bytes.",
        "",
        "| model | batch | base | checkpointing | rows | counted GiB | estimated GiB | estimated / counted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        lines.append(
            f"| {case['model']} | {case['rows']} x {case['tokens']:,} | "
            f"{'16-bit' if case['quantization'] == 'none' else '4-bit'} | {'on' if case['checkpointing'] else 'off'} | "
            f"{'packed' if case['packing'] else 'padded'} | {case['counted_bytes'] / GIB:.2f} | "
            f"{case['estimated_bytes'] / GIB:.2f} | {case['ratio']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts what is asked for; 1 where an estimate is further off than the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="NAME")
    parser.add_argument("--whole", action="store_true", help="count all layers of each model")
    parser.add_argument("--table", type=Path, help="a Markdown file to write")
    args = parser.parse_args(arguments)
    cases: list[JsonObject] = []
    ways = product(("none", "4bit"), (False, True), (False, True))
    for name, (quantization, checkpointing, packing) in product(args.models, list(ways)):
        numbers, rows, tokens = SHAPES[name]
        began = time.perf_counter()
        counted, estimated = compared(
            settings_of(rows, tokens, quantization, checkpointing, packing), numbers, args.whole
        )
        gc.collect()
        case = {"model": name, "rows": rows, "tokens": tokens, "quantization": quantization}
        case |= {"checkpointing": checkpointing, "packing": packing, "ratio": round(estimated / counted, 4)}
        cases.append({**case, "counted_bytes": counted, "estimated_bytes": estimated})
        print(f"{case} after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    furthest = max(abs(case["ratio"] - 1) for case in cases)
    if args.table:
        args.table.write_text(table(cases), encoding="utf-8")
    print(json.dumps({"cases": cases, "furthest": furthest, "goal": GOAL}))
    return 1 if furthest > GOAL else 0


if __name__ == "__main__":
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    sys.exit(main())
