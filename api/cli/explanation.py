"""An explanation as text for people: dense, one line a rule and a duty, the guards of one that is asked for. Pure.

Colours are put in everywhere; `click.echo` leaves them out where no terminal reads.
"""

from collections.abc import Iterator, Sequence

import click

from api.cli.lines import COLOURS, lsn_text
from fsm.explain import DutyVerdict, Explanation, GuardVerdict, RuleVerdict
from fsm.loss import loss_text
from fsm.prognosis import Contender, Prognosis
from fsm.worst_case import seconds

YES, NO = "yes", "no "
CHANCE_COLOURS = {"leads": "blue", "wins": "green", "may win": "green", "loses": "yellow", "cannot": "red"}


def node_lines(found: Explanation) -> Iterator[str]:
    """A whole node: where it is, what could move it, what it does."""
    state = click.style(str(found.state), fg=COLOURS.get(found.state), bold=True)
    came = f", by {found.last_rule}" if found.last_rule else ""
    yield f"{found.name} is {state} for {_span(found.state_for_ms)}{came}"
    yield from ("", f"rules out of {found.state}, the first that holds moves it:")
    width = max((len(str(rule.target)) for rule in found.rules), default=0)
    for rule in found.rules:
        yield f"  {rule.id:3} -> {rule.target:{width}}  {_missing(rule.missing, len(rule.guards))}"
    yield from ("", "duties:")
    for duty in found.duties:
        if duty.standing != "not wanted":
            yield f"  {duty.id:26} {_standing(duty)}"
    idle = sum(duty.standing == "not wanted" for duty in found.duties)
    yield f"  {idle} more are not wanted now"
    if found.loss is not None:
        yield from ("", f"promoted now: {loss_text(found.loss)}")


def rule_lines(name: str, rule: RuleVerdict, state: str) -> Iterator[str]:
    """One rule, with every guard."""
    verdict = "moves it now" if rule.moves else "holds, behind another one" if not rule.missing else "does not hold"
    if rule.source != state:
        verdict = f"is not tried: {name} is {state}"
    yield f"{rule.id} {rule.source} -> {rule.target}: {rule.because}"
    yield f"on {name} it {_coloured(verdict, is_good=rule.moves)}"
    yield from _guard_lines(rule.guards)


def duty_lines(name: str, duty: DutyVerdict) -> Iterator[str]:
    """One duty, with every guard."""
    yield f"{duty.id}: {duty.because}"
    yield f"on {name} it is {_standing(duty)}"
    yield from _guard_lines(duty.guards)


def failover_lines(found: Prognosis) -> Iterator[str]:
    """What a failover now would come to."""
    gone = f"if {found.leader} vanished now" if found.leader else "nobody leads now"
    yield f"{gone}: {_coloured(_outcome(found.winners), is_good=bool(found.winners))}"
    width = max((len(contender.name) for contender in found.contenders), default=0)
    for contender in found.contenders:
        yield f"  {contender.name:{width}}  {_chance(contender)}"
    if found.winners:
        span = "not bounded" if found.writable_at_most_ms is None else f"{seconds(found.writable_at_most_ms)} at most"
        yield f"writable again: {span}: {found.writable_because}"
    risk = "unknown" if found.at_risk_bytes is None else f"{found.at_risk_bytes:,}"
    yield f"bytes at risk: {risk}: {found.at_risk_because}"


def _outcome(winners: Sequence[str]) -> str:
    if not winners:
        return "nobody would be promoted"
    return f"{' or '.join(winners)} would be promoted"


def _chance(contender: Contender) -> str:
    word = click.style(f"{contender.chance:7}", fg=CHANCE_COLOURS[contender.chance])
    at = f"TL{contender.timeline or '?'} {lsn_text(contender.position_lsn) if contender.position_lsn else '?':12}"
    return f"{word}  {at}  {'; '.join(contender.because)}".rstrip()


def _missing(missing: Sequence[GuardVerdict], count: int) -> str:
    if not missing:
        return click.style("holds", fg="green")
    return f"{len(missing)} of {count} missing: {', '.join(guard.name for guard in missing)}"


def _standing(duty: DutyVerdict) -> str:
    words = duty.standing
    if duty.standing == "under way":
        return click.style(f"{words} for {_span(duty.under_way_ms)}", fg="cyan")
    if duty.standing == "backing off":
        return click.style(f"{words} for {_span(duty.retry_in_ms)} after {duty.failure}", fg="yellow")
    return click.style(words, fg="green" if duty.standing == "due" else None)


def _guard_lines(guards: Sequence[GuardVerdict]) -> Iterator[str]:
    width = max((len(guard.name) for guard in guards), default=0)
    for guard in guards:
        mark = _coloured(YES if guard.holds else NO, is_good=guard.holds)
        yield f"  {mark}  {guard.name:{width}}  {guard.says}"


def _coloured(text: str, *, is_good: bool) -> str:
    return click.style(text, fg="green" if is_good else "red")


def _span(span_ms: int) -> str:
    return f"{span_ms} ms" if span_ms < 1000 else f"{span_ms / 1000:.1f} s"
