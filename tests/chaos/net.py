"""The network of one run: a namespace for each node and each etcd member, joined by a bridge in a hub of its own.

The hub is the network namespace of the process that calls this (`tests.chaos.outside` makes it), so nothing in the
machine's own namespace is touched. It is torn down by the kernel when the run's processes are gone.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

NAMESPACES = Path("/run/netns")
BRIDGE = "chaos0"
HUB_ADDRESS = "10.77.0.1"
PREFIX_LENGTH = 24
CLONE_NEWNET = 0x40000000
"""Source: setns(2)."""

PROGRAMS = ("ip", "nft", "unshare", "nsenter", "mount", "fsfreeze", "losetup", "mkfs.ext4")
Direction = Literal["both", "in", "out"]

_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why this machine cannot run it; None when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: install iproute2, nftables, util-linux and e2fsprogs"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this machine allows no namespaces (in a container: --privileged)"


def why_no_disks() -> str | None:
    """Why this machine has no disks to fill; None when it has."""
    tried = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "there are no loop devices (modprobe loop)"


def run(*words: str) -> str:
    """What a program prints. Raises: RuntimeError with what it said when it fails."""
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: status {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout


def namespace(name: str) -> Path:
    """The file that stands for a host's network namespace."""
    return NAMESPACES / name


def entering(name: str) -> tuple[str, ...]:
    """Words before a command that make it run in a host's network namespace. Source: nsenter(1)."""
    return ("nsenter", f"--net={namespace(name)}", "--")


def enter(name: str) -> None:
    """The calling thread, and it alone, opens its sockets in a host's namespace from now on. Source: setns(2)."""
    descriptor = os.open(namespace(name), os.O_RDONLY)
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {name}")
    finally:
        os.close(descriptor)


class Net:
    """The hub and its hosts."""

    def __init__(self) -> None:
        """Makes the hub; needs a mount namespace of its own, for /run is laid over."""
        self.addresses: dict[str, str] = {}
        run("mount", "-t", "tmpfs", "none", str(NAMESPACES.parent))
        NAMESPACES.mkdir()
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{HUB_ADDRESS}/{PREFIX_LENGTH}", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")

    def add(self, name: str, number: int) -> str:
        """A new host on the bridge; its address, which ends in `number`."""
        address = self.addresses[name] = f"10.77.0.{number}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"v-{name}", "master", BRIDGE, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "address", "add", f"{address}/{PREFIX_LENGTH}", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        return address

    def cut(self, name: str, others: Collection[str], direction: Direction = "both") -> None:
        """Packets between a host and others vanish at the host, in one direction or both, until `mend`."""
        addresses = ", ".join(self.addresses[other] for other in others)
        rules = ["add table inet chaos", "flush table inet chaos"]
        for hook, field in _hooks(direction):
            rules.append(f"add chain inet chaos {hook} {{ type filter hook {hook} priority 0; }}")
            rules.append(f"add rule inet chaos {hook} ip {field} {{ {addresses} }} drop")
        run(*entering(name), "nft", "; ".join(rules))

    def mend(self, name: str) -> None:
        """Every packet passes again."""
        run(*entering(name), "nft", "add table inet chaos; delete table inet chaos")

    @contextmanager
    def cut_off(self, name: str, others: Collection[str], direction: Direction = "both") -> Iterator[None]:
        """Inside, packets between a host and others vanish."""
        self.cut(name, others, direction)
        try:
            yield
        finally:
            self.mend(name)


def _hooks(direction: Direction) -> Sequence[tuple[str, str]]:
    both = (("input", "saddr"), ("output", "daddr"))
    return {"both": both, "in": both[:1], "out": both[1:]}[direction]
