"""Models that bring program code of their own, and which of them may run it: none that was not named at the start.

The names stand in the environment of whoever starts the program, and neither in a config nor in an adapter's files:
those are copied from elsewhere, and whoever writes them could run anything here.
"""

import os

TRUSTED = "LORA_STUDIO_TRUST_REMOTE_CODE"


def may_run_code_of(name: str) -> bool:
    """Whether code that comes with this very model may run."""
    return name in {part.strip() for part in os.environ.get(TRUSTED, "").split(",") if part.strip()}


def warning(name: str) -> str:
    """What is to be known of such a model."""
    return f"Program code that comes with {name} runs on this machine, as {TRUSTED} says."


def way_to_allow(name: str) -> str:
    """How its code could run."""
    return (
        f"Choose a model whose architecture transformers knows; or read the code of {name}, and if you trust it, start "
        f"with {TRUSTED}={name} in the environment."
    )
