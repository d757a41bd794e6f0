"""What the demo shows and measures, without any cluster."""

import io
from pathlib import Path

import yaml
from rich.console import Console, RenderableType

from api.cli.demo.keys import split_keys
from api.cli.demo.measure import (
    Fault,
    came_back_by_rewind,
    ends_the_server,
    frees_the_leader_key,
    longest_gap_ms,
    phases,
)
from api.cli.demo.picture import ClusterPicture, MemberPicture, from_status, is_news, lag_bytes
from api.cli.demo.plan import make_plan, plan_text, read_plan, settings_text, with_ports
from api.cli.demo.verdict import Check, Outage, Verdict, verdict_view
from api.cli.demo.view import bytes_text, changed_lines, headline, log_screen, screen
from fsm.effects import Promote
from fsm.entries import Entry
from fsm.events import AnyEvent, Done, KeysChanged, ServerExited, ServerProbed, Succeeded, Ticked
from fsm.facts import KeyChange, Probe
from fsm.machine import Issued
from fsm.states import State

PRIMARY = MemberPicture(
    name="n1",
    api_url="http://127.0.0.1:1",
    process="up",
    is_answering=True,
    role="primary",
    server="running",
    state="leader",
    timeline=2,
    lsn=0x3000500,
    lease_left_ms=3210,
)
STANDBY = MemberPicture(
    name="n2",
    api_url="http://127.0.0.1:2",
    process="up",
    is_answering=True,
    role="replica",
    server="running",
    state="replica",
    timeline=2,
    lsn=0x3000000,
    is_streaming=True,
)
FROZEN = MemberPicture(name="n3", api_url="http://127.0.0.1:3", process="frozen", role="replica", timeline=2)
PICTURE = ClusterPicture(members=(PRIMARY, STANDBY, FROZEN), ttl_s=5)


def shown(content: RenderableType) -> str:
    """What a terminal of 140 columns would show."""
    console = Console(file=io.StringIO(), width=140, height=40)
    console.print(content)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def entry(
    event: AnyEvent, *, node: str = "n2", seq: int = 1, rule: str | None = None, effects: tuple[Issued, ...] = ()
) -> Entry:
    """One entry of a replica's log."""
    return Entry(
        seq=seq,
        node=node,
        boot="b",
        wall="2026-01-02T03:04:05.678901+00:00",
        revision=7,
        event=event,
        rule=rule,
        before=State.REPLICA,
        after=State.REPLICA,
        effects=effects,
    )


def probed(at_ms: int, *, in_recovery: bool) -> ServerProbed:
    """A look at the server."""
    probe = Probe(in_recovery=in_recovery, timeline=1, system_id="1", server_version=180004, postmaster_started_at="")
    return ServerProbed(at_ms=at_ms, pid=1, probe=probe)


LEADER_GONE = KeysChanged(at_ms=4_000, revision=9, changes=(KeyChange(key="leader", value=None, mod_revision=9),))
PROMOTE = Issued(effect_id=100, duty="promote", effect=Promote(timeout_ms=1, valid_until_ms=2))
FAULT = Fault(what="node killed", before="n1", after="n2", at_ms=1_000, until_ms=5_000, notices=frees_the_leader_key)


def test_screen_shows_every_member_the_ttl_and_the_keys() -> None:
    """Role, state, timeline, LSN, lag, lease, addresses, the ttl in force and the keys are all there."""
    text = shown(screen(PICTURE, chosen="n2", message="done", how_to_connect="psql here", height=40))
    for part in ("n1", "leader", "0/3000500", "3.2 s", "1 kB", "agent frozen", "ttl 5 s", "psql here", "[q]uit", "▶2"):
        assert part in text
    assert "n2 http://127.0.0.1:2" in text
    assert "/patroni" in text


def test_screen_fits_when_the_log_is_long() -> None:
    """However many entries there are, the view is no higher than the terminal."""
    news = tuple(entry(LEADER_GONE, seq=seq) for seq in range(500))
    picture = ClusterPicture(members=PICTURE.members, news=news, ttl_s=5)
    assert len(shown(screen(picture, chosen=None, message="", how_to_connect="", height=40)).splitlines()) <= 40
    assert len(shown(log_screen(news, back=20, height=40)).splitlines()) <= 40


def test_headline_names_who_is_missing_when_the_cluster_is_not_whole() -> None:
    """The primary, those that are not with it, or that there is none."""
    assert "not (yet) with it: n3" in headline(PICTURE)
    assert "the others stream from it" in headline(ClusterPicture(members=(PRIMARY, STANDBY), ttl_s=5))
    assert "no primary" in headline(ClusterPicture(members=(STANDBY, FROZEN), ttl_s=5))
    assert "initdb" in headline(ClusterPicture(members=(MemberPicture(name="n1", api_url=""),), ttl_s=5))


def test_picture_is_not_settled_when_two_members_say_that_they_are_primary() -> None:
    """Two primaries are never a whole cluster."""
    assert not ClusterPicture(members=(PRIMARY, PRIMARY)).is_settled


def test_lag_is_unknown_when_there_is_no_primary() -> None:
    """Only a standby of a known primary lags."""
    assert lag_bytes(PICTURE, STANDBY) == 0x500
    assert lag_bytes(PICTURE, PRIMARY) is None
    assert lag_bytes(ClusterPicture(members=(STANDBY, FROZEN)), STANDBY) is None


def test_member_takes_what_the_api_says() -> None:
    """Patroni's fields and our own object make one row."""
    status = {
        "state": "running",
        "role": "replica",
        "timeline": 3,
        "xlog": {"received_location": 5, "replayed_location": 4},
        "replication_state": "streaming",
        "matriarch": {"state": "replica", "lease_left_ms": 12},
    }
    member = from_status(MemberPicture(name="n2", api_url=""), status)
    assert member.is_settled
    assert (member.timeline, member.lsn, member.lease_left_ms) == (3, 5, 12)


def test_member_is_not_settled_when_its_server_answered_nothing_yet() -> None:
    """A status without SQL's fields is taken as it is."""
    assert not from_status(MemberPicture(name="n2", api_url=""), {"state": "starting"}).is_settled


def test_changed_lines_are_silent_about_progress() -> None:
    """LSNs and copied bytes change all the time and are no news; a new role is."""
    cloning = MemberPicture(
        name="n2", api_url="", process="up", is_answering=True, server="creating replica", copied_bytes=1
    )
    further = MemberPicture(
        name="n2", api_url="", process="up", is_answering=True, server="creating replica", copied_bytes=9_999_999
    )
    before, after = ClusterPicture(members=(cloning,)), ClusterPicture(members=(further,))
    assert changed_lines(before, after) == []
    assert changed_lines(before, ClusterPicture(members=(STANDBY,))) == ["n2: replica, replica, streaming, timeline 2"]


def test_news_are_moves_and_what_was_done_to_the_server() -> None:
    """Ticks and renewals are not news."""
    assert is_news(entry(LEADER_GONE))
    assert is_news(entry(Ticked(at_ms=1), rule="R1"))
    assert is_news(entry(Succeeded(at_ms=1, effect_id=1, duty="promote", result=Done())))
    assert not is_news(entry(Succeeded(at_ms=1, effect_id=1, duty="renew-lease", result=Done())))
    assert not is_news(entry(Ticked(at_ms=1)))


def test_longest_gap_counts_from_the_last_row_before_the_fault() -> None:
    """The gap spans the fault; a paused writer's begins with it; silence until the end counts."""
    rows = [900, 990, 3_000, 3_005, 4_999]
    assert longest_gap_ms(rows, FAULT) == 2_010
    paused = Fault(what="", before="", after="", at_ms=1_000, until_ms=5_000, was_paused=True, notices=ends_the_server)
    assert longest_gap_ms(rows, paused) == 2_000
    assert longest_gap_ms([900], paused) == 4_000


def test_phases_split_an_outage_when_all_is_in_the_logs() -> None:
    """Detect, decide and promote follow each other, across nodes and in any order of entries."""
    entries = [
        entry(probed(4_300, in_recovery=False), seq=5),
        entry(probed(4_200, in_recovery=True), seq=4),
        entry(Ticked(at_ms=4_030), seq=3, effects=(PROMOTE,)),
        entry(LEADER_GONE, seq=2),
        entry(probed(500, in_recovery=False), seq=1, node="n1"),
        entry(probed(4_100, in_recovery=False), seq=9, node="n1"),
    ]
    found = phases(entries, FAULT)
    assert (found.detect_ms, found.decide_ms, found.promote_ms) == (3_000, 30, 270)


def test_phases_are_unknown_when_the_logs_do_not_tell() -> None:
    """Nothing is invented."""
    found = phases([entry(Ticked(at_ms=4_030), effects=(PROMOTE,))], FAULT)
    assert (found.detect_ms, found.decide_ms, found.promote_ms) == (None, None, None)


def test_entries_tell_what_they_are_about() -> None:
    """The server's exit, the freed key and a finished rewind are recognised."""
    assert ends_the_server(entry(ServerExited(at_ms=1, pid=3)))
    assert frees_the_leader_key(entry(LEADER_GONE))
    rewound = entry(Succeeded(at_ms=9, effect_id=1, duty="rewind", result=Done()), node="n1")
    assert came_back_by_rewind([rewound], "n1", since_ms=5)
    assert not came_back_by_rewind([rewound], "n1", since_ms=10)
    assert not came_back_by_rewind([rewound], "n2", since_ms=5)


def test_verdict_fails_when_one_check_fails() -> None:
    """The table says which one, and the last line what follows."""
    outage = Outage(fault="node killed", before="n1", after="n2", downtime_ms=3_400, phases=phases([], FAULT))
    good = Check(what="rows", holds=True, found="all")
    bad = Check(what="log", holds=False, found="differs")
    text = shown(verdict_view(Verdict(title="tour", outages=(outage,), checks=(good,))))
    assert "tour: everything held" in text
    assert "3400 ms" in text
    assert "n1 > n2" in text
    text = shown(verdict_view(Verdict(title="tour", outages=(outage,), checks=(good, bad))))
    assert "FAILS" in text
    assert "NOT everything held" in text


def test_plan_keeps_its_secrets_out_of_its_representation() -> None:
    """Its file has the passwords, its representation has not; other ports change nothing else."""
    plan = make_plan([1, 2, 3, 4, 5, 6, 7], ["secret-one", "secret-two", "secret-three"])
    assert "secret" not in repr(plan)
    assert read_plan(plan_text(plan)) == plan
    moved = with_ports(plan, [11, 12, 13, 14, 15, 16, 17])
    assert moved.superuser_password == "secret-one"
    assert moved.ports == [11, 12, 13, 14, 15, 16, 17]


def test_settings_of_a_node_name_its_own_ports_and_directory() -> None:
    """The text is YAML that the agent reads."""
    plan = make_plan([1, 2, 3, 4, 5, 6, 7], ["a", "b", "c"])
    settings = yaml.safe_load(settings_text(plan, plan.nodes[1], Path("/demo/n2"), Path("/pg/bin")))
    assert settings["name"] == "n2"
    assert settings["postgresql"]["listen"] == "127.0.0.1:5"
    assert settings["postgresql"]["data_dir"] == "/demo/n2/data"
    assert settings["etcd3"]["hosts"] == "127.0.0.1:1"
    assert settings["bootstrap"]["dcs"]["ttl"] == 5


def test_keys_are_split_when_several_are_read_at_once() -> None:
    """Arrows come as sequences of characters."""
    assert split_keys("q\x1b[Ac\x1b[6~") == ["q", "up", "c", "page down"]


def test_bytes_are_shown_for_people() -> None:
    """Bytes, kilobytes, megabytes."""
    assert [bytes_text(amount) for amount in (12, 2_048, 3_250_586)] == ["12 B", "2 kB", "3.1 MB"]
