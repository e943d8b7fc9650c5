"""A training step in fewer passes over memory on the CPU, and without waiting on a GPU: the same numbers but for
rounding.

On a CPU most of a small step's time goes into reading and writing tensors. trl scores every position there, in tiles
that the backward pass computes anew, where a GPU scores the trained positions alone; peft scales an adapter's output
and adds it to the base's in passes of their own (`fuse`).

A GPU works through what it was asked for while the next is asked for, until somebody has to know a number: how many
positions a mask marks is one. trl indexes with such masks, and transformers looks whether positions begin anew. The
batch knows both before it goes to the GPU (`KnownPlaces`). Nothing of this has been measured on a GPU.
"""

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch.nn import functional
from transformers import masking_utils
from trl.kernels import ChunkedLogProbFunction

from lora_studio.data.messages import IGNORED
from lora_studio.models.memory import MAX_SCORES

Batch = dict[str, torch.Tensor]
Scores = tuple[torch.Tensor | None, ...]


def fuse(model: PeftModel) -> None:
    """Lets a model that has trl's output layer (`add_fused_lm_head`) train in fewer passes."""
    _look_up(model.get_base_model(), _use_triton=lambda device: True, _ChunkedLogProbFunction=LogProbs)
    layers: list[Any] = [module for module in model.modules() if type(module) is Linear]  # quantized ones are others
    for layer in layers:
        layer.forward = MethodType(_forward, layer)


def _look_up(base: Any, **names: Any) -> None:
    """Gives a model a copy of trl's forward that looks these names up here, as it stands for this model alone."""
    theirs = base.forward.__func__
    ours = FunctionType(
        theirs.__code__, {**theirs.__globals__, **names}, theirs.__name__, theirs.__defaults__, theirs.__closure__
    )
    ours.__kwdefaults__ = theirs.__kwdefaults__
    base.forward = MethodType(functools.update_wrapper(ours, theirs), base)


PLACES = "trained_places"
"""The entry of a batch with the places of the positions whose next token is trained, in the flattened batch."""
_look = masking_utils.find_packed_sequence_indices


class WithPlaces:
    """A collator whose batches name their trained places. A class, which goes to a worker of the data loader as it is:
    macOS starts them anew, and Python 3.14 does."""

    def __init__(self, collate: Callable[[list[Any]], Batch]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Any]) -> Batch:
        batch = self._collate(rows)
        row, column = (batch["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True)
        return {**batch, PLACES: row * batch["labels"].shape[1] + column}


class KnownPlaces:
    """Lets a model that has trl's output layer train without masks of an unknown number of positions.

    For a loss (`fused_lm_head`) of a model in training the last layer's output is cut to the places that the batch
    names, with their labels, so that trl scores all of what it gets. Whether rows share a sequence is told by the
    batch too: it has positions only then.
    """

    def __init__(self, model: PeftModel) -> None:
        self._places: torch.Tensor | None = None
        self._joined: bool | None = None  # None outside of a loss
        base: Any = model.get_base_model()
        theirs = base.forward.__func__.__globals__["_use_triton"]
        _look_up(base, _use_triton=lambda device: self._places is None and theirs(device))
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._behind, always_call=True)
        base.base_model.register_forward_hook(self._cut)
        masking_utils.find_packed_sequence_indices = self._sequences

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        places = kwargs.pop(PLACES, None)
        if "fused_lm_head" not in kwargs:
            return args, kwargs
        self._joined = "position_ids" in kwargs
        if places is not None and module.training:
            self._places = places
            kwargs["shift_labels"] = kwargs["labels"].flatten().index_select(0, places + 1)[None]
        return args, kwargs

    def _cut(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if self._places is not None:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden.flatten(0, 1).index_select(0, self._places.to(hidden.device))[None]
        return output

    def _behind(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._places = self._joined = None

    def _sequences(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        """The number of each token's sequence in its row, as transformers counts them; None where each row is one."""
        if self._joined is None:
            return _look(position_ids)
        if not self._joined:
            return None
        steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
        return (steps != 1).cumsum(-1)


class LogProbs:
    """trl's `ChunkedLogProbFunction` for so few scores that all can stay until the backward pass, else trl's own."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> Scores:
        """`hidden` (tokens, width) against `weight` (words, width): log-probabilities of `targets`, entropy, the log of
        the sum of squared probabilities, the mean logit and whether the target is the likeliest word, each (tokens,)
        or None if it is not among `outputs`."""
        if len(hidden) * len(weight) > MAX_SCORES:
            arguments = (hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
            return ChunkedLogProbFunction.apply(*arguments)
        # As trl does: an output layer that is trained in full has float32 weights under 16-bit positions.
        kind = hidden.dtype
        logits = functional.linear(hidden, weight.to(kind), None if bias is None else bias.to(kind)).float()
        if scale != 1.0:
            logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if temperature != 1.0:
            logits = logits / temperature
        picked, scores, likely = TargetScores.apply(logits, targets)
        with torch.no_grad():
            entropy = -torch.linalg.vecdot(likely, scores) if "entropy" in outputs else None
            squares = torch.linalg.vecdot(likely, likely).log() if "log_sum_sq_probs" in outputs else None
            means = logits.mean(-1) if "mean_logits" in outputs else None
            top = scores.argmax(-1) == targets if "is_top1" in outputs else None
        return picked, entropy, squares, means, top


class TargetScores(torch.autograd.Function):
    """The log-probabilities of `targets` (tokens,) under `logits` (tokens, words), and of all words, which have no
    gradient, with their exponentials: the backward pass needs these, and so does the entropy."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = logits.log_softmax(-1)
        likely = scores.exp()
        ctx.save_for_backward(likely, targets)
        ctx.mark_non_differentiable(scores, likely)
        ctx.set_materialize_grads(False)
        return scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1), scores, likely

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        likely, targets = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1)
        return (likely * -gradient).scatter_add_(-1, targets.unsqueeze(-1), gradient), None


class LoraProduct(torch.autograd.Function):
    """`x W' + b + s (x A') B'` with a frozen W (outputs, inputs) and b; A is (r, inputs), B (outputs, r).

    The adapter's part is added to the product in place, and the scale s is applied where there are r columns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ lora_a.t()).mul_(scaling)
        result = functional.linear(rows, weight, bias).addmm_(low, lora_b.t())
        ctx.save_for_backward(rows, low, weight, lora_a, lora_b)
        ctx.shape, ctx.scaling = x.shape, scaling
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, lora_a, lora_b = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_low = (gradient @ lora_b).mul_(ctx.scaling)
        of_x = (gradient @ weight).addmm_(of_low, lora_a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.t() @ rows, gradient.t() @ low, None


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """peft's `Linear.forward`, which it leaves to peft unless the layer is plain LoRA on a frozen linear module."""
    active = layer.active_adapters
    as_usual = args or kwargs or layer.disable_adapters or layer.merged or len(active) != 1
    if as_usual or not _is_plain(layer, active[0], x):
        return Linear.forward(layer, x, *args, **kwargs)
    base, name = layer.base_layer, active[0]
    weights = layer.lora_A[name].weight, layer.lora_B[name].weight
    product: torch.Tensor = LoraProduct.apply(x, base.weight, base.bias, *weights, layer.scaling[name])
    return product


def _is_plain(layer: Any, name: str, x: torch.Tensor) -> bool:
    """Whether the adapter of that name is two matrices in the precision of base and input, with nothing in between."""
    base = layer.base_layer
    if type(base) is not torch.nn.Linear or name not in layer.lora_A or name in layer.lora_variant:
        return False
    lora_a, lora_b = layer.lora_A[name], layer.lora_B[name]
    frozen = not (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))
    kinds = {x.dtype, base.weight.dtype, lora_a.weight.dtype, lora_b.weight.dtype}
    dropped = layer.training and type(layer.lora_dropout[name]) is not torch.nn.Identity
    watched = base._forward_hooks or base._forward_pre_hooks
    mixed = torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling()
    return frozen and len(kinds) == 1 and lora_b.bias is None and not (dropped or watched or mixed)
