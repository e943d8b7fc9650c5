"""How the page is served, for both `app.py` and the `ui` command: address, logins, folders, and their flags.

Every flag also has an environment variable, for containers; the flag takes precedence.
"""

import argparse
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.access.accounts import (
    EVERYWHERE,
    MIN_KEY,
    OWNER,
    PRIVATE_NETWORKS,
    USERS_FILE,
    Accounts,
    checked_proxies,
    is_loopback,
    reachable,
    read_accounts,
    read_api_key,
)
from lora_studio.errors import StudioError
from lora_studio.models.hub import PASSWORD, TOKEN, USERS, HubApp, hosts, hub_app
from lora_studio.workspace import in_space

HOST, PORT, FOLDERS, MAX_UPLOAD = (
    "LORA_STUDIO_HOST",
    "LORA_STUDIO_PORT",
    "LORA_STUDIO_FOLDERS",
    "LORA_STUDIO_MAX_UPLOAD_GB",
)
PROXIES, NAMES = "LORA_STUDIO_TRUSTED_PROXIES", "LORA_STUDIO_ALLOWED_HOSTS"
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")

MAX_PORT = 65535
GUEST_GB = 0.005  # largest file that a guest may upload
QUOTA, SHARE = "LORA_STUDIO_QUOTA_GB", "LORA_STUDIO_DEVICES_PER_VISITOR"
USUAL_QUOTA_GB, GUEST_QUOTA_GB = 20.0, 0.1


@dataclass(frozen=True)
class Serving:
    """How the page is served. `folders` may be read by visitors beside the workspace; sizes are in GB of 10^9 bytes.
    `quota_gb` is the disk space of each visitor except the owner, `device_share` how many devices their jobs may hold
    at a time.

    With `guests` everybody is admitted, within the limits of guests.py; the Hub account named by `hub_app` logs in as
    the owner. `names` are the hosts that serve the page, whatever a proxy reports.

    The forwarded client address counts only if the request comes from one of `proxies`. With `allowed_hosts` the page
    answers to these names only.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    accounts: Accounts | None = None
    insecure: bool = False
    folders: tuple[Path, ...] = ()
    max_upload_gb: float = 2.0
    quota_gb: float = USUAL_QUOTA_GB
    device_share: int = 1
    api_key: str | None = field(default=None, repr=False)
    guests: bool = False
    hub_app: HubApp | None = None
    names: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether only programs on this machine can reach the page."""
        return is_loopback(self.host)

    @property
    def owner(self) -> str:
        """The name of the user who sees and may do everything."""
        return self.accounts.owner if self.accounts else OWNER

    @property
    def several(self) -> bool:
        """Whether visitors are told apart."""
        return self.guests or (self.accounts is not None and self.accounts.several)

    @property
    def trusts_visitors(self) -> bool:
        """Whether whoever opens the page is at this machine and may name any of its files."""
        alone = self.accounts is None or self.accounts.token != ""
        return self.local and alone and not self.insecure and not self.guests

    @property
    def page_names(self) -> tuple[str, ...] | None:
        """The hosts that the page answers to besides this machine's own names; None for any.

        If only this machine reaches the page and no password protects it, another host name means that a page of
        another site is directing the owner's browser here (DNS rebinding).
        """
        if self.allowed_hosts:
            return (*self.allowed_hosts, *self.names)
        alone = self.accounts.token != "" if self.accounts else not self.guests
        return () if self.local and alone else None


def readable_by(folder: Path) -> str:
    """Which other users of this machine may read a folder, in words; "" for none, and on systems that do not tell."""
    mode = folder.stat().st_mode if os.name == "posix" else 0
    return "everybody" if mode & stat.S_IRWXO else "its group" if mode & stat.S_IRWXG else ""


def page_address(serving: Serving) -> str:
    """The URL to open on this machine; with a token, the URL itself grants access."""
    token = f"/?token={serving.accounts.token}" if serving.accounts and serving.accounts.token else ""
    return f"http://{reachable(serving.host)}:{serving.port}{token}"


def address_words(serving: Serving) -> str:
    """The page's URL, and who else can reach it."""
    host, port = serving.host, serving.port
    here = f"LoRA Studio is on {page_address(serving)}"
    if is_loopback(host):
        return here
    who = "every address of this machine" if host.strip("[]") in EVERYWHERE else host
    return f"{here}\nIt listens on {who}. From other machines, use the name of this machine and port {port}."


def where_words(workspace: Path, *, container: bool = False) -> str:
    """Where everything is kept and how to end the server, for the terminal that it was started in. A container ends
    with all that runs in it."""
    rest = (
        "a training run saves a checkpoint, and continues at the next start."
        if container
        else "a training run goes on without the page, and the next start finds it."
    )
    return f"Runs, uploads and adapters are kept in {workspace}\nStop with Ctrl-C: {rest}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a server, shared by all entry points. The caller adds `--workspace`."""
    parser.add_argument("--host", help=f"address to listen on (default: {HOST}, else 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, help=f"port to listen on (default: {PORT}, else 7860)")
    parser.add_argument(
        "--users-file", metavar="FILE", help=f"file of name:password lines, the owner first (default: {USERS_FILE})"
    )
    parser.add_argument(
        "--guests",
        action="store_true",
        help="let anyone try the built-in model within limits, as in a Space",
    )
    parser.add_argument(
        "--insecure", action="store_true", help=("accept connections from other machines without a login")
    )
    parser.add_argument(
        "--token",
        action="store_true",
        help=(
            "require an access token, which is part of the printed address; for a machine with other users "
            f"(default: {TOKEN})"
        ),
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        metavar="ADDRESS",
        help=f"address or network of a proxy whose X-Forwarded-For is trusted; repeatable (default: {PROXIES})",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help=f"host name that the page answers to, besides this machine's; repeatable (default: {NAMES})",
    )
    parser.add_argument(
        "--folder",
        action="append",
        metavar="DIR",
        help=f"folder of data or models that visitors may use; repeatable (default: {FOLDERS})",
    )
    parser.add_argument(
        "--max-upload-gb", type=float, metavar="GB", help=f"largest upload in GB (default: {MAX_UPLOAD}, else 2)"
    )
    parser.add_argument(
        "--quota-gb",
        type=float,
        metavar="GB",
        help=f"disk quota of each visitor except the owner in GB (default: {QUOTA}, else 20; guests: 0.1)",
    )
    parser.add_argument(
        "--devices-per-visitor",
        type=int,
        metavar="N",
        help=f"devices that the jobs of a visitor except the owner may use at a time (default: {SHARE}, else 1)",
    )


def _checked_port(port: float) -> int:
    if port != int(port) or not 1 <= port <= MAX_PORT:
        raise StudioError(f"There is no port {port:g}.", f"Use a number from 1 to {MAX_PORT} for --port or {PORT}.")
    return int(port)


def from_flags(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Serving:
    """The checked settings from flags and environment. Raises `StudioError` if they would open the page to anyone."""
    accounts, alone = read_accounts(args.users_file, environment), _token(args, environment)
    if accounts and alone:
        raise StudioError("Both passwords and a token are configured.", "Use only one of them.")
    accounts = accounts or alone
    guests = args.guests or (in_space(environment) and accounts is None and not args.insecure)
    if guests and accounts:
        raise StudioError("Guests are allowed, but a login is required too.", "Use only one of them.")
    host = args.host or environment.get(HOST) or environment.get("GRADIO_SERVER_NAME")
    port = environment.get(PORT) or environment.get("GRADIO_SERVER_PORT")
    folders = args.folder or [part for part in environment.get(FOLDERS, "").split(os.pathsep) if part]
    serving = Serving(
        host=host or ("0.0.0.0" if in_space(environment) else "127.0.0.1"),
        port=_checked_port(args.port if args.port is not None else _number(PORT, port, 7860)),
        accounts=accounts,
        insecure=args.insecure,
        api_key=read_api_key(environment),
        folders=tuple(_folder(folder) for folder in folders),
        max_upload_gb=_size("--max-upload-gb", args.max_upload_gb, MAX_UPLOAD, environment, GUEST_GB if guests else 2),
        quota_gb=_size("--quota-gb", args.quota_gb, QUOTA, environment, GUEST_QUOTA_GB if guests else USUAL_QUOTA_GB),
        device_share=_share(args.devices_per_visitor, environment),
        guests=guests,
        hub_app=hub_app(environment) if guests else None,
        names=hosts(environment),
        proxies=_proxies(args, environment),
        allowed_hosts=_allowed_hosts(args, environment),
    )
    check_exposure(serving)
    return serving


def _token(args: argparse.Namespace, environment: Mapping[str, str]) -> Accounts | None:
    """An account for the owner alone, who is admitted by a token: the environment's, or a new one."""
    token = environment.get(TOKEN) or ""
    if token and len(token) < MIN_KEY:
        raise StudioError(
            f"{TOKEN} has only {len(token)} characters and could be guessed.",
            f"Use at least {MIN_KEY} characters, or start with --token, which generates one.",
        )
    if token and not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise StudioError(
            f"{TOKEN} contains characters that cannot be part of an address.",
            "Use letters, digits, dots, dashes and underscores.",
        )
    if args.token or token:
        token = token or secrets.token_hex(24)
        return Accounts({OWNER: token}, OWNER, one=True, token=token)
    return None


def _proxies(args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The declared proxies; on a Space, by default, those in front of it."""
    addresses = args.trusted_proxy or _words(environment, PROXIES)
    return checked_proxies(addresses) if addresses else PRIVATE_NETWORKS if in_space(environment) else ()


def _allowed_hosts(args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[str, ...]:
    names = [name.strip().lower() for name in args.allowed_host or _words(environment, NAMES)]
    if wrong := [name for name in names if not _HOST_NAME.fullmatch(name)]:
        raise StudioError(
            f"{wrong[0]!r} is not a host name.",
            "Write it as shown in the browser, without http:// and path: studio.example.org",
        )
    return tuple(names)


def _words(environment: Mapping[str, str], name: str) -> list[str]:
    return [word.strip() for word in environment.get(name, "").split(",") if word.strip()]


def _size(flag: str, value: float | None, name: str, environment: Mapping[str, str], default: float) -> float:
    """A size in GB, from a flag or the environment."""
    return _number(name, environment.get(name), default) if value is None else _number(flag, str(value), default)


def _number(name: str, text: str | None, default: float) -> float:
    try:
        number = float(text or default)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e6:
        raise StudioError(f"{name} is {text!r}, which is not a valid number.", f"The default is {default}.")
    return number


def _share(value: int | None, environment: Mapping[str, str]) -> int:
    """How many devices a visitor's jobs may hold, from the flag or the environment."""
    name, text = ("--devices-per-visitor", str(value)) if value is not None else (SHARE, environment.get(SHARE) or "1")
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text.strip()):
        raise StudioError(f"{name} is {text!r}, which is not a number of devices.", "Give a whole number from 1.")
    return int(text)


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise StudioError(f"The folder {name}, to be shared with visitors, does not exist.", "Give an existing folder.")
    return folder.resolve()


def check_exposure(serving: Serving) -> None:
    """Refuses to listen beyond this machine without a login: whoever reaches the page can use the machine."""
    if serving.local or serving.accounts or serving.insecure or serving.guests:
        return
    raise StudioError(
        f"Listening on {serving.host} makes this page available to other machines, but no login is configured.",
        f"Set {PASSWORD} or {USERS} in the environment, use --users-file, or listen on 127.0.0.1. --insecure allows "
        "access without a login.",
    )
