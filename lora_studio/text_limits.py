"""How long texts may be that people type into fields which no setting of the schema bounds."""

from lora_studio.errors import StudioError

QUESTION, SYSTEM_PROMPT, TEST_PROMPT, LINE = 100_000, 20_000, 10_000, 300
"""Characters of a question to a model, of its system prompt, of a prompt in a set, and of a name or a line of words."""


def check_length(what: str, text: str, most: int) -> None:
    """Raises `StudioError` for a text of more characters; `what` begins the sentence."""
    if len(text) > most:
        raise StudioError(f"{what} has {len(text):,} characters.", f"There is room for {most:,}: shorten it.")
