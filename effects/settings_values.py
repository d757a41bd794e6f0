"""Readers of single values: each takes a node and returns the typed value, or raises `Unfit` with what is allowed."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from effects.settings_types import Findings, Secret
from effects.settings_yaml import Node, parse

Reader = Callable[[Node], Any]

TRUE_WORDS, FALSE_WORDS = {"on", "true", "yes", "1"}, {"off", "false", "no", "0"}
WILDCARD_HOSTS = {"*", "0", "0.0.0.0", "::"}  # noqa: S104 - compared with, never bound to
PORT_MAX = 65_535
FOUND_LENGTH_MAX = 60
DURATION_UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
SIZE_UNITS_BYTES = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")
# A name's parts, as in the etcd key and in a URL's path; control characters would also break a log line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Complaint(Struct, frozen=True):
    """One thing that is wrong inside a value: where, what is allowed instead, and what to do if that is not plain.

    `key` names the part of a map that is meant.
    """

    node: Node
    allowed: str
    remedy: str = ""
    key: str = ""


class Unfit(Exception):
    """A value is not what its setting allows."""

    def __init__(self, *complaints: Complaint) -> None:
        self.complaints = complaints
        super().__init__()


def within(key: str, error: Unfit) -> list[Complaint]:
    """Returns the complaints about one part of a map, with its key."""
    return [Complaint(part.node, part.allowed, part.remedy, key) for part in error.complaints]


def unfit(node: Node, allowed: str, remedy: str = "") -> Unfit:
    """Returns the exception for one complaint."""
    return Unfit(Complaint(node, allowed, remedy))


def shown(node: Node) -> str:
    """Returns a value as a message can show it: one line, cut short, without the user and password of a URL."""
    if not isinstance(node.value, str | int | float) or (isinstance(node.value, bool) and not node.text):
        return node.kind
    text = "***@" + node.text.rpartition("@")[2] if "@" in node.text else node.text
    cut = text[:FOUND_LENGTH_MAX] + ("…" if len(text) > FOUND_LENGTH_MAX else "")
    return json.dumps(cut, ensure_ascii=False)


def text(node: Node) -> str:
    """Returns text as it was written: `name: on` is the name "on"."""
    if isinstance(node.value, dict | list):
        raise unfit(node, "text")
    if "\0" in node.text:
        raise unfit(node, "text without a NUL character")
    return node.text


def secret(node: Node) -> Secret:
    """Returns text that is kept out of every message."""
    return Secret(text(node))


def name(node: Node) -> str:
    """Returns the name of a member or a cluster, fit to be one part of an etcd key."""
    found = text(node)
    if "/" in found or _CONTROL.search(found) or found != found.strip():
        raise unfit(node, 'text without "/", control characters or spaces around it')
    if found in RESERVED_NAMES:
        raise unfit(node, f"any other name: this one is reserved for {RESERVED_NAMES[found]}")
    return found


# Patroni puts this name into synchronous_standby_names so that commits wait while no standby is known.
RESERVED_NAMES = {"__patroni_strict_sync_replica_placeholder__": "strict synchronous mode"}


def namespace(node: Node) -> str:
    """Returns the prefix of the etcd keys without the slashes around it. Source: Patroni `namespace`."""
    found = text(node).strip("/")
    if not found or _CONTROL.search(found):
        raise unfit(node, 'text with more than "/" in it, for instance service')
    return found


def path(node: Node) -> Path:
    """Returns an absolute path: it is handed to programs, which do not run in this process's directory."""
    found = Path(text(node))
    if not found.is_absolute():
        raise unfit(node, "an absolute path", 'begin it with "/"')
    return found


def file(node: Node) -> Path:
    """Returns the path of a file that this process reads itself; a relative one is as in Patroni."""
    return Path(text(node))


def data_dir(node: Node) -> Path:
    """Returns an absolute path that is not the root of the file system."""
    found = path(node)
    if len(found.parts) < 2 or ".." in found.parts:
        raise unfit(node, 'an absolute path below "/", without ".."')
    return found


def boolean(node: Node) -> bool:
    """Returns a truth value in any of the spellings that Patroni accepts."""
    word = node.text.lower() if not isinstance(node.value, dict | list) else ""
    if word not in TRUE_WORDS | FALSE_WORDS:
        raise unfit(node, "on, true, yes, 1, off, false, no or 0")
    return word in TRUE_WORDS


def whole(low: int | None = None, high: int | None = None) -> Reader:
    """Returns a reader of whole numbers from `low` to `high`, both included."""
    bounds = {(False, False): f"from {low} to {high}", (False, True): f"of at least {low}"}
    allowed = f"a whole number {bounds.get((low is None, high is None), '')}".strip()

    def read(node: Node) -> int:
        if isinstance(node.value, dict | list) or not re.fullmatch(r"[+-]?\d{1,18}", node.text):
            raise unfit(node, allowed)
        found = int(node.text)
        if (low is not None and found < low) or (high is not None and found > high):
            raise unfit(node, allowed)
        return found

    return read


def _with_unit(units: dict[str, int], base: str, low: int, allowed: str) -> Reader:
    def read(node: Node) -> int:
        found = re.fullmatch(r"([+-]?\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]*)", node.text)
        unit = (found[2].lower() or base) if found else ""
        if isinstance(node.value, dict | list) or found is None or unit not in units:
            raise unfit(node, allowed)
        amount = round(float(found[1]) * units[unit] / units[base])
        if amount < low:
            raise unfit(node, allowed)
        return amount

    return read


def duration_s(low: int = 0, reason: str = "") -> Reader:
    """Returns a reader of durations in seconds, of at least `low` for a reason. Source: PostgreSQL's units of time."""
    allowed = f"a duration of at least {low} s, as a number of seconds or with the unit ms, s, min, h or d"
    allowed += f" ({reason})" if reason else ""
    return _with_unit(DURATION_UNITS_US, "s", low, allowed)


def size_bytes(low: int = 0) -> Reader:
    """Returns a reader of sizes in bytes, of at least `low`. Source: PostgreSQL's units of memory."""
    allowed = f"a size of at least {low} bytes, as a number of bytes or with the unit kB, MB, GB or TB"
    return _with_unit(SIZE_UNITS_BYTES, "b", low, allowed)


def octal_mode(node: Node) -> int:
    """Returns file permissions, from octal as in 0640. Source: Patroni `log.mode`."""
    digits = re.fullmatch(r"(?:0o?)?([0-7]{1,3})", node.text)
    if isinstance(node.value, dict | list) or digits is None:
        raise unfit(node, "file permissions in octal from 0 to 0777")
    return int(digits[1], 8)


def choice(*words: str) -> Reader:
    """Returns a reader of one of some words, whatever their case."""
    by_fold = {word.lower(): word for word in words}

    def read(node: Node) -> str:
        found = by_fold.get(node.text.lower()) if not isinstance(node.value, dict | list) else None
        if found is None:
            raise unfit(node, " or ".join([", ".join(words[:-1]), words[-1]]))
        return found

    return read


def switch_or(*words: str) -> Reader:
    """Returns a reader of one of some words, where "off" and "on" may be any truth value."""
    of_word = choice(*words)

    def read(node: Node) -> str:
        try:
            return str(of_word(Node(node.place, node.text, "on" if boolean(node) else "off")))
        except Unfit:
            return str(of_word(node))

    return read


class Address(Struct, frozen=True):
    """A host, or several to listen on, and a port."""

    hosts: tuple[str, ...]
    port: int

    @property
    def is_wildcard(self) -> bool:
        """True if it means every address of the machine, which nobody can connect to."""
        return any(host in WILDCARD_HOSTS for host in self.hosts)

    def __str__(self) -> str:
        host = ",".join(self.hosts)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def address(*, default_port: int | None = None, is_listen: bool = False, allows_many: bool = False) -> Reader:
    """Returns a reader of host:port, IPv6 in brackets. The default port 0 leaves the port to the caller."""
    form = "host[,host...]:port" if allows_many else "host:port"
    allowed = f"{form} with a port from 1 to {PORT_MAX}"

    def read(node: Node) -> Address:
        written = text(node).strip()
        if "://" in written:
            raise unfit(node, allowed, "leave the scheme out")
        host_text, port = _split_port(written, default_port)
        hosts = tuple(_bare(part.strip()) for part in host_text.split(","))
        if (
            not (1 <= port <= PORT_MAX or port == default_port)
            or not all(map(_is_host, hosts))
            or (len(hosts) > 1 and not allows_many)
        ):
            raise unfit(node, allowed)
        found = Address(hosts, port)
        if found.is_wildcard and not is_listen:
            raise unfit(node, allowed, "give an address that the other nodes can connect to, not a wildcard")
        return found

    return read


def _split_port(written: str, default_port: int | None) -> tuple[str, int]:
    """Returns the host part and the port; port -1 if there is none, or one that cannot be."""
    host, colon, port = written.rpartition(":")
    if colon and re.fullmatch(r"[1-9][0-9]{0,4}", port):
        return host, int(port)
    if default_port is not None and ("]" in port or not colon):
        return written, default_port
    return written, -1


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_host(host: str) -> bool:
    if host == "*" or _HOST.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def url(node: Node) -> str:
    """Returns an http or https URL with a host. Source: Patroni `etcd3.url`."""
    written = text(node).strip()
    allowed = "a URL such as https://host:2379"
    try:
        parts = urlsplit(written)
        is_fit = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise unfit(node, allowed) from error
    if not is_fit or not _is_host(parts.hostname or ""):
        raise unfit(node, allowed)
    return written


def _from_text(node: Node, form: str) -> Node | None:
    """Returns what a text spells in YAML, or None if it is not YAML; every place in it is the text's own."""
    return parse(form.format(node.text), node.place, Findings(), has_lines=False)


def _items(node: Node) -> list[Node]:
    """Returns the items of a list: of YAML, or of text as `a,b`, `'a','b'` or YAML. Source: Patroni's environment."""
    if isinstance(node.value, list):
        return node.value
    if isinstance(node.value, dict):
        raise unfit(node, "a list")
    written = node.text.strip()
    if written.startswith(("[", "- ")):
        inner = _from_text(node, "{}")
        if inner is not None and isinstance(inner.value, list):
            return inner.value
    parts = [part.strip().strip("'\"") for part in written.split(",")]
    return [Node(node.place, part, part) for part in parts if part]


def list_of(item: Reader) -> Reader:
    """Returns a reader of lists, which tells of every unfit item."""

    def read(node: Node) -> tuple[Any, ...]:
        return tuple(_each(item, [("", child) for child in _items(node)]))

    return read


def _each(item: Reader, nodes: Iterable[tuple[str, Node]]) -> list[Any]:
    found: list[Any] = []
    complaints: list[Complaint] = []
    for key, node in nodes:
        try:
            found.append(item(node))
        except Unfit as error:
            complaints += within(key, error)
    if complaints:
        raise Unfit(*complaints)
    return found


def lines(node: Node) -> tuple[str, ...]:
    """Returns the lines of pg_hba.conf or pg_ident.conf: a list, since a comma is part of a line."""
    if not isinstance(node.value, list):
        raise unfit(node, "a list of lines")
    return tuple(_each(text, [("", child) for child in node.value]))


def _entries(node: Node) -> dict[str, Node]:
    if isinstance(node.value, dict):
        return node.value
    if not isinstance(node.value, list):
        inner = _from_text(node, "{}" if node.text.strip().startswith("{") else "{{{}}}")
        if inner is not None and isinstance(inner.value, dict):
            return inner.value
    raise unfit(node, "a map, as in key: value")


def map_of(item: Reader) -> Reader:
    """Returns a reader of maps whose values fit `item`."""

    def read(node: Node) -> dict[str, Any]:
        entries = {key: child for key, child in _entries(node).items() if child.value is not None}
        return dict(zip(entries, _each(item, entries.items()), strict=True))

    return read


def single(node: Node) -> bool | int | float | str | None:
    """Returns a value that is neither a map nor a list, typed as YAML reads it."""
    if isinstance(node.value, dict | list):
        raise unfit(node, "a single value")
    return node.value


def raw(node: Node) -> Any:
    """Returns anything, as YAML reads it."""
    return node.plain()


def raw_map(node: Node) -> Any:
    """Returns a map of anything."""
    if not isinstance(node.value, dict):
        raise unfit(node, "a map")
    return node.plain()


def text_or_fields(node: Node) -> str | tuple[tuple[str, str], ...]:
    """Returns one text, or for a list the fields in it, each with the name that it is given.

    Source: Patroni `log.format`: a list of names and of maps such as `asctime: "@timestamp"`.
    """
    if not isinstance(node.value, list):
        return text(node)
    found: list[tuple[str, str]] = []
    for child in node.value:
        entries = child.value.items() if isinstance(child.value, dict) else [(text(child), child)]
        found += [(name, text(shown)) for name, shown in entries]
    return tuple(found)
