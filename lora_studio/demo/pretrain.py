"""Pretrains the built-in model: a plain loop over generated conversations, and exact answers as its measure.

Only what the assistant says is trained. Conversations of similar length share a batch, so that little is padded.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lora_studio.demo.conversations import Dialogue, copying_dialogue, training_dialogue

IGNORED = -100
POOL = 512
SAY_EVERY = 50
CAN_COPY = 0.5
COPYING_STEPS = 1500
COPYING_TOKENS = 1024
Encoded = tuple[list[int], list[int]]
"""Token ids and labels of one conversation."""
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""`input_ids`, `attention_mask` and `labels`, each `[batch, sequence]`."""


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


def batches(
    tokenizer: PreTrainedTokenizerFast, rng: Random, tokens: int, make: Callable[[Random], Dialogue]
) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens of the conversations that `make` makes."""
    pad = tokenizer.pad_token_id
    while True:
        pool = sorted((encode(tokenizer, make(rng)) for _ in range(POOL)), key=lambda row: len(row[0]))
        grouped: list[list[Encoded]] = [[]]
        for row in pool:
            if (len(grouped[-1]) + 1) * len(row[0]) > tokens:
                grouped.append([])
            grouped[-1].append(row)
        rng.shuffle(grouped)
        for group in grouped:
            longest = max(len(ids) for ids, _ in group)
            gap = [longest - len(ids) for ids, _ in group]
            yield (
                torch.tensor([ids + [pad] * n for (ids, _), n in zip(group, gap, strict=True)]),
                torch.tensor([[1] * (longest - n) + [0] * n for n in gap]),
                torch.tensor([labels + [IGNORED] * n for (_, labels), n in zip(group, gap, strict=True)]),
            )


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
    input_ids, attention_mask, labels = batch
    loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
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
    source = batches(tokenizer, Random(seed), COPYING_TOKENS, copying_dialogue)
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
    tokens_per_step: int,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Learns to copy, then everything, for `steps` steps; says now and then how far it is."""
    model.train()
    learn_to_copy(model, tokenizer, peak=peak, seed=seed, say=say)
    optimizer = new_optimizer(model)
    source = batches(tokenizer, Random(seed), tokens_per_step, training_dialogue)
    began, recent, seen = time.monotonic(), 0.0, 0
    for step in range(steps):
        batch = next(source)
        recent += train_step(model, optimizer, batch, learning_rate(step, steps, peak))
        seen += int(batch[1].sum())
        if (step + 1) % SAY_EVERY == 0:
            passed = time.monotonic() - began
            left = passed / (step + 1) * (steps - step - 1)
            rate = seen / passed
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
