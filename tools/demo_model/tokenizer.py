"""The built-in model's tokenizer: byte-level BPE with ChatML tokens and a chat template of our own.

Any text can be encoded and comes back unchanged. Digits stand alone, so that numbers are read digit by digit.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
THINK_MARKS = ("<think>", "</think>")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# A word with the space before it, one digit, other signs, blanks: close to what Qwen's own tokenizers do.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """Trains the byte-pair merges on `texts` and puts the special tokens and the chat template around them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(THINK_MARKS),
        special_tokens=[PAD, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # Not "special": the reasoning has to stay readable where special tokens are left out of the decoded text.
    bpe.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in THINK_MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END_OF_TURN,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return tokenizer
