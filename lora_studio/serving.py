"""How the page is served, for `app.py` and the `ui` command alike: address, logins, folders, and the flags for them.

Every flag has a variable of the environment, which a container sets; a flag wins.
"""

import argparse
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.accounts import OWNER, PASSWORD, USERS, USERS_FILE, Accounts, read_accounts, read_api_key
from lora_studio.errors import StudioError
from lora_studio.space import HubApp, hosts, hub_app, in_space

HOST, PORT, FOLDERS, MAX_UPLOAD = (
    "LORA_STUDIO_HOST",
    "LORA_STUDIO_PORT",
    "LORA_STUDIO_FOLDERS",
    "LORA_STUDIO_MAX_UPLOAD_GB",
)


EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what stands for all addresses, and the one of them to open
GUEST_GB = 0.005  # largest file that a guest may upload
QUOTA = "LORA_STUDIO_QUOTA_GB"
USUAL_QUOTA_GB, GUEST_QUOTA_GB = 20.0, 0.1


@dataclass(frozen=True)
class Serving:
    """How the page is served. `folders` may be read by visitors beside the workspace; sizes in GB of 10^9 bytes.
    `quota_gb` is what each visitor but the owner may fill of the disk.

    With `guests` everybody gets in, and may do what guests.py says; whoever owns the Hub account that `hub_app` names
    logs in there and may do everything. `names` are hosts that a page of ours may have, whatever a proxy says.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    accounts: Accounts | None = None
    insecure: bool = False
    folders: tuple[Path, ...] = ()
    max_upload_gb: float = 2.0
    quota_gb: float = USUAL_QUOTA_GB
    api_key: str | None = field(default=None, repr=False)
    guests: bool = False
    hub_app: HubApp | None = None
    names: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether only programs of this machine reach the page."""
        return is_loopback(self.host)

    @property
    def owner(self) -> str:
        """The name of whoever sees and may do everything."""
        return self.accounts.owner if self.accounts else OWNER

    @property
    def several(self) -> bool:
        """Whether visitors are told apart."""
        return self.guests or (self.accounts is not None and self.accounts.several)

    @property
    def trusts_visitors(self) -> bool:
        """Whether whoever has the page open is at this machine and may name any of its files."""
        return self.local and self.accounts is None and not self.insecure and not self.guests


def reachable(host: str) -> str:
    """The address under which this machine's own programs reach a server that listens on `host`."""
    name = EVERYWHERE.get(host.strip("[]"), host)
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def address_words(host: str, port: int) -> str:
    """Where the page is, to be opened as it stands, and who else reaches it."""
    here = f"LoRA Studio is on http://{reachable(host)}:{port}"
    if is_loopback(host):
        return here
    who = "every address of this machine" if host.strip("[]") in EVERYWHERE else host
    return f"{here}\nIt listens on {who}: other machines that reach it use that machine's name and port {port}."


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own and no other machine's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a server, the same wherever one is started. Whoever starts it adds `--workspace`."""
    parser.add_argument("--host", help=f"address to listen on (else {HOST}, else 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help=f"port to listen on (else {PORT}, else 7860)")
    parser.add_argument(
        "--users-file", metavar="FILE", help=f"name:password lines, the owner's first (else {USERS_FILE})"
    )
    parser.add_argument(
        "--guests",
        action="store_true",
        help="let everybody in to try the built-in model within limits, as a Space does",
    )
    parser.add_argument("--insecure", action="store_true", help="listen for other machines without any login")
    parser.add_argument(
        "--folder",
        action="append",
        metavar="DIR",
        help=f"data and models that visitors may use where they lie, more than once (else {FOLDERS})",
    )
    parser.add_argument(
        "--max-upload-gb", type=float, metavar="GB", help=f"largest file to upload (else {MAX_UPLOAD}, else 2)"
    )
    parser.add_argument(
        "--quota-gb",
        type=float,
        metavar="GB",
        help=f"disk that each visitor but the owner may fill (else {QUOTA}, else 20; of guests 0.1)",
    )


def from_flags(given: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Serving:
    """What flags and environment say, checked. Raises `StudioError` for what would be open to everybody."""
    accounts = read_accounts(given.users_file, environment)
    guests = given.guests or (in_space(environment) and accounts is None and not given.insecure)
    if guests and accounts:
        raise StudioError("Guests are let in, and a login is asked for.", "Choose one of both.")
    host = given.host or environment.get(HOST) or environment.get("GRADIO_SERVER_NAME")
    port = environment.get(PORT) or environment.get("GRADIO_SERVER_PORT")
    folders = given.folder or [part for part in environment.get(FOLDERS, "").split(os.pathsep) if part]
    serving = Serving(
        host=host or ("0.0.0.0" if in_space(environment) else "127.0.0.1"),
        port=given.port if given.port is not None else int(_number(PORT, port, 7860)),
        accounts=accounts,
        insecure=given.insecure,
        api_key=read_api_key(environment),
        folders=tuple(_folder(folder) for folder in folders),
        max_upload_gb=_size("--max-upload-gb", given.max_upload_gb, MAX_UPLOAD, environment, GUEST_GB if guests else 2),
        quota_gb=_size("--quota-gb", given.quota_gb, QUOTA, environment, GUEST_QUOTA_GB if guests else USUAL_QUOTA_GB),
        guests=guests,
        hub_app=hub_app(environment) if guests else None,
        names=hosts(environment),
    )
    check_exposure(serving)
    return serving


def _size(flag: str, given: float | None, name: str, environment: Mapping[str, str], default: float) -> float:
    """A size in GB, of a flag or of the environment."""
    return _number(name, environment.get(name), default) if given is None else _number(flag, str(given), default)


def _number(name: str, given: str | None, default: float) -> float:
    try:
        number = float(given or default)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e6:
        raise StudioError(f"{name} is {given!r}, which is no usable number.", f"The default is {default}.")
    return number


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise StudioError(f"There is no folder {name} to share with visitors.", "Name one that is there.")
    return folder.resolve()


def check_exposure(serving: Serving) -> None:
    """Refuses to listen beyond this machine without a login: whoever reaches the page can use the machine."""
    if serving.local or serving.accounts or serving.insecure or serving.guests:
        return
    raise StudioError(
        f"Listening on {serving.host} lets other machines use this one, and there is no login.",
        f"Set {PASSWORD} or {USERS} in the environment, give --users-file, or listen on 127.0.0.1; --insecure lets "
        "everybody in.",
    )
