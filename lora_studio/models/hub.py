"""The Hugging Face Hub: names of data sets, and as the environment describes it, token, trusted models and the Space.

A token reaches a child through its environment only, never as an argument or in a file, an event or a log. Models with
code of their own run only if they were named at the start, never because a config or an adapter asks for it.
"""

import difflib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlencode

from lora_studio.errors import StudioError
from lora_studio.units import dollars, shorten

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo

VARIABLE = "HF_TOKEN"
JOBS_TOKEN = "LORA_STUDIO_JOBS_TOKEN"
"""In the environment of a job's launcher: the token of whoever pays for it on the Hub, if not this machine's own."""
PASSWORD, USERS = "LORA_STUDIO_PASSWORD", "LORA_STUDIO_USERS"
API_KEY, TOKEN = "LORA_STUDIO_API_KEY", "LORA_STUDIO_TOKEN"
CLIENT_SECRET = "OAUTH_CLIENT_SECRET"
SERVER_KEY = "LORA_STUDIO_SERVER_KEY"
"""The key for the server that writes rows about documents."""
SECRETS = (PASSWORD, USERS, API_KEY, TOKEN, CLIENT_SECRET, SERVER_KEY)
"""Variables of the server's environment that no child inherits."""
VISITORS = ("hub-", "guest-")
"""How the names of visitors of a public demonstration begin: with an account of the Hub, and without."""
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


@dataclass(frozen=True, slots=True)
class Charge:
    """What a job on a rented machine costs. At the time `measured` it had run for `seconds`, and is `running` or not.

    `spent` are dollars of earlier jobs of the same run. `stage` is what it does there, in a word, `since` that time.
    `trouble` is what keeps this machine from following it.
    """

    hardware: str
    dollars_per_hour: float
    max_seconds: float
    seconds: float = 0.0
    measured: float = 0.0
    running: bool = False
    spent: float = 0.0
    stage: str = ""
    since: float = 0.0
    url: str = ""
    trouble: str = ""

    def at(self, now: float) -> float:
        """Dollars so far: the Hub's own count of running seconds, and the time since it was asked."""
        seconds = self.seconds + (max(0.0, now - self.measured) if self.running else 0.0)
        return self.spent + self.dollars_per_hour * min(seconds, self.max_seconds) / 3600

    @property
    def most(self) -> float:
        """Dollars at most, if it runs until its time limit."""
        return self.spent + self.dollars_per_hour * self.max_seconds / 3600


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


TOKENS_PAGE = "https://huggingface.co/settings/tokens"
BILLING_PAGE = "https://huggingface.co/settings/billing"
_PER_HOUR = {"second": 3600.0, "minute": 60.0, "hour": 1.0}


@dataclass(frozen=True, slots=True)
class Offer:
    """What a job would run on and cost: dollars an hour, and at most until its time limit. `memory` are the bytes of
    one of its GPUs, of a machine without any its own; None where the Hub does not tell."""

    account: str
    namespace: str
    hardware: str
    dollars_per_hour: float
    seconds: int
    memory: int | None = None

    @property
    def most(self) -> float:
        return self.dollars_per_hour * self.seconds / 3600

    @property
    def words(self) -> str:
        return f"{self.hardware}: {self.rate}, at most {dollars(self.most)} in {self.seconds / 3600:g} h."

    @property
    def brief(self) -> tuple[str, str]:
        """The cost at most, and how it comes about."""
        return f"≤ {dollars(self.most)}", f"{self.rate}, {self.seconds / 3600:g} h at most"

    @property
    def rate(self) -> str:
        return f"{dollars(self.dollars_per_hour)} per hour"


def token_in(env: Mapping[str, str]) -> str:
    """The token that pays for a job: the one that the environment of its child brings, else this machine's own; "" for
    none. What a visitor may not use stands there as an empty one."""
    if env.get(JOBS_TOKEN):
        return env[JOBS_TOKEN]
    if VARIABLE in env:
        return env[VARIABLE].strip()
    from huggingface_hub import get_token

    return os.environ.get(VARIABLE, "").strip() or get_token() or ""


OWN_ACCOUNT = "Hugging Face Jobs needs your own account.", "Log in with Hugging Face, and allow it to run jobs."
"""What a visitor reads who has given no token for it."""


def jobs_offer(
    flavor: str, seconds: int, token: str, *, namespace: str = "", prepaid: bool = False, visitor: bool = False
) -> Offer:
    """What a job on that hardware would cost. Asks the Hub; raises `StudioError` for whatever it would refuse.

    A `visitor` pays with their own account, whatever `namespace` says.
    """
    if not token and visitor:
        raise StudioError(*OWN_ACCOUNT)
    if not token:
        raise StudioError(
            "No Hub token is configured.",
            f"Set HF_TOKEN before the start, or log in with `hf auth login`. Create one that may write: {TOKENS_PAGE}.",
        )
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with hub_words(namespace):
        account = api.whoami()
        hardware = api.list_jobs_hardware()
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise StudioError("This Hub token is read-only.", f"Create a token that may write and run jobs: {TOKENS_PAGE}.")
    name = str(account["name"])
    namespace = name if visitor or not namespace else namespace
    payer = _payer(account, namespace)
    if payer.get("canPay") is False and not prepaid:
        raise StudioError(
            f"{namespace} has no payment method on the Hub.",
            f"Add one: {BILLING_PAGE}. If it has prepaid credits, set prepaid in the target.",
        )
    machine = _flavor(hardware, flavor)
    return Offer(name, namespace, hardware_words(machine), dollars_per_hour(machine), seconds, device_memory(machine))


def _payer(account: Mapping[str, object], namespace: str) -> Mapping[str, object]:
    """The account or organization that pays, as the Hub describes it to the token's owner."""
    if namespace == account["name"]:
        return account
    listed = account.get("orgs")
    organizations = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    member = next((item for item in organizations if item.get("name") == namespace), None)
    if member is None:
        names = ", ".join([str(account["name"]), *(str(item.get("name")) for item in organizations)])
        raise StudioError(f"This token cannot run jobs for {namespace}.", f"It can for: {names}.")
    if member.get("roleInOrg") == "read":
        raise StudioError(
            f"You may only read in {namespace}, which runs no jobs.", "Ask its admin for the role contributor."
        )
    return member


def _flavor(hardware: Iterable["JobHardwareInfo"], name: str) -> "JobHardwareInfo":
    machines = {machine.name: machine for machine in hardware}
    if name in machines:
        return machines[name]
    near = difflib.get_close_matches(name, machines, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise StudioError(f"Hugging Face Jobs has no hardware {name}.", f"{hint}There are: {', '.join(machines)}.")


def hardware_words(machine: "JobHardwareInfo") -> str:
    """Nvidia A10G - small, 1 x A10G with 24 GB; CPU Basic, 2 vCPU with 16 GB."""
    gpu = machine.accelerator
    inside = f"{gpu.quantity} x {gpu.model} with {gpu.vram}" if gpu else f"{machine.cpu} with {machine.ram}"
    return f"{machine.pretty_name}, {inside}"


_SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def device_memory(machine: "JobHardwareInfo") -> int | None:
    """Bytes of one GPU of a machine, else of the machine; None where the Hub names no size. It tells the memory of all
    GPUs together (`JobAccelerator.vram`), in the GB of data sheets. They are taken for 10⁹ bytes, for a part of the GiB
    that a sheet may mean is not to be had: of the 24 of an A10G a program sees 22.5 GiB."""
    gpu = machine.accelerator
    size = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(MB|GB|TB)", (gpu.vram if gpu else machine.ram).strip())
    count = int(gpu.quantity) if gpu and gpu.quantity.isdecimal() else 1
    return round(float(size[1]) * _SIZES[size[2]] / count) if size and count else None


def dollars_per_hour(machine: "JobHardwareInfo") -> float:
    """The price, from that of whichever unit of time the Hub names. Raises `StudioError` for another unit."""
    if machine.unit_label not in _PER_HOUR:
        raise StudioError(f"The Hub names a price per {machine.unit_label}, which is not understood.")
    return machine.unit_cost_usd * _PER_HOUR[machine.unit_label]


_TOKEN_LIKE = re.compile(r"hf_[A-Za-z0-9]{8,}")


def without_tokens(text: str, *tokens: str) -> str:
    """A text without what looks like a token of the Hub."""
    for token in filter(None, tokens):
        text = text.replace(token, "hf_…")
    return _TOKEN_LIKE.sub("hf_…", text)


@contextmanager
def hub_words(namespace: str = "") -> Iterator[None]:
    """What the Hub refuses, and a Hub that can't be reached, as `StudioError`."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        yield
    except OfflineModeIsEnabled:
        raise StudioError("HF_HUB_OFFLINE disables the Hub.", "Unset it to use Hugging Face Jobs.") from None
    except HfHubHTTPError as error:
        raise refusal(error.response.status_code, error.server_message or "", namespace) from None
    except (httpx.HTTPError, OSError) as error:
        raise HubAwayError(
            f"The Hub cannot be reached: {without_tokens(str(error)) or type(error).__name__}.", "Try again."
        ) from None


class HubAwayError(StudioError):
    """The Hub can't be reached now, or has a problem of its own: the same may work later."""


def refusal(status: int, message: str, namespace: str) -> StudioError:
    """What an HTTP status of the Hub means."""
    whom = namespace or "this account"
    if status == 401:
        return StudioError("The Hub does not accept this token.", f"Create a new one: {TOKENS_PAGE}.")
    if status == 402:
        return StudioError(f"The Hub takes no jobs from {whom} without payment.", f"Add credits: {BILLING_PAGE}.")
    if status == 403:
        return StudioError(
            f"This token may not run jobs for {whom}.", f"Give it the right to write and to run jobs: {TOKENS_PAGE}."
        )
    if status == 429:
        return HubAwayError("The Hub has had too many requests from here.", "Try again in a few minutes.")
    if status >= 500:
        return HubAwayError(f"The Hub has a problem (status {status}).", "Try again later.")
    return StudioError(f"The Hub refused: {without_tokens(message)[:300] or f'status {status}'}.")


PRICES_SECONDS, NO_PRICES_SECONDS, PATIENCE_SECONDS = 600.0, 60.0, 2.0
_prices: dict[str, Future[list["JobHardwareInfo"]]] = {}
_asked: dict[str, float] = {}


def usual_offer(flavor: str, seconds: int) -> Offer | None:
    """What a job on that hardware costs, for whoever only wants to know; None where the Hub does not tell within a
    moment. Prices are public, and asked for again after ten minutes."""
    from huggingface_hub import HfApi

    api = HfApi(token=False)
    future, age = _prices.get(api.endpoint), time.monotonic() - _asked.get(api.endpoint, 0.0)
    failed = future is not None and future.done() and future.exception() is not None
    if future is None or age > (NO_PRICES_SECONDS if failed else PRICES_SECONDS):
        _asked[api.endpoint] = time.monotonic()
        future = _prices[api.endpoint] = Future()
        threading.Thread(target=_answer, args=(future, api.list_jobs_hardware), daemon=True).start()
    try:
        with hub_words():
            machine = _flavor(future.result(PATIENCE_SECONDS), flavor)
            return Offer("", "", hardware_words(machine), dollars_per_hour(machine), seconds, device_memory(machine))
    except StudioError:
        return None


def _answer(future: "Future[list[JobHardwareInfo]]", ask: Callable[[], "list[JobHardwareInfo]"]) -> None:
    from huggingface_hub.utils import httpx

    try:
        future.set_result(ask())
    except (httpx.HTTPError, OSError) as error:
        future.set_exception(error)
