"""The Hugging Face Hub: names of data sets, and as the environment describes it, token, trusted models and the Space.

A token reaches a child through its environment only, never as an argument or in a file, an event or a log. Models with
code of their own run only if they were named at the start, never because a config or an adapter asks for it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from lora_studio.errors import StudioError
from lora_studio.units import shorten

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
def without_implicit_token(withhold: bool) -> Iterator[None]:
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


DATASET_PREFIX = "hub:"
_DATASET = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DATASET_OPTIONS = ("config", "split", "revision")


def is_dataset_name(name: str) -> bool:
    """Whether a name is a data set of the Hub: it has the prefix, or looks like owner/name and is no path."""
    if name.startswith(DATASET_PREFIX):
        return True
    path = Path(name)
    return bool(_DATASET.fullmatch(name)) and not path.suffix and not os.path.exists(path.parent)


_ADDRESS = "https://huggingface.co/datasets/"


def dataset_name(identifier: str, config: str = "", split: str = "") -> str:
    """The name of a dataset of the Hub by its id (or its address), subset and split. Raises `StudioError`."""
    plain = identifier.strip().removeprefix(_ADDRESS).removeprefix(DATASET_PREFIX).strip("/")
    options = {key: value.strip() for key, value in (("config", config), ("split", split)) if value.strip()}
    name = DATASET_PREFIX + plain + (f"?{urlencode(options, quote_via=quote)}" if options else "")
    parse_dataset_name(name)
    return name


def parse_dataset_name(name: str) -> tuple[str, dict[str, str]]:
    """The data set's id, and its config, split and revision where given."""
    plain, _, query = name.removeprefix(DATASET_PREFIX).partition("?")
    options = {key: values[-1] for key, values in parse_qs(query).items()}
    unknown = [key for key in options if key not in _DATASET_OPTIONS]
    if not _DATASET.fullmatch(plain) or unknown:
        detail = f"unknown option {unknown[0]!r}" if unknown else f"found {plain!r}"
        raise StudioError(
            f"{shorten(name, 120)} is not a valid Hub dataset name: {detail}.",
            f"Write it as {DATASET_PREFIX}owner/name?config=C&split=S&revision=R. The options are optional.",
        )
    return plain, options


TRUSTED = "LORA_STUDIO_TRUST_REMOTE_CODE"


def may_run_code_of(name: str) -> bool:
    """Whether code that comes with this very model may run."""
    return name in {part.strip() for part in os.environ.get(TRUSTED, "").split(",") if part.strip()}


def warning(name: str) -> str:
    """What is to be known of such a model."""
    return f"Custom code of {name} runs on this machine, as allowed by {TRUSTED}."


def way_to_allow(name: str) -> str:
    """How its code could run."""
    return (
        "Choose a model whose architecture transformers supports. Or, if you have read and trust the code of "
        f"{name}, set {TRUSTED}={name} in the environment."
    )


AUTHOR, HOSTS = "SPACE_AUTHOR_NAME", "SPACE_HOST"
OWNER = "LORA_STUDIO_OWNER"


@dataclass(frozen=True)
class HubApp:
    """An application of the Hub that people log in to: its names, and the account that owns the studio."""

    client_id: str
    client_secret: str = field(repr=False)
    provider: str
    address: str
    owner: str

    @property
    def callback(self) -> str:
        """Where the Hub sends people back to."""
        return f"{self.address}/login/callback"


def hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The names under which the Space is reached; with a domain of its own there are several."""
    return tuple(name.strip() for name in environment.get(HOSTS, "").split(",") if name.strip())


def hub_app(environment: Mapping[str, str]) -> HubApp | None:
    """The login that `hf_oauth: true` gives a Space; None without it, or where nobody is named as the owner."""
    owner = environment.get(OWNER) or environment.get(AUTHOR)
    variables = [environment.get(name) for name in ("OAUTH_CLIENT_ID", CLIENT_SECRET, "OPENID_PROVIDER_URL")]
    names = hosts(environment)
    if not owner or not names or not all(variables):
        return None
    client_id, secret, provider = (value or "" for value in variables)
    return HubApp(client_id, secret, provider.rstrip("/"), f"https://{names[0]}", owner)
