"""Brings files and variables together into one tree, and the tree into typed values: env beats file.

Source: Patroni, YAML configuration settings and environment configuration settings.
"""

import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from effects.settings_schema import (
    ALIASES,
    CONFIGURATION,
    DYNAMIC_PREFIX,
    FOREIGN_SECTIONS,
    PARAMETERS_PREFIX,
    ROWS,
    SECTIONS,
    VARIABLE_OF,
    VARIABLES,
    Row,
    nearest_path,
    nearest_variable,
)
from effects.settings_types import Findings
from effects.settings_values import Unfit, shown
from effects.settings_yaml import Node, merge, parse, scalar, shown_key

ENVIRONMENT = "environment"
_FOREIGN_VARIABLE = re.compile(f"PATRONI_({'|'.join(FOREIGN_SECTIONS)})_".upper())


class Reading:
    """What was written and what it means, by the path of each setting.

    `is_whole` is false if a file could not be read: what seems to be missing may be in that file.
    """

    def __init__(self, source: str, tree: Node, findings: Findings, is_whole: bool) -> None:
        self.source, self.tree, self.findings, self.is_whole = source, tree, findings, is_whole
        self.leaves: dict[str, Node] = {}
        self.unknown: dict[str, Node] = {}
        self.values: dict[str, Any] = {}
        self._aliased: list[tuple[str, Node]] = []

    def place(self, path: str) -> str:
        """Returns where a setting was written; where it was not, the line of its section, or the source as a whole."""
        if path in self.leaves:
            return self.leaves[path].place
        section = self.node(path.rpartition(".")[0])
        return section.place if section is not None and section.place.startswith(self.source) else self.source

    def is_from_environment(self, path: str) -> bool:
        """True if a variable set it, not a file."""
        return path in self.leaves and self.leaves[path].place == VARIABLE_OF.get(path)

    def fault(self, path: str, message: str) -> None:
        """Notes a fault of one setting."""
        self.findings.fault(self.place(path), f"{path}: {message}")

    def warn(self, path: str, message: str) -> None:
        """Notes a warning about one setting."""
        self.findings.warn(self.place(path), f"{path}: {message}")

    def missing(self, path: str) -> None:
        """Notes that a setting is needed and was not found."""
        if not self.is_whole:
            return
        row = ROWS[path]
        there = "" if self.source == ENVIRONMENT else "it there or as "
        self.fault(path, f"missing; set {there}{VARIABLE_OF[path]}, for instance {row.example}")

    def read(self) -> None:
        """Fills `values` from the tree, by the table."""
        self._walk(self.tree, "")
        for path, node in self._aliased:
            self._visit(path, node)
        for row in ROWS.values():
            self._read_row(row)

    def node(self, path: str) -> Node | None:
        """Returns what was written at a path, be it a section or a value; for "" the whole tree."""
        found: Node | None = self.tree
        for key in path.split(".") if path else ():
            found = found.value.get(key) if found is not None and isinstance(found.value, dict) else None
        return found

    def _walk(self, section: Node, prefix: str) -> None:
        if not isinstance(section.value, dict):
            self.findings.fault(
                section.place, f"{prefix.rstrip('.')}: found {section.kind}, allowed: a map of settings"
            )
            return
        for key, child in section.value.items():
            path = prefix + key
            if path in ALIASES:
                self._aliased.append((ALIASES[path], child))
            elif "." in key:
                self.unknown[path] = child
            else:
                self._visit(path, child)

    def _visit(self, path: str, node: Node) -> None:
        if path in ROWS:
            self.leaves.setdefault(path, node)
        elif path not in SECTIONS:
            self.unknown[path] = node
        elif not node.is_unset:
            self._walk(node, path + ".")

    def _read_row(self, row: Row) -> None:
        node = self.leaves.get(row.path)
        self.values[row.path] = row.default
        if node is None or node.is_unset:
            return
        if row.no_effect:
            self.warn(row.path, f"has no effect here: {row.no_effect}")
        try:
            self.values[row.path] = row.read(node)
        except Unfit as error:
            for complaint in error.complaints:
                found = complaint.node.kind if row.is_secret else shown(complaint.node)
                remedy = f"; {complaint.remedy}" if complaint.remedy else ""
                key = f".{shown_key(complaint.key)}" if complaint.key else ""
                message = f"{row.path}{key}: found {found}, allowed: {complaint.allowed}{remedy}"
                self.findings.fault(complaint.node.place, message)


def read_sources(path: Path | None, environ: Mapping[str, str], findings: Findings) -> Reading:
    """Returns everything that files and variables say.

    Args:
        path: a YAML file, or a directory whose *.yml and *.yaml are merged in the order of their names.
        environ: the process's variables. Unlike in Patroni, they also win over PATRONI_CONFIGURATION.
        findings: where faults and warnings are noted.
    """
    has_file = is_there(path)
    text = environ.get(CONFIGURATION, "")
    if path is not None and has_file:
        roots = _read_path(path, findings)
    else:
        roots = [_parse_root(text, CONFIGURATION, findings)] if text else []
    source = str(path) if has_file else CONFIGURATION if text else ENVIRONMENT
    readable = [root for root in roots if root is not None]
    tree = reduce(merge, [*readable, _environment(environ, findings)], Node(ENVIRONMENT, {}))
    return Reading(source, tree, findings, is_whole=len(readable) == len(roots))


def is_there(path: Path | None) -> bool:
    """True if there is something at the path, be it readable or not."""
    try:
        return path is not None and path.exists()
    except OSError:
        return True


def _read_path(path: Path, findings: Findings) -> list[Node | None]:
    """Returns the root of each file; None for what cannot be read."""
    try:
        if not path.is_dir():
            return [_parse_file(path, findings)]
        parts = sorted(part for part in path.iterdir() if part.suffix in {".yml", ".yaml"} and part.is_file())
    except OSError as error:
        findings.fault(str(path), f"cannot be read: {error.strerror}")
        return [None]
    if not parts:
        findings.fault(str(path), "a directory without any *.yml or *.yaml file; name the file or put one there")
    return [_parse_file(part, findings) for part in parts]


def _parse_file(path: Path, findings: Findings) -> Node | None:
    try:
        content = path.read_bytes()
        return _parse_root(content.decode("utf-8-sig"), str(path), findings)
    except OSError as error:
        findings.fault(str(path), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        findings.fault(f"{path}:{line}", "not UTF-8; save the file as UTF-8")
    return None


def _parse_root(text: str, source: str, findings: Findings) -> Node | None:
    root = parse(text, source, findings)
    if root is None or isinstance(root.value, dict):
        return root
    findings.fault(f"{source}:1", f"found {root.kind}, allowed: a map of settings, as in scope: main")
    return None


def _environment(environ: Mapping[str, str], findings: Findings) -> Node:
    """Returns the tree that the variables make. Sorted, the older of two spellings comes first, so the newer wins."""
    tree: dict[str, Node] = {}
    foreign: dict[str, list[str]] = {}
    for variable in sorted(environ):
        if not variable.startswith(("PATRONI_", "MATRIARCH_")) or not environ[variable] or variable == CONFIGURATION:
            continue
        keys = _keys_of(variable)
        if keys:
            is_dynamic = variable.startswith(DYNAMIC_PREFIX)
            written = environ[variable]
            node = _dynamic(written, variable) if is_dynamic else Node(variable, written, written)
            _put(tree, keys, node)
        elif found := _FOREIGN_VARIABLE.match(variable):
            foreign.setdefault(found[1].lower(), []).append(variable)
        else:
            _warn_unknown_variable(variable, findings)
    for section, variables in foreign.items():
        tree.setdefault(section, Node(", ".join(variables), {}))
    return Node(ENVIRONMENT, tree)


def _keys_of(variable: str) -> list[str]:
    if variable in VARIABLES:
        return VARIABLES[variable].split(".")
    parameter = variable.removeprefix(PARAMETERS_PREFIX).lower() if variable.startswith(PARAMETERS_PREFIX) else ""
    return ["bootstrap", "dcs", "postgresql", "parameters", parameter] if parameter else []


def _dynamic(text: str, variable: str) -> Node:
    """Returns the node of a dynamic setting: a YAML scalar, or the list or map that it spells in YAML."""
    if text.strip().startswith(("{", "[", "- ")):
        inner = parse(text, variable, Findings(), has_lines=False)
        if inner is not None:
            return inner
    return scalar(text.strip(), variable)


def _put(tree: dict[str, Node], keys: list[str], node: Node) -> None:
    for key in keys[:-1]:
        section = tree.setdefault(key, Node(node.place, {})).value
        if not isinstance(section, dict):
            return
        tree = section
    tree[keys[-1]] = node


def _warn_unknown_variable(variable: str, findings: Findings) -> None:
    nearest = nearest_variable(variable)
    hint = f"; did you mean {nearest}?" if nearest else ""
    findings.warn(variable, f"not a known variable, ignored{hint}")


def warn_unknown_keys(reading: Reading, open_paths: set[str]) -> None:
    """Notes each key that is no setting, with the nearest one, but for the sections that methods may have."""
    for path, node in reading.unknown.items():
        if path in open_paths:
            continue
        if path in FOREIGN_SECTIONS:
            reading.findings.warn(node.place, f"{path}: not spoken here, ignored; Matriarch keeps its keys in etcd v3")
            continue
        nearest = nearest_path(path)
        hint = f"; did you mean {nearest}?" if nearest else ""
        name = ".".join(shown_key(part) for part in path.split("."))
        reading.findings.warn(node.place, f"{name}: not a known setting, ignored{hint}")
