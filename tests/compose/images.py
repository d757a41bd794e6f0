"""The three images, built here; also where no registry of images can be reached: then Debian is made by debootstrap."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.compose.daemon import given_daemon

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("node", "etcd", "haproxy")
RELEASE, BASE_IMAGE, PLAIN_IMAGE = "bookworm", "debian:bookworm-slim", "matriarch-debian:plain"
SUITES = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
PULL_TIMEOUT_S, BUILD_TIMEOUT_S = 120, 1500
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CA_FILE = "etc/machine-ca.pem"
"""In the image. Not where the package ca-certificates would write its own."""
APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv")
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "retries", "default-timeout", "timeout")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
SLIM = ("./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*", "./usr/share/doc/*", "./usr/share/man/*")


def build_images(address: str, tag: str) -> None:
    """Build all targets of the Dockerfile as matriarch-TARGET:`tag`; what has not changed comes from the cache."""
    if not given_daemon():
        _provide_base_image(address)
    for target in TARGETS:
        _build(address, f"matriarch-{target}:{tag}", ROOT, "--target", target)


def docker(address: str, *words: str, timeout_s: int = 60, stdin: int | None = None) -> str:
    """What a docker command prints. Raises: AssertionError with its last lines when it fails."""
    # BuildKit needs a plugin that Debian's package does not have.
    environment = os.environ | ({} if given_daemon() else {"DOCKER_BUILDKIT": "0"})
    ended = subprocess.run(
        ["docker", "--host", address, *words],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout_s,
    )
    assert ended.returncode == 0, f"docker {words[0]} failed:\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def _build(address: str, image: str, directory: Path, *more: str) -> None:
    proxies = [word for name in PROXIES if name in os.environ for word in ("--build-arg", name)]
    words = ("build", "--network", "host", "--tag", image, *proxies, *more, str(directory))
    docker(address, *words, timeout_s=BUILD_TIMEOUT_S)


def _provide_base_image(address: str) -> None:
    """Debian's image with this machine's ways to reach packages: sources, proxies, indexes, certificates."""
    if not _has_image(address, PLAIN_IMAGE):
        if _is_pulled(address):
            docker(address, "tag", BASE_IMAGE, PLAIN_IMAGE)
        else:
            _import_debian(address)
    with tempfile.TemporaryDirectory(prefix="matriarch-base-") as directory:
        context = Path(directory)
        _write_machine_files(context / "machine")
        (context / "Dockerfile").write_text(f"FROM {PLAIN_IMAGE}\nCOPY machine /\n")
        _build(address, BASE_IMAGE, context)


def _has_image(address: str, image: str) -> bool:
    found = subprocess.run(["docker", "--host", address, "image", "inspect", image], capture_output=True)
    return found.returncode == 0


def _is_pulled(address: str) -> bool:
    try:
        pull = ["docker", "--host", address, "pull", "--quiet", BASE_IMAGE]
        return subprocess.run(pull, capture_output=True, timeout=PULL_TIMEOUT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _import_debian(address: str) -> None:
    """Make the smallest Debian with debootstrap, from where this machine's own apt gets it."""
    mirrors = [uri for uri, suite in _debian_sources() if suite == RELEASE]
    if not mirrors:
        pytest.skip(f"no registry of images can be reached, and this machine's apt knows no Debian {RELEASE}")
    with tempfile.TemporaryDirectory(prefix="matriarch-debian-") as directory:
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", RELEASE, directory, mirrors[0]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        assert made.returncode == 0, f"debootstrap failed:\n{made.stdout[-3000:]}\n{made.stderr[-1000:]}"
        pack = ["tar", "-C", directory, *(f"--exclude={pattern}" for pattern in SLIM), "-c", "."]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            docker(address, "import", "-", PLAIN_IMAGE, timeout_s=BUILD_TIMEOUT_S, stdin=tar.stdout.fileno())
        assert tar.returncode == 0, "tar failed"


@cache
def _debian_sources() -> list[tuple[str, str]]:
    """Address and suite of this machine's own sources of Debian's packages; empty where its apt knows none.

    Source: apt-get(8), indextargets; it lists only what `apt-get update` has fetched.
    """
    if shutil.which("apt-get") is None:
        return []
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    listed = subprocess.run(words, capture_output=True, text=True).stdout
    if not listed:
        subprocess.run(["apt-get", "-qq", "update"], stdin=subprocess.DEVNULL, capture_output=True)
        listed = subprocess.run(words, capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    found = [(row[0], row[1]) for row in rows if len(row) == 3 and row[1] in SUITES and row[2] == "main"]
    return list(dict.fromkeys(found))


def _write_machine_files(directory: Path) -> None:
    """Lay out below `directory` what a build needs to reach packages as this machine does."""
    (directory / "etc/apt/apt.conf.d").mkdir(parents=True)
    pip = _pip_settings()
    bundle = next(
        filter(None, map(_existing, (pip.pop("cert", ""), os.environ.get("SSL_CERT_FILE", ""), CA_BUNDLE))), None
    )
    lines = _apt_settings()
    if bundle is not None:
        (directory / CA_FILE).write_bytes(bundle.read_bytes())
        pip["cert"] = f"/{CA_FILE}"
        lines = [line for line in lines if "CAInfo" not in line] + [f'Acquire::https::CAInfo "/{CA_FILE}";']
    (directory / "etc/apt/apt.conf.d/99machine").write_text("".join(f"{line}\n" for line in lines))
    if sources := _debian_sources():
        text = "".join(f"deb {uri} {suite} main\n" for uri, suite in sources)
        (directory / "etc/apt/sources.list").write_text(text)
    (directory / "etc/pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip.items()))


def _existing(path: str) -> Path | None:
    return Path(path) if path and Path(path).is_file() else None


def _apt_settings() -> list[str]:
    if shutil.which("apt-config") is None:
        return []
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in dumped if line.startswith(APT_SETTINGS)]


def _pip_settings() -> dict[str, str]:
    """What pip is told on this machine, less what names a file here."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True).stdout
    found = dict(re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    kept = {key: value for key, value in found.items() if key in (*PIP_SETTINGS, "cert")}
    for key in ("index-url", "extra-index-url"):
        kept[key] = " ".join(url for url in kept.get(key, "").split() if not url.startswith("file:"))
    return {key: value for key, value in kept.items() if value}
