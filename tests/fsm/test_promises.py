"""What a member promises a leader without etcd: when it does, when not, and that it is kept whatever happens."""

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from fsm import effects as do
from fsm import events as ev
from fsm import status
from fsm.facts import KeptPromise, PeerReport
from fsm.promises import asked_until_ms, restored, why_not_to_promise
from fsm.states import State
from fsm.timing import failsafe_timeout_most_ms, promise_answer_ms, promise_timeout_ms, writable_until_ms
from fsm.view import View
from tests.fsm.world import MIB, World, is_following, is_settled_leader, replica_of

TTL_S = 30
REBOOTED_MS = (3_000, 900_000_000)
"""What CLOCK_BOOTTIME may say when the agent starts after a reboot: less than before it, and more."""
BEHIND = PeerReport(name="n3", role="replica", state="running", position_lsn=1 * MIB, timeline=1)


def ask(world: World, leader: str = "n2", ttl_s: int = TTL_S) -> ev.FailsafeAsked:
    """A leader without etcd asks to be let go on."""
    asked = ev.FailsafeAsked(at_ms=world.now_ms, leader=leader, ttl_s=ttl_s)
    world.feed(asked)
    return asked


def is_confirmed(world: World, asked: ev.FailsafeAsked) -> bool:
    """True once the leader would be told "Accepted"."""
    return status.has_promised(world.view, asked)


def confirmed(world: World, leader: str = "n2", ttl_s: int = TTL_S) -> ev.FailsafeAsked:
    """A leader asks and is confirmed."""
    asked = ask(world, leader, ttl_s)
    world.until(lambda w: is_confirmed(w, asked), within_ms=1_000)
    return asked


def refusal(world: World, leader: str = "n2") -> str:
    """Why a leader that asks is not confirmed."""
    asked = ask(world, leader)
    world.wait(1_000)
    assert not is_confirmed(world, asked)
    return status.failsafe_refusal(world.view, asked) or ""


# ---- durable, or not at all ------------------------------------------------------------------------------------------


def test_promise_is_confirmed_when_it_is_on_disk_and_not_before() -> None:
    """Between the question and the disk it binds already, and nobody is told of it."""
    world = replica_of()
    world.held.add("keep-promise")
    asked = ask(world)
    assert world.view.promising is not None
    assert not is_confirmed(world, asked)
    world.held.clear()
    world.until(lambda w: is_confirmed(w, asked), within_ms=1_000)
    assert world.kept is not None
    assert (world.kept.leader, world.kept.until_ms) == ("n2", asked.at_ms + TTL_S * 1000)


@pytest.mark.parametrize("is_etcd_up", [True, False])
def test_promise_survives_when_the_agent_is_restarted(is_etcd_up: bool) -> None:
    """The agent that comes back is bound by what the one before it promised."""
    world = replica_of()
    asked = confirmed(world)
    world.is_etcd_up = is_etcd_up
    world.boot()
    assert world.view.promise is not None
    assert (world.view.promise.leader, world.view.promise.until_ms) == ("n2", asked.at_ms + TTL_S * 1000)
    world.heal_etcd()
    world.delete("leader")
    world.until(is_settled_leader)
    assert world.now_ms >= asked.at_ms + TTL_S * 1000


@pytest.mark.parametrize("at_ms", REBOOTED_MS)
def test_promise_is_kept_for_its_whole_span_when_the_machine_was_rebooted(at_ms: int) -> None:
    """Instants of another boot mean nothing: how much of the span has passed, nobody can tell."""
    world = replica_of()
    confirmed(world)
    world.wait(10_000)
    world.reboot(at_ms=at_ms)
    world.delete("leader")
    world.until(is_settled_leader)
    assert world.now_ms >= at_ms + TTL_S * 1000


def test_node_stands_at_once_after_a_reboot_when_its_promise_had_ended_before() -> None:
    """A promise that has ended is removed from disk, for after a reboot it would seem to be fresh."""
    world = replica_of()
    confirmed(world)
    assert world.kept is not None
    world.wait((TTL_S + 1) * 1000)
    assert not world.kept
    assert world.view.promise is None


@pytest.mark.parametrize("kind", ["refused", "program", "bug"])
def test_promise_is_refused_with_the_reason_when_the_disk_does_not_take_it(kind: ev.FailureKind) -> None:
    """Nothing is confirmed that an agent's restart would lose; and nobody is bound by what was confirmed to nobody."""
    world = replica_of()
    world.failing["keep-promise"] = kind
    asked = ask(world)
    world.wait(100)
    assert not is_confirmed(world, asked)
    assert "did not reach the disk" in (status.failsafe_refusal(world.view, asked) or "")
    assert (world.view.promise, world.view.promising) == (None, None)


def test_promise_is_refused_in_time_when_the_disk_hangs() -> None:
    """The write is given up before the leader gives up, so that it hears why."""
    world = replica_of()
    world.held.add("keep-promise")
    asked = ask(world)
    order = world.orders(do.KeepPromise)[-1]
    dynamic = world.view.dynamic
    assert order.timeout_ms < promise_answer_ms(dynamic.failsafe_timeout_ms, dynamic.ttl_s) < 500
    issued = world.pending.pop()
    world.feed(ev.Unknown(at_ms=world.now_ms + 350, effect_id=issued.effect_id, duty=issued.duty, detail="no answer"))
    assert not is_confirmed(world, asked)
    assert "no answer" in (status.failsafe_refusal(world.view, asked) or "")


def test_earlier_promise_binds_on_when_a_later_one_does_not_reach_the_disk() -> None:
    """What was confirmed before was confirmed."""
    world = replica_of()
    first = confirmed(world)
    world.wait(10_000)
    world.failing["keep-promise"] = "refused"
    ask(world)
    world.wait(100)
    assert world.view.promise is not None
    assert world.view.promise.until_ms == first.at_ms + TTL_S * 1000
    world.delete("leader")
    world.until(is_settled_leader)
    assert world.now_ms >= first.at_ms + TTL_S * 1000


# ---- to whom, and for how long ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first_s", "second_s"), [(30, 30), (60, 30), (30, 60)])
def test_promise_is_never_shortened_when_the_leader_asks_again_with_another_ttl(first_s: int, second_s: int) -> None:
    """The leader counts on the longest that it was told, whatever it asks for next."""
    world = replica_of()
    first = confirmed(world, ttl_s=first_s)
    second = confirmed(world, ttl_s=second_s)
    assert world.view.promise is not None
    ends_ms = (first.at_ms + first_s * 1000, second.at_ms + second_s * 1000)
    assert world.view.promise.until_ms == max(ends_ms)


@pytest.mark.parametrize("is_first_kept", [True, False], ids=["on disk", "on its way"])
def test_second_leader_is_refused_when_a_first_one_counts_on_the_promise(is_first_kept: bool) -> None:
    """Two leaders cannot both be right, and without etcd nobody can tell which of them is."""
    world = replica_of("n2", "n3")
    world.lose_etcd()
    if not is_first_kept:
        world.held.add("keep-promise")
    first = ask(world, "n2")
    world.wait(20)
    assert is_confirmed(world, first) == is_first_kept
    second = ask(world, "n3")
    assert "n2" in (status.failsafe_refusal(world.view, second) or "")
    world.held.clear()
    world.until(lambda w: is_confirmed(w, first), within_ms=1_000)
    assert not is_confirmed(world, second)
    world.wait((TTL_S + 1) * 1000)
    confirmed(world, "n3")


def test_second_leader_is_confirmed_when_etcd_names_it() -> None:
    """It was elected, so the first one counts on nobody any more; the promise still ends no sooner."""
    world = replica_of("n2", "n3")
    first = confirmed(world, "n2", ttl_s=60)
    world.lead("n3")
    confirmed(world, "n3")
    assert world.view.promise is not None
    assert world.view.promise.leader == "n3"
    assert world.view.promise.until_ms == first.at_ms + 60_000


def test_leader_is_refused_when_etcd_names_another() -> None:
    """A leader that was replaced while it was away."""
    assert "n3" in refusal(replica_of("n3", "n2"))


def test_stranger_and_node_itself_are_refused_when_they_ask() -> None:
    """Only another member leads on."""
    world = replica_of()
    assert "not a member" in refusal(world, "n9")
    assert "itself" in refusal(world, "n1")


def test_unlisted_member_confirms_when_it_is_asked() -> None:
    """It cannot be elected, so its promise costs nothing; the leader asks it because it is to be listed next."""
    world = replica_of("n2", "n3")
    world.put("failsafe", '{"n2":"http://n2:8008/patroni","n3":"http://n3:8008/patroni"}')
    confirmed(world)


def test_leader_is_confirmed_again_when_the_agent_was_restarted_without_etcd() -> None:
    """The agent knows nobody yet but the leader that it promised before; that one goes on."""
    world = replica_of()
    confirmed(world)
    world.lose_etcd()
    world.boot()
    world.wait(1_000)
    assert world.view.members == {}
    confirmed(world)
    assert "not a member" in refusal(world, "n3")


def test_node_refuses_when_failsafe_is_off() -> None:
    """Where the mode is off nobody counts on it."""
    assert "off" in refusal(replica_of(first_config='{"ttl":30,"failsafe_mode":false}'))


# ---- a node that may lead itself -------------------------------------------------------------------------------------


def candidate() -> World:
    """A candidate that still waits for the members' answers."""
    world = replica_of("n2", "n3")
    world.held.add("ask-peers")
    world.delete("leader")
    world.until_state("candidate")
    return world


def test_candidate_withdraws_when_it_promises_a_leader_to_let_it_go_on() -> None:
    """Standing and having promised not to stand cannot both be."""
    world = candidate()
    asked = ask(world)
    assert world.rules[-1] == "C7"
    world.held.clear()
    world.until(lambda w: is_confirmed(w, asked), within_ms=1_000)
    world.until(is_settled_leader)
    assert world.now_ms >= asked.at_ms + TTL_S * 1000


def test_candidate_refuses_when_it_is_taking_the_key() -> None:
    """The transaction may be applied at any moment; whoever is confirmed now would go on beside a new leader."""
    world = candidate()
    world.held = {"take-leader-key"}
    world.until(lambda w: "take-leader-key" in w.view.underway)
    assert "taking the leader key" in refusal(world)


def test_candidate_refuses_when_it_may_have_taken_the_key() -> None:
    """An attempt without an answer is in flight for as long as nobody knows better."""
    world = candidate()
    world.held = {"take-leader-key"}
    world.until(lambda w: "take-leader-key" in w.view.underway)
    issued = next(p for p in world.pending if p.duty == "take-leader-key")
    world.pending.remove(issued)
    world.feed(ev.Unknown(at_ms=world.now_ms, effect_id=issued.effect_id, duty=issued.duty, detail="no answer"))
    assert "take-leader-key" not in world.view.underway
    assert "may have taken it" in (why_not_to_promise(world.view, "n2") or "")


def test_late_key_is_given_back_when_a_promise_was_made_since_it_was_asked_for() -> None:
    """etcd applies a transaction long after its sender gave up; by then this node promised a leader to let it go on."""
    world = candidate()
    world.held = {"take-leader-key"}
    world.until(lambda w: "take-leader-key" in w.view.underway)
    world.lose_etcd()
    world.until_state("replica")
    asked = ask(world)
    world.held.clear()
    world.until(lambda w: is_confirmed(w, asked), within_ms=1_000)
    lease = world.view.lease
    assert lease is not None
    world.heal_etcd()
    world.put("leader", "n1", lease_id=lease.lease_id)
    world.until(lambda w: "leader" not in w.keys, within_ms=2_000)
    assert world.server is not None
    assert world.server.in_recovery
    assert world.view.state is State.REPLICA


@pytest.mark.parametrize("make", [candidate, lambda: replica_of("n2", "n3")], ids=["candidate", "replica"])
def test_take_is_not_begun_when_the_promise_is_only_on_its_way(make: Callable[[], World]) -> None:
    """The confirmation may go out at any moment."""
    world = make()
    world.held = {"keep-promise"}
    world.reports["n3"] = BEHIND
    if "leader" in world.keys:
        world.delete("leader")
    ask(world)
    world.wait(300)
    assert not any(isinstance(issued.effect, do.TakeLeaderKey) for issued in world.issued)


def test_leader_refuses_when_its_key_is_gone_and_its_members_confirm_it() -> None:
    """In failsafe the key may have run out at etcd; the node leads on all the same."""
    world = replica_of("n2", "n3")
    view = replace(world.view, state=State.LEADER, leader_free_since_ms=world.now_ms)
    key = replace(view.keys["leader"], value=None)
    view = replace(view, keys={**view.keys, "leader": key})
    assert "leader key" in (why_not_to_promise(view, "n2") or "")


def test_agent_refuses_when_it_does_not_know_its_server_yet() -> None:
    """A server that an earlier agent promoted may still be running."""
    world = replica_of()
    confirmed(world)
    world.pending.clear()
    world.start_agent()
    world.is_etcd_up = False
    assert "own server" in (why_not_to_promise(world.view, "n2") or "")
    world.connect_fence()
    world.wait(1_000)
    assert is_following(world) or world.view.state is State.BOOTSTRAPPING
    assert why_not_to_promise(world.view, "n2") is None


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@given(
    asked_at_ms=st.integers(0, 10**9),
    span_ms=st.integers(1, 10**7),
    passed_ms=st.integers(0, 10**7),
    new_at_ms=st.integers(0, 10**9),
    is_rebooted=st.booleans(),
)
def test_restored_promise_ends_no_sooner_than_it_was_given_when_any_time_has_passed(
    asked_at_ms: int, span_ms: int, passed_ms: int, new_at_ms: int, is_rebooted: bool
) -> None:
    """On the same clock it ends at its instant; on another one the rest of it is never taken for less than it is."""
    kept = KeptPromise(leader="n2", boot="a", asked_at_ms=asked_at_ms, until_ms=asked_at_ms + span_ms)
    at_ms = new_at_ms if is_rebooted else asked_at_ms + passed_ms
    found = restored(kept, boot="b" if is_rebooted else "a", at_ms=at_ms)
    assert found is not None
    if is_rebooted:
        assert found.until_ms - at_ms >= span_ms - passed_ms
    else:
        assert found.until_ms == kept.until_ms


@given(st.integers(3, 24 * 3600))
def test_two_questions_fit_before_the_deadline_when_answers_are_as_slow_as_may_be(ttl_s: int) -> None:
    """Whatever the ttl: the first renewal that failed, a question, its repetition, and then the deadline."""
    most_ms = failsafe_timeout_most_ms(ttl_s)
    begun_ms = ttl_s * 1000 // 3 + max(300, min(2_000, ttl_s * 1000 // 6))
    assert begun_ms + 2 * most_ms + 100 <= writable_until_ms(0, ttl_s)
    assert promise_timeout_ms(10_000, ttl_s) < promise_answer_ms(10_000, ttl_s) < most_ms
    assert most_ms >= 400


# ---- whatever happens ------------------------------------------------------------------------------------------------


class Happening(Struct, frozen=True):
    """Something that happens to the node, a while after what happened before."""

    what: str
    after_ms: int
    leader: str = "n2"
    ttl_s: int = TTL_S


WHATS = (
    "ask", "ask", "ask", "restart agent", "reboot", "lose etcd", "heal etcd", "delete leader", "other leads",
    "late take", "disk fails", "disk hangs", "disk works", "hold takes", "ttl", "crash", "nothing",
)  # fmt: skip
happenings = st.lists(
    st.builds(
        Happening,
        what=st.sampled_from(WHATS),
        after_ms=st.sampled_from((0, 1, 40, 300, 2_000, 11_000)),
        leader=st.sampled_from(("n2", "n2", "n3")),
        ttl_s=st.sampled_from((0, 5, 30, 60)),
    ),
    min_size=3,
    max_size=25,
)


class Judge:
    """Remembers what leaders were told, by a clock that no reboot sets back, and watches over it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.skew_ms = 0
        self.asked: list[tuple[ev.FailsafeAsked, bool]] = []
        """Questions that are not answered yet, and whether etcd named the one that asked."""
        self.told: list[tuple[str, int, int]] = []
        self.seen = len(world.decisions)

    @property
    def true_ms(self) -> int:
        """Now, by the clock that goes on over reboots."""
        return self.world.now_ms + self.skew_ms

    def look(self) -> None:
        """Judge every decision since the last look."""
        for event, decision in self.world.decisions[self.seen :]:
            at_ms = decision.view.now_ms + self.skew_ms
            self._judge(decision.view, [issued.effect for issued in decision.effects], at_ms)
            if isinstance(event, ev.FailsafeAsked) and self._is_taken(decision.view, event):
                named = decision.view.etcd.is_watched and decision.view.leader == event.leader
                self.asked.append((event, named))
            self._note(decision.view)
        self.seen = len(self.world.decisions)

    def _is_taken(self, view: View, asked: ev.FailsafeAsked) -> bool:
        """True unless the question was refused at once."""
        promising = view.promising
        return promising is not None and (promising.leader, promising.asked_at_ms) == (asked.leader, asked.at_ms)

    def _note(self, view: View) -> None:
        # Who was not answered in time was told no; a promise that reaches the disk after that only binds for nobody.
        wait_ms = promise_answer_ms(view.dynamic.failsafe_timeout_ms, view.dynamic.ttl_s)
        self.asked = [a for a in self.asked if view.now_ms <= a[0].at_ms + wait_ms]
        for asked, is_elected in [a for a in self.asked if status.has_promised(view, a[0])]:
            self.asked.remove((asked, is_elected))
            if not is_elected:
                self._judge_other_leaders(view, asked)
            self.told.append((asked.leader, asked.at_ms + self.skew_ms, asked_until_ms(view, asked) + self.skew_ms))

    def _judge_other_leaders(self, view: View, asked: ev.FailsafeAsked) -> None:
        """No two leaders are let go on at once, but by etcd's own word that the second was elected."""
        at_ms = view.now_ms + self.skew_ms
        assert not [t for t in self.told if at_ms < t[2] and t[0] != asked.leader]

    def _judge(self, view: View, effects: list[do.AnyEffect], at_ms: int) -> None:
        counted_on = [t for t in self.told if at_ms < t[2]]
        if counted_on:
            forbidden = (do.TakeLeaderKey, do.ClaimInitialize, do.Promote, do.StartPrimary)
            assert not any(isinstance(effect, forbidden) for effect in effects), (counted_on, at_ms)
            assert view.state is not State.LEADER, (counted_on, at_ms)

    def reboot(self, at_ms: int) -> None:
        """The machine begins anew, and its clock with it."""
        world = self.world
        self.look()
        before_ms = self.true_ms
        self.skew_ms = before_ms + 1_000 - at_ms
        self.asked.clear()
        world.reboot(at_ms=at_ms)


def _happen(judge: Judge, it: Happening) -> None:
    world = judge.world
    match it.what:
        case "ask":
            world.feed(ev.FailsafeAsked(at_ms=world.now_ms, leader=it.leader, ttl_s=it.ttl_s))
        case "restart agent":
            judge.look()
            judge.asked.clear()
            world.boot()
        case "reboot":
            judge.reboot(REBOOTED_MS[it.ttl_s == 5])
        case "lose etcd" if world.is_etcd_up:
            world.lose_etcd()
        case "heal etcd":
            world.heal_etcd()
        case "delete leader" if "leader" in world.keys:
            world.delete("leader")
        case "other leads":
            world.lead(it.leader)
        case "late take" if world.view.lease is not None and "leader" not in world.keys:
            world.put("leader", "n1", lease_id=world.view.lease.lease_id)
        case _:
            _happen_to_the_world(world, it)


def _happen_to_the_world(world: World, it: Happening) -> None:
    match it.what:
        case "ttl":
            world.put("config", f'{{"ttl":{it.ttl_s or 20}}}')
        case "crash" if world.server is not None:
            world.crash()
        case "disk fails":
            world.failing["keep-promise"] = "refused"
        case "disk hangs":
            world.held.add("keep-promise")
        case "disk works":
            world.failing.clear()
            world.held.clear()
        case "hold takes":
            world.held.add("take-leader-key")


LATE_DISK = [
    Happening("disk hangs", 0),
    Happening("ask", 0),
    Happening("lose etcd", 0),
    Happening("ask", 2_000, "n3"),
    Happening("disk works", 0),
]
"""The first leader was told no in time; what it asked for reaches the disk when the second one has asked."""


@settings(max_examples=150, deadline=None)
@example(LATE_DISK)
@given(happenings)
def test_node_never_leads_while_a_leader_counts_on_its_promise_whatever_happens(story: list[Happening]) -> None:
    """Restarts, reboots, disks that fail or hang, late transactions, other leaders, other ttls: it is kept."""
    world = replica_of("n2", "n3")
    world.reports["n3"] = BEHIND
    judge = Judge(world)
    for it in story:
        world.wait(it.after_ms)
        judge.look()
        _happen(judge, it)
        judge.look()
    world.wait(5_000)
    judge.look()
