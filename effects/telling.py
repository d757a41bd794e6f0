"""What people read on the agent's console: each move and its reason, each fault once, each return to order."""

import logging
from collections.abc import Iterator

from fsm.events import ClusterRead, DirectoryRead, EtcdLost, Failed, ServerExited, ServerProbed, Succeeded, Unknown
from fsm.machine import Decision
from fsm.table import TABLE
from fsm.view import View

BECAUSE = {rule.id: rule.because for rule in TABLE}
QUIET_KINDS = ("cancelled", "expired")

Line = tuple[int, str]


def lines(before: View, decision: Decision, event: object) -> Iterator[Line]:
    """The lines for one step, each with its level.

    Args:
        before: what the node knew.
        decision: what the step answered.
        event: what the step was asked about.
    """
    view = decision.view
    match event:
        case EtcdLost():
            yield logging.WARNING, f"etcd is not heard of, trying again: {event.detail}"
        case ClusterRead() if not before.etcd.is_watched:
            yield logging.INFO, f"etcd answers; the leader is {view.leader or 'nobody yet'}"
        case ServerExited():
            yield _exit_line(event)
        case ServerProbed() if _is_news(before, event):
            what = "is a standby" if event.probe.in_recovery else "accepts writes"
            yield logging.INFO, f"the server {what}, on timeline {event.probe.timeline}"
        case Succeeded(result=DirectoryRead(directory=directory)) if directory.condition == "unreadable":
            remedy = "nothing is touched; mend it, or replace it by `reinit`"
            yield logging.ERROR, f"the data directory cannot be used: {directory.detail}; {remedy}"
        case Failed() if event.kind not in QUIET_KINDS:
            yield from _failure_lines(view, event.duty, event.kind, event.detail)
        case Unknown():
            yield from _failure_lines(view, event.duty, "unknown outcome", event.detail)
    if decision.rule is not None:
        yield logging.INFO, f"{decision.rule} {decision.before} -> {decision.after}: {BECAUSE[decision.rule]}"


def _is_news(before: View, event: ServerProbed) -> bool:
    """True for a server's first answer, and for one from the other side of recovery."""
    known = before.server.probe
    return known is None or known.in_recovery != event.probe.in_recovery


def _exit_line(event: ServerExited) -> Line:
    if event.fired:
        return logging.ERROR, f"the fence ended the server (pid {event.pid}) at its deadline"
    if event.signal is not None:
        return logging.WARNING, f"the server (pid {event.pid}) was killed by signal {event.signal}"
    return logging.INFO, f"the server (pid {event.pid}) ended with status {event.status}"


def _failure_lines(view: View, duty: str, kind: str, detail: str) -> Iterator[Line]:
    """The first failures of a duty in a row, then ever fewer."""
    count = view.attempts[duty].failures if duty in view.attempts else 1
    if count <= 3 or count == 10 or count % 100 == 0:
        yield logging.WARNING, f"{duty} failed ({kind}, attempt {count}): {detail}"
