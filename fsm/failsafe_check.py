"""Would the members let this leader go on if etcd went away now, and if not, because of whom? Pure; asks nobody.

What each member says to a question that binds nobody is judged here, by the rules that a real one goes by.
"""

from typing import Literal

from fsm.facts import Fact, FailsafeAnswer
from fsm.guards.keys import is_leader_key_ours
from fsm.publish import failsafe_addresses
from fsm.timing import failsafe_timeout_ms
from fsm.view import View

Verdict = Literal["confirms", "refuses", "silent", "slow", "unclear", "unfit"]

GOOD: tuple[Verdict, ...] = ("confirms",)


class MemberVerdict(Fact, frozen=True, kw_only=True):
    """What one member would do. `is_listed`: it is in the `failsafe` key, so it may be elected."""

    name: str
    api_url: str
    verdict: Verdict
    reason: str
    took_ms: int
    is_listed: bool


class CheckVerdict(Fact, frozen=True, kw_only=True):
    """Whether the failsafe would hold now. `reason`: in one line why, or why not."""

    leader: str
    holds: bool
    reason: str
    ttl_s: int
    timeout_ms: int
    members: tuple[MemberVerdict, ...]


def why_not_to_check(view: View) -> str | None:
    """Why this node is the wrong one to ask; None for the leader, which sees its members as they would be asked."""
    if is_leader_key_ours(view):
        return None
    leads = f'"{view.leader}" leads' if view.leader else "nobody leads"
    return f'"{view.name}" does not hold the leader key, so it has nobody to ask: {leads}'


def _own_obstacle(view: View) -> str | None:
    """Why the leader would not even ask; None where the members' answers decide."""
    if not view.dynamic.failsafe_mode:
        return "failsafe_mode is off: without etcd the primary stops at the end of its lease"
    if not view.failsafe:
        return "no list of members is in etcd yet (the failsafe key), so it is not known who must confirm"
    if not all(view.failsafe_in_doubt):
        return "it is not certain whether the list of members in etcd (the failsafe key) was emptied"
    return None


def judged(view: View, answers: tuple[FailsafeAnswer, ...]) -> CheckVerdict:
    """The verdict, from what the members said."""
    timeout_ms = failsafe_timeout_ms(view.dynamic.failsafe_timeout_ms, view.dynamic.ttl_s)
    heard = {answer.name: answer for answer in answers}
    members = tuple(
        _member(name, url, heard.get(name), timeout_ms, is_listed=name in view.failsafe)
        for name, url in sorted(failsafe_addresses(view).items())
    )
    obstacle = _own_obstacle(view)
    against = [member.name for member in members if member.verdict not in GOOD]
    return CheckVerdict(
        leader=view.name,
        holds=obstacle is None and not against,
        reason=obstacle or _reason(members, against),
        ttl_s=view.dynamic.ttl_s,
        timeout_ms=timeout_ms,
        members=members,
    )


def _reason(members: tuple[MemberVerdict, ...], against: list[str]) -> str:
    if against:
        return f"without etcd the primary would stop at the end of its lease, because of {', '.join(against)}"
    if not members:
        return "there is no other member, so the primary would go on without etcd"
    return "every member would confirm, so the primary would go on without etcd"


def _member(name: str, url: str, answer: FailsafeAnswer | None, timeout_ms: int, *, is_listed: bool) -> MemberVerdict:
    verdict, reason = _verdict(answer, url, timeout_ms)
    took_ms = answer.took_ms if answer is not None else 0
    return MemberVerdict(name=name, api_url=url, verdict=verdict, reason=reason, took_ms=took_ms, is_listed=is_listed)


def _verdict(answer: FailsafeAnswer | None, url: str, timeout_ms: int) -> tuple[Verdict, str]:
    if answer is None or answer.kind == "none":
        return "silent", f"no answer from {url}: {answer.detail if answer is not None else 'it was not asked'}"
    if answer.kind == "refused":
        return "refuses", answer.detail
    if answer.kind == "status":
        return "unfit", f"its version has no failsafe ({answer.detail})"
    if answer.took_ms > timeout_ms:
        return "slow", f"it took {answer.took_ms} ms, and {timeout_ms} ms are waited (failsafe_timeout)"
    if answer.kind == "list":
        return _verdict_of_another_version(answer)
    return ("confirms", answer.detail) if answer.is_willing else ("refuses", answer.detail)


def _verdict_of_another_version(answer: FailsafeAnswer) -> tuple[Verdict, str]:
    """One that cannot be asked without being bound: Patroni confirms everybody unless it runs as a primary itself."""
    if answer.role in ("primary", "master", "standby_leader"):
        return "refuses", f"it runs as {answer.role} itself"
    if not answer.version:
        return "unclear", "it cannot be asked without binding it, and does not tell what it is"
    return "confirms", f"as far as can be told: {answer.version} cannot be asked without binding it"
