"""Where a token for the Hugging Face Hub comes from, and how a child gets one: in its environment and nowhere else.

A token is never an argument of a program, never in a file of the workspace, in an event or in a log. What the studio
reads of the Hub for a visitor it reads without its owner's token: that opens what they alone may see.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

VARIABLE = "HF_TOKEN"
PASSWORD, USERS = "LORA_STUDIO_PASSWORD", "LORA_STUDIO_USERS"
API_KEY, TOKEN = "LORA_STUDIO_API_KEY", "LORA_STUDIO_TOKEN"
CLIENT_SECRET = "OAUTH_CLIENT_SECRET"
SECRETS = (PASSWORD, USERS, API_KEY, TOKEN, CLIENT_SECRET)
"""Variables of the server's environment that no child inherits."""
NO_TOKEN: Mapping[str, str] = {VARIABLE: "", "HUGGING_FACE_HUB_TOKEN": "", "HF_TOKEN_PATH": os.devnull}
"""What the environment of a child says that is to find no token, neither there nor by the Hub's own login."""


def knows_token() -> bool:
    """Whether this machine has a token already: in the environment, or by the Hub's own login."""
    from huggingface_hub import get_token  # half a second: only who publishes needs it

    return bool(os.environ.get(VARIABLE, "").strip() or get_token())


@contextmanager
def withheld(withhold: bool) -> Iterator[None]:
    """Where wanted, this process sends no token that it was not told to send. For what does one thing at a time."""
    if not withhold:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = before


def hub_secrets(token: str) -> dict[str, str]:
    """What a child gets of a token that a person typed; nothing where nothing was typed."""
    return {VARIABLE: token.strip()} if token.strip() else {}
