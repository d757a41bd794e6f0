"""The members of a cluster as text, in the columns, words and shapes of `patronictl list` and `topology`. Pure.

Source: Patroni, patronictl; each shape is compared with what the real one prints (tests/peers).
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import yaml

from fsm.status import cluster_members
from fsm.view import View

SHAPES = ("pretty", "tsv", "json", "yaml", "yml")
COLUMNS = (
    "Cluster", "Member", "Host", "Role", "State", "TL", "Receive LSN", "Receive Lag", "Replay LSN", "Replay Lag",
)  # fmt: skip
MORE_COLUMNS = ("Pending restart", "Pending restart reason", "Scheduled restart", "Tags")
"""Shown where a member has something in them, or when they are asked for."""
ALIGNED_RIGHT = frozenset({"TL", "Receive LSN", "Replay LSN", "Lag", "ms"})
POSTGRES_PORT = 5432
REASON_CHARACTERS_MAX = 50
MIB = 1 << 20
YAML_WIDTH = 200


class Listing(msgspec.Struct, frozen=True):
    """A table of one cluster: its cells, and the lines that stand above and below it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    title: str
    footer: tuple[str, ...] = ()


def listing_text(view: View, scope: str, shape: str, *, is_extended: bool = False) -> str:
    """The whole text as patronictl prints it, less the newline at its end.

    Args:
        view: what etcd knows of the cluster.
        scope: its name.
        shape: one of SHAPES, or "topology".
        is_extended: show MORE_COLUMNS even where they are empty.
    """
    found = listing(view, scope, shape, is_extended=is_extended)
    return _WRITERS.get(shape, _pretty)(found)


def table_text(found: Listing) -> str:
    """A table with a title in its first line, less its first column; less the newline at its end."""
    return _pretty(found)


def listing(view: View, scope: str, shape: str, *, is_extended: bool = False) -> Listing:
    """The cells as they are shown in a shape."""
    members = cluster_members(view)
    is_table = shape in ("pretty", "topology")
    more = [name for name in MORE_COLUMNS if is_extended or any(member.get(_field(name)) for member in members)]
    columns = (*COLUMNS, *more)
    has_ports = _needs_ports(members)
    ordered = _as_tree(members) if shape == "topology" else members
    cells = [_cells(member, scope, has_ports=has_ports, is_table=is_table) for member in ordered]
    rows = tuple(tuple(_shown(row[column], column, shape) for column in columns) for row in cells)
    identity = {None: "uninitialized", "": "initializing"}.get(view.initialize, view.initialize)
    return Listing(columns, rows, f" Cluster: {scope} ({identity}) ", _footer(view) if is_table else ())


def _field(column: str) -> str:
    return column.lower().replace(" ", "_")


def _needs_ports(members: Sequence[dict[str, Any]]) -> bool:
    """True when a host alone would not tell: an unusual port, or two members on one host."""
    hosts = [member["host"] for member in members if "host" in member]
    return any(member.get("port", POSTGRES_PORT) != POSTGRES_PORT for member in members) or len(set(hosts)) < len(hosts)


def _as_tree(members: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The members below the one that they replicate from, their names indented."""
    leader = next((m["name"] for m in members if m["role"].endswith("leader")), None)
    replicas = {m["name"] for m in members if not m["role"].endswith("leader")}
    children: dict[Any, list[dict[str, Any]]] = {}
    for member in members:
        upstream = (member.get("tags") or {}).get("replicatefrom")
        is_cascading = upstream in replicas and upstream != member["name"]
        above = None if member["name"] == leader else upstream if is_cascading else leader
        children.setdefault(above, []).append(member)
    found: list[dict[str, Any]] = []

    def add(above: str | None, depth: int) -> None:
        for member in children.pop(above, ()):
            mark = "" if depth == 0 else "  " * (depth - 1) + "+ "
            found.append(member | {"name": mark + member["name"]})
            add(member["name"], depth + 1)

    add(None, 0 if leader else 1)
    return found


def _cells(member: dict[str, Any], scope: str, *, has_ports: bool, is_table: bool) -> dict[str, Any]:
    host, port = member.get("host", ""), member.get("port")
    return {
        "Cluster": scope,
        "Member": member["name"],
        "Host": f"{host}:{port}" if has_ports and host and port else host,
        "Role": str(member["role"]).replace("_", " ").title(),
        "State": member["state"],
        "TL": member.get("timeline", ""),
        **_position_cells(member),
        "Pending restart": "*" if member.get("pending_restart") else "",
        "Pending restart reason": _reasons(member.get("pending_restart_reason") or {}, is_table=is_table),
        "Scheduled restart": _schedule(member.get("scheduled_restart") or {}),
        "Tags": member.get("tags") or "",
    }


def _position_cells(member: dict[str, Any]) -> dict[str, Any]:
    places = {name: (member.get(f"{name}_lsn", ""), member.get(f"{name}_lag", "")) for name in ("receive", "replay")}
    newest = member.get("lsn", "unknown")
    # An older member tells one position only: it is what it streamed, or what it replayed.
    if newest != "unknown" and all(lsn == "unknown" for lsn, _ in places.values()):
        places["receive" if member["state"] == "streaming" else "replay"] = newest, member.get("lag", "")
    cells = {}
    for name, (lsn, lag) in places.items():
        cells[f"{name.title()} LSN"] = lsn
        cells[f"{name.title()} Lag"] = round(lag / MIB) if isinstance(lag, int) else "" if lag == "unknown" else lag
    return cells


def _reasons(found: dict[str, Any], *, is_table: bool) -> str:
    lines = []
    for parameter, values in found.items():
        line = f"{parameter}: {values.get('old_value')}->{values.get('new_value')}"
        is_hidden = is_table and len(line) > REASON_CHARACTERS_MAX
        lines.append(f"{parameter}: [hidden - too long]" if is_hidden else line)
    return "\n".join(lines)


def _schedule(found: dict[str, Any]) -> str:
    version = found.get("postgres_version")
    return f"{found.get('schedule', '')}{f' if version < {version}' if version else ''}"


def _shown(cell: Any, column: str, shape: str) -> Any:
    """Tags are YAML where the shape is not made of objects itself."""
    if column != "Tags" or not cell or shape in ("json", "yaml", "yml"):
        return cell
    return _yaml(cell, is_flow=shape != "pretty").strip()


def _footer(view: View) -> tuple[str, ...]:
    lines = ["Maintenance mode: on"] if view.dynamic.pause else []
    request = view.failover
    if request is not None and request.scheduled_at:
        lines.append(f"Switchover scheduled at: {_instant(request.scheduled_at)}")
        named = {"from": request.leader, "to": request.candidate}
        lines += [f"{word:>24}: {name}" for word, name in named.items() if name]
    # The first line of each matter is indented by one more.
    return tuple(line if line.startswith("   ") else f" {line}" for line in lines)


def _instant(text: str) -> str:
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return text


# ---- the shapes ------------------------------------------------------------------------------------------------------


def _objects(found: Listing) -> list[dict[str, Any]]:
    return [{c: cell for c, cell in zip(found.columns, row, strict=True) if cell != ""} for row in found.rows]


def _json(found: Listing) -> str:
    return json.dumps(_objects(found))


def _yaml_list(found: Listing) -> str:
    return _yaml(_objects(found))


def _yaml(value: Any, *, is_flow: bool = False) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=is_flow, allow_unicode=True, width=YAML_WIDTH)
    return text


def _tsv(found: Listing) -> str:
    return "\n".join("\t".join(str(cell) for cell in row) for row in (found.columns, *found.rows))


def _pretty(found: Listing) -> str:
    """The table, with the cluster's name in its first line instead of in every row."""
    columns = ["Lag" if name.endswith(" Lag") else name for name in found.columns[1:]]
    rows = [[str(cell).split("\n") for cell in row[1:]] for row in found.rows]
    widths = [max([_width(name), *(_width(line) for row in rows for line in row[i])]) for i, name in enumerate(columns)]
    rule = f"+{'+'.join('-' * (width + 2) for width in widths)}+"
    first = f"+{found.title[: len(rule) - 2]}{rule[1 + min(len(found.title), len(rule) - 2) :]}"
    is_ruled = any(len(cell) > 1 for row in rows for cell in row)
    body = [_lines([[name] for name in columns], columns, widths), *(_lines(row, columns, widths) for row in rows)]
    separator = [rule] if is_ruled else []
    lines = [first, *body[0], rule]
    for index, row in enumerate(body[1:]):
        lines += [*(separator if index else ()), *row]
    return "\n".join([*lines, rule, *found.footer])


def _lines(cells: Sequence[list[str]], columns: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row, as many lines as its tallest cell."""
    height = max(len(cell) for cell in cells)
    lines = []
    for number in range(height):
        parts = [
            _padded(cell[number] if number < len(cell) else "", width, is_right=name in ALIGNED_RIGHT)
            for cell, name, width in zip(cells, columns, widths, strict=True)
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return lines


def _padded(text: str, width: int, *, is_right: bool) -> str:
    blank = " " * (width - _width(text))
    return blank + text if is_right else text + blank


def _width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


_WRITERS: dict[str, Callable[[Listing], str]] = {"json": _json, "yaml": _yaml_list, "yml": _yaml_list, "tsv": _tsv}
