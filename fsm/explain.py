"""explain(view) -> Explanation: why this node does what it does, and why it does not do the rest. Pure.

Guards are named and say in one line what they hold for, so nothing is explained here that the table does not say.
"""

import inspect
from collections.abc import Iterable
from typing import Literal

from msgspec.structs import replace

from fsm.facts import Fact
from fsm.loss import loss_estimate
from fsm.losses import LossEstimate
from fsm.prognosis import Prognosis, prognosis
from fsm.states import State
from fsm.table import DUTIES, TABLE, Duty, Guard, Rule
from fsm.timers import may_issue_at_ms
from fsm.view import View

Standing = Literal["under way", "backing off", "due", "not wanted"]


class GuardVerdict(Fact, frozen=True, kw_only=True):
    """One guard and whether it holds. `says`: what is true when it holds."""

    name: str
    says: str
    holds: bool


class RuleVerdict(Fact, frozen=True, kw_only=True):
    """One rule out of the present state. `moves`: it is the first whose guards all hold."""

    id: str
    source: State
    target: State
    because: str
    guards: tuple[GuardVerdict, ...]
    moves: bool = False

    @property
    def missing(self) -> tuple[GuardVerdict, ...]:
        """What would have to become true for this rule to hold."""
        return tuple(guard for guard in self.guards if not guard.holds)


class DutyVerdict(Fact, frozen=True, kw_only=True):
    """One duty of the present state, and how it stands.

    `due`: wanted and neither under way nor backing off; it is issued with the next decision unless its lane is taken.
    """

    id: str
    because: str
    standing: Standing
    guards: tuple[GuardVerdict, ...]
    failures: int = 0
    failure: str = ""
    """How it failed last, if it failed since it last succeeded."""
    retry_in_ms: int = 0
    under_way_ms: int = 0

    @property
    def missing(self) -> tuple[GuardVerdict, ...]:
        """What would have to become true for this duty to be wanted."""
        return tuple(guard for guard in self.guards if not guard.holds)


class Explanation(Fact, frozen=True, kw_only=True):
    """Every rule out of the present state and every duty of it, with the guards that hold and those that do not."""

    name: str
    state: State
    state_for_ms: int
    last_rule: str | None = None
    rules: tuple[RuleVerdict, ...]
    duties: tuple[DutyVerdict, ...]
    loss: LossEstimate | None = None
    """What this node's promotion now would leave behind; None while it leads."""
    failover: Prognosis | None = None
    """Who would be promoted if the leader vanished now, by what this node knows."""


def explain_at(view: View, now_ms: int, about: str = "") -> Explanation:
    """What a snapshot comes to at a later instant, and what a failover then would.

    Args:
        view: the newest snapshot.
        now_ms: the instant of the question.
        about: a rule or a duty, of whichever state, which is then explained alone; "" for those of the present state.

    Raises: UnknownSubject when there is no such rule or duty.
    """
    view = replace(view, now_ms=max(view.now_ms, now_ms))
    found = explain(view)
    if about:
        rules = tuple(_marked(_rule_verdict(rule, view), _moving(found.rules)) for rule in TABLE if rule.id == about)
        duties = tuple(_duty_verdict(duty, view) for duty in DUTIES if duty.id == about)
        if not rules and not duties:
            raise UnknownSubject(about)
        return replace(found, rules=rules, duties=duties)
    loss = None if view.state is State.LEADER else loss_estimate(view)
    return replace(found, loss=loss, failover=prognosis(view))


class UnknownSubject(ValueError):
    """There is no rule and no duty of this name; says which there are."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f'"{name[:40]}" is no rule and no duty; there are {", ".join(rule.id for rule in TABLE)}, '
            f"{', '.join(duty.id for duty in DUTIES)}"
        )


def explain(view: View) -> Explanation:
    """Why this node moves or stays, and what it does meanwhile.

    Args:
        view: what the node knows; `view.now_ms` is the instant that is judged.

    Returns:
        The rules in the order in which they are tried, and the duties in the order of their urgency.
    """
    rules = [_rule_verdict(rule, view) for rule in TABLE if rule.source is view.state]
    moving = _moving(rules)
    return Explanation(
        name=view.name,
        state=view.state,
        state_for_ms=view.now_ms - view.state_since_ms,
        last_rule=view.last_rule,
        rules=tuple(_marked(rule, moving) for rule in rules),
        duties=tuple(_duty_verdict(duty, view) for duty in DUTIES if view.state in duty.states),
    )


def _moving(rules: Iterable[RuleVerdict]) -> str | None:
    return next((rule.id for rule in rules if not rule.missing), None)


def _guard_verdict(guard: Guard, view: View) -> GuardVerdict:
    says = (inspect.getdoc(guard) or "").partition("\n")[0]
    return GuardVerdict(name=guard.__name__, says=says, holds=guard(view))


def _rule_verdict(rule: Rule, view: View) -> RuleVerdict:
    guards = tuple(_guard_verdict(guard, view) for guard in rule.guards)
    return RuleVerdict(id=rule.id, source=rule.source, target=rule.target, because=rule.because, guards=guards)


def _marked(rule: RuleVerdict, moving: str | None) -> RuleVerdict:
    return replace(rule, moves=rule.id == moving)


def _duty_verdict(duty: Duty, view: View) -> DutyVerdict:
    guards = tuple(_guard_verdict(guard, view) for guard in duty.guards)
    underway, attempts = view.underway.get(duty.id), view.attempts.get(duty.id)
    return DutyVerdict(
        id=duty.id,
        because=duty.because,
        standing=_standing(duty, view, is_wanted=all(guard.holds for guard in guards)),
        guards=guards,
        failures=attempts.failures if attempts else 0,
        failure=f"{attempts.kind}: {attempts.detail}" if attempts else "",
        retry_in_ms=max(0, may_issue_at_ms(view, duty) - view.now_ms),
        under_way_ms=view.now_ms - underway.since_ms if underway else 0,
    )


def _standing(duty: Duty, view: View, *, is_wanted: bool) -> Standing:
    if duty.id in view.underway:
        return "under way"
    if not is_wanted:
        return "not wanted"
    return "backing off" if view.now_ms < may_issue_at_ms(view, duty) else "due"
