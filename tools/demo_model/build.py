"""Makes the built-in model and its data sets: python -m tools.demo_model.build [--out DIR] [--share S] [--data-only].

Everything comes from a generator with a fixed seed; nothing is fetched. The data sets are written first, then come
tokenizer and model, and the score on held-out questions is printed last.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from lora_studio.workspace import demo_folder
from tools.demo_model import pretrain
from tools.demo_model.conversations import Dialogue, held_out_dialogues, training_dialogue
from tools.demo_model.datasets import write_all, write_questions
from tools.demo_model.tokenizer import train_tokenizer

SEED = 20
VOCABULARY = 1536
CONTEXT = 2048
STAGES = ((2400, 2.5e-3), (1600, 2e-3), (2000, 1.2e-3))
"""Steps and highest learning rate of each stage, at whose end it has fallen to a twentieth."""
COPYING_LEARNING_RATE = 2.5e-3
ROWS = 8
ROW_LENGTH = 256
HELD_OUT_QUESTIONS = 400
QUESTIONS = "questions.heldout.jsonl"


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def make_tokenizer() -> PreTrainedTokenizerFast:
    rng = Random(SEED)
    dialogues = (training_dialogue(rng) for _ in range(8000))
    texts = (f"{message['role']}\n{message['content']}" for dialogue in dialogues for message in dialogue.messages)
    return train_tokenizer(texts, VOCABULARY, CONTEXT)


def score(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue]
) -> tuple[float, list[tuple[Dialogue, str]]]:
    """The share of exact answers, and the wrong ones."""
    said = pretrain.answers(model, tokenizer, dialogues)
    wrong = [(d, text) for d, text in zip(dialogues, said, strict=True) if text.strip() != pretrain.expected(d).strip()]
    return 1 - len(wrong) / len(dialogues), wrong


def build_model(folder: Path, share: float) -> None:
    """Trains tokenizer and model into `folder` and prints the held-out score by kind and style.

    `share` of each stage's steps are made.
    """
    say("training the tokenizer")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    model = pretrain.new_model(tokenizer, SEED)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    model.train()
    pretrain.learn_to_copy(model, tokenizer, peak=COPYING_LEARNING_RATE, seed=SEED, say=say)
    for number, (steps, peak) in enumerate(STAGES, 1):
        say(f"stage {number} of {len(STAGES)}")
        pretrain.pretrain(
            model,
            tokenizer,
            steps=max(1, round(share * steps)),
            peak=peak,
            rows=ROWS,
            length=ROW_LENGTH,
            seed=SEED + number,
            say=say,
        )
    model.save_pretrained(folder)
    exact, wrong = score(model, tokenizer, held_out_dialogues(HELD_OUT_QUESTIONS, SEED))
    for dialogue, text in wrong[:20]:
        say(f"  [{dialogue.kind}, {dialogue.style}] {dialogue.messages[-2]['content']!r} -> {text!r}")
    say(f"wrong by kind: {dict(Counter(dialogue.kind for dialogue, _ in wrong))}")
    say(f"wrong by style: {dict(Counter(dialogue.style for dialogue, _ in wrong))}")
    say(f"exact answers on {HELD_OUT_QUESTIONS} held-out questions: {100 * exact:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=demo_folder(), help="folder for model/ and data/ (default: the package's own)"
    )
    parser.add_argument("--share", type=float, default=1.0, help="make this share of the steps only, to try it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-only", action="store_true", help="write the data sets and leave the model alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    say("writing the data sets")
    write_all(options.out / "data", SEED)
    write_questions(options.out / "data" / QUESTIONS, held_out_dialogues(HELD_OUT_QUESTIONS, SEED))
    if not options.data_only:
        build_model(options.out / "model", options.share)


if __name__ == "__main__":
    main()
