"""A node in a world that goes wrong in random ways: every promise is kept meanwhile, and healed it finds its place."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fsm import events as ev
from fsm.facts import PeerReport, Standby, TimelineHistory, TimelineSwitch
from tests.fsm.world import EMPTY, MIB, STANDBY, World, is_following, leader_with_standbys, new_leader, replica_of

RUNS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking one of these takes minutes
)
HEALED_WITHIN_MS = 30 * 60_000


@dataclass(frozen=True, repr=False)
class Disturbance:
    """Something that goes wrong, or is asked for, under a name that a failing example can show."""

    name: str
    happen: Callable[[World], object]

    def __repr__(self) -> str:
        return self.name


def another_leads(name: str, at_lsn: int) -> Disturbance:
    """Another member is promoted at a position and takes the key, if etcd would let it."""

    def happen(world: World) -> None:
        held = world.keys.get("leader")
        if held and held.lease_id in world.leases:
            return
        switch = TimelineSwitch(timeline=world.history.timeline, lsn=at_lsn)
        world.history = TimelineHistory(
            timeline=world.history.timeline + 1,
            system_id=world.history.system_id,
            switches=(*world.history.switches, switch),
        )
        world.lead(name, timeline=world.history.timeline)

    return Disturbance(f"{name} leads from {at_lsn // MIB} MiB", happen)


def leader_vanishes(world: World) -> None:
    """The other leader's key is gone."""
    held = world.keys.get("leader")
    if held and held.value != world.name:
        world.delete("leader")


def server_crashes(world: World) -> None:
    """The server dies."""
    if world.server:
        world.crash()


def fence_dies(world: World) -> None:
    """The fence dies, its server with it, and a new fence is connected."""
    if world.server:
        server, world.server, world.armed_until_ms = world.server, None, None
        state = "in archive recovery" if server.in_recovery else "in production"
        world.directory = replace(
            world.directory, control_state=state, timeline=server.timeline, checkpoint_lsn=server.lsn
        )
    world.feed(ev.FenceLost(at_ms=world.now_ms, detail="gone"))
    world.wait(200)
    world.connect_fence()


def directory_is_wiped(world: World) -> None:
    """Somebody removes the data of a node whose server is down."""
    if world.server is None:
        world.directory = EMPTY


def wal_flows(world: World) -> None:
    """The server writes or receives."""
    if world.server:
        world.server.lsn += 5 * MIB


def waits(span_ms: int) -> Disturbance:
    """Time passes."""
    return Disturbance(f"wait {span_ms} ms", lambda world: world.wait(span_ms))


def duty_fails(duty: str, kind: ev.FailureKind) -> Disturbance:
    """A duty fails from now on, until `nothing_fails`."""

    def happen(world: World) -> None:
        world.failing[duty] = kind

    return Disturbance(f"{duty} fails ({kind})", happen)


def nothing_fails(world: World) -> None:
    """Everything works again."""
    world.failing.clear()
    world.held.clear()
    world.is_server_silent = False


def falls_silent(world: World) -> None:
    """The server does not answer probes."""
    world.is_server_silent = True


def configured(text: str) -> Disturbance:
    """Somebody edits the dynamic configuration."""
    return Disturbance(f"config {text}", lambda world: world.put("config", text))


def etcd_is_lost(world: World) -> None:
    """etcd falls silent."""
    if world.is_etcd_up:
        world.lose_etcd()


def etcd_heals(world: World) -> None:
    """etcd answers again."""
    if not world.is_etcd_up:
        world.heal_etcd()


def peers_answer(lsn: int, role: str) -> Disturbance:
    """Peers answer with a position from now on."""

    def happen(world: World) -> None:
        for name in ("n2", "n3"):
            world.reports[name] = PeerReport(name=name, role=role, state="running", position_lsn=lsn, timeline=1)

    return Disturbance(f"peers answer {role} at {lsn // MIB} MiB", happen)


def members_confirm(world: World) -> None:
    """The members let a leader without etcd go on."""
    world.confirming = {"n2", "n3"}


def reinit_is_asked(world: World) -> None:
    """An operator asks for a new base backup."""
    world.feed(ev.ReinitAsked(at_ms=world.now_ms))


def switchover_is_asked(world: World) -> None:
    """An operator asks for a switchover to n2, which streams."""
    if world.server:
        world.server.standbys = (Standby(application_name="n2", state="streaming"),)
    world.feed(ev.SwitchoverAsked(at_ms=world.now_ms, leader="n1", candidate="n2"))


def is_cut_off_while_another_leads(world: World) -> None:
    """The node is partitioned away for longer than its lease lasts, and n3 is promoted meanwhile."""
    etcd_is_lost(world)
    world.wait(45_000)
    world.leases.clear()
    another_leads("n3", 10 * MIB).happen(world)
    world.heal_etcd()


def key_is_deleted(world: World) -> None:
    """Somebody deletes the leader key, whoever holds it."""
    if "leader" in world.keys:
        world.delete("leader")


def agent_is_stopped(world: World) -> None:
    """SIGTERM."""
    world.stop_asked()


def agent_restarts(world: World) -> None:
    """The agent begins again; the fence keeps the server."""
    world.boot()


FAILING_DUTIES = (
    "rewind", "clone", "start-standby", "promote", "start-primary", "renew-lease", "take-leader-key", "fence-stray",
    "arm-fence", "init-db", "clear-directory", "read-directory", "follow", "stop-standby", "read-leader-history",
    "publish-member", "release-leader-key",
)  # fmt: skip
CONFIGS = ("{}", '{"pause":true}', '{"ttl":5}', '{"failsafe_mode":false}', '{"postgresql":{"use_pg_rewind":false}}')
BLOWS: tuple[Callable[[World], object], ...] = (
    leader_vanishes, server_crashes, fence_dies, directory_is_wiped, wal_flows, falls_silent, etcd_is_lost, etcd_heals,
    members_confirm, reinit_is_asked, is_cut_off_while_another_leads, key_is_deleted, agent_is_stopped,
    switchover_is_asked, agent_restarts, nothing_fails,
)  # fmt: skip
DISTURBANCES = (
    *(Disturbance(blow.__name__, blow) for blow in BLOWS),
    *(another_leads(name, lsn) for name in ("n2", "n3") for lsn in (1 * MIB, 10 * MIB, 60 * MIB)),
    *(duty_fails(duty, "unavailable") for duty in FAILING_DUTIES),
    duty_fails("renew-lease", "lease_gone"),
    *(peers_answer(lsn, role) for lsn in (0, 90 * MIB) for role in ("replica", "primary")),
    *(configured(text) for text in CONFIGS),
)
kinds_of_trouble = st.sampled_from(("blow", "blow", "lead", "fail", "any"))


def _drawn(kind: str, number: int) -> Disturbance:
    few = {
        "blow": DISTURBANCES[: len(BLOWS)],
        "lead": DISTURBANCES[len(BLOWS) :][:6],
        "fail": DISTURBANCES[len(BLOWS) + 6 : -9],
    }
    chosen = few.get(kind, DISTURBANCES)
    return chosen[number % len(chosen)]


pauses = st.sampled_from((waits(0), waits(30), waits(700), waits(5_000), waits(40_000)))
troubles = st.lists(
    st.tuples(st.builds(_drawn, kinds_of_trouble, st.integers(0, 9_999)), pauses), min_size=6, max_size=16
)
beginnings = st.sampled_from(
    (
        lambda: World().boot(),
        lambda: World(directory=STANDBY).initialized().boot(),
        new_leader,
        lambda: leader_with_standbys("n2", "n3"),
        lambda: replica_of("n2", "n3"),
    )
)


def heal(world: World) -> None:
    """Everything works again and nothing special is asked for."""
    nothing_fails(world)
    world.reports.clear()
    world.put("config", '{"ttl":10,"primary_start_timeout":60}')
    world.put("failover", "{}")
    if world.exit is not None or world.view.is_stopping:
        world.boot()
    etcd_heals(world)
    end_former_leases(world)


def end_former_leases(world: World) -> None:
    """A lease that nobody renews ends, and its keys with it; the world's etcd leaves that to the story."""
    present = world.view.lease.lease_id if world.view.lease else 0
    for name in [name for name, key in world.keys.items() if key.lease_id not in (0, present)]:
        world.delete(name)


@RUNS
@given(beginnings, troubles)
def test_node_follows_when_all_is_healed_and_another_leads(
    begin: Callable[[], World], drawn: list[tuple[Disturbance, Disturbance]]
) -> None:
    """Whatever happened, with everything healed and a leader that stays, the node ends up following it."""
    world = begin()
    for disturb, pause in drawn:
        disturb.happen(world)
        pause.happen(world)
    heal(world)
    world.put("initialize", world.history.system_id)
    world.keys.pop("leader", None)
    another_leads("n2", 200 * MIB).happen(world)
    world.until(is_following, within_ms=HEALED_WITHIN_MS)


@RUNS
@given(beginnings, troubles)
def test_node_leads_when_all_is_healed_and_nobody_else_is_there(
    begin: Callable[[], World], drawn: list[tuple[Disturbance, Disturbance]]
) -> None:
    """Whatever happened, a node that has data and is alone ends up leading, with a server that accepts writes."""
    world = begin()
    for disturb, pause in drawn:
        disturb.happen(world)
        pause.happen(world)
    heal(world)
    for key in [k for k in world.keys if k.startswith("members/n") and k != "members/n1"]:
        world.delete(key)
    for key in ("history", "status", "sync"):
        if key in world.keys:
            world.delete(key)
    if "leader" in world.keys and world.keys["leader"].value != world.name:
        world.delete("leader")
    world.wait(60_000)
    end_former_leases(world)  # the healed configuration's ttl brought a new lease
    if world.directory.condition != "cluster":
        return  # nothing is left to lead with
    world.until(_is_serving, within_ms=HEALED_WITHIN_MS)


def _is_serving(world: World) -> bool:
    server = world.server
    return world.view.state == "leader" and server is not None and not server.in_recovery
