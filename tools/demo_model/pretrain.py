"""Pretrains the built-in model: a plain loop over generated conversations, and exact answers as its measure.

Only what the assistant says is trained. Conversations are packed into rows without padding and don't see each other.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tools.demo_model.conversations import Dialogue, copying_dialogue, training_dialogue

IGNORED = -100
SAY_EVERY = 50
CAN_COPY = 0.5
COPYING_STEPS = 1500
COPYING_ROWS = (8, 128)
Encoded = tuple[list[int], list[int]]
"""Token ids and labels of one conversation."""
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""`input_ids`, `labels` and `position_ids`, each `[rows, length]`."""


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """About 2.6 million parameters, so that the fp32 weights stay below 12 MB."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def encode(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue) -> Encoded:
    """The conversation as the chat template renders it; labels only where the template marks an answer."""
    encoded: Any = tokenizer.apply_chat_template(
        list(dialogue.messages), return_dict=True, return_assistant_tokens_mask=True, **dialogue.switches
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    return ids, [token if marked else IGNORED for token, marked in zip(ids, mask, strict=True)]


def packed_row(
    tokenizer: PreTrainedTokenizerFast, rng: Random, length: int, make: Callable[[Random], Dialogue]
) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and positions of conversations one after the other, the last one cut; each counts from 0 again."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    while len(ids) < length:
        more_ids, more_labels = encode(tokenizer, make(rng))
        ids += more_ids
        labels += more_labels
        positions += range(len(more_ids))
    return ids[:length], labels[:length], positions[:length]


def batches(
    tokenizer: PreTrainedTokenizerFast, rng: Random, rows: int, length: int, make: Callable[[Random], Dialogue]
) -> Iterator[Batch]:
    """Endless batches of packed rows of the conversations that `make` makes."""
    while True:
        packed = [packed_row(tokenizer, rng, length, make) for _ in range(rows)]
        ids, labels, positions = (torch.tensor(part) for part in zip(*packed, strict=True))
        yield ids, labels, positions


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then a cosine down to 5 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def new_optimizer(model: Qwen3ForCausalLM) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms do not."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train_step(model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> float:
    """One step of the optimizer; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    input_ids, labels, position_ids = batch
    # Without mask and cache the model reads from the positions where a conversation begins.
    loss = model(input_ids=input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def learn_to_copy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, peak: float, seed: int, say: Callable[[str], None]
) -> None:
    """Trains on long copies alone until the model can do them.

    A new model learns to look back at what it was told from long copies within minutes; from short answers it takes
    many times longer, and nearly every kind of question needs it.
    """
    optimizer = new_optimizer(model)
    recent: list[float] = []
    source = batches(tokenizer, Random(seed), *COPYING_ROWS, copying_dialogue)
    for step in range(COPYING_STEPS):
        recent = [*recent[-24:], train_step(model, optimizer, next(source), peak * min(1.0, (step + 1) / 50))]
        if (step + 1) % 25 == 0:
            mean = sum(recent) / len(recent)
            say(f"copying: step {step + 1}  loss {mean:.4f}")
            if mean < CAN_COPY:
                return


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    peak: float,
    rows: int,
    length: int,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Learns everything, for `steps` steps; says now and then how far it is."""
    model.train()
    optimizer = new_optimizer(model)
    source = batches(tokenizer, Random(seed), rows, length, training_dialogue)
    began, recent = time.monotonic(), 0.0
    for step in range(steps):
        recent += train_step(model, optimizer, next(source), learning_rate(step, steps, peak))
        if (step + 1) % SAY_EVERY == 0:
            passed = time.monotonic() - began
            left = passed / (step + 1) * (steps - step - 1)
            rate = (step + 1) * rows * length / passed
            loss = recent / SAY_EVERY
            say(f"step {step + 1}/{steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  {left / 60:.1f} min left")
            recent = 0.0
    model.eval()


@torch.inference_mode()
def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[Dialogue],
    batch_size: int = 32,
    max_new_tokens: int = 64,
) -> list[str]:
    """What the model says, greedily, to each conversation without its last message, in left-padded batches.

    `model` is anything that generates: the model itself or a peft model around it.
    """
    prompts = [
        str(
            tokenizer.apply_chat_template(
                list(dialogue.messages[:-1]), tokenize=False, add_generation_prompt=True, **dialogue.switches
            )
        )
        for dialogue in dialogues
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            said[i] = text
    return said


def expected(dialogue: Dialogue) -> str:
    """The text of the last message, with its reasoning as the chat template writes it."""
    message = dialogue.messages[-1]
    reasoning = message.get("reasoning_content")
    return f"<think>\n{reasoning}\n</think>\n\n{message['content']}" if reasoning else str(message["content"])
