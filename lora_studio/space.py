"""What a Hugging Face Space tells of itself in its environment: that it is one, whose, and how its visitors log in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_studio.hub_token import CLIENT_SECRET

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
    given = [environment.get(name) for name in ("OAUTH_CLIENT_ID", CLIENT_SECRET, "OPENID_PROVIDER_URL")]
    names = hosts(environment)
    if not owner or not names or not all(given):
        return None
    client_id, secret, provider = (value or "" for value in given)
    return HubApp(client_id, secret, provider.rstrip("/"), f"https://{names[0]}", owner)
