"""Who a commit waits for: the value of `synchronous_standby_names`, written and read back. Pure values.

Source: PostgreSQL, synchronous_standby_names.
"""

import re

from fsm.facts import Fact

PLACEHOLDER = "__patroni_strict_sync_replica_placeholder__"
"""A name that no member may have: while nobody else is named, commits wait for it, that is: until somebody is.
Source: Patroni, strict mode; Patroni 4.1.5 writes `*` there, which any backup tool that streams would satisfy."""

_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
_KEYWORDS = frozenset({"first", "any"})
_WRITTEN = re.compile(r"(?:(?P<any>ANY )?(?P<count>\d+) \((?P<list>.+)\)|(?P<one>[^(), ]+))", re.DOTALL)
_NAME = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_][A-Za-z0-9_$]*)')


class SyncNames(Fact, frozen=True, kw_only=True):
    """A commit is acknowledged when `count` of these standbys have it on disk. None named: when the leader has it.

    `is_any`: written as ANY; it means the same as the other form whenever everybody who is named is waited for.
    """

    count: int = 0
    names: tuple[str, ...] = ()
    is_any: bool = False

    @property
    def text(self) -> str:
        """The parameter's value."""
        if not self.names:
            return ""
        listed = ",".join(_quoted(name) for name in self.names)
        if self.is_any:
            return f"ANY {self.count} ({listed})"
        return listed if len(self.names) == 1 else f"{self.count} ({listed})"


NOBODY = SyncNames()
STRICTLY_NOBODY = SyncNames(count=1, names=(PLACEHOLDER,))


def _quoted(name: str) -> str:
    if _PLAIN.fullmatch(name) and name not in _KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def parse_names(text: str) -> SyncNames | None:
    """The value in a parameter's text; None for what this agent would not have written."""
    if not text:
        return NOBODY
    found = _WRITTEN.fullmatch(text)
    if found is None:
        return None
    listed = _listed(found["list"] or found["one"])
    count = int(found["count"] or 1)
    names = SyncNames(count=count, names=listed, is_any=bool(found["any"]))
    return names if names.text == text and 0 < count <= len(listed) else None


def _listed(text: str) -> tuple[str, ...]:
    return tuple(quoted.replace('""', '"') or plain for quoted, plain in _NAME.findall(text))
