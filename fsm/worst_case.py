"""How long clients may be without a primary at the worst, computed from the settings in force, with the arithmetic.

Pure: what is bounded here is what the state machine waits for. What PostgreSQL and the disk take for a promotion, for
crash recovery or for a shutdown is named, not guessed.
"""

from collections.abc import Iterator

from msgspec import Struct

from fsm.dynamic import Dynamic
from fsm.timing import (
    DISK_FULL_FOR_MS,
    DISK_LOOK_LEADING_MS,
    FAILED_STARTS_MAX,
    FULL_DISK_STOP_MS,
    HANDOVER_CATCH_UP_MS,
    NAMED_SUCCESSOR_WAIT_MS,
    PEER_ANSWER_TIMEOUT_MS,
    PROBE_IDLE_MS,
    PROBE_SYNC_MS,
    SILENCE_GAP_MS,
    STARTING_MEMBER_WAIT_MS,
    SYNC_STUCK_MS,
    fence_margin_ms,
    renew_every_ms,
)

ETCD_EXPIRY_MS = 500
"""How much later than its end etcd may revoke a lease: it looks every 500 ms. Source: etcd, lease/lessor.go."""

SYNC_CHANGE_MS = 500
"""What it takes at the most to change the sync key and the names that commits wait for."""

SYNC_PAUSE_MS = SYNC_STUCK_MS + PROBE_SYNC_MS + SYNC_CHANGE_MS
"""How long commits wait for a synchronous standby that died without a word."""


class WorstCase(Struct, frozen=True, kw_only=True):
    """One fault. `at_most_ms`: how long writes are refused or wait; None where nothing here bounds it."""

    case: str
    at_most_ms: int | None
    because: str


def worst_cases(dynamic: Dynamic) -> list[WorstCase]:
    """Every fault that somebody plans for, with how long it lasts at the worst.

    Args:
        dynamic: the settings in force.
    """
    return [
        _silent_death(dynamic),
        _dead_agent(dynamic),
        _server_crash(dynamic),
        *_hung_server(dynamic),
        _full_disk(),
        _switchover(dynamic),
        _restart_of_everything(dynamic),
        _lost_etcd(dynamic),
        *_synchronous(dynamic),
    ]


def seconds(span_ms: int) -> str:
    """A span as people write it: 30 s, 0.5 s."""
    return f"{span_ms / 1000:g} s"


def _election_ms() -> int:
    return ETCD_EXPIRY_MS + PEER_ANSWER_TIMEOUT_MS


def _lease_runs_out(dynamic: Dynamic) -> tuple[int, str]:
    ttl_ms = dynamic.ttl_s * 1000
    words = (
        f"the lease was renewed just before, so all of ttl ({seconds(ttl_ms)}) passes, "
        f"etcd may notice {seconds(ETCD_EXPIRY_MS)} late, "
        f"and the election waits {seconds(PEER_ANSWER_TIMEOUT_MS)} for members that do not answer"
    )
    return ttl_ms + _election_ms(), words


def _silent_death(dynamic: Dynamic) -> WorstCase:
    total_ms, words = _lease_runs_out(dynamic)
    return WorstCase(
        case="the primary's node dies silently",
        at_most_ms=total_ms,
        because=f"{words}; then PostgreSQL's own promotion",
    )


def _dead_agent(dynamic: Dynamic) -> WorstCase:
    total_ms, words = _lease_runs_out(dynamic)
    margin_ms = fence_margin_ms(dynamic.ttl_s)
    fence = (
        f"the server serves on until the fence ends it, {seconds(margin_ms)} before the lease's end, "
        f"so writes are refused for about {seconds(margin_ms + _election_ms())} of it"
    )
    return WorstCase(
        case="the primary's agent dies or freezes",
        at_most_ms=total_ms,
        because=f"{words}; {fence}; then PostgreSQL's own promotion",
    )


def _server_crash(dynamic: Dynamic) -> WorstCase:
    start_ms = dynamic.primary_start_timeout_s * 1000
    tries = f"it is started again in place, within milliseconds, at most {FAILED_STARTS_MAX} times in a row"
    if not start_ms:
        return WorstCase(
            case="the primary's server crashes, its agent lives",
            at_most_ms=PEER_ANSWER_TIMEOUT_MS,
            because=f"primary_start_timeout is 0, so the key is released at once and the election waits "
            f"{seconds(PEER_ANSWER_TIMEOUT_MS)} at the most; then PostgreSQL's own promotion",
        )
    return WorstCase(
        case="the primary's server crashes, its agent lives",
        at_most_ms=start_ms + PEER_ANSWER_TIMEOUT_MS,
        because=f"{tries}, and takes as long as PostgreSQL's crash recovery; after primary_start_timeout "
        f"({seconds(start_ms)}) another member is elected, which waits {seconds(PEER_ANSWER_TIMEOUT_MS)} for members "
        "that do not answer; then PostgreSQL's own promotion",
    )


def _hung_server(dynamic: Dynamic) -> Iterator[WorstCase]:
    limit_ms = dynamic.primary_stall_timeout_s * 1000
    case = "the primary's server or its disk hangs, its agent lives"
    if not limit_ms:
        because = "primary_stall_timeout is 0: it stays the primary, although nothing is written"
        yield WorstCase(case=case, at_most_ms=None, because=because)
        return
    yield WorstCase(
        case=case,
        at_most_ms=SILENCE_GAP_MS + limit_ms + PROBE_IDLE_MS + PEER_ANSWER_TIMEOUT_MS,
        because=f"it was looked at just before, so the first look that hears nothing begins up to "
        f"{seconds(SILENCE_GAP_MS)} later; for primary_stall_timeout ({seconds(limit_ms)}) nothing may come, which the "
        f"last look may find up to {seconds(PROBE_IDLE_MS)} late; then the server is killed and its key released, and "
        f"the election waits {seconds(PEER_ANSWER_TIMEOUT_MS)} for members that do not answer; then PostgreSQL's own "
        "promotion. It stays the primary as long as no other member could be promoted",
    )


def _full_disk() -> WorstCase:
    return WorstCase(
        case="the primary's data disk is full",
        at_most_ms=DISK_LOOK_LEADING_MS + DISK_FULL_FOR_MS + FULL_DISK_STOP_MS + PEER_ANSWER_TIMEOUT_MS,
        because=f"it is looked at every {seconds(DISK_LOOK_LEADING_MS)}, counts as full after "
        f"{seconds(DISK_FULL_FOR_MS)}, the server has {seconds(FULL_DISK_STOP_MS)} for its shutdown, and the election "
        f"waits {seconds(PEER_ANSWER_TIMEOUT_MS)} for members that do not answer; then PostgreSQL's own promotion. It "
        "stays the primary as long as no member whose disk has room streams from it",
    )


def _switchover(dynamic: Dynamic) -> WorstCase:
    room_ms = dynamic.ttl_s * 1000 - fence_margin_ms(dynamic.ttl_s)
    waits_ms = HANDOVER_CATCH_UP_MS + NAMED_SUCCESSOR_WAIT_MS + PEER_ANSWER_TIMEOUT_MS
    return WorstCase(
        case="a planned switchover",
        at_most_ms=room_ms + waits_ms,
        because="the checkpoint is made before; the old primary's shutdown is cut short when its lease has no time "
        f"left (ttl - the fence's margin = {seconds(room_ms)}), the named successor has "
        f"{seconds(HANDOVER_CATCH_UP_MS)} to take over the last WAL and {seconds(NAMED_SUCCESSOR_WAIT_MS)} to take the "
        f"key before others stand, who wait {seconds(PEER_ANSWER_TIMEOUT_MS)} for members that do not answer; then "
        "PostgreSQL's own promotion. With a successor that answers, none of these waits is used up",
    )


def _restart_of_everything(dynamic: Dynamic) -> WorstCase:
    total_ms, words = _lease_runs_out(dynamic)
    return WorstCase(
        case="every node restarts at once",
        at_most_ms=total_ms - PEER_ANSWER_TIMEOUT_MS + STARTING_MEMBER_WAIT_MS,
        because=f"{words}, or {seconds(STARTING_MEMBER_WAIT_MS)} for one whose server is still starting, for it may "
        "have the newest rows; then PostgreSQL's own promotion",
    )


def _lost_etcd(dynamic: Dynamic) -> WorstCase:
    margin_ms = fence_margin_ms(dynamic.ttl_s)
    latest_ms = dynamic.ttl_s * 1000 - margin_ms
    earliest_ms = latest_ms - renew_every_ms(dynamic.ttl_s)
    stop = (
        f"stops {seconds(max(0, earliest_ms))} to {seconds(latest_ms)} after etcd fell silent (ttl less the fence's "
        f"margin of {seconds(margin_ms)}, counted from the last renewal, which may be a third of the ttl old), "
        "until etcd answers again"
    )
    if dynamic.failsafe_mode:
        because = (
            f"failsafe_mode is on: the primary goes on as long as every other member confirms it; else it {stop}. "
            "Nobody is elected meanwhile, so a primary that dies in that time is missed until etcd is back"
        )
        return WorstCase(case="etcd is lost, all members reach each other", at_most_ms=0, because=because)
    return WorstCase(case="etcd is lost", at_most_ms=None, because=f"failsafe_mode is off: the primary {stop}")


def _synchronous(dynamic: Dynamic) -> Iterator[WorstCase]:
    if dynamic.synchronous_mode == "off":
        return
    case = "a synchronous standby's node dies silently"
    if dynamic.synchronous_mode_strict:
        because = (
            f"its place is taken by another standby within {seconds(SYNC_PAUSE_MS)}; synchronous_mode_strict is on, "
            f"so while fewer than {dynamic.synchronous_node_count} others stream, commits wait until one does"
        )
        yield WorstCase(case=case, at_most_ms=None, because=because)
        return
    yield WorstCase(
        case=case,
        at_most_ms=SYNC_PAUSE_MS,
        because=f"it has not moved for {seconds(SYNC_STUCK_MS)}, is looked at every {seconds(PROBE_SYNC_MS)}, and is "
        f"taken out of the sync key and out of the names that commits wait for in {seconds(SYNC_CHANGE_MS)}; the ttl "
        "does not matter",
    )
