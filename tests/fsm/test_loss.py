"""What a promotion may leave behind: said before it, in the log, and no more surely than it is known."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from effects.telling import lines
from fsm import effects as do
from fsm.dynamic import Dynamic
from fsm.entries import SnapshotEntry, decode_entry, decode_snapshot, encode, make_entry
from fsm.loss import loss_estimate, loss_text, unheard_ms
from fsm.losses import FormerLeader, LossEstimate
from fsm.replay import Replay
from fsm.status import standing_at, status_fields
from fsm.timing import PROBE_IDLE_MS
from fsm.view import Promise, View
from fsm.wire import FailoverRequest, SyncKey, compact, sync_text
from tests.fsm.world import MIB, World, leader_with_standbys, replica_of
from tests.views import NOW_MS, POSITION_LSN, standby_view

BEHIND = 3_000
HEARD_AT_MS = NOW_MS - 4_010


def told(world: World, lsn: int) -> None:
    """The leader publishes its position."""
    world.put("status", compact({"optime": lsn}))


def promoted(world: World) -> LossEstimate:
    """The leader is gone, this node leads; what the first order to promote says."""
    world.delete("leader")
    world.until(lambda w: bool(w.orders(do.Promote)))
    order = world.orders(do.Promote)[0]
    assert isinstance(order, do.Promote)
    assert order.loss is not None
    return order.loss


def follower(**changes: Any) -> View:
    """n2 after n1 left: 3,000 bytes behind a position heard 4 s before, which had grown by 1,000 bytes/s."""
    former = FormerLeader(name="n1", lsn=POSITION_LSN + BEHIND, heard_at_ms=HEARD_AT_MS, rate_bytes_per_s=1_000)
    view = standby_view(**{"former": former, "leader_free_since_ms": NOW_MS - 10, **changes})
    return replace(view, keys={name: key for name, key in view.keys.items() if name != "leader"})


# ---- what is remembered ----------------------------------------------------------------------------------------------


def test_position_has_no_age_when_it_was_found_in_etcd() -> None:
    """Nobody knows how long it has lain there."""
    world = replica_of()
    assert world.view.former == FormerLeader(name="n2")
    found = World(directory=world.directory).initialized()
    found.lead("n2")
    told(found, 11 * MIB)
    found.boot()
    assert found.view.former == FormerLeader(name="n2", lsn=11 * MIB)


def test_rate_is_that_between_the_last_two_positions_when_they_were_heard() -> None:
    """Two positions eight seconds apart."""
    world = replica_of()
    told(world, 10 * MIB)
    world.wait(8_000)
    told(world, 10 * MIB + 16_000)
    assert world.view.former.rate_bytes_per_s == 2_000
    assert world.view.former.heard_at_ms == world.view.now_ms


def test_rate_counts_one_loop_only_when_the_leader_had_been_idle() -> None:
    """A leader that moves says so within loop_wait: it had not moved for the rest of that time."""
    world = replica_of()
    told(world, 10 * MIB)
    world.wait(600_000)
    told(world, 10 * MIB + 20_000)
    assert world.view.former.rate_bytes_per_s == 2_000


def test_position_is_as_old_as_the_silence_when_etcd_was_not_heard_meanwhile() -> None:
    """It may have been written at any time since etcd was lost."""
    world = replica_of()
    told(world, 10 * MIB)
    world.wait(2_000)
    world.lose_etcd()
    lost_at_ms = world.view.now_ms
    told(world, 10 * MIB + 100)
    world.wait(3_000)
    world.heal_etcd()
    assert world.view.former.heard_at_ms == lost_at_ms


def test_former_positions_are_forgotten_when_another_leads() -> None:
    """Another leader's WAL is another one's."""
    world = replica_of("n2", "n3")
    told(world, 11 * MIB)
    world.put("leader", "n3", lease_id=901)
    assert world.view.former == FormerLeader(name="n3")


def test_own_leadership_is_remembered_when_it_ends() -> None:
    """Whatever this node acknowledged is in its own WAL."""
    world = leader_with_standbys("n2")
    world.delete("leader")
    assert world.view.former == FormerLeader(name="n1")
    assert loss_estimate(world.view) == LossEstimate(former="n1", basis="own", seen_bytes=0, at_most_bytes=0)


# ---- what is estimated -----------------------------------------------------------------------------------------------


def test_loss_is_bounded_by_the_rate_when_two_positions_were_heard() -> None:
    """3,000 bytes lacking; 4 s passed until the key was free, and the look at the server was up to 1 s old."""
    assert loss_estimate(follower()) == LossEstimate(
        former="n1",
        basis="measured",
        seen_bytes=3_000,
        at_most_bytes=8_000,
        position_lsn=POSITION_LSN + BEHIND,
        position_age_ms=4_000,
        rate_bytes_per_s=1_000,
    )


def test_loss_counts_what_was_received_when_that_came_faster_than_the_positions_tell() -> None:
    """A burst after the last position: 9,000 bytes in 3 s, until 1 s before the key was free, and the look's 1 s."""
    former = FormerLeader(name="n1", lsn=POSITION_LSN - 9_000, heard_at_ms=HEARD_AT_MS, rate_bytes_per_s=0)
    loss = loss_estimate(follower(former=former, received_at_ms=HEARD_AT_MS + 3_000))
    assert (loss.seen_bytes, loss.at_most_bytes, loss.rate_bytes_per_s) == (0, 3_000 * 5 - 9_000, 3_000)
    assert loss_estimate(follower(former=replace(former, rate_bytes_per_s=None), received_at_ms=NOW_MS)).at_most_bytes


def test_receiving_is_dated_when_the_standby_is_seen_to_hold_more() -> None:
    """A look that shows nothing new is no news."""
    world = replica_of()
    assert world.server is not None
    world.wait(5_000)
    before_ms = world.view.received_at_ms
    world.server.lsn += 100
    world.wait(3_000)
    assert before_ms < world.view.received_at_ms < world.now_ms - 1_000


def test_loss_counts_no_later_than_the_key_was_free_when_time_went_on() -> None:
    """Without the key nobody writes; only the position grows older."""
    now, later = follower(), follower(now_ms=NOW_MS + 60_000)
    assert loss_estimate(later).at_most_bytes == loss_estimate(now).at_most_bytes
    assert (loss_estimate(later).position_age_ms or 0) > 60_000


def test_loss_counts_until_the_promise_ran_out_when_the_leader_led_on_without_etcd() -> None:
    """A leader whom this node confirmed may have written until then."""
    promise = Promise(leader="n1", until_ms=NOW_MS + 20_000)
    assert unheard_ms(follower(now_ms=NOW_MS + 60_000, promise=promise)) == 24_010 + PROBE_IDLE_MS


def test_loss_counts_ttl_and_loop_wait_at_the_most_when_the_position_is_old() -> None:
    """A quiet leader publishes nothing: had it moved, it would have said so."""
    old = follower(former=FormerLeader(name="n1", lsn=POSITION_LSN, heard_at_ms=1, rate_bytes_per_s=1_000))
    assert unheard_ms(old) == (old.dynamic.ttl_s + old.dynamic.loop_wait_s) * 1000 + PROBE_IDLE_MS


@pytest.mark.parametrize(
    "view",
    [
        follower(former=FormerLeader(name="n1")),
        follower(former=FormerLeader()),
        replace(follower(), server=replace(follower().server, probe=None)),
    ],
    ids=["no position", "nobody", "no position of its own"],
)
def test_loss_is_unknown_when_a_position_is_missing(view: View) -> None:
    """Unknown is not 0."""
    loss = loss_estimate(view)
    assert (loss.basis, loss.seen_bytes, loss.at_most_bytes) == ("unknown", None, None)
    assert "unknown" in loss_text(loss)


def test_loss_is_unknown_when_the_leader_was_on_another_timeline() -> None:
    """Positions of two timelines do not compare."""
    view = follower()
    members = {**view.members, "n1": replace(view.members["n1"], timeline=4)}
    assert loss_estimate(replace(view, members=members)).basis == "other timeline"


def test_loss_has_no_bound_when_one_position_only_was_heard() -> None:
    """What is seen to be lacking is told, what came after is not guessed."""
    former = FormerLeader(name="n1", lsn=POSITION_LSN + 7, heard_at_ms=HEARD_AT_MS)
    loss = loss_estimate(follower(former=former))
    assert (loss.seen_bytes, loss.at_most_bytes) == (7, None)
    assert "unknown amount" in loss_text(loss)


SYNCHRONOUS = Dynamic(synchronous_mode="on")
CHOSEN = SyncKey(leader="n1", members=("n2",))


def test_loss_is_nothing_when_the_sync_key_names_this_node() -> None:
    """Whatever the positions say: what lies beyond was never acknowledged to who waited."""
    loss = loss_estimate(follower(dynamic=SYNCHRONOUS, sync=CHOSEN))
    assert (loss.basis, loss.seen_bytes, loss.at_most_bytes) == ("synchronous", 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"dynamic": SYNCHRONOUS, "sync": SyncKey(leader="n1", members=("n3",))},
        {"dynamic": SYNCHRONOUS, "sync": SyncKey()},
        {"dynamic": Dynamic(), "sync": CHOSEN},
        {"dynamic": SYNCHRONOUS, "sync": CHOSEN, "failover": FailoverRequest(candidate="n2")},
    ],
    ids=["another is named", "no key", "mode off", "forced by an operator"],
)
def test_loss_is_measured_when_the_sync_key_does_not_vouch_for_this_node(changes: dict[str, Any]) -> None:
    """A synchronous mode alone is no reason to say 0."""
    assert loss_estimate(follower(**changes)).basis == "measured"


@given(
    lsn=st.integers(1, 2**40),
    heard_at_ms=st.none() | st.integers(0, NOW_MS),
    rate=st.none() | st.integers(0, 2**34),
    promise_ms=st.none() | st.integers(0, 2 * NOW_MS),
)
def test_bound_is_no_less_than_what_is_seen_when_there_is_one(
    lsn: int, heard_at_ms: int | None, rate: int | None, promise_ms: int | None
) -> None:
    """For any positions, ages and promises; and it replaces nothing unknown by a number."""
    former = FormerLeader(name="n1", lsn=lsn, heard_at_ms=heard_at_ms, rate_bytes_per_s=rate)
    promise = None if promise_ms is None else Promise(leader="n1", until_ms=promise_ms)
    loss = loss_estimate(follower(former=former, promise=promise))
    assert loss.seen_bytes == max(0, lsn - POSITION_LSN)
    assert loss.at_most_bytes is None or loss.at_most_bytes >= loss.seen_bytes
    assert (loss.at_most_bytes is None) == (rate is None or (heard_at_ms is None and promise is not None))


# ---- where it is told ------------------------------------------------------------------------------------------------


def test_promotion_carries_the_estimate_when_the_leader_is_gone() -> None:
    """In the entry that takes the key, in the entry that promotes, on the console, and in the status afterwards."""
    world = replica_of()
    told(world, 10 * MIB)
    world.wait(10_000)
    told(world, 10 * MIB + 5_000)
    loss = promoted(world)
    assert (loss.former, loss.basis, loss.seen_bytes) == ("n2", "measured", 5_000)
    assert loss.rate_bytes_per_s == 500
    take = next(order for order in world.orders(do.TakeLeaderKey))
    assert isinstance(take, do.TakeLeaderKey)
    assert take.loss == loss
    event, decision = next(
        (e, d) for e, d in world.decisions if any(isinstance(issued.effect, do.Promote) for issued in d.effects)
    )
    assert f"promoting: {loss_text(loss)}" in [line for _, line in lines(world.view, decision, event)]
    shown = status_fields(world.view, standing_at(world.view, world.now_ms))["matriarch"]["last_promotion"]
    assert shown == {
        "former_leader": "n2",
        "loss_basis": "measured",
        "loss_estimate_bytes": 5_000,
        "loss_at_most_bytes": loss.at_most_bytes,
        "position_age_ms": loss.position_age_ms,
    }


def test_promotion_is_unknown_in_the_status_when_no_position_was_heard() -> None:
    """null, not 0."""
    world = replica_of()
    promoted(world)
    shown = status_fields(world.view, standing_at(world.view, world.now_ms))["matriarch"]["last_promotion"]
    assert (shown["loss_estimate_bytes"], shown["loss_at_most_bytes"]) == (None, None)


def test_promotion_loses_nothing_when_the_sync_key_decided() -> None:
    """The estimate is that of the election: by the time of the promotion the key is this node's own."""
    world = replica_of(first_config='{"ttl":30,"synchronous_mode":true}')
    world.put("sync", sync_text(SyncKey(leader="n2", members=("n1",))))
    told(world, 12 * MIB)
    loss = promoted(world)
    assert (loss.former, loss.basis, loss.at_most_bytes) == ("n2", "synchronous", 0)
    assert world.view.sync.leader == "n1"


def test_log_replays_when_it_holds_an_estimate() -> None:
    """Decided again, the same estimate comes out."""
    world = replica_of()
    told(world, 10 * MIB + 77)
    first = world.view
    since = len(world.decisions)
    promoted(world)
    run = Replay()
    run.take("snapshot", encode(SnapshotEntry(seq=first.seq, node="n1", wall="", view=first)))
    for event, decision in world.decisions[since:]:
        body = encode(make_entry(decision, event, boot="", wall=""))
        assert run.take("entry", body) is None
    assert run.verdict.entries == len(world.decisions) - since
    held = encode(SnapshotEntry(seq=1, node="n1", wall="", view=world.view))
    assert decode_snapshot(held).view == world.view


def test_order_to_promote_is_read_when_an_older_version_wrote_it() -> None:
    """A log from before there was an estimate."""
    world = replica_of()
    promoted(world)
    event, decision = next(
        (e, d) for e, d in world.decisions if any(isinstance(issued.effect, do.Promote) for issued in d.effects)
    )
    entry = msgspec.json.decode(encode(make_entry(decision, event, boot="", wall="")))
    for issued in entry["effects"]:
        issued["effect"].pop("loss", None)
    old = decode_entry(msgspec.json.encode(entry))
    assert [i.effect.loss for i in old.effects if isinstance(i.effect, do.Promote)] == [None]
