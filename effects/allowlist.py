"""Who may ask a node to change something, by address. Source: Patroni, restapi.allowlist, allowlist_include_members."""

import ipaddress
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

import anyio

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESOLVE_WITHIN_S = 2.0

logger = logging.getLogger(__name__)


class Allowlist:
    """Addresses, networks and host names from which requests that change something are taken."""

    def __init__(self, entries: Iterable[str] = (), *, has_members: bool = False) -> None:
        """`entries`: addresses, networks (CIDR) and host names. `has_members`: the cluster's members are in as well."""
        self._networks, self._hosts = _sorted_out(entries)
        self._has_members = has_members
        self._is_open = not self._networks and not self._hosts and not has_members

    async def admits(self, address: str, member_urls: Iterable[str] = ()) -> bool:
        """True when requests from this address are taken.

        member_urls: where the members' APIs are. Names are looked up anew each time: they may move.
        """
        if self._is_open:
            return True
        try:
            asking = _plain(ipaddress.ip_address(address))
        except ValueError:
            return False
        if any(asking in network for network in self._networks):
            return True
        members = [urlsplit(url).hostname or "" for url in member_urls] if self._has_members else []
        return asking in await _addresses([*self._hosts, *filter(None, members)])


def _sorted_out(entries: Iterable[str]) -> tuple[list[Network], list[str]]:
    networks: list[Network] = []
    hosts: list[str] = []
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry.strip(), strict=False))
        except ValueError:
            hosts.append(entry.strip())
    return networks, hosts


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address as such, also where it came through an IPv6 socket. Source: RFC 4291, 2.5.5.2."""
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


async def _addresses(hosts: list[str]) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of these hosts; those that cannot be looked up in time have none."""
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()

    async def look_up(host: str) -> None:
        try:
            for _, _, _, _, address in await anyio.getaddrinfo(host, None):
                found.add(_plain(ipaddress.ip_address(str(address[0]).partition("%")[0])))
        except (OSError, ValueError) as error:
            logger.warning("restapi.allowlist: %s cannot be looked up: %s", host, error)

    with anyio.move_on_after(RESOLVE_WITHIN_S):
        async with anyio.create_task_group() as tasks:
            for host in set(hosts):
                tasks.start_soon(look_up, host)
    return found
