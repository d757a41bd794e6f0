"""GET /metrics: Patroni's families, in its order, with its labels and numbers."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsm.dynamic import Dynamic
from fsm.metrics import STATES
from fsm.view import Etcd, Fence, ServerKill, View
from fsm.wire import SyncKey
from tests.api.asking import Surroundings, ask, surroundings
from tests.views import NOW_MS, POSITION_LSN, identity, leader_view, standby_probe, standby_view, with_server

pytestmark = pytest.mark.anyio

FAMILIES = [
    "version", "postgres_running", "postmaster_start_time", "primary", "xlog_location", "standby_leader", "replica",
    "sync_standby", "quorum_standby", "xlog_received_location", "xlog_replayed_location", "xlog_replayed_timestamp",
    "xlog_paused", "postgres_streaming", "postgres_in_archive_recovery", "postgres_server_version", "cluster_unlocked",
    "failsafe_mode_is_active", "failsafe_mode_enabled", "failsafe_member", "postgres_timeline", "dcs_last_seen",
    "pending_restart", "is_paused", "postgres_state", "failover_priority",
]  # fmt: skip
N2_IS_IN_SYNC = SyncKey(leader="n1", members=("n2",))
COUNTERS = {"xlog_location", "xlog_received_location", "xlog_replayed_location"}


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader."""
    async with surroundings(tmp_path) as found:
        yield found


def values_of(text: str) -> dict[str, float]:
    """Each metric's value."""
    found = re.findall(r'^patroni_(\w+)\{scope="demo",name="n\d"\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_families_are_patronis_when_asked_for(around: Surroundings) -> None:
    """Every family once, in order, HELP before TYPE before the value; the type is bare text."""
    answer = await ask(around.app(), "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
    lines = answer.text.splitlines()
    kinds = re.findall(r"^# TYPE patroni_(\w+) (\w+)$", answer.text, re.MULTILINE)
    assert [name for name, _ in kinds] == FAMILIES
    assert {name for name, kind in kinds if kind == "counter"} == COUNTERS
    assert list(values_of(answer.text)) == FAMILIES
    assert answer.text.endswith("\n")
    assert 'patroni_version{scope="demo",name="n1"} 040105' in lines
    helps = [line.split()[2] for line in lines if line.startswith("# HELP patroni_")]
    assert helps == [f"patroni_{name}" for name in FAMILIES]


@pytest.mark.parametrize(
    ("view", "wanted"),
    [
        (
            leader_view(),
            {"primary": 1, "replica": 0, "xlog_location": POSITION_LSN, "postgres_state": 5, "postgres_running": 1,
             "postgres_timeline": 3, "postgres_server_version": 160014, "cluster_unlocked": 0, "postgres_streaming": 0,
             "failover_priority": 1, "postmaster_start_time": 1769860800.123456, "xlog_replayed_timestamp": 0},
        ),
        (
            standby_view(),
            {"primary": 0, "replica": 1, "xlog_location": 0, "xlog_received_location": POSITION_LSN,
             "xlog_replayed_location": POSITION_LSN, "postgres_streaming": 1, "sync_standby": 0},
        ),
        (
            standby_view(dynamic=Dynamic(synchronous_mode="on", pause=True), sync=N2_IS_IN_SYNC),
            {"sync_standby": 1, "quorum_standby": 0, "is_paused": 1},
        ),
        (
            standby_view(dynamic=Dynamic(synchronous_mode="quorum"), sync=N2_IS_IN_SYNC),
            {"sync_standby": 0, "quorum_standby": 1},
        ),
        (
            with_server(standby_view(), probe=standby_probe(pending_restart=("max_connections",), replay_paused=True)),
            {"pending_restart": 1, "xlog_paused": 1},
        ),
        (with_server(standby_view(), process="absent", probe=None), {"postgres_running": 0, "postgres_state": 12}),
        (standby_view(etcd=Etcd(lost_since_ms=0)), {"cluster_unlocked": 1}),
        (
            standby_view(failsafe={"n2": "x"}),
            {"failsafe_mode_enabled": 1, "failsafe_member": 1, "failsafe_mode_is_active": 0},
        ),
        (standby_view(dynamic=Dynamic(failsafe_mode=False)), {"failsafe_mode_enabled": 0, "failsafe_member": 0}),
        (standby_view(identity=identity("n2", nofailover=True)), {"failover_priority": 0}),
        (standby_view(identity=identity("n2", failover_priority=7)), {"failover_priority": 7}),
    ],
)  # fmt: skip
async def test_metrics_tell_what_is_so_when_asked_for(
    around: Surroundings, view: View, wanted: dict[str, float]
) -> None:
    """On a leader, on standbys of each kind, without a server, without etcd."""
    around.show(view)
    found = values_of((await ask(around.app(), "/metrics")).text)
    assert {name: found[name] for name in wanted} == wanted


async def test_numbers_of_states_never_change_when_counted(around: Surroundings) -> None:
    """Dashboards name them; the line above the value does as well."""
    known = {"initializing new cluster": 0, "running": 5, "starting": 6, "restarting": 9, "stopped": 12, "crashed": 14}
    assert {state: STATES.index(state) for state in known} == known
    text = (await ask(around.app(), "/metrics")).text
    assert "# Values: 0=initializing new cluster, " in text
    assert "14=crashed, -1=unknown" in text


async def test_labels_cannot_break_out_when_a_name_holds_quotes(around: Surroundings) -> None:
    """Source: Prometheus, exposition formats."""
    strange = replace(identity("n1"), scope='a"b\\c\nd')
    around.show(leader_view(identity=strange))
    text = (await ask(around.app(), "/metrics")).text
    assert '{scope="a\\"b\\\\c\\nd",name="n1"}' in text


async def test_metrics_are_there_when_nothing_is_known_yet(around: Surroundings) -> None:
    """From the first moment."""
    around.now_ms = NOW_MS
    around.show(View())
    answer = await ask(around.app(), "/metrics")
    assert (answer.status, 'patroni_postgres_state{scope="",name=""} 12' in answer.text) == (200, True)


async def test_fence_has_metrics_of_its_own_when_asked_for(around: Surroundings) -> None:
    """Behind Patroni's, under Matriarch's name: what is left of the deadline at this instant, and the last kill."""
    kill = ServerKill(reason="L4", at_ms=NOW_MS - 5_000, gone_at_ms=NOW_MS - 4_900, margin_ms=2_400, processes=7)
    fence = Fence(is_connected=True, armed_until_ms=NOW_MS + 1_500, confirmations=9, kills=1, last_kill=kill)
    around.show(leader_view(fence=fence))
    text = (await ask(around.app(), "/metrics")).text
    found = re.findall(r'^matriarch_fence_(\w+)\{scope="demo",name="n1"\} (\S+)$', text, re.MULTILINE)
    assert {name: float(value) for name, value in found} == {
        "connected": 1, "armed_seconds": 1.5, "confirmations_total": 9, "kills_total": 1,
        "last_kill_duration_seconds": 0.1, "last_kill_margin_seconds": 2.4, "last_kill_age_seconds": 4.9,
    }  # fmt: skip
    assert len(re.findall(r"^# (?:HELP|TYPE) matriarch_fence_", text, re.MULTILINE)) == 2 * len(found)
