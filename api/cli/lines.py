"""One dense line an entry: when, which node, what was seen, which rule moved it, what was told to whom."""

import json
from typing import Any

from api.text import printable
from fsm.effects import Promote
from fsm.entries import Entry
from fsm.events import Failed, KeysChanged, ServerExited, ServerProbed, ServerSilent, Succeeded, Unknown
from fsm.facts import Probe
from fsm.loss import loss_text
from fsm.table import TABLE

BECAUSE = {rule.id: rule.because for rule in TABLE}
COLOURS = {
    "leader": "green",
    "replica": "cyan",
    "candidate": "yellow",
    "rewinding": "magenta",
    "reinit": "red",
    "bootstrapping": "blue",
}


def lsn_text(lsn: int) -> str:
    """An LSN as PostgreSQL writes it, such as 0/3000148."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def seen_text(entry: Entry) -> str:
    """What was observed, in a few words."""
    event = entry.event
    match event:
        case ServerProbed():
            return _probe_text(event.probe)
        case ServerSilent():
            return f"server silent: {'starting' if event.starting else event.detail}"
        case ServerExited():
            how = f"signal {event.signal}" if event.signal else f"status {event.status}"
            return f"server {event.pid} gone ({how}{', killed by the fence at its deadline' if event.fired else ''})"
        case KeysChanged():
            keys = (f"{c.key}{'' if c.value is not None else ' deleted'}" for c in event.changes)
            return f"etcd r{event.revision}: {', '.join(keys)}"
        case Succeeded():
            return f"{event.duty} done {_result_text(event)}".rstrip()
        case Failed():
            return f"{event.duty} failed ({event.kind}): {event.detail}"
        case Unknown():
            return f"{event.duty} unknown: {event.detail}"
        case _:
            return _plain_text(event)


def _probe_text(probe: Probe) -> str:
    if probe.in_recovery:
        how = probe.receiver_status or "not streaming"
        return f"standby TL{probe.timeline} {lsn_text(probe.position_lsn)} {how}"
    streaming = ", ".join(s.application_name for s in probe.standbys if s.state == "streaming")
    return f"primary TL{probe.timeline} {lsn_text(probe.flushed_lsn)} feeds {streaming or 'nobody'}"


def _result_text(event: Succeeded) -> str:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(event.result)
    fields.pop("result", None)
    fields.pop("now", None)
    return " ".join(f"{key}={json.dumps(value)}" for key, value in fields.items() if len(json.dumps(value)) < 60)


def _plain_text(event: Any) -> str:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(event)
    name = fields.pop("event")
    fields.pop("at_ms")
    shown = {key: value for key, value in fields.items() if len(json.dumps(value)) < 80}
    return f"{name} " + " ".join(f"{key}={json.dumps(value)}" for key, value in shown.items())


def decided_text(entry: Entry) -> str:
    """What followed: the move and its reason, and the duties that were issued."""
    parts = []
    if entry.rule is not None:
        parts.append(
            f"{entry.rule} {entry.before} -> {entry.after}: {BECAUSE.get(entry.rule, 'a rule of another table')}"
        )
    if entry.effects:
        parts.append("do " + ", ".join(issued.duty for issued in entry.effects))
        promotions = [issued.effect for issued in entry.effects if isinstance(issued.effect, Promote)]
        parts.extend(loss_text(promotion.loss) for promotion in promotions if promotion.loss is not None)
    if entry.cancelled:
        parts.append(f"cancel {len(entry.cancelled)}")
    return "; ".join(parts)


def columns(entry: Entry) -> tuple[str, str, str, str, str]:
    """Sequence, time of day, state, what was seen, what followed."""
    seen, decided = printable(seen_text(entry)), printable(decided_text(entry))
    return str(entry.seq), printable(entry.wall[11:23]), str(entry.after), seen, decided


def is_worth_showing(entry: Entry) -> bool:
    """False for a look at the server, or a tick, that led to nothing."""
    is_routine = entry.event.__class__.__name__ in ("ServerProbed", "Ticked", "ServerSilent")
    return bool(not is_routine or entry.rule or entry.effects)
