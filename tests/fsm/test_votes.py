"""The promise before the vote: what a standby that is asked for its vote does, and what a candidate takes for one."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.facts import PeerReport
from fsm.vote import vote_revision
from fsm.wire import SyncKey, sync_text
from tests.fsm.world import MIB, STANDBY, Postgres, World, is_following, is_settled_leader, replica_of

QUORUM = '{"ttl":30,"synchronous_mode":"quorum"}'
KEY = SyncKey(leader="n2", members=("n1", "n3"), quorum=1)


def standby(key: SyncKey = KEY, **more: object) -> World:
    """A replica n1 of n2 that may be asked for its vote, and may stand itself: nobody else answers it."""
    world = replica_of("n2", "n3", **more)
    world.put("config", QUORUM)
    world.put("sync", sync_text(key))
    world.wait(1_500)
    return world


def revision(world: World) -> int:
    """Which `sync` key there is."""
    return world.keys["sync"].mod_revision


def ask(world: World, *, sync_revision: int | None = None, candidate: str = "n3") -> None:
    """A candidate asks for this node's vote."""
    wanted = revision(world) if sync_revision is None else sync_revision
    world.feed(ev.VoteAsked(at_ms=world.now_ms, candidate=candidate, sync_revision=wanted))


def has_voted(world: World) -> bool:
    """True while the node says that it votes."""
    return vote_revision(world.view) == revision(world)


def is_receiving(world: World) -> bool:
    """True while the server streams, or would if it could."""
    return world.server is not None and world.server.upstream is not None


def test_standby_votes_when_it_receives_nothing_any_more() -> None:
    """The key is gone, the server that held it may still run: it is left first, and looked at after that."""
    world = standby()
    world.delete("leader")
    ask(world)
    assert is_receiving(world)
    assert not has_voted(world)
    world.until(has_voted, within_ms=1_000)
    assert not is_receiving(world)


def test_standby_does_not_vote_when_its_server_was_not_looked_at_since_it_was_cut_off() -> None:
    """What it received at the very end is part of what it tells."""
    world = standby()
    world.delete("leader")
    world.is_server_silent = True
    ask(world)
    world.wait(1_000)
    assert not is_receiving(world)
    assert not has_voted(world)
    world.is_server_silent = False
    world.until(has_voted, within_ms=5_000)


def test_standby_receives_again_when_somebody_leads() -> None:
    """A vote is for one election."""
    world = standby()
    world.delete("leader")
    ask(world)
    world.until(has_voted, within_ms=1_000)
    world.put("sync", sync_text(SyncKey(leader="n3")))
    world.lead("n3")
    assert not has_voted(world)
    world.until(is_following, within_ms=5_000)
    assert world.view.vote is None


def test_standby_goes_on_receiving_when_somebody_leads_as_far_as_it_knows() -> None:
    """A candidate that is ahead of this node's news, or makes it up, disturbs nobody; the news may still come."""
    world = standby()
    ask(world)
    world.wait(5_000)
    assert is_receiving(world)
    assert not has_voted(world)
    world.delete("leader")
    world.until(has_voted, within_ms=1_000)


@pytest.mark.parametrize("offset", [-1, 1])
def test_standby_does_not_vote_when_another_sync_key_was_meant(offset: int) -> None:
    """Whoever wrote the newer key may have had commits acknowledged by it."""
    world = standby()
    world.held.add("ask-peers")
    world.delete("leader")
    ask(world, sync_revision=revision(world) + offset)
    world.wait(3_000)
    assert is_receiving(world)
    assert not has_voted(world)


def test_standby_does_not_vote_when_etcd_is_silent() -> None:
    """Somebody may lead by now."""
    world = standby()
    world.delete("leader")
    world.lose_etcd()
    ask(world)
    world.wait(3_000)
    assert is_receiving(world)
    assert not has_voted(world)


def test_standby_does_not_vote_when_an_earlier_order_is_still_under_way() -> None:
    """An order to follow that was given before may yet be carried out: the vote comes behind it."""
    world = standby(tags={"nofailover": True})  # one that stood itself would give the order up
    assert world.server is not None
    world.server.upstream = None
    world.held.add("follow")
    world.until(lambda world: any(p.duty == "follow" for p in world.pending), within_ms=5_000)
    world.delete("leader")
    ask(world)
    world.wait(1_000)
    assert not has_voted(world)
    world.held.clear()
    world.until(has_voted, within_ms=5_000)
    assert not is_receiving(world)


def test_candidate_asks_for_votes_and_counts_no_word_without_one() -> None:
    """Of a member of its own kind; Patroni's members do not vote, and are believed as Patroni believes them."""
    world = standby()
    ours = PeerReport(name="n3", role="replica", state="running", position_lsn=5 * MIB, timeline=1, instance="n3-1")
    world.reports["n3"] = ours
    world.delete("leader")
    world.wait(10_000)
    assert world.orders(do.TakeLeaderKey) == []
    asked = world.orders(do.AskPeers)[-1]
    assert isinstance(asked, do.AskPeers)
    assert (asked.voters, asked.sync_revision) == (("n2", "n3"), revision(world))
    world.reports["n3"] = replace(ours, vote_revision=revision(world) - 1)
    world.wait(5_000)
    assert world.orders(do.TakeLeaderKey) == []
    world.reports["n3"] = replace(ours, vote_revision=revision(world))
    world.until(is_settled_leader, within_ms=5_000)


def test_candidate_asks_nobody_to_stop_receiving_when_no_votes_are_needed() -> None:
    """With quorum 0 each member of the key holds every acknowledged commit by itself."""
    world = standby(SyncKey(leader="n2", members=("n1",)))
    world.delete("leader")
    world.until(is_settled_leader, within_ms=5_000)
    asked = world.orders(do.AskPeers)[-1]
    assert isinstance(asked, do.AskPeers)
    assert (asked.voters, asked.sync_revision) == ((), 0)


# ---- whatever happens ------------------------------------------------------------------------------------------------

Action = tuple[str, str | int]
SERVER_DUTIES = ("follow", "cut-receiver", "apply-parameters", "reload-server", "start-standby")
actions = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(("ask", "reload", "configure", "crash", "agent", "lose", "heal", "elect")), st.just(0)
        ),
        st.tuples(st.just("wait"), st.sampled_from((1, 20, 300, 3_000))),
        st.tuples(st.sampled_from(("hold", "release")), st.sampled_from(SERVER_DUTIES)),
    ),
    max_size=40,
)


def configure(world: World) -> None:
    """The cluster's configuration changes, so that it is applied to the running server."""
    world.put("config", QUORUM.replace("30", str(30 + world.revision)))


def crash(world: World) -> None:
    """The server dies."""
    if world.server is not None:
        world.crash()


def reload(world: World) -> None:
    """Somebody asks the node to read its settings again."""
    world.feed(ev.ReloadAsked(at_ms=world.now_ms, request_id=str(world.now_ms), tags={}))


@settings(deadline=None)
@given(actions)
def test_who_voted_receives_nothing_until_somebody_leads_whatever_happens(story: list[Action]) -> None:
    """From the moment at which it says that it votes, the server streams from nobody, agent restarts and crashes
    included, before somebody else has taken the leader key in etcd."""
    world = standby()
    world.held.add("take-leader-key")
    world.delete("leader")
    promised = False

    def look() -> None:
        nonlocal promised
        promised = (promised or has_voted(world)) and "leader" not in world.keys
        assert not (promised and is_receiving(world)), world._story()

    happens: dict[str, Callable[[str | int], object]] = {
        "ask": lambda _: ask(world),
        "reload": lambda _: reload(world),
        "configure": lambda _: configure(world),
        "crash": lambda _: crash(world),
        "agent": lambda _: world.boot(),
        "lose": lambda _: world.lose_etcd() if world.is_etcd_up else None,
        "heal": lambda _: world.heal_etcd(),
        "elect": lambda _: world.lead("n3") if "leader" not in world.keys else world.delete("leader"),
        "hold": lambda duty: world.held.add(str(duty)),
        "release": lambda duty: world.held.discard(str(duty)),
        "wait": lambda _: None,
    }
    for what, argument in story:
        happens[what](argument)
        look()
        for _ in range(min(int(argument), 20) if what == "wait" else 1):
            world.wait(1 if what != "wait" else max(1, int(argument) // 20))
            look()


# ---- who takes the leader key without having been voted for ----------------------------------------------------------


def test_votes_that_were_given_count_no_more_when_a_found_primary_takes_the_leader_key() -> None:
    """Whoever was voted for may still be about to take the key, and this one lose it before it writes `sync`."""
    world = World(directory=STANDBY).initialized()
    world.put("config", QUORUM)
    world.put("sync", sync_text(SyncKey(leader="n1", members=("n2", "n3"), quorum=1)))
    voted_for, told = revision(world), world.keys["sync"].value
    world.server = Postgres(pid=77, in_recovery=False, timeline=1, lsn=30 * MIB)
    world.held.add("write-sync")
    world.boot()
    world.until_state("leader", within_ms=10_000)
    assert "B7" in world.rules
    assert revision(world) > voted_for
    assert world.keys["sync"].value == told


def test_leader_writes_its_sync_key_at_once_when_taking_the_leader_key_wrote_it_anew() -> None:
    """The answer tells of the new revision, so that the next write is not refused for it."""
    world = standby(SyncKey(leader="n2", members=("n1",)))
    world.delete("leader")
    world.until(is_settled_leader, within_ms=5_000)
    assert "write-sync" not in world.view.attempts
    assert revision(world) == world.view.keys["sync"].mod_revision
