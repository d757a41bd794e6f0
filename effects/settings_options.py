"""Readers of programs' options, such as `bootstrap.initdb`, and of `tags`, which have rules of their own."""

from typing import Any

from effects.settings_values import Complaint, Reader, Unfit, boolean, single, text, unfit, whole, within
from effects.settings_yaml import Node

# Set by the agent itself, or making a cluster that is not safe to run. Source: Patroni `bootstrap.initdb`.
INITDB_FORBIDDEN = ("pgdata", "nosync", "no-sync", "pwfile", "sync-only", "version")

TAGS: dict[str, Reader] = {
    "nofailover": boolean,
    "nosync": boolean,
    "noloadbalance": boolean,
    "clonefrom": boolean,
    "nostream": boolean,
    "failover_priority": whole(),
    "sync_priority": whole(),
    "replicatefrom": text,
}


# What the agent gives itself, what would leave another kind of backup behind, and where a password would be seen.
# Source: Patroni, "Building replicas".
BASEBACKUP_FORBIDDEN = (
    "pgdata", "format", "wal-method", "xlog-method", "gzip", "compress", "target", "incremental", "dbname", "host",
    "port", "username", "password", "version", "help", "write-recovery-conf",
)  # fmt: skip
REWIND_FORBIDDEN = (
    "target-pgdata", "source-pgdata", "source-server", "write-recovery-conf", "dry-run", "no-ensure-shutdown",
    "config-file", "version", "help",
)  # fmt: skip


def arguments_without(forbidden: tuple[str, ...]) -> Reader:
    """Returns a reader of a program's options: a list of options, of one-key maps, or a map.

    It returns ready-made arguments, for instance ("--encoding=UTF8", "--data-checksums"), and tells of every option
    that cannot be used. Source: Patroni `bootstrap.initdb`, `postgresql.basebackup`.
    """

    def read(node: Node) -> tuple[str, ...]:
        arguments: list[str] = []
        complaints: list[Complaint] = []
        for option, value in _pairs(node):
            try:
                arguments += _argument(option, value, forbidden)
            except Unfit as error:
                complaints += within(option.removeprefix("--"), error)
        if complaints:
            raise Unfit(*complaints)
        return tuple(arguments)

    return read


def _pairs(node: Node) -> list[tuple[str, Node]]:
    """Returns option and value; an option without a value has itself for a place and no value."""
    parts = node.value if isinstance(node.value, list) else [node]
    pairs: list[tuple[str, Node]] = []
    for part in parts:
        if isinstance(part.value, dict):
            pairs += part.value.items()
        elif isinstance(node.value, list) and not isinstance(part.value, list) and part.text:
            pairs.append((part.text, Node(part.place, None)))
        else:
            raise unfit(part, "a list of options, each text or one key: value")
    return pairs


def _argument(option: str, value: Node, forbidden: tuple[str, ...]) -> list[str]:
    name = option.removeprefix("--")
    if name.split("=")[0] in forbidden:
        raise unfit(value, f"options other than {', '.join(forbidden)}", "leave it out")
    if isinstance(value.value, dict | list):
        raise unfit(value, "a single value")
    if value.value is False:
        return []
    return [f"--{name}"] if value.is_unset or value.value is True else [f"--{name}={value.text}"]


def tags(node: Node) -> dict[str, Any]:
    """Returns this node's tags: the known ones typed, any other as YAML reads it. Source: Patroni `tags`."""
    if not isinstance(node.value, dict):
        raise unfit(node, "a map")
    found: dict[str, Any] = {}
    complaints: list[Complaint] = []
    for key, child in node.value.items():
        if child.is_unset:
            continue
        try:
            found[key] = TAGS.get(key, single)(child)
        except Unfit as error:
            complaints += within(key, error)
    if complaints:
        raise Unfit(*complaints)
    return found


def tag_contradictions(found: dict[str, Any]) -> list[str]:
    """Returns one line for each pair of tags that say the opposite of each other. Patroni only warns of these, too."""
    pairs = (("nofailover", "failover_priority"), ("nosync", "sync_priority"))
    return [
        f"{word}: {str(found[word]).lower()} contradicts {priority}: {found[priority]}; {word} counts, remove one"
        for word, priority in pairs
        if word in found and priority in found and found[word] == (found[priority] > 0)
    ]
