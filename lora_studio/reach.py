"""Whether a model can read rows at all: it has an embedding for every id, and a position for every token."""

from lora_studio.errors import StudioError


def beyond(
    name: str, *, embeddings: int, positions: int | None, largest_id: int, longest: int, what: str = "Rows have"
) -> StudioError | None:
    """What a model can't read of rows with ids up to `largest_id` and up to `longest` tokens; None where it can all.

    `embeddings` are the tokens that it has vectors for, `positions` the tokens in a row where these are learned, as in
    GPT-2 and OPT; other models have positions without end.
    """
    if largest_id >= embeddings:
        return StudioError(
            f"The tokenizer gives ids up to {largest_id:,}, and {name} has embeddings for {embeddings:,} tokens.",
            "Take the tokenizer that belongs to the model, or resize the model's embeddings to the tokenizer first.",
        )
    if positions is not None and longest > positions:
        return StudioError(
            f"{what} up to {longest:,} tokens, and {name} has learned {positions:,} positions.",
            f"Set data.max_length to {positions} at most.",
        )
    return None
