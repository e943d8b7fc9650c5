"""Repeats the training of a LoRA Studio run, with nothing but transformers, peft, trl and datasets.

`python train.py` reads the files beside it: settings.json (every setting, by the names of those libraries), rows in
train.parquet (the tokens and labels of each row, in the order of the run), the tokenizer, and the losses of the run,
which it compares its own with. On the same kind of machine with the same versions (requirements.txt) they are equal.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.utils.other import TrainableTokensWrapper
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    TrainerCallback,
    set_seed,
)
from transformers import Trainer as HuggingFaceTrainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

HERE = Path(__file__).resolve().parent
IGNORED, POOL_BATCHES = -100, 50
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Where a config says how many experts a layer of a mixture has."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def length_grouped(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """A permutation of the rows: rows of similar length share a batch, batches are shuffled, the longest row is in the
    first.

    Only the last batch may be partial.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool = batch_size * max(1, min(POOL_BATCHES, len(order) // (4 * batch_size)))
    batches = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda row: lengths[row])
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    short = [batch for batch in batches if len(batch) < batch_size]
    whole = [batch for batch in batches if len(batch) == batch_size]
    whole = [whole[position] for position in torch.randperm(len(whole), generator=generator).tolist()]
    if whole:
        longest = max(range(len(whole)), key=lambda position: max(lengths[row] for row in whole[position]))
        whole[0], whole[longest] = whole[longest], whole[0]
    return [row for batch in [*whole, *short] for row in batch]


class EpochOrder(torch.utils.data.Sampler[int]):
    """The order of an epoch's rows, which depends only on seed and epoch."""

    def __init__(self, rows: int, batch_size: int, seed: int, lengths: list[int] | None) -> None:
        self.rows, self.batch_size, self.seed, self.lengths, self.epoch = rows, batch_size, seed, lengths, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.rows, generator=generator).tolist())
        return iter(length_grouped(self.lengths, self.batch_size, generator))


def keep_unpacked(model: torch.nn.Module) -> None:
    """Keeps 4-bit weights in their stored layout, on every CPU.

    On CPUs with AVX512-BF16, bitsandbytes repacks them at the first forward pass in evaluation mode: for a kernel
    without a backward pass, with scales rounded to bf16, and for matrices whose rows divide by 32. Training after a
    measurement would have wrong gradients.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def without_router_logits(model: Any) -> None:
    """Disables the router's loss unless it is requested: generation cannot compute it, and evaluation leaves it out.

    A model without experts has no such loss; the others get the number of experts under the name that trl reads.
    """
    text = model.config.get_text_config()
    if not hasattr(text, "output_router_logits"):
        return
    text.output_router_logits = False
    experts = next((count for name in EXPERTS if (count := getattr(text, name, None)) is not None), None)
    if not experts:
        text.router_aux_loss_coef = 0.0
    elif not hasattr(text, "num_experts"):
        text.num_experts = experts


def with_bias_of_head(model: Any) -> None:
    """Lets trl's loss read the bias of an output layer with trained tokens: peft's wrapper exposes only its weight."""
    head = model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        vars(head)["bias"] = head.original_module.bias  # no second name for the same weights: it would be saved


def without_padding_mask(model: Any) -> None:
    """Trains without the mask of the padding, which is behind each row: no token of a row sees what comes after it.

    The logits are the same, to the bit. The model builds no mask of the attention, and PyTorch takes its fastest
    kernels, which know no mask. `fused_lm_head` is how trl calls the model for a loss; all else keeps its mask, such as
    generation with padding in front.
    """

    def drop(_: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": None} if "fused_lm_head" in kwargs else kwargs

    model.register_forward_pre_hook(drop, with_kwargs=True)


def loraplus_optimizer(trainer: Any, ratio: float) -> torch.optim.Optimizer:
    """LoRA+ (arXiv:2402.12354): the B matrices learn `ratio` times faster than the A matrices."""
    kind, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    decay = trainer.args.weight_decay
    return create_loraplus_optimizer(
        trainer.model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **settings
    )


def starts_as_base(model: Any) -> bool:
    """Whether a model with its new adapter equals the base: LoRA's B matrix is zero everywhere."""
    second = [weight for name, weight in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return not any(bool(weight.any()) for weight in second)


def without_needless_reference(model: Any) -> None:
    """Removes trl's frozen copy of an adapter that changes nothing yet: the bare base is the same reference."""
    if starts_as_base(model):
        model.delete_adapter("ref")


class WithoutRouterLoss(HuggingFaceTrainer):
    """Logs the loss of the tokens alone; the router's balancing loss is trained on but logged separately.

    Precedes trl's class among the bases.
    """

    aux_loss_enabled: bool
    router_aux_loss_coef: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        without_router_logits(self.model)  # trl sets it in the config, and asks for it in each training step too
        with_bias_of_head(self.model)
        if not self.aux_loss_enabled:  # the router's loss leaves out the padding
            without_padding_mask(self.model)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not self.aux_loss_enabled or self.label_smoother is not None:  # trl smooths without the router's loss
            return loss
        trl: Any = self
        steps = self.current_gradient_accumulation_steps
        return loss - self.router_aux_loss_coef * trl._metrics["train"]["aux_loss"][-1] / steps

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        enabled, self.aux_loss_enabled = self.aux_loss_enabled, False
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.aux_loss_enabled = enabled


Batch = dict[str, torch.Tensor]
"""The model's inputs, each [rows, tokens]."""
TokenRows = list[tuple[list[int], list[int]]]
"""Token ids and labels of rows."""


def padded(sequences: TokenRows, pad_token_id: int, prefix: str = "") -> Batch:
    """Rows as trl's DPO and KTO take them, padded on the right; `completion_mask` is 1 for trained tokens."""
    shape = len(sequences), max(len(ids) for ids, _ in sequences)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask, completion_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, (ids, labels) in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        completion_mask[row, : len(ids)] = torch.tensor(labels) != IGNORED
    return {
        f"{prefix}input_ids": input_ids,
        f"{prefix}attention_mask": attention_mask,
        f"{prefix}completion_mask": completion_mask,
    }


class PairCollator:
    """Pairs as one batch for DPO: the chosen answers, then the rejected ones."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, pairs: list[dict[str, list[int]]]) -> Batch:
        sides = ("chosen", "rejected")
        rows = [(pair[f"{side}_ids"], pair[f"{side}_labels"]) for side in sides for pair in pairs]
        return padded(rows, self.pad_token_id)


class UnpairedCollator:
    """Good and bad answers as a batch for KTO.

    For the KL term each prompt gets the answer of the row before it, the first that of the last row, as trl's
    `KTOTrainer` pairs them, and loses what is over `max_length`.
    """

    def __init__(self, pad_token_id: int, max_length: int | None) -> None:
        self.pad_token_id, self.max_length = pad_token_id, max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        matched = [(row["input_ids"], row["labels"]) for row in rows]
        begins = [next(at for at, label in enumerate(labels) if label != IGNORED) for _, labels in matched]
        mismatched = []
        for row, (ids, _) in enumerate(matched):
            other_ids, other_labels = matched[row - 1]
            begin, other = begins[row], begins[row - 1]
            labels = [IGNORED] * begin + other_labels[other:]
            mismatched.append(((ids[:begin] + other_ids[other:])[: self.max_length], labels[: self.max_length]))
        label = torch.tensor([row["desirable"] for row in rows])
        kl = padded(mismatched, self.pad_token_id, "KL_")
        return {**padded(matched, self.pad_token_id), **kl, "label": label}


class RunTrainer(WithoutRouterLoss):
    """The run's order of rows, and LoRA+. `sequences` are the columns of a row that the model reads."""

    sequences: tuple[str, ...] = ("input_ids",)
    packing = False

    def __init__(self, *, loraplus_lr_ratio: float | None, **kwargs: Any) -> None:
        self.loraplus_lr_ratio = loraplus_lr_ratio
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length" and not self.packing
        columns = zip(*(rows[name] for name in self.sequences), strict=True) if grouped else ()
        lengths = [max(map(len, row)) for row in columns]
        return EpochOrder(len(rows), self.args.train_batch_size, self.args.seed, lengths if grouped else None)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer = loraplus_optimizer(self, self.loraplus_lr_ratio)
        return self.optimizer

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with torch.random.fork_rng():  # measuring leaves the random numbers of training alone
            return super().evaluation_loop(*args, **kwargs)


class AnswersTrainer(RunTrainer, SFTTrainer):
    """SFT; a validation loss is the mean over trained tokens."""

    def __init__(self, **kwargs: Any) -> None:
        self.packing = kwargs["args"].packing
        self._nats, self._tokens = 0.0, 0
        super().__init__(**kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = super().prediction_step(model, inputs, *args, **kwargs)
        trained = int((inputs["labels"][..., 1:] != IGNORED).sum())
        self._nats += float(outputs[0]) * trained
        self._tokens += trained
        return outputs

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._nats, self._tokens = 0.0, 0
        smoother, self.label_smoother = self.label_smoother, None
        output = super().evaluation_loop(*args, **kwargs)
        self.label_smoother = smoother
        measured = {**(output.metrics or {}), "eval_loss": self._nats / max(self._tokens, 1)}
        return output._replace(metrics=measured)


class PairsTrainer(RunTrainer, DPOTrainer):
    """DPO on rows that are tokens already, compared with the bare base or the adapter that the run began with."""

    sequences = ("chosen_ids", "rejected_ids")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(data_collator=PairCollator(kwargs["processing_class"].pad_token_id), **kwargs)
        without_needless_reference(self.model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class UnpairedTrainer(RunTrainer, KTOTrainer):
    """KTO on rows that are tokens already, in the same order at each measurement."""

    def __init__(self, **kwargs: Any) -> None:
        collator = UnpairedCollator(kwargs["processing_class"].pad_token_id, kwargs["args"].max_length)
        super().__init__(data_collator=collator, **kwargs)
        without_needless_reference(self.model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochOrder:
        return EpochOrder(len(eval_dataset), self.args.eval_batch_size, self.args.seed, None)


METHODS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTConfig, AnswersTrainer),
    "dpo": (DPOConfig, PairsTrainer),
    "kto": (KTOConfig, UnpairedTrainer),
}
"""For each training method the arguments' class and the trainer."""


def device(use_cpu: bool) -> torch.device:
    """The first GPU that torch can use (CUDA, ROCm, Intel or Apple), else the CPU, as the trainer chooses it."""
    gpu = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if gpu is None else torch.device(gpu.type, 0)


def load_model(settings: dict[str, Any], base: str) -> Any:
    """The base as the run loaded it, with the run's initial adapter."""
    how = settings["base"]
    quantized = dict(how["quantization"] or {})
    if "bnb_4bit_compute_dtype" in quantized:
        quantized["bnb_4bit_compute_dtype"] = DTYPES[quantized["bnb_4bit_compute_dtype"]]
    kind = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}.get(
        quantized.pop("quant_method", ""), BitsAndBytesConfig
    )
    set_seed(settings["training"]["seed"])
    model = getattr(transformers, how["auto_class"]).from_pretrained(
        base,
        revision=how["revision"],
        dtype=DTYPES[how["dtype"]],
        device_map={"": device(settings["training"]["use_cpu"])},
        quantization_config=kind(**quantized) if quantized else None,
        attn_implementation=how["attn_implementation"],
        use_safetensors=True,
    )
    keep_unpacked(model)
    without_router_logits(model)
    torch.manual_seed(settings["training"]["seed"])
    if (HERE / "start").is_dir():  # the run went on from this adapter
        lora = LoraConfig.from_pretrained(str(HERE / "start"))
        lora.lora_dropout, lora.inference_mode = settings["lora"]["lora_dropout"], False
        return PeftModel.from_pretrained(model, str(HERE / "start"), config=lora, is_trainable=True)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings["lora"]))


def rows(name: str) -> Dataset | None:
    path = HERE / f"{name}.parquet"
    return Dataset.from_parquet(str(path)) if path.is_file() else None


def compared(history: list[dict[str, Any]]) -> str:
    """How far the losses are from the run's."""
    own = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    expected = json.loads((HERE / "losses.json").read_text(encoding="utf-8"))
    both = [(own[int(step)], loss) for step, loss in expected.items() if int(step) in own]
    if not both:
        return "No step has a loss in both, this and the run."
    furthest = max(abs(first - expected_loss) for first, expected_loss in both)
    differ = f"differ from those of the run by at most {furthest:.3g}" if furthest else "equal those of the run exactly"
    return f"Losses compared at {len(both)} of the steps: they {differ}."


class StopAt(TrainerCallback):
    """Stops after a step; the schedule remains that of the whole run."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.last and state.global_step >= self.last:
            control.should_training_stop = True


def main() -> None:
    settings = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=settings["base"]["name"], help="base model: a Hub id or a folder")
    parser.add_argument("--out", default=str(HERE / "out"), help="folder for checkpoints and the adapter")
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps; 0: train to the end")
    args = parser.parse_args()
    print("Loading the base model.", flush=True)
    base = str(HERE / "base") if args.base == "base" and (HERE / "base").is_dir() else args.base
    model, patience = load_model(settings, base), settings["patience"]
    callbacks: list[TrainerCallback] = [StopAt(args.steps)]
    if patience["early_stopping_patience"]:
        callbacks.append(EarlyStoppingCallback(**patience))
    trained_on, tokenizer = rows("train"), AutoTokenizer.from_pretrained(HERE / "tokenizer")
    arguments, make_trainer = METHODS[settings["method"]]
    trainer = make_trainer(
        model=model,
        args=arguments(output_dir=args.out, report_to="none", **settings["training"]),
        train_dataset=trained_on,
        eval_dataset=rows("validation"),
        processing_class=tokenizer,
        callbacks=callbacks,
        loraplus_lr_ratio=settings["loraplus_lr_ratio"],
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # trl makes a quantized model's adapter bf16, whose 8 bits lose small updates
            parameter.data = parameter.data.float()
    print(f"Training on {len(trained_on or ()):,} rows.", flush=True)
    trainer.train()
    adapter = Path(args.out).resolve() / "adapter"
    model.save_pretrained(str(adapter), save_embedding_layers=False)  # they are the base's
    tokenizer.save_pretrained(str(adapter))
    history = trainer.state.log_history
    (Path(args.out) / "history.json").write_text(json.dumps(history, indent=2), encoding="utf-8")
    print(compared(history))
    print(f"Done after {trainer.state.global_step:,} steps. The adapter is in {adapter}")


if __name__ == "__main__":
    main()
