"""Guards about base backups: whom to copy from, and what an operator asked for while one is being taken."""

from fsm.dynamic import as_bool
from fsm.guards.directory import has_cloned
from fsm.guards.following import leader_to_follow
from fsm.states import State
from fsm.view import View
from fsm.wire import Member


def clone_sources(view: View) -> tuple[Member, ...]:
    """Whom a base backup may be taken of, the best first: members tagged for it that stream, then the leader.

    Source: Patroni, tag `clonefrom`.
    """
    leader = leader_to_follow(view)
    if leader is None:
        return ()
    if view.is_reinit_from_leader or _is_trusted_with_commits(view):
        return (leader,)
    tagged = [m for m in view.members.values() if m.name != view.name and _is_offered(m, leader)]
    return (*sorted(tagged, key=lambda member: (-member.position_lsn, member.name)), leader)


def clone_source(view: View) -> Member | None:
    """Whom to take the next base backup of: the best, and after each failure the next one; None while nobody leads."""
    sources = clone_sources(view)
    if not sources:
        return None
    failures = view.attempts["clone"].failures if "clone" in view.attempts else 0
    return sources[failures % len(sources)]


def _is_trusted_with_commits(view: View) -> bool:
    """True while the `sync` key says that this node has every acknowledged commit: a copy of a standby may miss some,
    and would be elected on the strength of that key should the leader die before it is written anew."""
    names = {name.lower() for name in (view.sync.leader, *view.sync.members) if name}
    return view.name.lower() in names


def _is_offered(member: Member, leader: Member) -> bool:
    """True for a running standby that streams on the leader's timeline and whose tag offers it to be copied."""
    if member.name == leader.name or member.upstream is None or not as_bool(member.tags.get("clonefrom"), False):
        return False
    is_streaming = member.state == "running" and member.replication_state == "streaming"
    return is_streaming and member.timeline == leader.timeline


def is_reinit_to_begin_anew(view: View) -> bool:
    """An operator asked for a base backup after the present one had begun."""
    if not view.is_reinit_asked:
        return False
    begun = view.underway.get("clone")
    # Asked before it began, a clone that succeeds is the answer, and nothing is asked for any more.
    return has_cloned(view) if begun is None else begun.since_ms < view.reinit_asked_at_ms


def is_start_allowed(view: View) -> bool:
    """The cluster is not paused, or it was this agent that stopped the server, for a base backup or a restart."""
    return not view.dynamic.pause or view.restart is not None or (view.state is State.REINIT and has_cloned(view))
