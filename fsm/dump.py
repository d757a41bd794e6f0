"""The table as plain text: what the golden file holds, and what the hash in every log entry is of."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from fsm.table import DUTIES, TABLE


def _names(functions: Iterable[Callable[..., Any]]) -> str:
    return " & ".join(function.__name__ for function in functions)


def table_text() -> str:
    """Every rule and every duty, one paragraph each, in the order in which they are tried."""
    rules = [
        f"{rule.id}: {rule.source} -> {rule.target}\n"
        f"    when {_names(rule.guards)}\n"
        + (f"    first {rule.fence.__name__}\n" if rule.fence else "")
        + f"    because {rule.because}\n"
        for rule in TABLE
    ]
    duties = [
        f"{duty.id}: in {', '.join(sorted(duty.states))}\n"
        f"    when {_names(duty.guards)}\n"
        f"    do {duty.order.__name__} (again after {duty.first_ms} to {duty.most_ms} ms)\n"
        f"    because {duty.because}\n"
        for duty in DUTIES
    ]
    return "RULES\n\n" + "\n".join(rules) + "\nDUTIES\n\n" + "\n".join(duties)


TABLE_HASH = hashlib.sha256(table_text().encode()).hexdigest()[:12]
"""Which table judged: the first 12 hex digits of the SHA-256 of `table_text()`."""
