"""Stories of a leader whose server hangs or whose disk is full or hangs, and of who takes over, and who must not."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm import status
from fsm.facts import PeerReport, Standby
from fsm.silence import Silence, prolonged
from fsm.timing import (
    DISK_FULL_FOR_MS,
    DISK_ROOMY_FOR_MS,
    FULL_DISK_STOP_MS,
    FULL_STANDS_AFTER_MS,
    SILENCE_GAP_MS,
    STARVED_MS,
)
from fsm.view import View
from tests.fsm.world import MIB, World, leader_with_standbys, replica_of

LOOK_MS = 2_500
PLENTY = 1 << 30
SYNCHRONOUS = '{"ttl":30,"synchronous_mode":"on"}'


def standby(name: str = "n2", **more: object) -> PeerReport:
    """What a standby without a fault answers."""
    fields = {"role": "replica", "state": "running", "position_lsn": 10 * MIB, "timeline": 1, **more}
    return PeerReport(name=name, **fields)  # type: ignore[arg-type]  # the fields of PeerReport


def leader(*reports: PeerReport, **more: object) -> World:
    """A leader from whom n2 and n3 stream, and what they answer; without any, both answer that they could lead."""
    world = leader_with_standbys("n2", "n3", **more)
    world.reports = {report.name: report for report in reports or (standby("n2"), standby("n3"))}
    return world


def mute_looks(world: World, count: int, *, lag_ms: int = 0) -> None:
    """So many looks in a row hear nothing."""
    for _ in range(count):
        if world.server is None:
            return
        began_ms = world.now_ms
        world.wait(LOOK_MS)
        if world.server is not None:
            silent = ev.ServerSilent(
                at_ms=world.now_ms, pid=world.server.pid, detail="", mute=True, began_ms=began_ms, lag_ms=lag_ms
            )
            world.feed(silent)
    world.wait(100)


def hang(world: World, looks: int = 5, *, lag_ms: int = 0) -> None:
    """The server says nothing to so many looks, and nobody else looks."""
    world.probe = lambda: setattr(world, "probed_at_ms", world.now_ms)  # type: ignore[method-assign]  # nothing comes
    mute_looks(world, looks, lag_ms=lag_ms)
    del world.probe


def disk(world: World, free_bytes: int = PLENTY, failure: str = "") -> None:
    """A look at the disk."""
    looked = ev.DiskLooked(
        at_ms=world.now_ms,
        data_free_bytes=free_bytes,
        wal_free_bytes=PLENTY,
        segment_bytes=16 * MIB,
        failure=failure,  # type: ignore[arg-type]  # one of three words
        began_ms=world.now_ms,
    )
    world.feed(looked)


def disk_hangs(world: World, looks: int = 6, *, lag_ms: int = 0) -> None:
    """Looks at the disk do not come back."""
    for _ in range(looks):
        began_ms = world.now_ms
        world.wait(2_000)
        world.feed(ev.DiskSilent(at_ms=world.now_ms, detail="it hangs", began_ms=began_ms, lag_ms=lag_ms))
    world.wait(100)


# ---- a server that hangs ---------------------------------------------------------------------------------------------


def test_leader_steps_down_when_its_server_hangs_and_a_member_can_take_over() -> None:
    """Nothing is heard for ten seconds on any connection: the fence first, and then the key is free."""
    world = leader()
    hang(world)
    assert world.rules[-1] == "L7"
    fences = world.orders(do.FenceServer)
    assert isinstance(fences[-1], do.FenceServer)
    assert fences[-1].mode == "immediate"
    world.until(lambda w: bool(w.orders(do.ReleaseLeaderKey)), within_ms=1_000)


def test_leader_stays_when_the_silence_is_shorter_than_the_limit() -> None:
    """Three looks are seven seconds and a half."""
    world = leader()
    hang(world, 3)
    assert world.view.state == "leader"
    world.probe()
    hang(world, 3)
    assert world.view.state == "leader"


@pytest.mark.parametrize(
    "reports",
    [
        (PeerReport(name="n4", role="replica", state="running", position_lsn=10 * MIB, timeline=1),),
        (standby(disk_full=True),),
        (standby(no_failover=True),),
        (standby(state="starting"),),
        (standby(is_replaying=True),),
        (standby(position_lsn=0),),
        (standby(role="primary"),),
        (standby(timeline=0),),
    ],
    ids=["stranger", "full", "barred", "starting", "replaying", "no-position", "primary", "old-timeline"],
)
def test_leader_stays_when_nobody_could_take_over(reports: tuple[PeerReport, ...]) -> None:
    """Without a candidate a hung server is still the best there is: it may go on in a moment."""
    world = leader(*reports)
    hang(world)
    assert world.view.state == "leader"


def test_leader_stays_when_the_only_candidate_lags_too_far() -> None:
    """maximum_lag_on_failover counts here as in every election."""
    world = leader(standby(position_lsn=8 * MIB))
    world.put("status", f'{{"optime":{10 * MIB}}}')
    hang(world)
    assert world.view.state == "leader"


@pytest.mark.parametrize(
    "config",
    ['{"ttl":30,"pause":true}', '{"ttl":30,"primary_stall_timeout":0}', '{"ttl":30,"primary_stall_timeout":60}'],
)
def test_leader_stays_when_the_cluster_is_paused_or_the_limit_is_another(config: str) -> None:
    """Nobody wants a failover then."""
    world = leader(first_config=config)
    hang(world)
    assert world.view.state == "leader"


def test_leader_stays_when_the_agent_itself_could_not_run() -> None:
    """A loop that stood still hears nobody: the clock starts anew with each such look."""
    world = leader()
    hang(world, 8, lag_ms=STARVED_MS)
    assert world.view.state == "leader"
    hang(world, 5)
    assert world.rules[-1] == "L7"


def test_leader_stays_when_a_standby_goes_on_receiving_wal() -> None:
    """The server answers nobody, and writes all the same."""
    world = leader()
    for step in range(4):
        world.reports["n2"] = standby(position_lsn=10 * MIB + step)
        hang(world, 3)
    assert world.view.state == "leader"


def test_leader_stays_when_the_server_refuses_or_recovers() -> None:
    """Whatever it says, it says something; what it needs for recovery is another rule's."""
    world = leader()
    assert world.server is not None
    for number in range(8):
        hang(world, 2)
        silent = ev.ServerSilent(at_ms=world.now_ms, pid=world.server.pid, detail="", starting=number % 2 == 0)
        world.feed(silent)
    assert world.view.state == "leader"


def test_leader_stays_when_etcd_is_not_heard() -> None:
    """Nobody can be elected then."""
    world = leader()
    world.confirming = {"n2", "n3"}
    world.lose_etcd()
    hang(world)
    assert world.view.state == "leader"


@pytest.mark.parametrize(("heir", "rule"), [("n2", "L7"), ("n3", None)])
def test_leader_steps_down_in_a_synchronous_mode_only_for_a_member_of_the_key(heir: str, rule: str | None) -> None:
    """Only who holds every acknowledged commit may be promoted."""
    world = leader_with_standbys("n2", "n3", first_config=SYNCHRONOUS)
    assert world.server is not None
    world.server.standbys = tuple(
        Standby(application_name=n, state="streaming", sync_state="sync", flush_lsn=10 * MIB, write_lsn=10 * MIB)
        for n in ("n2", "n3")
    )
    world.until(lambda w: w.view.sync.members == ("n2",))
    world.reports = {heir: standby(heir)}
    hang(world)
    assert (world.rules[-1] if world.view.state != "leader" else None) == rule


def test_health_checks_send_clients_away_when_the_server_hangs() -> None:
    """After two looks, on the old connection and on a fresh one; members are still told that there is a primary."""
    world = leader()
    hang(world, 1)
    assert status.is_writable(world.view, world.now_ms)
    hang(world, 1)
    standing = status.standing_at(world.view, world.now_ms)
    fields = status.status_fields(world.view, standing)
    assert not status.is_writable(world.view, world.now_ms)
    assert not status.is_leading_to_somewhere(world.view, world.now_ms)
    assert (fields["role"], fields["state"]) == ("primary", "running")
    assert fields["matriarch"]["server_silent"] is True
    world.probe()
    assert status.is_writable(world.view, world.now_ms)


@pytest.mark.parametrize(
    ("before", "began_ms", "lag_ms", "expected"),
    [
        (None, 100, 0, Silence(since_ms=100, told_at_ms=2_600, looks=1)),
        (Silence(since_ms=0, told_at_ms=90, looks=1), 100, 0, Silence(since_ms=0, told_at_ms=2_600, looks=2)),
        (Silence(since_ms=0, told_at_ms=90, looks=1), 91 + SILENCE_GAP_MS, 0,
         Silence(since_ms=91 + SILENCE_GAP_MS, told_at_ms=2_600, looks=1)),
        (Silence(since_ms=0, told_at_ms=90, looks=1), 100, STARVED_MS,
         Silence(since_ms=2_600, told_at_ms=2_600, looks=0)),
    ],
    ids=["first", "next", "after-a-gap", "starved"],
)  # fmt: skip
def test_silence_grows_when_looks_follow_each_other(
    before: Silence | None, began_ms: int, lag_ms: int, expected: Silence
) -> None:
    """A gap, or a loop that stood still, begins it anew."""
    assert prolonged(before, began_ms=began_ms, at_ms=2_600, lag_ms=lag_ms) == expected


# ---- a disk that hangs -----------------------------------------------------------------------------------------------


def test_leader_steps_down_when_its_disk_takes_no_writes() -> None:
    """Reads are answered all the while."""
    world = leader()
    disk(world)
    disk_hangs(world)
    assert world.rules[-1] == "L8"


def test_leader_steps_down_when_its_disk_fails() -> None:
    """An I/O error, or a file system that turned read-only, again and again."""
    world = leader()
    for _ in range(7):
        began_ms = world.now_ms
        world.wait(2_000)
        world.feed(
            ev.DiskLooked(
                at_ms=world.now_ms, data_free_bytes=PLENTY, wal_free_bytes=PLENTY, segment_bytes=16 * MIB,
                failure="broken", detail="Read-only file system", began_ms=began_ms,
            )
        )  # fmt: skip
    world.wait(100)
    assert world.rules[-1] == "L8"


def test_leader_stays_when_wal_reaches_the_disk() -> None:
    """A write of the agent's own hangs behind others, and the server's get through."""
    world = leader()
    for step in range(5):
        disk_hangs(world, 3)
        assert world.server is not None
        world.server.lsn += 1 + step
        world.probe()
    assert world.view.state == "leader"


def test_leader_stays_when_the_disk_answers_again_or_the_agent_did_not_run() -> None:
    """A slow disk is no dead one."""
    world = leader()
    for _ in range(3):
        disk_hangs(world, 4)
        disk(world)
    disk_hangs(world, 8, lag_ms=STARVED_MS)
    assert world.view.state == "leader"


def test_key_is_released_when_nothing_of_the_server_will_run_again() -> None:
    """Processes that hang in the kernel cannot be ended; killed as they are, none will write or answer."""
    world = leader()
    world.held.add("fence-stray")  # it does not come back
    disk_hangs(world)
    world.wait(1_000)
    assert "leader" in world.keys
    assert world.server is not None
    world.feed(ev.ServerDoomed(at_ms=world.now_ms, pid=world.server.pid))
    world.wait(1_000)
    assert "leader" not in world.keys
    assert not world.orders(do.StartStandby)


# ---- a disk that is full ---------------------------------------------------------------------------------------------


def test_leader_hands_over_in_order_when_its_disk_is_full() -> None:
    """A fast shutdown, which hands the standbys every last record, and is cut short."""
    world = leader()
    disk(world, 10 * MIB)
    world.wait(DISK_FULL_FOR_MS + 100)
    assert world.rules[-1] == "L9"
    fence = world.orders(do.FenceServer)[-1]
    assert isinstance(fence, do.FenceServer)
    assert (fence.mode, fence.kill_after_ms) == ("fast", FULL_DISK_STOP_MS)
    world.wait(500)
    assert "leader" not in world.keys


@pytest.mark.parametrize(
    "reports", [(standby(disk_full=True), standby("n3", disk_full=True)), (standby("n4"),)], ids=["all-full", "none"]
)
def test_leader_stays_when_its_disk_is_full_and_nobody_has_room(reports: tuple[PeerReport, ...]) -> None:
    """It serves reads, and writes for as long as there is a byte."""
    world = leader(*reports)
    disk(world, 10 * MIB)
    world.wait(20_000)
    assert world.view.state == "leader"


def test_leader_stays_when_the_member_with_room_does_not_stream() -> None:
    """It would miss what was written since."""
    world = leader()
    assert world.server is not None
    world.server.standbys = ()
    world.wait(2_000)
    disk(world, 10 * MIB)
    world.wait(20_000)
    assert world.view.state == "leader"


def test_leader_stays_when_its_disk_is_full_for_a_moment_or_the_cluster_is_paused() -> None:
    """What a sort spills is gone again; in a pause nobody is moved."""
    world = leader()
    disk(world, 10 * MIB)
    world.wait(DISK_FULL_FOR_MS - 100)
    disk(world)
    world.wait(20_000)
    assert world.view.state == "leader"
    world.put("config", '{"ttl":30,"pause":true}')
    disk(world, 0, "full")
    world.wait(20_000)
    assert world.view.state == "leader"


def test_disk_counts_as_full_when_there_has_not_been_plenty_of_room_for_a_while() -> None:
    """A little room, or much for a moment, is not enough; much for long is."""
    world = leader(standby(disk_full=True))
    disk(world, 10 * MIB)
    world.wait(5_000)
    for free_bytes, span_ms, is_full in (
        (20 * MIB, 60_000, True),
        (PLENTY, DISK_ROOMY_FOR_MS - 1_000, True),
        (20 * MIB, 10, True),
        (PLENTY, DISK_ROOMY_FOR_MS, True),
        (PLENTY, 10, False),
    ):
        disk(world, free_bytes)
        told = status.status_fields(world.view, status.standing_at(world.view, world.now_ms))["matriarch"]["disk"]
        assert (told.get("full") is True, told["free_bytes"]) == (is_full, free_bytes)
        world.wait(span_ms)


def test_leader_is_replaced_when_its_server_ends_for_want_of_room() -> None:
    """PostgreSQL panics when it cannot write WAL, and cannot recover: nobody waits for primary_start_timeout."""
    world = leader()
    world.failing["start-primary"] = "program"
    world.crash()
    disk(world, 10 * MIB)
    world.wait(500)
    assert world.rules[-1] == "L10"
    assert "leader" not in world.keys


def test_leader_starts_its_server_again_when_it_ended_with_room() -> None:
    """A crash is recovered from in place, as ever."""
    world = leader()
    disk(world)
    world.crash()
    world.wait(2_000)
    assert world.view.state == "leader"
    assert world.server is not None


# ---- who stands ------------------------------------------------------------------------------------------------------


def without_a_leader(*, is_full: bool, report: PeerReport | None = None) -> World:
    """A replica whose leader is gone, and what the other member answers."""
    world = replica_of("n2", "n3")
    if is_full:
        disk(world, 0)
        world.wait(5_000)
    if report is not None:
        world.reports = {report.name: report}
    world.delete("leader")
    return world


def test_member_does_not_stand_when_its_disk_is_full() -> None:
    """Others have ten seconds; then a primary that may run out of room serves more than none."""
    world = without_a_leader(is_full=True, report=standby("n3"))
    world.wait(FULL_STANDS_AFTER_MS - 500)
    assert world.view.state == "replica"
    world.until_state("leader")


def test_member_stands_when_the_one_with_more_wal_has_no_room() -> None:
    """It would hand over again at once."""
    world = without_a_leader(is_full=False, report=standby("n3", position_lsn=11 * MIB, disk_full=True))
    world.until_state("leader", within_ms=5_000)


def test_member_stands_when_the_server_of_the_one_with_more_wal_hangs() -> None:
    """It could not be promoted; who hangs does not stand either."""
    world = without_a_leader(is_full=False, report=standby("n3", position_lsn=11 * MIB, probed_ago_ms=6_000))
    world.until_state("leader", within_ms=5_000)
    world = replica_of("n2", "n3")
    world.probe = lambda: setattr(world, "probed_at_ms", world.now_ms)  # type: ignore[method-assign]  # nothing comes
    mute_looks(world, 3)
    world.delete("leader")
    world.wait(1_000)
    assert world.view.state == "replica"


def test_full_member_waits_for_the_one_with_more_wal_when_both_have_no_room() -> None:
    """Then WAL decides, as ever."""
    world = without_a_leader(is_full=True, report=standby("n3", position_lsn=11 * MIB, disk_full=True))
    world.wait(FULL_STANDS_AFTER_MS + 5_000)
    assert world.view.state != "leader"


def is_silent_about_disks(view: View) -> bool:
    """True when the status tells nothing of a disk."""
    return "disk" not in status.status_fields(view, status.standing_at(view, view.now_ms))["matriarch"]


def test_status_tells_nothing_of_a_disk_when_nobody_could_look() -> None:
    """Unknown is not full, and not roomy."""
    world = leader()
    assert is_silent_about_disks(world.view)
    world.feed(ev.DiskSilent(at_ms=world.now_ms, detail="it hangs", began_ms=world.now_ms - 2_000))
    assert is_silent_about_disks(world.view)
    assert world.view.disk == replace(world.view.disk, free_bytes=None, is_full=False)


STORIES: list[Callable[[], None]] = [
    test_leader_steps_down_when_its_server_hangs_and_a_member_can_take_over,
    test_leader_steps_down_when_its_disk_takes_no_writes,
    test_leader_hands_over_in_order_when_its_disk_is_full,
    test_leader_is_replaced_when_its_server_ends_for_want_of_room,
]
"""One for each rule."""
