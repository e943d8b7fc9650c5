"""Peak memory of training steps on a CUDA GPU beside what the estimate says, for LoRA and QLoRA, at three shapes.

`python -m benchmarks.memory [--shapes NAME ...]`. Random weights, full batches, checkpointing on and off.
Prints one JSON object last: for each case the estimated and the measured bytes of PyTorch's allocator and their ratio.
Where there is no CUDA GPU it says so and measures nothing.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError

SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "0.6B, 4 x 1,024": ({"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}, 4, 1024),
    "1.7B, 8 x 512": ({"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}, 8, 512),
    "4B, 2 x 2,048": ({"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}, 2, 2048),
}
COMMON = {
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
STEPS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="some of the shapes, by name")
    args = parser.parse_args()
    import torch

    try:
        if not torch.cuda.is_available():
            raise StudioError(
                "This machine shows no CUDA GPU, so there is no peak to measure.", "Run it on a machine that has one."
            )
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    cases = []
    for shape in args.shapes:
        for quantization in ("none", "4bit"):
            for checkpointing in (False, True):
                case = measure(shape, quantization, checkpointing)
                print(f"{shape:18} {quantization:5} {case['ratio']:.3f}", file=sys.stderr, flush=True)
                cases.append(case)
    print(json.dumps({"device": torch.cuda.get_device_name(0), "cases": cases}))
    return 0


def measure(shape: str, quantization: str, checkpointing: bool) -> dict[str, Any]:
    """One case: the model in a folder, a few steps of the studio's own trainer settings, and the allocator's peak."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lora_studio.config.parsing import nest, parse
    from lora_studio.engine.models.adapter import add_adapter
    from lora_studio.engine.models.load import load_model
    from lora_studio.models.memory import estimate
    from lora_studio.models.shape import architecture

    sizes, rows, tokens = SHAPES[shape]
    numbers = {**COMMON, **sizes}
    config = parse(
        nest(
            {
                "model.quantization": quantization,
                "training.per_device_train_batch_size": rows,
                "data.max_length": tokens,
                "training.gradient_checkpointing": checkpointing,
            }
        )
    )
    model_numbers = architecture(numbers)
    assert model_numbers is not None
    expected = estimate(config, model_numbers, "cuda")
    with tempfile.TemporaryDirectory() as folder:
        family = {name: value for name, value in numbers.items() if name != "model_type"}
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **family), dtype=torch.bfloat16)
        built.save_pretrained(folder)
        del built
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = load_model(folder, quantization=quantization)
    lora = config.lora
    model = add_adapter(
        base,
        base=shape,
        revision=None,
        target=lora.target_modules,
        seed=0,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
    )
    train(model, rows, tokens, checkpointing)
    peak = torch.cuda.max_memory_reserved()
    del model, base
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "shape": shape,
        "quantization": quantization,
        "gradient_checkpointing": checkpointing,
        "estimated_bytes": expected.measurable,
        "measured_bytes": peak,
        "ratio": expected.measurable / peak,
        "parts": expected.parts,
    }


def train(model: Any, rows: int, tokens: int, checkpointing: bool) -> None:
    """Steps as the trainer makes them: fused loss, mixed precision, AdamW on a 32-bit adapter."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from lora_studio.engine.models.multi_adapter import load_base

    ids = torch.randint(10, 1000, (rows * STEPS, tokens)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(Path(folder)),
                per_device_train_batch_size=rows,
                max_steps=STEPS,
                gradient_checkpointing=checkpointing,
                bf16=True,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=load_base("demo").tokenizer,
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trainer.train()


if __name__ == "__main__":
    sys.exit(main())
