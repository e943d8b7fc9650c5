"""Network addresses: which are this machine's own, which belong to one person, which a proxy may have."""

import ipaddress
from collections.abc import Sequence

from lora_studio.errors import StudioError

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what stands for all addresses, and the one of them to open
# Behind these stands the proxy of a Space, which nothing but that proxy reaches.
PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "::1")
_NETWORK_OF_ONE = 64  # leading bits of an IPv6 address that one connection to the internet has to itself


def reachable(host: str) -> str:
    """The address under which this machine's own programs reach a server that listens on `host`."""
    name = EVERYWHERE.get(host.strip("[]"), host)
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own and no other machine's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def of_one_person(address: str) -> str:
    """What the addresses that one person can choose among have in common: an IPv4 address, 64 bits of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), _NETWORK_OF_ONE), strict=False))


def is_among(address: str, networks: Sequence[str]) -> bool:
    """Whether an address is one of these, or in one of these networks."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network) for network in networks)


def checked_proxies(names: Sequence[str]) -> tuple[str, ...]:
    """Addresses and networks of proxies in one spelling. Raises `StudioError` for what is neither."""
    found = []
    for name in names:
        try:
            network = ipaddress.ip_network(name.strip())
        except ValueError as error:
            raise StudioError(
                f"{name!r} is no address or network of a proxy: {error}.", "Give one such as 10.0.0.5 or 10.0.0.0/8."
            ) from None
        if network.prefixlen == 0:
            raise StudioError(
                f"{name} stands for every address, so that anybody could claim to be anybody.",
                "Name the proxy's own address, such as 10.0.0.5.",
            )
        single = network.prefixlen == network.max_prefixlen
        found.append(str(network.network_address) if single else str(network))
    return tuple(found)
