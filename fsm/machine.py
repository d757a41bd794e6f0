"""step(view, event) -> Decision: observe, advance, attend. Compiled from the table onto `transitions.Machine`."""

from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from transitions import Machine

from fsm.effects import AnyEffect, Effect
from fsm.events import AnyEvent
from fsm.facts import Fact
from fsm.observe import observe, with_issued
from fsm.states import State
from fsm.table import DUTIES, TABLE, Duty, Guard, Rule
from fsm.timers import DUTY_BY_ID, may_issue_at_ms, probe_every_ms, wake_at_ms
from fsm.view import Underway, View, Waiting

EXCLUSIVE_RESOURCES = frozenset({"server"})
"""Lanes in which a second effect is not even issued while one is under way: two hands on one data directory."""

EFFECTS_PER_STEP_MAX = 100
"""Effect ids are `seq * 100 + n`, so an outcome names the entry that caused it."""


class Issued(Fact, frozen=True, kw_only=True):
    """An effect as it goes to its executor: who asked for it, and under which number it is to be answered."""

    effect_id: int
    duty: str
    effect: AnyEffect


class Decision(Struct, frozen=True, kw_only=True):
    """What one event led to."""

    rule: str | None
    before: State
    view: View
    effects: tuple[Issued, ...]
    cancelled: tuple[int, ...]
    wake_at_ms: int | None
    probe_every_ms: int | None

    @property
    def after(self) -> State:
        """The state after the step."""
        return self.view.state


class _Cursor:
    """The throwaway model that one step moves: `transitions` changes it, the view stays as it was."""

    __slots__ = ("rule", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.rule: Rule | None = None


def _compile(table: tuple[Rule, ...]) -> Machine:
    """The table as a Machine with one trigger, `advance`; rows keep their order, so the first that holds is taken."""
    machine = Machine(
        model=None, states=State, initial=None, auto_transitions=False, send_event=True, ignore_invalid_triggers=True
    )
    for rule in table:
        machine.add_transition(
            "advance",
            rule.source,
            rule.target,
            conditions=[partial(_holds, guard) for guard in rule.guards],
            before=partial(_note, rule),
        )
    return machine


def _holds(guard: Any, moment: Any) -> bool:
    return bool(guard(moment.args[0]))


def _note(rule: Rule, moment: Any) -> None:
    moment.model.rule = rule


MACHINE = _compile(TABLE)

_GUARDS_OUT_OF = {state: tuple(rule.guards for rule in TABLE if rule.source is state) for state in State}
_DUTIES_IN = {state: tuple(duty for duty in DUTIES if state in duty.states) for state in State}

_Known = dict[Guard, bool]
"""What guards said of one view. They are pure, so what one said once of a view it would say again."""


def _all_hold(guards: tuple[Guard, ...], view: View, known: _Known) -> bool:
    for guard in guards:
        holds = known.get(guard)
        if holds is None:
            holds = known[guard] = guard(view)
        if not holds:
            return False
    return True


def advance(view: View, known: _Known | None = None) -> Rule | None:
    """The first row of TABLE that moves the machine now, or None.

    Nearly always no row holds; only when one does is the machine asked to move.
    """
    known = {} if known is None else known
    for guards in _GUARDS_OUT_OF[view.state]:
        if _all_hold(guards, view, known):
            break
    else:
        return None
    cursor = _Cursor(view.state)
    MACHINE.events["advance"].trigger(cursor, view)
    return cursor.rule


def is_due(view: View, duty: Duty) -> bool:
    """True when the duty should be issued now: wanted in this state, not in flight, not backing off."""
    if view.state not in duty.states or duty.id in view.underway or view.now_ms < may_issue_at_ms(view, duty):
        return False
    return all(guard(view) for guard in duty.guards)


def attend(view: View, issued: list[Issued], known: _Known | None = None) -> View:
    """Issue what should be under way and is not, behind what was issued already; the view that knows of it."""
    known = {} if known is None else known
    for duty in _DUTIES_IN[view.state]:
        for guard in duty.guards:
            holds = known.get(guard)
            if holds is None:
                holds = known[guard] = guard(view)
            if not holds:
                break
        else:
            if duty.id not in view.underway and view.now_ms >= may_issue_at_ms(view, duty):
                attended = _perform(view, duty, issued)
                known = known if attended is view else {}
                view = attended
    return view


def _perform(view: View, duty: Duty, issued: list[Issued]) -> View:
    effect = duty.order(view)
    if effect.resource in EXCLUSIVE_RESOURCES and _is_taken(view, effect.resource):
        return view
    return _issue(view, duty.id, effect, issued)


def _is_taken(view: View, resource: str) -> bool:
    return any(underway.resource == resource for underway in view.underway.values())


def _issue(view: View, duty: str, effect: Effect, issued: list[Issued]) -> View:
    effect_id = view.seq * EFFECTS_PER_STEP_MAX + len(issued)
    issued.append(Issued(effect_id=effect_id, duty=duty, effect=effect))  # type: ignore[arg-type]  # the union is closed
    underway = Underway(
        effect_id=effect_id,
        kind=type(effect).__name__,
        resource=effect.resource,
        since_ms=view.now_ms,
        deadline_ms=view.now_ms + effect.timeout_ms,
    )
    return with_issued(view, duty, underway, effect)


def no_longer_wanted(view: View) -> tuple[int, ...]:
    """The ids of effects under way whose duty is not one of the present state's."""
    return tuple(u.effect_id for duty, u in view.underway.items() if view.state not in DUTY_BY_ID[duty].states)


def step(view: View, event: AnyEvent) -> Decision:
    """Decide what follows from an event: at most one move, and what is to be done. Pure and deterministic.

    Args:
        view: what this node knew before.
        event: what was observed.
    """
    before = view.state
    view = observe(view, event)
    if view.identity is None:
        return _decision(None, before, view, [], ())
    known: _Known = {}
    rule = advance(view, known)
    issued: list[Issued] = []
    cancelled: tuple[int, ...] = ()
    if rule is not None:
        view = replace(view, state=rule.target, state_since_ms=view.now_ms, last_rule=rule.id, waiting=Waiting())
        cancelled = no_longer_wanted(view)
        if rule.fence is not None and view.server.process == "running":
            view = _issue(view, "fence-stray", rule.fence(view), issued)
        known = {}
    view = attend(view, issued, known)
    return _decision(rule, before, view, issued, cancelled)


def _decision(
    rule: Rule | None, before: State, view: View, issued: list[Issued], cancelled: tuple[int, ...]
) -> Decision:
    # A move asks for an immediate look, so that a chain of moves is a chain of entries.
    wake = view.now_ms if rule is not None else wake_at_ms(view)
    return Decision(
        rule=rule.id if rule else None,
        before=before,
        view=view,
        effects=tuple(issued),
        cancelled=cancelled,
        wake_at_ms=wake,
        probe_every_ms=probe_every_ms(view),
    )
