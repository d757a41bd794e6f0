"""A Docker daemon for the tests alone: nothing of it touches one that may be running, and nothing of it stays."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from effects.clock import now_ms
from effects.programs import dying_with_the_parent

PACKAGES = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "debootstrap": "debootstrap",
}
"""Each program that is needed, and Debian's package of it."""
START_TIMEOUT_MS, STOP_TIMEOUT_S, POLL_S = 60_000, 120, 0.1
ADDRESSES = "base=172.31.192.0/20,size=24"
"""Where the containers' networks lie: the far end of a private range, which few use."""


def given_daemon() -> str:
    """The address of a running daemon that the tests were told to use, or ""."""
    return os.environ.get("DOCKER_HOST", "")


def why_not() -> str:
    """Why the tests cannot run here, with the remedy; "" if they can."""
    if given_daemon():
        programs = ["docker"] if has_compose_plugin() else ["docker", "docker-compose"]
    elif os.geteuid() != 0:
        return (
            "only root can start dockerd; run as root, or name a running one: DOCKER_HOST=unix:///var/run/docker.sock"
        )
    else:
        programs = [program for program in PACKAGES if not (program == "docker-compose" and has_compose_plugin())]
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return ""
    packages = " ".join(sorted({PACKAGES[program] for program in missing}))
    return f"{', '.join(missing)} not found; apt-get install --no-install-recommends {packages}"


def has_compose_plugin() -> bool:
    """True when `docker compose` is there (Compose v2)."""
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


def cache_directory() -> Path:
    """Where images stay for the next run: about 2 GB, to be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "matriarch" / "compose-test"


@contextlib.contextmanager
def docker_daemon() -> Iterator[str]:
    """The address of a daemon: the given one, else one started here and ended with the block."""
    if given_daemon():
        yield given_daemon()
        return
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="matriarch-docker-") as directory:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits for the first: the images are one daemon's at a time
        with _running(Path(directory), cache / "docker") as address:
            _clear_away(address)
            try:
                yield address
            finally:
                _clear_away(address)


@contextlib.contextmanager
def _running(directory: Path, data_root: Path) -> Iterator[str]:
    address, output = f"unix://{directory}/docker.sock", directory / "dockerd.log"
    (directory / "daemon.json").write_text("{}\n")
    with output.open("w") as log:
        daemon = subprocess.Popen(
            [*dying_with_the_parent("TERM"), *_command(directory, data_root, address)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(daemon, address, output)
        yield address
    finally:
        _end(daemon, directory)


def _command(directory: Path, data_root: Path, address: str) -> list[str]:
    """dockerd without a bridge of its own and without a rule for the packet filter: those are the whole machine's.

    Containers of one network reach each other over its bridge, published ports go through docker-proxy, and a build
    uses the machine's own network.
    """
    return [
        "dockerd",
        f"--config-file={directory / 'daemon.json'}",
        f"--data-root={data_root}",
        f"--exec-root={directory / 'exec'}",
        f"--pidfile={directory / 'dockerd.pid'}",
        f"--host={address}",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-masq=false",
        "--ip-forward=false",
        f"--default-address-pool={ADDRESSES}",
        "--log-level=warn",
    ]


def _wait_until_it_answers(daemon: subprocess.Popen[bytes], address: str, output: Path) -> None:
    deadline_ms = now_ms() + START_TIMEOUT_MS
    while subprocess.run(["docker", "--host", address, "version"], capture_output=True).returncode != 0:
        if daemon.poll() is not None or now_ms() > deadline_ms:
            raise AssertionError(f"dockerd does not run:\n{output.read_text()[-4000:]}")
        time.sleep(POLL_S)


def _end(daemon: subprocess.Popen[bytes], directory: Path) -> None:
    """End the daemon and its containerd, and undo the mounts that it leaves."""
    daemon.terminate()
    try:
        daemon.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((directory / "exec/containerd/containerd.pid").read_text()), signal.SIGKILL)
        raise AssertionError(f"dockerd did not end within {STOP_TIMEOUT_S} s") from None
    finally:
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounted if Path(path).is_relative_to(directory)]):
            subprocess.run(["umount", "--lazy", path], check=True)


def _clear_away(address: str) -> None:
    """Remove everything but images: what a run that was cut short left, and what this one leaves."""
    for kind, listing, removal in (
        ("container", ["ps", "--all"], ["rm", "--force"]),
        ("volume", ["volume", "ls"], ["volume", "rm", "--force"]),
    ):
        found = subprocess.run(["docker", "--host", address, *listing, "-q"], capture_output=True, text=True)
        if names := found.stdout.split():
            ended = subprocess.run(["docker", "--host", address, *removal, *names], capture_output=True, text=True)
            assert ended.returncode == 0, f"a {kind} stays: {ended.stderr}"
    for prune in (["network", "prune"], ["image", "prune", "--filter", "until=240h"]):
        subprocess.run(["docker", "--host", address, *prune, "--force"], capture_output=True, check=True)
