"""What whoever is answered now may start: everything, unless a workspace says less, as that of guests does."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the schema takes a moment to import, which `--help` need not wait for
    from lora_studio.config.sections import Config


class Permissions:
    """Asked by all that starts something. Which files one may read is the workspace's own matter."""

    def check_may(self, what: str) -> None:
        """Raises `StudioError` where one may not do it; `what` is a verb with its object."""

    def admit(self, config: "Config") -> "Config":
        """The config of a run as it may be started. Raises `StudioError` where it may not."""
        return config

    def tokens(self, maker: str) -> Mapping[str, str]:
        """What the environment of a child says of the Hub's tokens that works for `maker`: nothing, it finds them."""
        return {}

    def check_room(self, coming: int = 0) -> None:
        """Raises `StudioError` where whoever is answered has no room left on the disk for so many bytes more."""

    def check_growth(self, octets: int) -> None:
        """The same for what is written often and in small parts, such as what is being typed; none for what shrinks."""

    def overdrawn(self, maker: str) -> str:
        """Why what `maker` has at work is ended: it made more than there is room for; "" where it may go on."""
        return ""

    @property
    def bounded(self) -> bool:
        """Whether anybody has less room than the disk."""
        return False

    @property
    def max_waiting(self) -> int | None:
        """How many jobs whoever is answered may have in the queue; None for any number."""
        return None

    def waits_with(self, maker: str) -> bool:
        """Whether a waiting job of that maker counts for whoever is answered."""
        return True

    def test_rows(self, wanted: int | None) -> int | None:
        """How many rows of a test file may be answered; None for all."""
        return wanted
