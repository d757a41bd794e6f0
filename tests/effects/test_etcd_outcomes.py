"""Each way in which a call to etcd can end, produced by an etcd of the test's own: the typed outcome that comes of it,
and the event that the machine is told.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from effects.embedded import free_ports
from effects.errors import EtcdError, EtcdOutcomeUnknown, EtcdRefused, EtcdUnavailable, LeaseGone, WatchCompacted
from effects.etcd import EtcdClient
from effects.etcd_types import absent, mod_revision_is, put
from effects.keys import ClusterKeys
from effects.lanes import Lanes
from fsm import effects as do
from fsm.events import AnyEvent, Failed, KeyWritten, LeaseHeld, Succeeded, Unknown
from fsm.machine import Issued
from tests.effects import etcd_stub as stubs
from tests.effects.etcd_stub import Fault, StubEtcd
from tests.effects.etcd_watching import PATIENCE_S, Watching

pytestmark = pytest.mark.anyio

TIMEOUT_MS = 10_000
SHORT_MS = 400
"""Long enough for an answer that comes, short enough to wait for one that does not."""
PREFIX = "/service/demo/"
LEADER = f"{PREFIX}leader"
LEASE_ID = 1001


@pytest.fixture
async def etcd() -> AsyncIterator[StubEtcd]:
    """An etcd that is well until a test says otherwise."""
    async with StubEtcd().running() as stub:
        yield stub


@asynccontextmanager
async def client_of(*etcds: StubEtcd, username: str | None = None) -> AsyncIterator[EtcdClient]:
    """A client that asks these members, the first one first."""
    password = "secret" if username else None
    async with EtcdClient([etcd.address for etcd in etcds], username=username, password=password) as client:
        yield client


async def take(client: EtcdClient, timeout_ms: int = TIMEOUT_MS) -> bool:
    """Tries to create the leader key; whether that was applied."""
    return (await client.transact([absent(LEADER)], [put(LEADER, "n1")], timeout_ms=timeout_ms)).applied


# ---- a transaction ---------------------------------------------------------------------------------------------------


async def test_transaction_tells_whether_it_was_applied_when_it_is_answered(etcd: StubEtcd) -> None:
    """The first creates the key; the second finds it, and is told who has it."""
    async with client_of(etcd) as client:
        assert await take(client)
        lost = await client.transact([absent(LEADER)], [put(LEADER, "n2")], timeout_ms=TIMEOUT_MS, else_read=LEADER)
    assert not lost.applied
    assert lost.found is not None
    assert lost.found.value == "n1"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (stubs.NO_LEADER, EtcdUnavailable),
        (stubs.NOT_LEADER, EtcdUnavailable),
        (stubs.TOO_MANY, EtcdUnavailable),
        (stubs.CORRUPT, EtcdUnavailable),
        (stubs.TIMED_OUT, EtcdOutcomeUnknown),
        (stubs.LEADER_FAILED, EtcdOutcomeUnknown),
        (stubs.LEADER_CHANGED, EtcdOutcomeUnknown),
        (stubs.DENIED, EtcdRefused),
        (stubs.NO_SPACE, EtcdRefused),
        (stubs.LEASE_NOT_FOUND, LeaseGone),
        (stubs.SILENT, EtcdOutcomeUnknown),
        (stubs.CUT, EtcdOutcomeUnknown),
    ],
    ids=[
        "no leader", "not leader", "too many requests", "corrupt", "timed out", "leader failed", "leader changed",
        "not authorised", "no space", "lease not found", "no answer", "cut",
    ],
)  # fmt: skip
async def test_transaction_has_its_typed_outcome_when_it_fails(
    etcd: StubEtcd, fault: Fault, error: type[EtcdError]
) -> None:
    """Only what was certainly not applied is told so; all doubt is an unknown outcome."""
    etcd.faults["Txn"].append(fault)
    async with client_of(etcd) as client:
        with pytest.raises(error) as raised:
            await take(client, SHORT_MS if fault is stubs.SILENT else TIMEOUT_MS)
        assert type(raised.value) is error
        assert etcd.value(LEADER) is None
        assert await take(client), "and the next one is answered again"


@pytest.mark.parametrize("fault", [stubs.SILENT_BUT_APPLIED, stubs.CUT_BUT_APPLIED], ids=["no answer", "cut"])
async def test_transaction_is_unknown_when_it_was_applied_and_the_answer_was_lost(etcd: StubEtcd, fault: Fault) -> None:
    """It is never sent a second time: that one would be told that another has the key."""
    etcd.faults["Txn"].append(fault)
    async with client_of(etcd) as client:
        with pytest.raises(EtcdOutcomeUnknown):
            await take(client, SHORT_MS if fault is stubs.SILENT_BUT_APPLIED else TIMEOUT_MS)
    assert (etcd.value(LEADER), etcd.asked["Txn"]) == ("n1", 1)


async def test_transaction_is_applied_when_the_answer_is_slow_but_in_time() -> None:
    """And unknown, not failed, when it is not."""

    async def ask_slow_one(delay_ms: int) -> None:
        async with StubEtcd().running() as etcd, client_of(etcd) as client:
            etcd.faults["Txn"].append(Fault(delay_ms=delay_ms))
            assert await take(client, PATIENCE_S * 1000)
            etcd.faults["Txn"].append(Fault(delay_ms=delay_ms))
            with pytest.raises(EtcdOutcomeUnknown):
                await take(client, delay_ms // 5)

    async with anyio.create_task_group() as tasks:
        for delay_ms in (500, 1_000, 2_500, 5_000):
            tasks.start_soon(ask_slow_one, delay_ms)


async def test_transaction_goes_to_the_next_endpoint_when_the_first_certainly_did_not_apply_it(etcd: StubEtcd) -> None:
    """One that is down, one that has no leader; of an unknown outcome the next one is not asked."""
    async with AsyncExitStack() as stack:
        sick = await stack.enter_async_context(StubEtcd().running())
        down = f"127.0.0.1:{free_ports(1)[0]}"
        for fault in (stubs.NO_LEADER, stubs.DENIED):
            sick.always = {"Txn": fault}
            client = await stack.enter_async_context(EtcdClient([down, sick.address, etcd.address]))
            assert (await client.transact([], [put(LEADER, "n1")], timeout_ms=TIMEOUT_MS)).applied
        before = etcd.asked["Txn"]
        sick.always = {"Txn": stubs.TIMED_OUT}
        client = await stack.enter_async_context(client_of(sick, etcd))
        with pytest.raises(EtcdOutcomeUnknown):
            await client.transact([], [put(LEADER, "n1")], timeout_ms=TIMEOUT_MS)
        assert etcd.asked["Txn"] == before


# ---- who asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [stubs.BAD_TOKEN, stubs.OLD_REVISION], ids=["invalid token", "old revision"])
async def test_token_is_renewed_once_when_etcd_does_not_take_it(etcd: StubEtcd, fault: Fault) -> None:
    """The request is sent again with a new one, and is applied."""
    etcd.faults["Txn"].append(fault)
    async with client_of(etcd, username="u") as client:
        assert await take(client)
    assert (etcd.asked["Authenticate"], etcd.asked["Txn"], max(etcd.tokens)) == (2, 2, "token-2")


async def test_call_is_refused_when_no_token_is_taken(etcd: StubEtcd) -> None:
    """Not unknown: etcd looked at the token first."""
    etcd.always["Txn"] = stubs.BAD_TOKEN
    async with client_of(etcd, username="u") as client:
        with pytest.raises(EtcdRefused):
            await take(client)
    assert etcd.value(LEADER) is None


async def test_call_is_refused_when_the_password_is_wrong(etcd: StubEtcd) -> None:
    """Nothing is sent but the login."""
    etcd.always["Authenticate"] = stubs.BAD_PASSWORD
    async with client_of(etcd, username="u") as client:
        with pytest.raises(EtcdRefused):
            await take(client)
    assert etcd.asked["Txn"] == 0


# ---- the lease -------------------------------------------------------------------------------------------------------


RENEWALS: list[tuple[Fault, type[EtcdError]]] = [
    (stubs.NO_LEADER, EtcdUnavailable),
    (stubs.NO_LESSOR, EtcdUnavailable),
    (stubs.TOO_MANY, EtcdUnavailable),
    (stubs.TIMED_OUT, EtcdOutcomeUnknown),
    (stubs.DENIED, EtcdRefused),
    (stubs.LEASE_NOT_FOUND, LeaseGone),
    (stubs.SILENT, EtcdOutcomeUnknown),
    (stubs.SILENT_BUT_APPLIED, EtcdOutcomeUnknown),
    (stubs.CUT, EtcdOutcomeUnknown),
]
RENEWAL_IDS = (
    "no leader", "no lessor", "too many requests", "timed out", "not authorised", "not found", "no answer",
    "no answer but applied", "cut",
)  # fmt: skip


@pytest.mark.parametrize(("fault", "error"), RENEWALS, ids=RENEWAL_IDS)
async def test_renewal_has_its_typed_outcome_when_it_fails(
    etcd: StubEtcd, fault: Fault, error: type[EtcdError]
) -> None:
    """Only etcd's own word that there is no such lease says that it is gone."""
    async with client_of(etcd) as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        etcd.always["LeaseKeepAlive"] = fault
        with pytest.raises(error) as raised:
            await client.renew_lease(lease.lease_id, timeout_ms=SHORT_MS)
        assert type(raised.value) is error
        etcd.always.clear()
        assert (await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)).ttl_s == 60


async def test_lease_is_gone_when_etcd_answers_that_it_has_no_time_left(etcd: StubEtcd) -> None:
    """How etcd answers a renewal of a lease that it does not know."""
    async with client_of(etcd) as client:
        with pytest.raises(LeaseGone):
            await client.renew_lease(7, timeout_ms=TIMEOUT_MS)


async def test_renewal_is_sent_again_when_one_member_hangs(etcd: StubEtcd) -> None:
    """A renewal may be asked twice, so the next member is asked while the first one keeps silent."""
    async with StubEtcd().running() as silent, client_of(silent, etcd) as client:
        etcd.leases[LEASE_ID] = (60, 2**60)
        silent.always["LeaseKeepAlive"] = stubs.SILENT
        assert (await client.renew_lease(LEASE_ID, timeout_ms=TIMEOUT_MS)).ttl_s == 60


# ---- reading and watching --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (stubs.NO_LEADER, EtcdUnavailable),
        (stubs.TIMED_OUT, EtcdUnavailable),
        (stubs.SILENT, EtcdUnavailable),
        (stubs.CUT, EtcdUnavailable),
        (stubs.DENIED, EtcdRefused),
    ],
    ids=["no leader", "timed out", "no answer", "cut", "not authorised"],
)
async def test_read_has_its_typed_outcome_when_it_fails(etcd: StubEtcd, fault: Fault, error: type[EtcdError]) -> None:
    """A read leaves no doubt behind."""
    etcd.always["Range"] = fault
    async with client_of(etcd) as client:
        with pytest.raises(error) as raised:
            await client.read_prefix(PREFIX, timeout_ms=SHORT_MS)
    assert type(raised.value) is error


async def test_watch_says_compacted_when_its_revision_is_gone(etcd: StubEtcd) -> None:
    """Then everything is read again."""
    etcd.revision, etcd.compacted_to = 90, 80
    async with client_of(etcd) as client:
        assert isinstance(await Watching(client, PREFIX, 50).end(), WatchCompacted)


@pytest.mark.parametrize("fault", [stubs.NO_LEADER, stubs.CUT], ids=["no leader", "cut"])
async def test_watch_is_unavailable_when_its_member_is(etcd: StubEtcd, fault: Fault) -> None:
    """A watch that cannot be opened, or whose connection is cut, says nothing about the keys."""
    etcd.faults["Watch"].append(fault)
    async with client_of(etcd) as client:
        assert isinstance(await Watching(client, PREFIX, 0).end(), EtcdUnavailable)


# ---- what the machine is told ----------------------------------------------------------------------------------------


@asynccontextmanager
async def told_by_lanes(*etcds: StubEtcd) -> AsyncIterator[Callable[[do.AnyEffect], Awaitable[AnyEvent]]]:
    """Hands an effect to the lanes of a cluster's keys, and returns how it ended."""
    answers: list[AnyEvent] = []
    news = anyio.Event()

    def report(event: AnyEvent) -> None:
        answers.append(event)
        news.set()

    async with client_of(*etcds) as client, anyio.create_task_group() as tasks:
        lanes = Lanes(ClusterKeys(client, PREFIX, "n1", "{}").lanes(report), frozenset({do.RenewLease}))
        tasks.start_soon(lanes.run, _durable)

        async def tell(effect: do.AnyEffect) -> AnyEvent:
            nonlocal news
            news = anyio.Event()
            lanes.hand(Issued(effect_id=100, duty="tested", effect=effect))
            with anyio.fail_after(PATIENCE_S):
                await news.wait()
            return answers.pop()

        yield tell
        tasks.cancel_scope.cancel()


async def _durable(number: int, wait_ms: int) -> bool:
    return True


KINDS = {EtcdUnavailable: "unavailable", EtcdRefused: "refused", LeaseGone: "lease_gone"}


@pytest.mark.parametrize(("fault", "error"), RENEWALS, ids=RENEWAL_IDS)
async def test_machine_is_told_the_kind_when_a_renewal_fails(
    etcd: StubEtcd, fault: Fault, error: type[EtcdError]
) -> None:
    """Unknown is an event of its own, and "lease_gone" comes of nothing else."""
    etcd.leases[LEASE_ID] = (60, 2**60)
    etcd.always["LeaseKeepAlive"] = fault
    async with told_by_lanes(etcd) as tell:
        event = await tell(do.RenewLease(timeout_ms=SHORT_MS, lease_id=LEASE_ID))
        if error is EtcdOutcomeUnknown:
            assert isinstance(event, Unknown)
        else:
            assert isinstance(event, Failed)
            assert event.kind == KINDS[error]
        etcd.always.clear()
        renewed = await tell(do.RenewLease(timeout_ms=TIMEOUT_MS, lease_id=LEASE_ID))
        assert isinstance(renewed, Succeeded)
        assert isinstance(renewed.result, LeaseHeld)


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (Fault(), "applied"),
        (stubs.SILENT, "unknown"),
        (stubs.SILENT_BUT_APPLIED, "unknown"),
        (stubs.CUT_BUT_APPLIED, "unknown"),
        (stubs.NO_LEADER, "unavailable"),
        (stubs.DENIED, "refused"),
        (stubs.LEASE_NOT_FOUND, "lease_gone"),
    ],
    ids=["well", "no answer", "no answer but applied", "cut but applied", "no leader", "not authorised", "no lease"],
)
async def test_machine_is_told_how_it_ended_when_it_takes_the_leader_key(
    etcd: StubEtcd, fault: Fault, wanted: str
) -> None:
    """ "Not applied" is told only by etcd's own answer."""
    etcd.faults["Txn"].append(fault)
    async with told_by_lanes(etcd) as tell:
        event = await tell(do.TakeLeaderKey(timeout_ms=SHORT_MS, lease_id=LEASE_ID, valid_until_ms=2**60))
    if isinstance(event, Succeeded):
        assert isinstance(event.result, KeyWritten)
        assert (event.result.applied, wanted) == (True, "applied")
    elif isinstance(event, Failed):
        assert event.kind == wanted
    else:
        assert isinstance(event, Unknown)
        assert wanted == "unknown"


async def test_machine_is_told_who_has_the_key_when_another_was_first(etcd: StubEtcd) -> None:
    """The compare failed: that is an answer, with the key as it is."""
    etcd.put(LEADER, "n2", 9)
    async with told_by_lanes(etcd) as tell:
        event = await tell(do.TakeLeaderKey(timeout_ms=TIMEOUT_MS, lease_id=LEASE_ID, valid_until_ms=2**60))
    assert isinstance(event, Succeeded)
    assert isinstance(event.result, KeyWritten)
    assert not event.result.applied
    assert event.result.now is not None
    assert event.result.now.value == "n2"


async def test_list_of_members_is_written_only_over_the_one_that_was_seen(etcd: StubEtcd) -> None:
    """An earlier list that etcd applies late never comes after a later one."""
    etcd.put(LEADER, "n1")
    etcd.put(f"{PREFIX}failsafe", '{"n1":"x"}')
    seen = etcd.revision

    def written(text: str) -> do.PublishAsLeader:
        return do.PublishAsLeader(
            timeout_ms=TIMEOUT_MS, key="failsafe", text=text, valid_until_ms=2**60, seen_revision=seen
        )

    async with told_by_lanes(etcd) as tell:
        first, second = await tell(written('{"n1":"x","n2":"y"}')), await tell(written("{}"))
    results = [event.result for event in (first, second) if isinstance(event, Succeeded)]
    assert [result.applied for result in results if isinstance(result, KeyWritten)] == [True, False]
    assert etcd.value(f"{PREFIX}failsafe") == '{"n1":"x","n2":"y"}'


async def test_stub_compares_as_etcd_does_when_keys_are_there_and_not(etcd: StubEtcd) -> None:
    """What the other tests rest on."""
    async with client_of(etcd) as client:
        written = await client.transact([absent(LEADER)], [put(LEADER, "n1")], timeout_ms=TIMEOUT_MS)
        at = mod_revision_is(LEADER, written.revision)
        assert (await client.transact([at], [put(LEADER, "n2")], timeout_ms=TIMEOUT_MS)).applied
        assert not (await client.transact([at], [put(LEADER, "n3")], timeout_ms=TIMEOUT_MS)).applied
    assert etcd.value(LEADER) == "n2"
