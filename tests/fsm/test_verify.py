"""The checks of logs: each holds on whole stories, and each finds the log that breaks it."""

from collections.abc import Callable, Iterable

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm.entries import Entry, SnapshotEntry, make_entry
from fsm.facts import KeyChange, PeerReport, Standby
from fsm.machine import Issued
from fsm.states import State
from fsm.verify.cluster import check_together
from fsm.verify.findings import CHECKS, Book
from fsm.verify.node import NodeCheck
from fsm.view import View
from fsm.wire import SyncKey, sync_text
from tests.fsm.test_operations_stories import ask_config
from tests.fsm.world import MIB, World, is_settled_leader, leader_with_standbys, replica_of

Log = list[Entry]
Change = Callable[[Log], Log]


def log_of(world: World) -> Log:
    """The log of a story."""
    return [make_entry(decision, event, boot="b", wall="w") for event, decision in world.decisions]


def verified(*logs: Log) -> Book:
    """What the checks say of some nodes' logs."""
    book, checks = Book(), []
    for log in logs:
        check = NodeCheck(book)
        check.snapshot(SnapshotEntry(seq=0, node="", wall="", view=View()))
        for entry in log:
            check.entry(entry)
        checks.append(check)
    check_together(book, [check.seen for check in checks])
    return book


def promoted() -> World:
    """A standby that is elected with a vote in quorum mode, is promoted, and ends its server when its key is gone."""
    world = replica_of("n2", "n3")
    world.put("config", '{"ttl":30,"synchronous_mode":"quorum"}')
    world.put("sync", sync_text(SyncKey(leader="n2", members=("n1", "n3"), quorum=1)))
    world.wait(1_500)
    revision, lsn = world.keys["sync"].mod_revision, world.view.position_lsn
    world.reports["n3"] = PeerReport(
        name="n3", role="replica", state="running", position_lsn=lsn, timeline=1, instance="n3", vote_revision=revision
    )
    world.delete("leader")
    world.until(is_settled_leader)
    world.wait(40_000)
    world.delete("leader")
    world.until_state("replica")
    world.wait(2_000)
    return world


def former() -> Log:
    """What a log of n2, which led before n1, says: of its key, and of its standbys."""
    world = leader_with_standbys("n1", "n3", name="n2")
    world.wait(2_000)
    return log_of(world)


def test_story_of_an_election_is_looked_at_by_every_check_of_one_node_and_holds() -> None:
    """Nothing is found in what the table decides, and no check of one log has nothing to look at."""
    book = verified(log_of(promoted()))
    assert book.findings == []
    alone = [*CHECKS][: [*CHECKS].index("keys")]
    assert [check for check in alone if not book.looked[check]] == []


@pytest.mark.parametrize("make", [lambda: leader_with_standbys("n2"), lambda: replica_of("n2")])
def test_change_of_the_configuration_is_not_held_to_a_leadership(make: Callable[[], World]) -> None:
    """Any node writes it, whether it leads or not, and also a leader whose lease ends before who asked gives up."""
    world = make()
    ask_config(world, '{"ttl":20}', world.keys["config"].mod_revision)
    world.wait(2_000)
    assert world.orders(do.ChangeConfig)
    assert verified(log_of(world)).findings == []


# ---- logs that break one promise -------------------------------------------------------------------------------------


def changed(wanted: Callable[[Entry], bool], change: Callable[[Entry], Entry]) -> Change:
    """A log with its first wanted entry changed."""

    def made(log: Log) -> Log:
        number = next(number for number, entry in enumerate(log) if wanted(entry))
        return [*log[:number], change(log[number]), *log[number + 1 :]]

    return made


def orders(kind: type[do.Effect]) -> Callable[[Entry], bool]:
    """Whether an entry orders an effect of some kind."""
    return lambda entry: any(isinstance(issued.effect, kind) for issued in entry.effects)


def brings(kind: type[ev.Result]) -> Callable[[Entry], bool]:
    """Whether an entry is of an effect's success that brought something."""
    return lambda entry: isinstance(entry.event, ev.Succeeded) and isinstance(entry.event.result, kind)


def with_effect(kind: type[do.Effect], **fields: object) -> Callable[[Entry], Entry]:
    """An entry whose effects of some kind are others."""

    def made(entry: Entry) -> Entry:
        effects = tuple(
            replace(issued, effect=replace(issued.effect, **fields)) if isinstance(issued.effect, kind) else issued
            for issued in entry.effects
        )
        return replace(entry, effects=effects)

    return made


def with_result(**fields: object) -> Callable[[Entry], Entry]:
    """An entry whose success brought something else."""

    def made(entry: Entry) -> Entry:
        assert isinstance(entry.event, ev.Succeeded)
        return replace(entry, event=replace(entry.event, result=replace(entry.event.result, **fields)))

    return made


def without(wanted: Callable[[Entry], bool]) -> Change:
    """A log in which all wanted entries are ticks without effect."""
    return lambda log: [
        replace(entry, event=ev.Ticked(at_ms=entry.event.at_ms)) if wanted(entry) else entry for entry in log
    ]


def starts_with(**fields: object) -> Change:
    """A log of an agent with another identity."""

    def made(entry: Entry) -> Entry:
        assert isinstance(entry.event, ev.AgentStarted)
        return replace(entry, event=replace(entry.event, identity=replace(entry.event.identity, **fields)))

    return changed(lambda entry: isinstance(entry.event, ev.AgentStarted), made)


def with_sync(key: SyncKey) -> Change:
    """A log in which the former leader's `sync` key says something else."""

    def made(entry: Entry) -> Entry:
        assert isinstance(entry.event, ev.KeysChanged)
        changes = tuple(replace(change, value=sync_text(key)) for change in entry.event.changes)
        return replace(entry, event=replace(entry.event, changes=changes))

    return changed(lambda e: isinstance(e.event, ev.KeysChanged) and e.event.changes[0].key == "sync", made)


def is_exit_from_leader(entry: Entry) -> bool:
    """True for the move out of `leader`."""
    return entry.rule == "L1"


def is_renewal(entry: Entry) -> bool:
    """True for the outcome of a renewal."""
    return isinstance(entry.event, ev.Succeeded) and entry.event.duty == "renew-lease"


BAD: dict[str, tuple[str, Change]] = {
    "another decision": ("replay", changed(orders(do.Promote), lambda entry: replace(entry, effects=()))),
    "a move by a row that leads elsewhere": (
        "move",
        changed(lambda e: e.rule == "R1", lambda e: replace(e, rule="R2")),
    ),
    "a move by no row": ("move", changed(lambda e: e.rule == "R1", lambda e: replace(e, rule=None))),
    "a state out of nowhere": ("move", changed(lambda e: e.rule == "C1", lambda e: replace(e, before=State.REINIT))),
    "an effect without an outcome": ("outcome", without(brings(ev.PeersHeard))),
    "an outcome of nothing": ("outcome", changed(orders(do.Promote), lambda entry: replace(entry, effects=()))),
    "a lease counted from its answer": ("lease", changed(brings(ev.LeaseHeld), with_result(sent_at_ms=1 << 40))),
    "a lease counted from long ago": ("lease", changed(brings(ev.LeaseHeld), with_result(sent_at_ms=1))),
    "a fence that confirms what it likes": ("fence", changed(brings(ev.FenceArmed), with_result(until_ms=1 << 40))),
    "a fence that is given too long": (
        "fence",
        changed(orders(do.ArmFence), with_effect(do.ArmFence, until_ms=1 << 40)),
    ),
    "a promotion without a fence": ("primary", without(brings(ev.FenceArmed))),
    "a promotion without a lease": ("primary", without(brings(ev.LeaseHeld))),
    "a promotion by a replica": ("primary", changed(orders(do.Promote), lambda e: replace(e, after=State.REPLICA))),
    "a promotion for too long": (
        "deadline",
        changed(orders(do.Promote), with_effect(do.Promote, valid_until_ms=1 << 40)),
    ),
    "a key taken for too long": (
        "deadline",
        changed(orders(do.TakeLeaderKey), with_effect(do.TakeLeaderKey, valid_until_ms=1 << 40)),
    ),
    "a leader whose lease was never renewed": ("deadline", without(is_renewal)),
    "a move out of leader without the fence": (
        "leaving",
        changed(is_exit_from_leader, lambda entry: replace(entry, effects=())),
    ),
    "a candidate that is barred": ("candidate", starts_with(tags={"nofailover": True})),
    "a candidate that is not in the sync key": (
        "candidate",
        with_sync(SyncKey(leader="n2", members=("n3", "n4"), quorum=1)),
    ),
    "a candidate without votes": (
        "votes",
        with_sync(SyncKey(leader="n2", members=("n1", "n3", "n4"), quorum=2)),
    ),
    "a promotion that tells nothing": ("loss", changed(orders(do.Promote), with_effect(do.Promote, loss=None))),
}


@pytest.mark.parametrize("name", BAD)
def test_check_finds_what_is_wrong_in_the_log_of_one_node_when_it_has(name: str) -> None:
    """A log that was right and in which one thing is changed is found out by the check that is for it."""
    check, change = BAD[name]
    book = verified(change(log_of(promoted())))
    assert book.found[check], book.findings


def test_every_check_of_one_node_has_a_log_that_it_rejects() -> None:
    """A check that cannot fail says nothing."""
    alone = [*CHECKS][: [*CHECKS].index("keys")]
    assert {check for check, _ in BAD.values()} == {*alone}


# ---- several nodes ---------------------------------------------------------------------------------------------------


def moved_on(log: Iterable[Entry], by_revisions: int) -> Log:
    """The log of something that happened at other revisions of etcd."""

    def later(change: KeyChange) -> KeyChange:
        created = change.create_revision + by_revisions if change.create_revision else 0
        return replace(change, mod_revision=change.mod_revision + by_revisions, create_revision=created)

    def moved(entry: Entry) -> Entry:
        event = entry.event
        match event:
            case ev.KeysChanged():
                changes = tuple(map(later, event.changes))
                event = replace(event, revision=event.revision + by_revisions, changes=changes)
            case ev.ClusterRead():
                event = replace(event, revision=event.revision + by_revisions, keys=tuple(map(later, event.keys)))
            case ev.Succeeded(result=ev.KeyWritten(now=KeyChange() as now) as written):
                event = replace(event, result=replace(written, now=later(now)))
        revision = entry.revision + by_revisions if entry.revision else 0
        effects = tuple(map(moved_order, entry.effects))
        return replace(entry, event=event, revision=revision, effects=effects)

    def moved_order(issued: Issued) -> Issued:
        if not isinstance(issued.effect, do.TakeLeaderKey) or not issued.effect.sync_revision:
            return issued
        seen = issued.effect.sync_revision + by_revisions
        return replace(issued, effect=replace(issued.effect, sync_revision=seen))

    return [moved(entry) for entry in log]


def follower(one: Log) -> Log:
    """What a node that leads never, and sees what the first sees, has in its log."""
    seen = [entry for entry in one if isinstance(entry.event, ev.AgentStarted | ev.ClusterRead | ev.KeysChanged)]
    return [replace(entry, node="n9", effects=(), after=State.REPLICA, rule=None) for entry in seen]


def found_together(*logs: Log) -> Book:
    """What the comparison of logs says, whatever is wrong in each by itself."""
    return verified(*logs)


def test_two_nodes_that_led_one_after_the_other_are_compared_and_hold() -> None:
    """Reigns whose revisions lie apart are no finding, nor are keys of which both saw the same."""
    early, late = former(), moved_on(log_of(promoted()), 1_000)
    book = found_together(early, late)
    assert book.looked["reigns"] > 0
    assert book.found["reigns"] == book.found["sync"] == book.found["positions"] == 0


def test_nodes_that_led_at_one_revision_are_found() -> None:
    """Two stays in `leader` that share revisions are two leaders."""
    one = log_of(promoted())
    book = found_together(former(), moved_on(one, -20))
    assert book.found["reigns"], book.findings


def test_nodes_that_saw_different_keys_at_one_revision_are_found() -> None:
    """etcd has one history; who saw another saw another etcd."""
    one = log_of(promoted())
    two = with_sync(SyncKey(leader="n2", members=("n1",)))(one)
    assert found_together(one, follower(one)).found["keys"] == 0
    assert found_together(one, follower(two)).found["keys"]


def test_timelines_that_were_begun_twice_are_found() -> None:
    """Two promotions to the same number, by two nodes, went two ways under one name."""
    one = log_of(promoted())
    two = [replace(entry, node="n7") for entry in moved_on(one, 1_000)]
    book = found_together(one, two)
    assert book.looked["timelines"]
    assert book.found["timelines"], book.findings


def test_leader_key_that_was_taken_over_another_sync_key_is_found() -> None:
    """A `sync` key that came between the candidate's look and its leader key may name others."""
    one = log_of(promoted())
    taking = changed(orders(do.TakeLeaderKey), with_effect(do.TakeLeaderKey, sync_revision=1))
    assert found_together(one).looked["sync"]
    assert found_together(one).found["sync"] == 0
    assert found_together(taking(one)).found["sync"]


def test_promoted_node_that_lacks_what_its_primary_saw_is_found() -> None:
    """A standby's flushed position, once told, does not go back: else its primary acknowledged by something that is
    gone."""

    def further(entry: Entry) -> Entry:
        assert isinstance(entry.event, ev.ServerProbed)
        row = Standby(application_name="n1", state="streaming", flush_lsn=1_000 * MIB)
        return replace(entry, event=replace(entry.event, probe=replace(entry.event.probe, standbys=(row,))))

    def is_primarys(entry: Entry) -> bool:
        return isinstance(entry.event, ev.ServerProbed) and not entry.event.probe.in_recovery

    one = moved_on(log_of(promoted()), 1_000)
    assert found_together(changed(is_primarys, further)(former()), one).found["positions"]


def test_revisions_are_not_compared_when_etcd_began_anew() -> None:
    """Where etcd was wiped its revisions say nothing about the order: it is said, and no finding is made of it."""
    one = log_of(promoted())
    book, checks = Book(), []
    for log in (one, [*former(), *moved_on(former()[1:], -50)]):
        check = NodeCheck(book)
        for entry in log:
            check.entry(entry)
        checks.append(check)
    assert check_together(book, [check.seen for check in checks]) is not None
    assert book.found["reigns"] == book.found["keys"] == 0
