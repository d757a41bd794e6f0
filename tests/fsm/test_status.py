"""What a node says of itself: never more than what holds at the instant of the question."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fsm import status
from fsm.dynamic import Dynamic
from fsm.events import FailsafeAsked
from fsm.facts import Key, ParameterChange
from fsm.states import State
from fsm.status import ANY, AskedSwitchover, Wish
from fsm.view import Etcd, Lease, Promise, View
from fsm.wire import FailoverRequest, SyncKey
from tests.views import (
    LEASE_ID,
    NOW_MS,
    POSITION_LSN,
    TTL_S,
    identity,
    leader_view,
    primary_probe,
    standby_probe,
    standby_view,
    view_of,
    with_key,
    with_server,
)

DEADLINE_MS = leader_view().writable_until_ms


def fields_at(view: View, now_ms: int, **others: Any) -> dict[str, Any]:
    """The status JSON as a client that asks at an instant decodes it."""
    return status.status_fields(view, status.standing_at(view, now_ms), **others)


# ---- the leader -----------------------------------------------------------------------------------------------------


def test_leader_is_writable_when_it_holds_the_key_within_its_deadline() -> None:
    """All that is asked of a primary holds."""
    assert status.is_leading(leader_view(), NOW_MS)
    assert status.is_writable(leader_view(), NOW_MS)


@pytest.mark.parametrize(
    "view",
    [
        leader_view(state=State.REPLICA),
        leader_view(state=State.CANDIDATE),
        with_key(leader_view(), "leader", Key(value="n2", mod_revision=13, lease_id=LEASE_ID)),
        with_key(leader_view(), "leader", Key(value="n1", mod_revision=13, lease_id=LEASE_ID + 1)),
        with_key(leader_view(), "leader", Key(value=None, mod_revision=13)),
        leader_view(lease=None),
    ],
    ids=["replica", "candidate", "held by another", "under another lease", "gone", "no lease"],
)
def test_leader_is_denied_when_one_thing_is_missing(view: View) -> None:
    """Neither /leader nor /primary is answered with yes."""
    assert not status.is_leading(view, NOW_MS)
    assert not status.is_writable(view, NOW_MS)
    assert fields_at(view, NOW_MS)["role"] != "primary"


def test_leader_is_denied_when_its_deadline_passes_without_another_snapshot() -> None:
    """A frozen brain does not go on being primary in what it left behind."""
    view = leader_view()
    assert status.is_writable(view, DEADLINE_MS - 1)
    assert fields_at(view, DEADLINE_MS - 1)["role"] == "primary"
    assert not status.is_leading(view, DEADLINE_MS)
    assert fields_at(view, DEADLINE_MS)["role"] == "demoted"


def test_leader_stays_writable_when_its_key_still_hangs_on_the_lease_before() -> None:
    """A changed ttl brings a new lease: until the key is bound to it, the old one's deadline counts."""
    former = Lease(lease_id=LEASE_ID, ttl_s=3, asked_ttl_s=3, sent_at_ms=NOW_MS)
    present = Lease(lease_id=LEASE_ID + 1, ttl_s=TTL_S, asked_ttl_s=TTL_S, sent_at_ms=NOW_MS)
    view = leader_view(lease=present, former_lease=former)
    assert status.is_writable(view, former.writable_until_ms - 1)
    assert not status.is_writable(view, former.writable_until_ms)


def test_leader_goes_on_when_the_members_confirm_in_place_of_etcd() -> None:
    """The deadline is that of the confirmation, and the status says that failsafe is active."""
    view = leader_view(failsafe_until_ms=DEADLINE_MS + 5_000, etcd=Etcd(lost_since_ms=NOW_MS - 100))
    assert status.is_writable(view, DEADLINE_MS + 4_999)
    assert not status.is_writable(view, DEADLINE_MS + 5_000)
    assert fields_at(view, DEADLINE_MS)["failsafe_mode_is_active"] is True


@pytest.mark.parametrize(
    "view",
    [
        with_server(leader_view(), probe=standby_probe()),
        with_server(leader_view(), probe=None),
        with_server(leader_view(), process="absent"),
        with_server(leader_view(), is_starting=True),
    ],
    ids=["still in recovery", "never answered", "no process", "recovering from a crash"],
)
def test_leader_is_not_writable_when_its_server_takes_no_writes(view: View) -> None:
    """The key alone does not make a primary: /leader says yes, /primary no."""
    assert status.is_leading(view, NOW_MS)
    assert not status.is_writable(view, NOW_MS)


def test_silent_primary_stays_running_when_members_ask_it() -> None:
    """Who is about to stand must not take its silence for absence; /health does not gloss over it."""
    late_ms = NOW_MS + status.ANSWER_FRESH_MS
    assert fields_at(leader_view(), late_ms)["state"] == "running"
    assert not status.is_healthy(leader_view(), late_ms)


@st.composite
def any_view(draw: st.DrawFn) -> View:
    """Any mixture of what a deadline may rest on."""
    key = Key(value=draw(st.sampled_from(["n1", "n2", None])), mod_revision=12, lease_id=draw(st.integers(6, 8)))
    ttl_s, sent_at_ms = draw(st.integers(3, 60)), draw(st.integers(0, 2 * NOW_MS))
    lease = Lease(lease_id=LEASE_ID, ttl_s=ttl_s, asked_ttl_s=ttl_s, sent_at_ms=sent_at_ms)
    view = leader_view(
        state=draw(st.sampled_from(list(State))),
        lease=draw(st.sampled_from([lease, None])),
        failsafe_until_ms=draw(st.integers(0, 2 * NOW_MS)),
        dynamic=Dynamic(ttl_s=TTL_S, pause=draw(st.booleans())),
        etcd=Etcd(is_watched=draw(st.booleans()), lost_since_ms=draw(st.none() | st.integers(0, NOW_MS))),
    )
    view = with_server(
        view,
        process=draw(st.sampled_from(["unknown", "absent", "running"])),
        probe=draw(st.sampled_from([None, primary_probe(), standby_probe()])),
        is_starting=draw(st.booleans()),
    )
    return with_key(view, "leader", key)


@given(view=any_view(), now_ms=st.integers(0, 3 * NOW_MS))
def test_nobody_is_primary_when_the_deadline_has_passed(view: View, now_ms: int) -> None:
    """For any view and clock: no yes for a writer, and no role `primary`, at or past the deadline."""
    if now_ms >= view.writable_until_ms:
        assert not status.is_leading(view, now_ms)
        assert not status.is_writable(view, now_ms)
        assert fields_at(view, now_ms)["role"] != "primary"
    if status.is_writable(view, now_ms):
        assert status.is_leading(view, now_ms)
        assert fields_at(view, now_ms)["role"] == "primary"


# ---- standbys -------------------------------------------------------------------------------------------------------


def test_standby_is_readable_when_it_runs_and_answers() -> None:
    """Nothing more is asked without wishes."""
    assert status.is_readable_standby(standby_view(), NOW_MS, ANY)
    assert not status.is_readable_standby(leader_view(), NOW_MS, ANY)


@pytest.mark.parametrize(
    ("view", "now_ms"),
    [
        (standby_view(identity=identity("n2", noloadbalance=True)), NOW_MS),
        (with_server(standby_view(), process="absent"), NOW_MS),
        (with_server(standby_view(), probe=None), NOW_MS),
        (standby_view(), NOW_MS + status.ANSWER_FRESH_MS),
    ],
    ids=["noloadbalance", "no process", "never answered", "silent for long"],
)
def test_standby_is_not_readable_when_something_speaks_against_it(view: View, now_ms: int) -> None:
    """Each of these alone is enough."""
    assert not status.is_readable_standby(view, now_ms, ANY)


@pytest.mark.parametrize(("behind", "allowed", "expected"), [(100, 100, True), (101, 100, False), (5, None, True)])
def test_standby_is_judged_by_lag_when_a_limit_is_set(behind: int, allowed: int | None, expected: bool) -> None:
    """Lag is what has been replayed against the newest position that was heard of."""
    view = with_server(standby_view(), probe=standby_probe(replayed_lsn=POSITION_LSN - behind))
    assert status.is_readable_standby(view, NOW_MS, Wish(lag_bytes=allowed)) is expected


def test_standby_is_judged_by_replication_state_when_one_is_wished() -> None:
    """A standby whose receiver is gone does not stream."""
    streaming = Wish(replication_state="streaming")
    idle = with_server(standby_view(), probe=standby_probe(receiver_status=None))
    assert status.is_readable_standby(standby_view(), NOW_MS, streaming)
    assert not status.is_readable_standby(idle, NOW_MS, streaming)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100", 100),
        ("10MB", 10 << 20),
        ("1.5kB", 1536),
        ("0x10", 16),
        ("16 kB", 16 << 10),
        ("2TB", 2 << 40),
        ("-1", -1),
        ("", None),
        (None, None),
        ("much", None),
        ("1XB", None),
        ("1e3", None),
    ],
)
def test_lag_is_read_when_it_has_a_unit_or_none(text: str | None, expected: int | None) -> None:
    """PostgreSQL's units; what cannot be read is no limit."""
    assert status.parse_lag_bytes(text) == expected


def test_tags_match_when_their_text_does() -> None:
    """Text compares as it is, other values as lower-case text; a missing tag, or a known one at rest, never matches."""
    view = standby_view(identity=identity("n2", dc="East", fast=True, weight=1.4, clonefrom=False))
    assert status.has_tags(view, (("dc", "East"), ("fast", "true"), ("weight", "1.4")))
    for wrong in (("dc", "east"), ("clonefrom", "false"), ("rack", "1")):
        assert not status.has_tags(view, (wrong,))


@pytest.mark.parametrize(
    ("mode", "expected"), [("off", (False, False)), ("on", (True, False)), ("quorum", (False, True))]
)
def test_synchronous_standby_is_named_when_the_mode_is_on(mode: Any, expected: tuple[bool, bool]) -> None:
    """The `sync` key means nothing while the mode is off, and another thing in quorum mode."""
    view = standby_view(dynamic=Dynamic(synchronous_mode=mode), sync=SyncKey(leader="n1", members=("N2",)))
    assert (status.is_synchronous_standby(view), status.is_quorum_standby(view)) == expected


def test_standby_is_ready_when_it_streams_and_keeps_up() -> None:
    """Kubernetes may count on it; on the leader always."""
    behind = with_server(standby_view(), probe=standby_probe(replayed_lsn=POSITION_LSN - 100))
    assert status.is_ready(leader_view(), NOW_MS, ANY)
    assert status.is_ready(behind, NOW_MS, ANY)
    assert not status.is_ready(behind, NOW_MS, Wish(lag_bytes=99))
    assert status.is_ready(behind, NOW_MS, Wish(lag_bytes=99, lag_mode="write"))
    assert not status.is_ready(replace(behind, etcd=Etcd()), NOW_MS, ANY)


def test_loop_counts_as_alive_when_it_took_an_event_within_the_ttl() -> None:
    """A primary's brain has one ttl, a standby's two; in a pause nobody is restarted for it."""
    ttl_ms = TTL_S * 1000
    assert status.is_alive(leader_view(), NOW_MS - 10 + ttl_ms - 1)
    assert not status.is_alive(leader_view(), NOW_MS - 10 + ttl_ms)
    assert status.is_alive(standby_view(), NOW_MS - 10 + 2 * ttl_ms - 1)
    assert status.is_alive(leader_view(dynamic=Dynamic(pause=True)), NOW_MS + 10 * ttl_ms)
    assert not status.is_alive(View(), 0)


# ---- JSON -----------------------------------------------------------------------------------------------------------


def without_fence(fields: dict[str, Any]) -> dict[str, Any]:
    """Matriarch's own fields but for the fence's, which tests/fsm/test_fencing.py looks at."""
    return {key: value for key, value in fields["matriarch"].items() if key != "fence"}


def test_status_has_patronis_fields_in_order_when_the_node_leads() -> None:
    """Keys, their order and the values of a primary."""
    fields = fields_at(leader_view(), NOW_MS, dcs_last_seen_s=1_769_860_000)
    assert list(fields) == [
        "state", "postmaster_start_time", "role", "server_version", "xlog", "timeline", "replication",
        "dcs_last_seen", "database_system_identifier", "patroni", "matriarch",
    ]  # fmt: skip
    assert fields["xlog"] == {"location": POSITION_LSN}
    assert list(fields["replication"][0]) == [
        "usename", "application_name", "client_addr", "state", "sync_state", "sync_priority",
    ]  # fmt: skip
    assert fields["patroni"] == {"version": "4.1.5", "scope": "demo", "name": "n1"}
    assert without_fence(fields) == {"state": "leader", "seq": 50}


def test_status_has_patronis_fields_in_order_when_everything_is_said() -> None:
    """All optional fields of a standby at once."""
    view = standby_view(
        dynamic=Dynamic(pause=True, synchronous_mode="on"),
        sync=SyncKey(leader="n1", members=("n2",)),
        etcd=Etcd(lost_since_ms=NOW_MS - 1),
        promise=Promise(leader="n1", until_ms=NOW_MS + 1),
        identity=identity("n2", nofailover=True),
    )
    view = with_key(view, "leader", Key(value=None, mod_revision=14))
    change = ParameterChange(old_value="100", new_value="200")
    probe = standby_probe(pending_restart=("max_connections",), pending_restart_reason={"max_connections": change})
    view = with_server(view, probe=probe, refused_parameters={"wrok_mem": "unknown"})
    fields = fields_at(replace(view, last_rule="B1"), NOW_MS, is_log_degraded=True)
    assert list(fields) == [
        "state", "postmaster_start_time", "role", "server_version", "xlog", "sync_standby", "timeline",
        "replication_state", "pause", "cluster_unlocked", "failsafe_mode_is_active", "dcs_last_seen", "tags",
        "database_system_identifier", "pending_restart", "pending_restart_reason", "patroni", "matriarch",
    ]  # fmt: skip
    assert fields["pending_restart_reason"] == {"max_connections": {"old_value": "100", "new_value": "200"}}
    assert list(fields["xlog"]) == ["received_location", "replayed_location", "replayed_timestamp", "paused"]
    assert without_fence(fields) == {
        "state": "replica", "rule": "B1", "seq": 50, "log_degraded": True,
        "refused_parameters": {"wrok_mem": "unknown"},
    }  # fmt: skip


def test_status_says_little_when_nothing_is_known() -> None:
    """A node that has just begun."""
    fields = fields_at(View(), NOW_MS)
    assert (fields["state"], fields["role"], fields["cluster_unlocked"]) == ("stopped", "uninitialized", True)


def test_status_says_unknown_when_a_standby_has_been_silent() -> None:
    """The last answer is shown, but not as if it were the present."""
    assert fields_at(standby_view(), NOW_MS + status.ANSWER_FRESH_MS)["state"] == "unknown"


def test_cluster_is_unlocked_when_etcd_was_not_heard_for_a_ttl() -> None:
    """A shorter silence leaves what was known in force."""
    view = leader_view(etcd=Etcd(lost_since_ms=NOW_MS))
    assert "cluster_unlocked" not in fields_at(view, NOW_MS + TTL_S * 1000 - 1)
    assert fields_at(view, NOW_MS + TTL_S * 1000)["cluster_unlocked"] is True


def test_cluster_shows_lags_when_members_publish_positions() -> None:
    """Order and meaning of a member's fields; the leader has no lag."""
    found = status.cluster_fields(standby_view(), NOW_MS)
    assert list(found) == ["members", "scope"]
    assert [member["name"] for member in found["members"]] == ["n1", "n2"]
    assert found["members"][0] == {
        "name": "n1", "role": "leader", "state": "running", "api_url": "http://n1.test:8008/patroni",
        "host": "n1.test", "port": 5432, "timeline": 3,
    }  # fmt: skip
    second = found["members"][1]
    assert list(second)[-6:] == ["receive_lag", "receive_lsn", "replay_lag", "replay_lsn", "lag", "lsn"]
    assert (second["role"], second["state"]) == ("replica", "streaming")
    assert (second["lag"], second["lsn"], second["replay_lag"]) == (40, "0/5000120", 48)


def test_cluster_says_unknown_when_a_member_publishes_no_position() -> None:
    """No number is made up."""
    view = standby_view()
    silent = replace(view.members["n2"], position_lsn=0, replay_lsn=0, replication_state="")
    view = with_key(replace(view, members={"n2": silent}), "members/n2", Key(value="{}", mod_revision=15))
    member = status.cluster_fields(view, NOW_MS)["members"][0]
    assert {member[name] for name in ("lag", "lsn", "replay_lag", "receive_lsn")} == {"unknown"}


def test_cluster_shows_a_planned_switchover_and_how_old_it_is_when_etcd_is_lost() -> None:
    """What etcd said last, and for how long it has not been heard."""
    request = FailoverRequest(leader="n1", candidate="n2", scheduled_at="2026-02-01T00:00:00+00:00")
    view = leader_view(failover=request, etcd=Etcd(lost_since_ms=NOW_MS - 7), dynamic=Dynamic(pause=True))
    found = status.cluster_fields(view, NOW_MS)
    assert list(found) == ["members", "pause", "scheduled_switchover", "scope", "matriarch"]
    assert found["scheduled_switchover"] == {"at": "2026-02-01T00:00:00+00:00", "from": "n1", "to": "n2"}
    assert found["matriarch"] == {"etcd_lost_ms": 7}


# ---- requests -------------------------------------------------------------------------------------------------------


def test_switchover_meets_no_obstacle_when_a_standby_streams() -> None:
    """Named or not, from the leader or from elsewhere."""
    assert status.switchover_obstacle(leader_view(), "n1", "n2") is None
    assert status.switchover_obstacle(standby_view(), "n1", None) is None


@pytest.mark.parametrize(
    ("view", "leader", "candidate", "said"),
    [
        (leader_view(), "n2", None, "leader name does not match"),
        (leader_view(), "n1", "n9", "not a member"),
        (leader_view(members={}), "n1", None, "no member besides"),
        (leader_view(dynamic=Dynamic(synchronous_mode="on")), "n1", None, "no sync standby"),
        (leader_view(dynamic=Dynamic(synchronous_mode="on")), "n1", "n2", "not synchronous"),
        (with_server(leader_view(), probe=primary_probe()), "n1", "n2", "does not stream"),
    ],
)
def test_switchover_meets_an_obstacle_when_it_cannot_be_done(
    view: View, leader: str, candidate: str | None, said: str
) -> None:
    """One line that names it."""
    assert said in (status.switchover_obstacle(view, leader, candidate) or "")


def test_switchover_meets_an_obstacle_when_tags_forbid_every_candidate() -> None:
    """The only other member must not be promoted."""
    view = leader_view()
    barred = replace(view.members["n2"], tags={"nofailover": True})
    view = replace(view, members={**view.members, "n2": barred})
    assert "forbid" in (status.switchover_obstacle(view, "n1", None) or "")


def test_switchover_is_over_when_another_leads_or_the_request_is_gone() -> None:
    """Not before it was written, and not while nobody leads."""
    asked = AskedSwitchover(leader="n1", candidate="n2", revision=5)
    view = with_key(leader_view(), "failover", Key(value="{}", mod_revision=5))
    assert status.switchover_outcome(view, asked) is None
    unwritten = replace(view, switchover=FailoverRequest(leader="n1"))
    assert status.switchover_outcome(unwritten, asked) is None
    cleared = with_key(view, "failover", Key(value="{}", mod_revision=7))
    assert status.switchover_outcome(cleared, asked) == "dropped"
    free = with_key(cleared, "leader", Key(value=None, mod_revision=14))
    written = replace(free, failover=FailoverRequest(leader="n1"))
    assert status.switchover_outcome(written, asked) is None
    moved = with_key(cleared, "leader", Key(value="n2", mod_revision=15))
    assert status.switchover_outcome(moved, asked) == "moved"


def test_reinit_meets_an_obstacle_when_there_is_no_leader_to_copy_or_it_runs() -> None:
    """Patroni's words for the last of them are what tools look for."""
    assert status.reinit_obstacle(standby_view()) is None
    assert "I am the leader" in (status.reinit_obstacle(leader_view()) or "")
    assert "no leader" in (status.reinit_obstacle(View()) or "")
    running = view_of("n2", State.REINIT, None)
    assert (status.reinit_obstacle(running) or "").endswith(" already in progress")


def test_promise_counts_when_it_lasts_a_whole_ttl_from_the_question() -> None:
    """An older promise that still holds is too short for the leader that asks now."""
    view = standby_view(promise=Promise(leader="n1", until_ms=NOW_MS + TTL_S * 1000))
    assert status.has_promised(view, FailsafeAsked(at_ms=NOW_MS, leader="n1"))
    assert not status.has_promised(view, FailsafeAsked(at_ms=NOW_MS + 1, leader="n1"))
    assert not status.has_promised(view, FailsafeAsked(at_ms=NOW_MS, leader="n3"))
    assert not status.has_promised(standby_view(), FailsafeAsked(at_ms=NOW_MS, leader="n1"))


def test_failsafe_members_are_told_when_the_mode_is_on() -> None:
    """From the key if one is written, else as this node knows them."""
    assert status.failsafe_members(leader_view(dynamic=Dynamic(failsafe_mode=False))) is None
    assert list(status.failsafe_members(leader_view()) or {}) == ["n1", "n2"]
    written = with_key(leader_view(), "failsafe", Key(value='{"n3":"http://n3"}', mod_revision=16))
    assert status.failsafe_members(written) == {"n3": "http://n3"}
