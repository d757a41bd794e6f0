"""Synchronous modes: who should be waited for, and the next step towards it. The pure policy of `/sync`.

Two things say who is synchronous, and they cannot be changed at one instant:

- the names in force at the leader's server: a commit is acknowledged when `count` of `names` have it on disk;
- the `sync` key in etcd: a member of it may be promoted when `quorum` other members of it are heard to hold no more
  WAL than itself. The key's leader may always be promoted: whatever was acknowledged is on its disk.

THE INVARIANT: whoever may be promoted has met somebody who holds each acknowledged commit, or holds it itself. Any
`quorum + 1` members of the key meet any `count` of the names exactly when

    members of the key and names together  <=  quorum + count

or when the key cannot be satisfied without its leader. `is_safe` is that line. Every step below is one of two:

- **other names**: allowed when the key is safe under them, and in force before anything rests on them. They are
  *settled* once the server was seen to use them and `count` of them have all WAL that may have been acknowledged before
  that: then the past is as safe under them as what is to come;
- **another key**: members are taken out at any time, for that only narrows who may be promoted; anything else waits for
  settled names under which the new key is safe.

Source: PostgreSQL, synchronous_standby_names; Patroni, synchronous_mode and its `/sync` key, whose formats and meaning
are kept (also that of 4.1's quorum mode), but not its order of steps.
"""

from collections.abc import Iterable

from fsm.facts import Fact
from fsm.syncnames import NOBODY, STRICTLY_NOBODY, SyncNames
from fsm.view import View
from fsm.wire import Member, SyncKey, is_barred_by_tags, sync_priority


class Aim(Fact, frozen=True, kw_only=True):
    """Who should be in the key in the end, and how many of them a commit should wait for."""

    members: tuple[str, ...] = ()
    count: int = 0
    is_any: bool = False


# ---- the invariant ---------------------------------------------------------------------------------------------------


def is_safe(key: SyncKey, names: SyncNames) -> bool:
    """True when whoever may be promoted by this key meets whoever acknowledged a commit under these names."""
    return key.quorum >= len(key.members) or len({*key.members, *names.names}) <= key.quorum + names.count


def names_of_key(key: SyncKey, *, is_any: bool) -> SyncNames:
    """The least names under which a key is safe."""
    return SyncNames(count=max(0, len(key.members) - key.quorum), names=key.members, is_any=is_any)


# ---- who is there ----------------------------------------------------------------------------------------------------


def live_members(view: View) -> set[str]:
    """Members that stream from this leader's server and keep up, as far as its last answer tells."""
    return {name for name, track in view.waiting.standbys.items() if not track.is_stuck}


def chosen_members(view: View) -> tuple[str, ...]:
    """The members that may be synchronous, the best first. Source: Patroni, the choice of synchronous standbys."""
    able = [member for member in view.members.values() if _is_eligible(view, member)]
    return tuple(member.name for member in sorted(able, key=lambda member: _rank(view, member)))


def _is_eligible(view: View, member: Member) -> bool:
    track = view.waiting.standbys.get(member.name)
    if track is None or track.is_stuck or member.name == view.name or view.now_ms < track.distrusted_until_ms:
        return False
    return sync_priority(member.tags) > 0 and not _is_lagging(view, member)


def _is_lagging(view: View, member: Member) -> bool:
    """True beyond maximum_lag_on_syncnode, measured against the foremost standby. Source: Patroni, of that name."""
    limit = view.dynamic.maximum_lag_on_syncnode_bytes
    positions = {name: track.lsn for name, track in view.waiting.standbys.items()}
    return limit > 0 and max(positions.values()) - positions[member.name] > limit


def _rank(view: View, member: Member) -> tuple[bool, int, bool, int, str]:
    is_present = member.name in view.sync.members
    lsn = view.waiting.standbys[member.name].lsn
    return is_barred_by_tags(member.tags), -sync_priority(member.tags), not is_present, -lsn, member.name


def aim_of(view: View) -> Aim:
    """Who should be synchronous now. In strict mode, with nobody there, whoever is in the key already."""
    chosen, is_any = chosen_members(view), view.dynamic.synchronous_mode == "quorum"
    most = view.dynamic.synchronous_node_count
    if not chosen and view.dynamic.synchronous_mode_strict:
        present = names_of_key(view.sync, is_any=is_any)
        return Aim(members=present.names, count=present.count, is_any=is_any)
    if is_any:
        # Who may not be promoted counts only where the others are too few to be waited for.
        able = [name for name in chosen if not is_barred_by_tags(view.members[name].tags)]
        chosen = tuple(able) if len(able) >= most else chosen[:most]
        return Aim(members=tuple(sorted(chosen)), count=min(most, len(chosen)), is_any=True)
    chosen = tuple(sorted(chosen[:most]))
    return Aim(members=chosen, count=len(chosen))


# ---- the steps -------------------------------------------------------------------------------------------------------


def names_towards(key: SyncKey, aim: Aim, *, is_strict: bool) -> SyncNames:
    """The names nearest to the aim under which the present key is safe."""
    members, count = aim.members, aim.count
    if key.quorum < len(key.members):
        count = max(count, len({*key.members, *members}) - key.quorum)
    if count > len(members):
        members = _sorted({*key.members, *members})
    if not members:
        return STRICTLY_NOBODY if is_strict else NOBODY
    return SyncNames(count=count, names=members, is_any=aim.is_any)


def key_towards(leader: str, names: SyncNames, aim: Aim) -> SyncKey:
    """The key nearest to the aim that is safe under settled names."""
    for members in (aim.members, _sorted({*aim.members} & {*names.names}), ()):
        together = len({*members, *names.names})
        quorum = max(len(members) - aim.count, together - names.count, 0) if members else 0
        # Without ANY every member stands for itself: readers of that mode do not look at a quorum.
        if quorum == 0 or (aim.is_any and quorum < len(members)):
            return SyncKey(leader=leader, members=members, quorum=quorum)
    raise AssertionError("an empty key is always safe")


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _names_aimed_at(view: View) -> SyncNames:
    return names_towards(view.sync, aim_of(view), is_strict=view.dynamic.synchronous_mode_strict)


def _is_satisfiable(view: View, names: SyncNames) -> bool:
    return names == STRICTLY_NOBODY or len(live_members(view) & {*names.names}) >= names.count


def next_names(view: View) -> SyncNames | None:
    """The names to put in force now; None when those in force are right, or others would only make commits wait."""
    names = _names_aimed_at(view)
    return names if names != view.waiting.names and _is_satisfiable(view, names) else None


def first_names(view: View) -> SyncNames:
    """The names with which this leader's server begins to accept writes: those that the present key rests on."""
    names = names_of_key(view.sync, is_any=view.dynamic.synchronous_mode == "quorum")
    return STRICTLY_NOBODY if view.dynamic.synchronous_mode_strict and not names.names else names


def is_key_ours(view: View) -> bool:
    """True when the `sync` key is surely the one that this leader wrote last."""
    return view.sync.leader == view.name and view.waiting.is_key_certain


def names_to_order(view: View) -> SyncNames | None:
    """The names to order now, before a promotion or after; None when they are in force, or were just ordered."""
    probe, waiting = view.server.probe, view.waiting
    if probe is None or view.server.process != "running" or not is_key_ours(view):
        return None
    if probe.in_recovery:
        first = first_names(view)
        return first if _has_looked(view) and probe.synchronous_standby_names != first.text else None
    if waiting.names is None:
        return None
    return next_names(view) or (waiting.names if are_names_foreign(view) else None)


def _has_looked(view: View) -> bool:
    """True when the server was looked at since names were last put in force in this term."""
    ordered_at_ms = max(view.state_since_ms, view.achieved.get("set-sync-names", -1))
    return view.server.probed_at_ms > ordered_at_ms and "set-sync-names" not in view.underway


def are_names_foreign(view: View) -> bool:
    """True when the server shows other names than this leader put in force: somebody else changed them."""
    probe, names = view.server.probe, view.waiting.names
    if probe is None or probe.in_recovery or names is None or not _has_looked(view):
        return False
    return probe.synchronous_standby_names != names.text


def next_key(view: View) -> SyncKey | None:
    """The `sync` key to write now; None when it is right, or has to wait for the names.

    A leader begins with nobody in it, before its server accepts writes: those of its predecessor's key do not wait for
    its own commits. A key that is its own already, or may have been written since it was seen, is written as it is:
    what was on its way before that is then refused.
    """
    if view.sync.leader != view.name:
        return SyncKey(leader=view.name)
    wanted = _wanted_key(view)
    return wanted if wanted != view.sync or not view.waiting.is_key_certain else None


def _wanted_key(view: View) -> SyncKey:
    key, waiting = view.sync, view.waiting
    if waiting.names is None:
        return key
    if key.members and (are_names_foreign(view) or not is_safe(key, waiting.names)):
        return SyncKey(leader=view.name)  # somebody changed the names, or the key, behind the agent's back
    if next_names(view) is not None:
        return key
    if waiting.is_settled:
        return key_towards(view.name, waiting.names, aim_of(view))
    # Names on their way to be settled are waited for, unless the key demands names that nobody can satisfy.
    return key if _is_satisfiable(view, _names_aimed_at(view)) else _without_the_dead(view)


def _without_the_dead(view: View) -> SyncKey:
    """The key without members that do not keep up; in strict mode, with nobody to take their place, they stay."""
    kept = {*view.sync.members} & ({*aim_of(view).members} | live_members(view))
    members = _sorted(kept)
    if len(members) <= view.sync.quorum:
        return SyncKey(leader=view.name) if len(members) < len(view.sync.members) else view.sync
    return SyncKey(leader=view.name, members=members, quorum=view.sync.quorum)
