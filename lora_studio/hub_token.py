"""Where a token for the Hugging Face Hub comes from, and how a child gets one: in its environment and nowhere else.

A token is never an argument of a program, never in a file of the workspace, in an event or in a log.
"""

import os

VARIABLE = "HF_TOKEN"


def knows_token() -> bool:
    """Whether this machine has a token already: in the environment, or by the Hub's own login."""
    from huggingface_hub import get_token  # half a second: only who publishes needs it

    return bool(os.environ.get(VARIABLE, "").strip() or get_token())


def hub_secrets(token: str) -> dict[str, str]:
    """What a child gets of a token that a person typed; nothing where nothing was typed."""
    return {VARIABLE: token.strip()} if token.strip() else {}
