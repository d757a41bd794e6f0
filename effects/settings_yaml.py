"""YAML with places: reads a text into nodes that know their line, so that a fault can name it.

Values keep their raw text beside the typed value, because YAML 1.1 reads `12:30` as a number and `on` as a truth value
while a password or a name may be spelled like that.
"""

import re
from typing import Any

import yaml
from msgspec import Struct
from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from effects.settings_types import Findings

EXPANDED_VALUES_MAX = 100_000
_TAG = "tag:yaml.org,2002:"
_TYPED_TAGS = {_TAG + "bool", _TAG + "int", _TAG + "float"}
_TEXT_TAGS = {_TAG + "str", _TAG + "timestamp", _TAG + "value"}
# What PyYAML's scalar constructors let through for a text that does not fit its explicit tag.
_CONSTRUCTION_ERRORS = (ValueError, IndexError, KeyError, AttributeError, OverflowError)

_KINDS: dict[type, str] = {
    type(None): "nothing",
    dict: "a map",
    list: "a list",
    bool: "a truth value",
    int: "a number",
    float: "a number",
}


class Node(Struct, frozen=True):
    """A value and its place: "file:line", or the name of the variable it came from."""

    place: str
    value: "bool | int | float | str | dict[str, Node] | list[Node] | None"
    text: str = ""

    @property
    def is_unset(self) -> bool:
        """True if nothing was written, as in `key:` or `key: ''`."""
        return self.value is None or self.value == ""

    @property
    def kind(self) -> str:
        """Returns what was found, by kind only, so that it can be told of a secret too."""
        return _KINDS.get(type(self.value), "text")

    def plain(self) -> Any:
        """Returns the value alone, with maps and lists as Python has them."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def merge(base: Node, over: Node) -> Node:
    """Returns `base` with `over` laid upon it: maps are merged, the rest is replaced. Source: Patroni's precedence."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(base.place, merged)


def scalar(text: str, place: str) -> Node:
    """Returns the node of one YAML scalar: `30` a number, `on` a truth value, `'30'` text."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return Node(place, text[1:-1], text[1:-1])
    tag = yaml.SafeLoader("").resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # no stub has it
    try:
        return Node(place, _typed(ScalarNode(tag, text)), text)
    except _CONSTRUCTION_ERRORS:
        return Node(place, text, text)


def parse(text: str, source: str, findings: Findings, *, has_lines: bool = True) -> Node | None:
    """Reads one YAML document.

    Args:
        text: the document.
        source: the file or variable it came from, for places.
        findings: where faults are noted.
        has_lines: whether places name a line; a variable of one line has none.

    Returns: its root (an empty map if the document is empty), or None if it is not YAML; other faults leave holes.
    Source: YAML 1.1 as PyYAML's safe loader reads it.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return _Reader(source, findings, has_lines).convert(root, source) if root is not None else Node(source, {})
    except yaml.MarkedYAMLError as error:
        findings.fault(_error_place(source, error), _explain(error))
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        findings.fault(f"{source}:{line}", "not YAML: a control character that must not be in the file")
    except RecursionError:
        findings.fault(source, "maps and lists are nested too deeply")
    return None


def _error_place(source: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source


def _explain(error: yaml.MarkedYAMLError) -> str:
    """Returns one line; quoted words are left out because an unquoted password can be read as an alias or a tag."""
    problem = re.sub(r"['\"][^'\"<]{2,}['\"]", "…", error.problem or "not readable").replace("\n", " ")
    return f"not YAML: {problem}; put a value that begins with a special character in quotes"


def _typed(node: ScalarNode) -> bool | int | float | str | None:
    """Returns the value of a scalar by its tag. Raises one of _CONSTRUCTION_ERRORS if the text does not fit the tag."""
    if node.tag == _TAG + "null":
        return None
    if node.tag in _TEXT_TAGS:
        return str(node.value)
    if node.tag not in _TYPED_TAGS:
        raise ValueError(node.tag)
    value: bool | int | float = yaml.constructor.SafeConstructor().construct_object(node)
    return value


class _Reader:
    """Converts PyYAML's nodes; each is converted once, however often an alias names it."""

    def __init__(self, source: str, findings: Findings, has_lines: bool) -> None:
        self.source, self.findings, self.has_lines = source, findings, has_lines
        self.done: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.under_way: set[int] = set()

    def convert(self, node: yaml.Node, place: str) -> Node:
        """Returns our node; `place` is that of its key, where the operator looks for it."""
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if id(node) in self.under_way:
            self.findings.fault(place, "an alias names the value that it is part of")
            return Node(place, None)
        if id(node) not in self.done:
            self.under_way.add(id(node))
            self.done[id(node)] = self._map(node) if isinstance(node, MappingNode) else self._list(node)
            self.under_way.discard(id(node))
            self._measure(node, place)
        return Node(place, self.done[id(node)])

    def _measure(self, node: yaml.Node, place: str) -> None:
        """Refuses a document whose aliases make it explode when they are written out (a "billion laughs")."""
        children = [value for _, value in node.value] if isinstance(node, MappingNode) else node.value
        self.sizes[id(node)] = 1 + sum(self.sizes.get(id(child), 1) for child in children)
        if self.sizes[id(node)] > EXPANDED_VALUES_MAX:
            self.findings.fault(place, f"aliases make it longer than {EXPANDED_VALUES_MAX} values")
            self.done[id(node)], self.sizes[id(node)] = None, 1

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.has_lines else self.source

    def _scalar(self, node: ScalarNode, place: str) -> Node:
        try:
            return Node(place, _typed(node), node.value)
        except _CONSTRUCTION_ERRORS:
            remedy = "put the value in quotes and leave the tag out"
            self.findings.fault(place, f"found a value that does not fit its YAML tag; {remedy}")
            return Node(place, None)

    def _list(self, node: yaml.Node) -> list[Node]:
        return [self.convert(child, self._place(child)) for child in node.value]

    def _map(self, node: MappingNode) -> dict[str, Node]:
        inherited: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, child in node.value:
            place = self._place(key)
            if key.tag == _TAG + "merge":
                inherited = self._inherited(child, place) | inherited
            elif not isinstance(key, ScalarNode):
                self.findings.fault(place, "found a map or a list as a key, allowed: text")
            elif key.value in own:
                first = own[key.value].place
                self.findings.fault(place, f"{shown_key(key.value)} is set twice, first at {first}; leave one of them")
            else:
                own[key.value] = self.convert(child, place)
        return inherited | own

    def _inherited(self, node: yaml.Node, place: str) -> dict[str, Node]:
        """Returns what `<<` brings in: a map, or several of which the first wins. Source: the YAML merge key."""
        parts = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Node] = {}
        for part in parts:
            values = self.convert(part, place).value
            if isinstance(values, dict):
                merged = values | merged
            else:
                self.findings.fault(place, "<< takes a map or a list of maps")
        return merged


def shown_key(key: str) -> str:
    """Returns a key as it can be shown: cut at ":" or "=", since `password:secret` without a space reads as one key."""
    return re.sub(r"[^ -~]", "?", re.split(r"[:=]", key, maxsplit=1)[0][:60]) or "?"
