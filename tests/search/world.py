"""A synchronous cluster at one instant, without clocks: what is on each disk, in etcd, and in the leader's mind.

The decisions are the agent's own: `fsm.sync` says what a leader writes and whom commits wait for, `fsm.waiting` what
it learns by looking, `fsm.vote` and `fsm.election` what a vote is and when there are enough. What happens next is
chosen by the search: any message may come first, late or never, anybody may be cut off, and nothing ever ends the
former primary. Left out: spans of time (so nobody is ever stuck, only cut off), and what follows one election.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from fsm.dynamic import parse_dynamic
from fsm.election import has_enough_votes, is_synchronous_enough
from fsm.events import Identity
from fsm.facts import Key, PeerReport, Probe, Standby
from fsm.states import State
from fsm.sync import names_to_order, next_key
from fsm.syncnames import NOBODY, SyncNames
from fsm.view import Etcd, HeardPeer, Server, View, Vote, Waiting
from fsm.vote import vote_revision
from fsm.waiting import looked, marked, ordered
from fsm.wire import Member, SyncKey

LEADER = "n1"
NOW_MS = 10
REVISION = 7
"""The revision of `sync` by which everybody stands; that it does not change until the key is taken is etcd's part."""


class Replica(NamedTuple):
    """A standby: how much WAL it has on disk, whether it streams, and whether it left its primary for a vote."""

    lsn: int = 0
    streams: bool = True
    has_left: bool = False


class Write(NamedTuple):
    """A write of `sync` that is on its way. It is applied only where the key is as it was seen."""

    key: SyncKey
    is_current: bool
    is_awaited: bool


class World(NamedTuple):
    """One instant. `lingering`: names that some process of the server has not given up yet."""

    replicas: tuple[tuple[str, Replica], ...]
    lsn: int = 0
    acked: int = 0
    names: SyncNames = NOBODY
    lingering: SyncNames | None = None
    key: SyncKey = SyncKey(leader=LEADER)
    seen: SyncKey = SyncKey(leader=LEADER)
    writes: tuple[Write, ...] = ()
    order: SyncNames | None = None
    waiting: Waiting = Waiting(is_key_certain=True)
    probe: Probe | None = None
    has_looked: bool = False
    is_key_free: bool = False
    votes: frozenset[tuple[str, str, int]] = frozenset()
    elected: tuple[str, int] | None = None

    @property
    def mark(self) -> tuple[object, ...]:
        """What tells this instant from others; instants of clocks are no part of it."""
        waiting = self.waiting
        mind = (waiting.is_key_certain, _named(waiting.names), waiting.is_first, waiting.shown_since_ms is None)
        known = (waiting.mark_lsn, waiting.is_settled, tuple(sorted((n, t.lsn) for n, t in waiting.standbys.items())))
        seen_rows = () if self.probe is None else tuple((s.application_name, s.flush_lsn) for s in self.probe.standbys)
        shown = None if self.probe is None else (self.probe.synchronous_standby_names, self.probe.flushed_lsn)
        writes = tuple((_keyed(w.key), w.is_current, w.is_awaited) for w in self.writes)
        server = (self.replicas, self.lsn, self.acked, _named(self.names), _named(self.lingering), _named(self.order))
        there = (_keyed(self.key), _keyed(self.seen), writes, self.is_key_free, self.votes, self.elected)
        return (*server, *there, *mind, *known, seen_rows, shown, self.has_looked)


class Rules(NamedTuple):
    """The safeguards that are in place; each can be taken away, to see that the search notices."""

    mode: str = "quorum"
    wal_most: int = 2
    begins_settled: bool = False
    waits_for_settled: bool = True
    names_rest_on_key: bool = True
    voters_leave: bool = True
    sync_is_compared: bool = True


Step = tuple[str, World]


def _named(names: SyncNames | None) -> object:
    return None if names is None else (names.count, names.names)


def _keyed(key: SyncKey) -> object:
    return key.leader, key.members, key.quorum


CALM = ("looks", "names arrive", "everybody", "marks", "sync arrives", "hears", "orders names", "orders sync")
"""The steps by which a leader to whom nothing happens comes to synchronous standbys."""


def first_world(size: int, rules: Rules) -> World:
    """A leader of whom everybody else streams, and for whom nobody is waited yet."""
    world = World(replicas=tuple((f"n{number}", Replica()) for number in range(2, size + 1)))
    return _calmed(world, rules) if rules.begins_settled else world


def _calmed(world: World, rules: Rules) -> World:
    """The world once names and key are as the leader wants them, by the agent's own steps."""
    safe = rules._replace(waits_for_settled=True, names_rest_on_key=True)
    while found := [step for word in CALM for step in steps(world, safe) if step[0].startswith(word)]:
        world = found[0][1]
    return world


# ---- the leader's mind -----------------------------------------------------------------------------------------------


def mind_of(world: World, rules: Rules) -> View:
    """What the leader's agent knows."""
    names = (LEADER, *(name for name, _ in world.replicas))
    return View(
        state=State.LEADER,
        now_ms=NOW_MS,
        identity=Identity(name=LEADER, scope="s", api_url="", conn_url=""),
        etcd=Etcd(is_watched=True, revision=REVISION),
        members={name: Member(name=name) for name in names},
        dynamic=parse_dynamic(f'{{"synchronous_mode":"{rules.mode}"}}'),
        sync=world.seen,
        waiting=world.waiting,
        server=Server(
            process="running", pid=1, probe=world.probe, probed_at_ms=NOW_MS if world.has_looked else 0
        ),
        achieved={"set-sync-names": 1},
    )  # fmt: skip


def _probe(world: World) -> Probe:
    rows = tuple(
        Standby(application_name=name, state="streaming", flush_lsn=1 + replica.lsn)
        for name, replica in world.replicas
        if replica.streams and not replica.has_left
    )
    return Probe(
        in_recovery=False,
        timeline=1,
        system_id="1",
        server_version=180000,
        postmaster_started_at="",
        flushed_lsn=1 + world.lsn,
        standbys=rows,
        synchronous_standby_names=world.names.text,
    )


def _decided(world: World, rules: Rules) -> Iterator[Step]:
    """What the leader's agent does next."""
    mind = mind_of(world, rules)
    asked = mind if rules.waits_for_settled else replace(mind, waiting=replace(mind.waiting, is_settled=True))
    if not any(write.is_awaited for write in world.writes) and len(world.writes) < 2:
        key = next_key(asked)
        if key is not None:
            write = Write(key, world.seen == world.key, True)
            waiting = replace(world.waiting, is_key_certain=False)
            yield f"orders sync {_told(key)}", world._replace(writes=(*world.writes, write), waiting=waiting)
    if world.order is None:
        free = mind if rules.names_rest_on_key else replace(mind, sync=SyncKey(leader=LEADER))
        names = names_to_order(free)
        if names is not None:
            after = world._replace(order=names, waiting=ordered(world.waiting, names), has_looked=False)
            yield f"orders names {names.text or 'nobody'}", after


def _told(key: SyncKey) -> str:
    return f"{','.join(key.members) or 'nobody'} quorum {key.quorum}"


def _learned(world: World, rules: Rules) -> Iterator[Step]:
    """What the leader's agent hears of its server and of etcd."""
    probe = _probe(world)
    waiting = looked(mind_of(world, rules), probe, NOW_MS)
    after = world._replace(waiting=waiting, probe=probe, has_looked=world.order is None)
    if after.mark != world.mark:
        yield "looks", after
    is_wanted = not waiting.is_settled and not world.waiting.mark_lsn and world.waiting.shown_since_ms is not None
    if is_wanted and world.lingering is None:
        yield "marks", world._replace(waiting=marked(world.waiting, world.names.text, 1 + world.lsn))
    if world.seen != world.key:
        yield "hears of sync", world._replace(seen=world.key)


# ---- the world -------------------------------------------------------------------------------------------------------


def _delivered(world: World, rules: Rules) -> Iterator[Step]:
    """What is on its way arrives, or is given up and may arrive later."""
    for number, write in enumerate(world.writes):
        rest = world.writes[:number] + world.writes[number + 1 :]
        if write.is_awaited:
            given_up = (*rest, write._replace(is_awaited=False))
            yield "gives a write of sync up", world._replace(writes=given_up)
        if not world.is_key_free:
            yield "sync arrives", _written(world._replace(writes=rest), write, rules)
    if world.order is not None:
        yield (
            "names arrive",
            _acked(world._replace(names=world.order, lingering=world.names, order=None, has_looked=False)),
        )
    if world.lingering is not None:
        yield "everybody has read the names", world._replace(lingering=None)


def _written(world: World, write: Write, rules: Rules) -> World:
    is_applied = write.is_current or not rules.sync_is_compared
    if is_applied:
        others = tuple(other._replace(is_current=False) for other in world.writes)
        world = world._replace(key=write.key, writes=others)
    if not write.is_awaited:
        return world
    waiting = replace(world.waiting, is_key_certain=is_applied or world.waiting.is_key_certain)
    return world._replace(waiting=waiting, seen=world.key)


def _acked(world: World) -> World:
    """Every commit that the names let be acknowledged is, at once: later would only be kinder."""
    found = world.acked
    for names in (world.names, world.lingering):
        if names is not None:
            reached = sorted(
                (r.lsn for n, r in world.replicas if n in names.names and r.streams and not r.has_left), reverse=True
            )
            enough = world.lsn if not names.names else (reached[names.count - 1] if len(reached) >= names.count else 0)
            found = max(found, enough)
    return world._replace(acked=found)


def _with(world: World, name: str, replica: Replica) -> World:
    return world._replace(replicas=tuple((n, replica if n == name else r) for n, r in world.replicas))


def _flowed(world: World, rules: Rules) -> Iterator[Step]:
    """Clients write, WAL flows, connections break and come again."""
    if world.lsn < rules.wal_most:
        yield "a client commits", _acked(world._replace(lsn=world.lsn + 1))
    for name, replica in world.replicas:
        if replica.has_left or (world.elected is not None and world.elected[0] == name):
            continue
        if replica.streams and replica.lsn < world.lsn:
            yield f"{name} receives", _acked(_with(world, name, replica._replace(lsn=replica.lsn + 1)))
        told = "is cut off" if replica.streams else "streams again"
        yield f"{name} {told}", _acked(_with(world, name, replica._replace(streams=not replica.streams)))


# ---- the election ----------------------------------------------------------------------------------------------------


def _contended(world: World, rules: Rules) -> Iterator[Step]:
    """The leader key runs out while its holder's server goes on; others vote, and take it."""
    if not world.is_key_free:
        yield "the leader key runs out", world._replace(is_key_free=True)
        return
    if world.elected is not None:
        return
    for name, replica in world.replicas:
        for voter, other in world.replicas:
            if voter != name and (left := _vote(world, voter, other, rules)) is not None:
                after = _with(world, voter, left)
                yield f"{voter} votes for {name}", after._replace(votes=world.votes | {(name, voter, other.lsn)})
        if _may_lead(world, name, replica, rules):
            yield f"{name} takes the key", world._replace(elected=(name, replica.lsn))


def _vote(world: World, voter: str, replica: Replica, rules: Rules) -> Replica | None:
    """The voter as it is when its vote counts; None where it does not vote."""
    left = replica._replace(streams=False, has_left=True) if rules.voters_leave else replica
    streams = left.streams and rules.voters_leave
    probe = replace(_probe(world), in_recovery=True, upstream_host="n1" if streams else None)
    view = View(
        etcd=Etcd(is_watched=True, revision=REVISION),
        keys={"sync": Key(value="{}", mod_revision=REVISION)},
        vote=Vote(candidate="?", sync_revision=REVISION, asked_at_ms=1),
        achieved={"cut-receiver": 2},
        server=Server(process="running", probe=probe, probed_at_ms=3),
    )
    return left if vote_revision(view) and voter in world.key.members else None


def _may_lead(world: World, name: str, replica: Replica, rules: Rules) -> bool:
    """Whether the agent of a standby would take the leader key now."""
    heard = {
        voter: HeardPeer(
            at_ms=NOW_MS,
            report=PeerReport(
                name=voter,
                role="replica",
                state="running",
                position_lsn=1 + lsn,
                timeline=1,
                instance=voter,
                vote_revision=REVISION,
            ),
        )
        for candidate, voter, lsn in world.votes
        if candidate == name
    }
    view = View(
        state=State.CANDIDATE,
        now_ms=NOW_MS,
        identity=Identity(name=name, scope="s", api_url="", conn_url=""),
        etcd=Etcd(is_watched=True, revision=REVISION),
        keys={"sync": Key(value="{}", mod_revision=REVISION)},
        dynamic=parse_dynamic(f'{{"synchronous_mode":"{rules.mode}"}}'),
        sync=world.key,
        leader_free_since_ms=1,
        peers=heard,
        server=Server(process="running", probe=replace(_probe(world), in_recovery=True, flushed_lsn=1 + replica.lsn)),
    )
    return is_synchronous_enough(view) and has_enough_votes(view)


def steps(world: World, rules: Rules) -> Iterator[Step]:
    """Everything that may happen next."""
    yield from _flowed(world, rules)
    yield from _delivered(world, rules)
    if not world.is_key_free:
        yield from _learned(world, rules)
        yield from _decided(world, rules)
    yield from _contended(world, rules)


def wrong(world: World) -> str | None:
    """What must not be: an acknowledged commit that the elected does not have."""
    if world.elected is not None and world.acked > world.elected[1]:
        return f"{world.elected[0]} was elected with {world.elected[1]} of {world.acked} acknowledged commits"
    return None
