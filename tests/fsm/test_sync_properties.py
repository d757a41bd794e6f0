"""The invariant of synchronous modes, judged from outside: at no moment may a member be promoted, by the `sync` key,
that lacks an acknowledged commit.

The leader is the real `step`. Around it a server that acknowledges commits as PostgreSQL does, standbys that come, go,
stumble and are silent, answers that are held back or fail, and a configuration that changes under way.
"""

from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fsm.facts import Standby
from fsm.sync import Aim, is_safe, key_towards, names_of_key, names_towards
from fsm.syncnames import NOBODY, PLACEHOLDER, STRICTLY_NOBODY, SyncNames, parse_names
from fsm.timing import SYNC_SETTLE_MS
from fsm.wire import SyncKey, parse_sync
from tests.fsm.world import leader_with_standbys

STANDBYS = ("n2", "n3", "n4")
DUTIES = ("write-sync", "set-sync-names", "read-sync-mark")
STEP_MS = 40
CONFIG = '{"ttl":30,"synchronous_mode":"%s","synchronous_mode_strict":%s,"synchronous_node_count":%d}'

names_of = st.builds(
    lambda members, count, is_any: SyncNames(
        count=min(count, len(members)) if members else 0, names=tuple(sorted(members)), is_any=is_any and bool(members)
    ),
    st.sets(st.sampled_from(STANDBYS)),
    st.integers(1, 3),
    st.booleans(),
)
keys = st.builds(
    lambda members, quorum: SyncKey(leader="n1", members=tuple(sorted(members)), quorum=quorum),
    st.sets(st.sampled_from(STANDBYS)),
    st.integers(0, 3),
)


def is_met(key: SyncKey, names: SyncNames) -> bool:
    """The invariant by its meaning: every set that may promote meets every set that acknowledged."""
    promoting = list(combinations(key.members, key.quorum + 1))
    acknowledging = list(combinations(names.names, names.count))
    return all({*one} & {*other} for one in promoting for other in acknowledging)


@given(keys, names_of)
def test_is_safe_means_that_all_sets_meet_when_they_are_listed(key: SyncKey, names: SyncNames) -> None:
    """The line of arithmetic never allows what counting all sets forbids, nor forbids what it allows."""
    assert is_safe(key, names) == is_met(key, names)


@given(keys, names_of, st.booleans())
def test_steps_are_safe_when_taken_towards_any_aim(key: SyncKey, aimed: SyncNames, is_strict: bool) -> None:
    """Names are never chosen under which the present key would be unsafe, nor a key that they do not carry."""
    aim = Aim(members=aimed.names, count=aimed.count if aimed.is_any else len(aimed.names), is_any=aimed.is_any)
    names = names_towards(key, aim, is_strict=is_strict)
    assert is_safe(key, names)
    assert is_safe(key_towards("n1", names, aim), names)
    assert is_safe(key, names_of_key(key, is_any=True))


@given(names_of)
def test_names_are_read_back_when_they_were_written(names: SyncNames) -> None:
    """What the server shows is what was ordered."""
    found = parse_names(names.text)
    assert found is not None
    assert found.text == names.text


@pytest.mark.parametrize("text", ["*", "ANY 3 (a,b)", "FIRST 1 (a)", "a, b", "2 (a,)", "0 (a)", '"', "(a)"])
def test_names_are_foreign_when_nobody_here_writes_them_so(text: str) -> None:
    """An operator's own spelling is told from ours."""
    assert parse_names(text) is None


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (NOBODY, ""),
        (STRICTLY_NOBODY, PLACEHOLDER),
        (SyncNames(count=1, names=("n2",)), "n2"),
        (SyncNames(count=1, names=("node-2",)), '"node-2"'),
        (SyncNames(count=1, names=("any",)), '"any"'),
        (SyncNames(count=2, names=("N2", "n3")), '2 ("N2",n3)'),
        (SyncNames(count=1, names=("n2", "n3"), is_any=True), "ANY 1 (n2,n3)"),
    ],
)
def test_names_are_written_as_postgresql_reads_them_when_quoted(names: SyncNames, text: str) -> None:
    """Names that are not plain words are quoted. Source: PostgreSQL, synchronous_standby_names."""
    assert names.text == text
    assert parse_names(text) == names


class Ledger:
    """A leader, its server and standbys, and what clients were told."""

    def __init__(self) -> None:
        self.world = leader_with_standbys(*STANDBYS)
        assert self.world.server is not None
        self.lsn = dict.fromkeys(STANDBYS, self.world.server.lsn)
        self.streaming = set(STANDBYS)
        self.silent: set[str] = set()
        """Standbys that receive nothing, connected or not."""
        self.acknowledged = 0
        self.pending: list[int] = []
        self.former: list[tuple[int, str]] = []
        """Names that were in force, and until when a laggard process may still have acknowledged under them."""
        self._shown = ""
        self.connect()
        self.world.wait(5_000)  # until they are trusted
        self.world.look = self.look

    @property
    def server_lsn(self) -> int:
        """How far the leader's WAL reaches."""
        assert self.world.server is not None
        return self.world.server.lsn

    def connect(self) -> None:
        """Show the server who streams, and how far."""
        assert self.world.server is not None
        self.world.server.standbys = tuple(
            Standby(application_name=name, state="streaming", flush_lsn=self.lsn[name], write_lsn=self.lsn[name])
            for name in sorted(self.streaming)
        )

    def commit(self) -> None:
        """A client commits."""
        assert self.world.server is not None
        self.world.server.lsn += 100
        self.pending.append(self.server_lsn)

    def receive(self, name: str) -> None:
        """A standby that streams gets everything."""
        if name in self.streaming:
            self.lsn[name] = self.server_lsn

    def go_on(self) -> None:
        """A few milliseconds pass."""
        for name in STANDBYS:
            if name not in self.silent:
                self.receive(name)
        self.connect()
        self.look()
        self.world.wait(STEP_MS)
        self.look()

    def acknowledge(self) -> None:
        """Tell clients what the names in force allow, and those that were so a moment ago."""
        assert self.world.server is not None
        if self.world.server.sync_names != self._shown:
            self.former.append((self.world.now_ms + SYNC_SETTLE_MS - 1, self._shown))
            self._shown = self.world.server.sync_names
        self.former = [(until_ms, text) for until_ms, text in self.former if self.world.now_ms < until_ms]
        for text in (self._shown, *(text for _, text in self.former)):
            names = parse_names(text)
            assert names is not None
            reached = sorted((self.lsn.get(name, 0) for name in names.names), reverse=True)
            limit = reached[names.count - 1] if names.names else self.server_lsn
            done = [lsn for lsn in self.pending if lsn <= limit]
            self.acknowledged = max([self.acknowledged, *done])
        self.pending = [lsn for lsn in self.pending if lsn > self.acknowledged]

    def look(self) -> None:
        """Whatever can be acknowledged at this very moment is, and nobody who may be promoted lacks it."""
        self.acknowledge()
        self.check()

    def check(self) -> None:
        """Whoever may be promoted now holds every acknowledged commit."""
        change = self.world.keys.get("sync")
        key = parse_sync(change.value if change else None)
        if key.leader is None:
            return
        for name in key.members:
            not_ahead = [other for other in key.members if other != name and self.lsn[other] <= self.lsn[name]]
            if len(not_ahead) >= key.quorum:
                assert self.lsn[name] >= self.acknowledged, (key, name, self.lsn, self.acknowledged, self._shown)


Action = tuple[str, str]
actions = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.just("")),
        st.tuples(st.just("wait"), st.sampled_from(("1", "5", "30", "100"))),
        st.tuples(st.sampled_from(("receive", "leave", "come", "silence", "hear")), st.sampled_from(STANDBYS)),
        st.tuples(st.sampled_from(("hold", "release", "fail", "heal")), st.sampled_from(DUTIES)),
        st.tuples(
            st.just("config"),
            st.builds(
                lambda mode, strict, count: CONFIG % (mode, str(strict).lower(), count),
                st.sampled_from(("on", "quorum")),
                st.booleans(),
                st.integers(1, 3),
            ),
        ),
    ),
    max_size=60,
)


def act(ledger: Ledger, action: Action) -> None:
    """One thing happens."""
    what, whom = action
    world = ledger.world
    happens: dict[str, Callable[[str], object]] = {
        "commit": lambda _: ledger.commit(),
        "receive": ledger.receive,
        "silence": ledger.silent.add,
        "hear": ledger.silent.discard,
        "leave": ledger.streaming.discard,
        "come": ledger.streaming.add,
        "hold": world.held.add,
        "release": world.held.discard,
        "fail": lambda duty: world.failing.update({duty: "sql"}),
        "heal": lambda duty: world.failing.pop(duty, None),
        "config": lambda text: world.put("config", text),
        "wait": lambda _: None,
    }
    happens[what](whom)


@settings(deadline=None)
@given(st.sampled_from(("on", "quorum")), st.booleans(), st.integers(1, 2), actions)
def test_no_acknowledged_commit_is_lost_when_anybody_allowed_is_promoted_at_any_moment(
    mode: str, is_strict: bool, count: int, story: list[Action]
) -> None:
    """Looked at after every few milliseconds of every story."""
    ledger = Ledger()
    ledger.world.put("config", CONFIG % (mode, str(is_strict).lower(), count))
    for _ in range(60):
        ledger.go_on()
    for action in [*story, ("wait", "60")]:
        act(ledger, action)
        for _ in range(int(action[1]) if action[0] == "wait" else 1):
            ledger.go_on()


@settings(deadline=None)
@given(st.sampled_from(("on", "quorum")), st.booleans(), st.integers(1, 2), actions)
def test_somebody_may_be_promoted_when_everything_has_calmed_down(
    mode: str, is_strict: bool, count: int, story: list[Action]
) -> None:
    """After any story, once all standbys keep up again, the key and the names are what the settings ask for."""
    ledger = Ledger()
    for action in story:
        act(ledger, action)
        ledger.go_on()
    ledger.world.put("config", CONFIG % (mode, str(is_strict).lower(), count))
    ledger.world.failing.clear()
    ledger.world.held.clear()
    ledger.streaming = set(STANDBYS)
    ledger.silent.clear()
    for _ in range(300):
        ledger.go_on()
    key = parse_sync(ledger.world.keys["sync"].value)
    assert ledger.world.server is not None
    names = parse_names(ledger.world.server.sync_names)
    assert (len(key.members), key.quorum) == ((count, 0) if mode == "on" else (3, 3 - count))
    assert names == replace(names_of_key(key, is_any=mode == "quorum"), is_any=mode == "quorum")
