"""Every span of time that a decision uses, with its reason. Spans are milliseconds unless the name says seconds."""

FENCE_MARGIN_MIN_MS = 500
"""Room between the fence's deadline and the lease's end: a whole server was gone 39 to 111 ms after SIGQUIT when
measured under load; the rest is for a busy machine and for SIGKILL."""

PEER_ANSWER_TIMEOUT_MS = 500
"""How long an election waits for a silent member; on a local network an answer takes a few milliseconds."""

FAILSAFE_TIMEOUT_MS = 500
FAILSAFE_TIMEOUT_MIN_MS = 100
FAILSAFE_TIMEOUT_MAX_MS = 10_000
"""How long a leader without etcd waits for its members' answers: by default, and what may be set. An answer takes a few
milliseconds and an fsync; waiting longer than the ttl has room for is cut, see `failsafe_timeout_most_ms`."""

FAILSAFE_CHECK_MS = 2_500
"""How long the pre-flight waits for a member: one that answers too late is told from one that does not answer."""

FAILSAFE_AFTER_MS = 200
"""How long after a renewal fell due the members are asked in etcd's place: one slow answer is no loss of etcd."""

FAILSAFE_PAUSE_MS = 100
"""Pause before members that did not all confirm are asked again."""

NAMESAKE_TIMEOUT_MS = 2_000
"""How long a member that is published under this node's name is given to answer. Precedent: Patroni, 3 s."""

PEER_REPORT_FRESH_MS = 300
"""A position older than this is asked for again while the election has time: the peer had not looked since."""

PEER_REASK_MS = 30
"""Pause before peers are asked again for a fresher position; a peer's own look takes about 5 ms."""

PEER_REASK_LATER_MS = 500
"""The same once a candidate has waited in vain for as long as silent members are given."""

STARTING_MEMBER_WAIT_MS = 10_000
"""How long an election among servers that were all started anew waits for a member that is silent, or whose server does
not yet tell how far its WAL reaches. It may be the former leader, in crash recovery, with the last rows."""

OUTRANKED_FOR_MS = 1_000
"""How long a better peer is given to take the key before this node stands again."""

NAMED_SUCCESSOR_WAIT_MS = 3_000
"""How long the others leave a free key to the member that a switchover named."""

HANDOVER_CATCH_UP_MS = 2_000
"""How long a stopped former primary waits for its successor to hold the last WAL before it leads again itself."""

PROBE_IDLE_MS = 1_000
PROBE_SOON_MS = 50
PROBE_URGENT_MS = 15
"""How often the server is looked at: when nothing happens, while something is expected, while clients are waiting."""

UNANSWERED_GRACE_MS = 1_000
"""How long after its deadline an executor's answer is still awaited before the outcome counts as unknown."""

CRASH_FORGIVEN_AFTER_MS = 60_000
FAILED_STARTS_MAX = 3
"""A server that ends this often without having served for a minute in between is not started as primary again here:
a crash loop is a failure even if each single start is quick."""

DOUBTFUL_STARTS_MAX = 2
"""How often a crashed former primary, which may follow or may not, is started to find out; then pg_rewind is asked."""

STANDBY_PAUSE_FIRST_MS = 500
STANDBY_PAUSE_MOST_MS = 30_000
"""Pauses before a standby that keeps ending is started again, from its second end in a row: one crash is recovered from
at once, a crash loop must not fill the disk with logs and the processors with recoveries."""

FENCE_SILENT_MS = 3_000
"""How long a server may run for writing before the fence has confirmed a deadline; it answers in a millisecond."""

STARVED_MS = 1_000
"""A loop that stood still for this long was not able to judge whether others answer. Precedent: the loop warns at half
of it."""

SILENCE_GAP_MS = 3_000
"""Two looks in a row are no further apart; a longer pause shows that nobody looked, and the count begins anew."""

SILENT_LOOKS_MIN = 2
"""So many looks must hear nothing: the first is on the connection that answered before, the next on a fresh one. With
looks of 2.5 s the server is then silent for 5 s, which is also when clients are sent elsewhere."""

STALL_TIMEOUT_LEAST_S = 5
"""The shortest `primary_stall_timeout`: two looks."""

HEIRS_ASKED_EVERY_MS = 2_000
HEIR_FRESH_MS = 5_000
"""How often a leader in trouble asks who could take over, and how old an answer may be: two questions may be lost."""

DISK_LOOK_LEADING_MS = 1_000
DISK_LOOK_MS = 5_000
"""How often the disk is looked at: a leader's, whose rule has ten seconds for all it does, and any other's."""

DISK_WRITE_EVERY_MS = 3_000
"""How often a leader that writes no WAL writes a block of the agent's own, to see whether the disk takes it."""

SILENT_PEER_MS = 5_000
"""A member whose server has not answered its own agent for this long holds up no election: it could not be promoted."""

DISK_FULL_FOR_MS = 2_000
"""How long there must be no room before the disk counts as full: what a sort spills is often gone in a moment."""

DISK_ROOMY_SEGMENTS = 4
DISK_ROOMY_FOR_MS = 30_000
"""A disk that was full counts as full until there has been room for so many WAL segments for this long. Otherwise the
vacuum of one file would send the leadership to and fro."""

FULL_DISK_STOP_MS = 4_000
"""How long a server whose disk is full may take for its fast shutdown before it is killed: clients are gone at its
beginning, and the standbys get WAL to its end."""

FULL_STANDS_AFTER_MS = 10_000
"""How long a member whose disk is full leaves a free key to the others. Then it stands all the same: a primary that may
run out of room serves more than none."""

PROMOTE_AGAIN_MS = 10_000
"""After this long without an end of recovery a promotion is asked for once more, in case the request was lost."""

SYNC_STUCK_MS = 1_000
"""A synchronous standby that lacks WAL and has not moved for this long is no longer waited for. With a look every half
second at the most, and a moment to change the key and the names, writes pause for less than two seconds when a standby
dies without a word, whatever the ttl. Not waiting for it is always safe: it may not be promoted any more, no more."""

SYNC_DISTRUST_MS = 3_000
"""How long a standby that was stuck must keep up before commits wait for it again: one that stumbles must not make
every client stumble with it."""

SYNC_SETTLE_MS = 500
"""From when the server says that other names are in force until everything it acknowledged under the former ones is
counted as past: each WAL sender takes the names over by itself, between two acknowledgements.
Precedent: Patroni waits 2 s after every change; here the end of the pause is also looked at (ReadSyncMark)."""

PROBE_SYNC_MS = 500
PROBE_STUCK_MS = 100
"""How often the leader's server is looked at while commits wait for standbys: in general, and while one lacks WAL and
has not moved since the last look, or names are not settled."""

REQUEST_TIMEOUT_MS = 5_000
"""How long a request through the API is worth performing: whoever asked is told of a failure then."""

SWITCHOVER_WRITTEN_WITHIN_MS = 20_000
"""How long this node tries to write a request for another leader: nobody may be surprised by it later."""

SCHEDULE_SKEW_MS = 5_000
"""How much earlier than its own clock says a member takes a scheduled switchover for begun when the leader is gone."""

SCHEDULE_LATE_MS = 60_000
"""How late a scheduled switchover is still begun; a checkpoint may come first. Patroni: 1.5 times loop_wait."""

RESTART_STOP_MS = 120_000
"""How long the checkpoint and the stop before a restart may take together."""

START_TIMEOUT_LEAST_MS = 300_000
"""How long a restarted server may take where primary_start_timeout is 0: that is about crashes. Patroni's default."""

WATCHDOG_TIMEOUT_MIN_S = 3
"""The fence feeds every second; a timeout shorter than three of them would reset a machine that is merely busy."""

WATCHDOG_ROOM_MS = 2_000
"""For how long after a renewal was sent its device may still be fed at the least: the answer takes its time."""

WATCHDOG_TRIED_ANEW_MS = 60_000
"""How long a node that requires a watchdog and found none to use leaves the election to others."""

AGENT_RESTART_WITHIN_MS = 60_000
"""How long a restart of the agent in place is tried for; a moment at which nothing is under way comes in seconds."""

NEW_AGENT_CHECK_TIMEOUT_MS = 30_000
"""How long a new agent may take to show that it would start; on an idle machine it takes about a second."""

AGENT_LEAVES_WITHIN_MS = 1_000
"""How long requests under way, and such as were just begun, may take before the agent becomes its successor."""

NEW_AGENT_ROOM = 2
"""How many times as long as its trial took the lease must last when the agent becomes its successor: the successor has
to start as the trial did, read etcd, and take up key and fence before the deadline."""

REWIND_ATTEMPTS_MAX = 3
"""pg_rewind failures after which the recovery ladder goes on to a new base backup."""


def renew_every_ms(ttl_s: int) -> int:
    """Renew when a third of the lease is used: two renewals may be lost before the third is late."""
    return ttl_s * 1000 // 3


def renew_timeout_ms(ttl_s: int) -> int:
    """How long one renewal may take: short enough that several attempts fit before the deadline."""
    return max(300, min(2_000, ttl_s * 1000 // 6))


def failsafe_timeout_most_ms(ttl_s: int) -> int:
    """The longest that a member's answer may be waited for: two questions must fit between the first renewal that
    failed and the deadline."""
    room_ms = ttl_s * 1000 - fence_margin_ms(ttl_s) - renew_every_ms(ttl_s) - renew_timeout_ms(ttl_s)
    return (room_ms - FAILSAFE_PAUSE_MS) // 2


def failsafe_timeout_ms(asked_ms: int, ttl_s: int) -> int:
    """How long a leader without etcd waits for its members' answers: as configured, if the ttl has room for it."""
    return min(asked_ms, failsafe_timeout_most_ms(ttl_s))


def promise_answer_ms(asked_ms: int, ttl_s: int) -> int:
    """How long a member takes at the most to confirm, so that its answer, also a refusal, comes in time."""
    return failsafe_timeout_ms(asked_ms, ttl_s) * 4 // 5


def promise_timeout_ms(asked_ms: int, ttl_s: int) -> int:
    """How long a promise may take to reach the disk, so that there is time to say that it did not."""
    return failsafe_timeout_ms(asked_ms, ttl_s) * 7 // 10


def watch_progress_every_ms(ttl_s: int) -> int:
    """How often a watch asks for a sign of life: a frozen endpoint is noticed within half a ttl, or 10 s."""
    return max(1_000, min(4_000, ttl_s * 1000 // 5))


def fence_margin_ms(ttl_s: int) -> int:
    """How long before the lease's end the server must be gone."""
    return max(FENCE_MARGIN_MIN_MS, ttl_s * 1000 // 10)


def writable_until_ms(sent_at_ms: int, ttl_s: int) -> int:
    """The instant from which a primary must not accept writes, counted from when its confirmed renewal was *sent*.

    etcd counts from when it received the renewal, which is later, so the lease outlives this instant by the margin.
    """
    return sent_at_ms + ttl_s * 1000 - fence_margin_ms(ttl_s)


def standby_pause_ms(failed_starts: int) -> int:
    """Pause after the n-th end in a row of a standby that nobody asked to end."""
    if failed_starts <= 1:
        return 0
    return backoff_ms(failed_starts - 1, first_ms=STANDBY_PAUSE_FIRST_MS, most_ms=STANDBY_PAUSE_MOST_MS)


def backoff_ms(failures: int, *, first_ms: int, most_ms: int) -> int:
    """Pause after the n-th failure in a row: doubling, bounded."""
    return int(min(most_ms, first_ms * 2 ** min(failures - 1, 16)))
