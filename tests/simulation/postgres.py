"""PostgreSQL as the agent meets it: WAL that is on disk before it is acknowledged, timelines, streaming, recovery.

WAL has no content here but the identity of its branch: two servers that were promoted from one position are on two
branches although both may call their timeline 2. A commit is a position on a branch.
"""

from collections.abc import Callable
from functools import lru_cache

from fsm.facts import DataDirectory, Probe, Standby, TimelineHistory, TimelineSwitch, Upstream
from fsm.syncnames import SyncNames, parse_names
from tests.simulation.ailments import Ailments
from tests.simulation.kernel import MS, Kernel, Outcome, Process, S, Signal, Work
from tests.simulation.network import Network

RECORD_BYTES = 100
RETRY_US = 500 * MS
RETRANSMIT_US = 200 * MS
SENDER_TIMEOUT_US = 60 * S
RECEIVER_TIMEOUT_US = 60 * S
STATUS_EVERY_US = 10 * S
PORT = 5432

names_of = lru_cache(256)(parse_names)


class SqlFailed(Outcome):
    """The server said no, or does not run."""


class ProgramFailed(Outcome):
    """A program of PostgreSQL's ended with an error."""


class Branch:
    """One timeline as one server began it."""

    __slots__ = ("fork_lsn", "parent", "tli")

    def __init__(self, tli: int, parent: "Branch | None" = None, fork_lsn: int = 0) -> None:
        self.tli, self.parent, self.fork_lsn = tli, parent, fork_lsn

    def reach_lsn(self, end_lsn: int, branch: "Branch") -> int | None:
        """How far WAL that ends on this branch runs along another; None if it never did."""
        found: Branch | None = self
        while found is not None:
            if found is branch:
                return end_lsn
            end_lsn, found = min(end_lsn, found.fork_lsn), found.parent
        return None

    def history(self) -> tuple[TimelineSwitch, ...]:
        """The switches that led here, oldest first."""
        switches = []
        found: Branch | None = self
        while found is not None and found.parent is not None:
            switches.append(TimelineSwitch(timeline=found.parent.tli, lsn=found.fork_lsn))
            found = found.parent
        return tuple(reversed(switches))


class Data:
    """What is on a node's disk."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing."""
        self.condition = "empty"
        self.system_id = ""
        self.branch = Branch(1)
        self.lsn = 0
        self.control_state = ""
        self.checkpoint_tli, self.checkpoint_lsn = 0, 0
        self.min_recovery_tli, self.min_recovery_lsn = 0, 0
        self.newest_tli = 1
        """The newest timeline whose history it has: a promotion takes the next number."""
        self.is_base_backup = False
        self.upstream: Upstream | None = None
        self.names = ""

    def holds(self, branch: Branch, lsn: int) -> bool:
        """True when a commit at that position is on this disk."""
        reached = self.branch.reach_lsn(self.lsn, branch)
        return self.condition == "cluster" and reached is not None and lsn <= reached

    def describe(self) -> DataDirectory:
        """What pg_controldata says."""
        if self.condition == "empty":
            return DataDirectory(condition="empty")
        return DataDirectory(
            condition=self.condition,  # type: ignore[arg-type]  # one of its literals
            system_id=self.system_id,
            timeline=self.checkpoint_tli,
            control_state=self.control_state,
            checkpoint_lsn=self.checkpoint_lsn,
            min_recovery_lsn=self.min_recovery_lsn,
            min_recovery_timeline=self.min_recovery_tli,
            is_base_backup=self.is_base_backup,
            data_checksums=True,
            wal_log_hints=True,
        )


class Link:
    """One replication connection, as both ends know it; each learns of its end by itself."""

    __slots__ = ("acked_lsn", "is_open", "last_us", "sent_lsn", "standby", "upstream")

    def __init__(self, standby: "Server", upstream: "Server", now_us: int) -> None:
        self.standby, self.upstream = standby, upstream
        self.is_open = True
        self.sent_lsn = self.acked_lsn = 0
        self.last_us = now_us


class Server:
    """One postmaster and its processes, from its start to its end."""

    def __init__(self, host: "Host", pid: int, *, in_recovery: bool) -> None:
        self.host, self.pid = host, pid
        self.kernel, self.network = host.kernel, host.network
        self.process = Process(f"{host.name}/server{pid}")
        self.in_recovery = in_recovery
        self.is_ready = False
        self.has_ended = False
        self.has_checkpointed = False
        self.has_streamed = False
        self.replays_until_us = 0
        self.link: Link | None = None
        self.senders: dict[str, Link] = {}
        self.names = host.data.names
        self.waiting: list[tuple[int, Callable[[], object]]] = []
        self.promoting = False
        self.session = 0
        self._retry = 0
        self._retransmitting = False

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Data:
        """Its disk."""
        return self.host.data

    @property
    def is_writable(self) -> bool:
        """True when it would take a write at this instant."""
        return not self.has_ended and not self.in_recovery and self.is_ready and self.process.is_running

    # ---- starting and ending -----------------------------------------------------------------------------------------

    def recover(self) -> Work:
        """From its start until it takes connections."""
        rng, data = self.kernel.rng, self.data
        if not self.in_recovery:
            data.control_state = "in crash recovery" if data.control_state != "shut down" else "shut down"
        yield 60 * MS + rng.randrange(400) * MS + self.host.ailments.start_takes_us
        if self.host.ailments.start_fails or (self.host.ailments.is_wal_full and not self.in_recovery):
            self.end(data.control_state)
            return
        if self.in_recovery:
            data.control_state = "in archive recovery"
            data.is_base_backup = False
            self.connect_soon(0)
            while data.lsn < data.min_recovery_lsn:
                yield 20 * MS
            self.replays_until_us = self.kernel.now_us + rng.choice((0, 0, 50, 400)) * MS
        else:
            data.control_state = "in production"
            self.checkpoint()
        self.is_ready = True
        self.host.look(self)

    def checkpoint(self) -> None:
        """CHECKPOINT."""
        self.data.checkpoint_tli, self.data.checkpoint_lsn = self.data.branch.tli, self.data.lsn
        self.has_checkpointed = True

    def end(self, control_state: str | None = None) -> None:
        """Nothing of it is left; without a state it crashed."""
        if self.has_ended:
            return
        self.has_ended = True
        data = self.data
        if control_state is not None:
            data.control_state = control_state
        if self.in_recovery:
            data.min_recovery_tli, data.min_recovery_lsn = data.branch.tli, max(data.min_recovery_lsn, data.lsn)
        self.kernel.kill(self.process)
        for link in list(self.senders.values()):
            self._tell_end(link, link.standby)
        if self.link is not None:
            self._tell_end(self.link, self.link.upstream)
        self.host.ended(self)

    def _tell_end(self, link: Link, other: "Server") -> None:
        self.network.send(self.host.name, other.host.name, other.process, other.lose, link)

    def shut_down(self) -> Work:
        """A fast shutdown: no new writes, the last record to every standby that answers, and the end."""
        yield self.kernel.rng.randrange(20) * MS + self.host.ailments.stop_takes_us
        if self.in_recovery:
            self.end("shut down in recovery")
            return
        self.is_ready = False  # sessions are gone
        self.data.checkpoint_tli, self.data.checkpoint_lsn = self.data.branch.tli, self.data.lsn + 1
        self.data.lsn += RECORD_BYTES
        self.send()
        for _ in range(100):
            if all(link.acked_lsn >= self.data.lsn for link in self.senders.values()):
                break
            yield 20 * MS
        self.end("shut down")

    # ---- WAL ---------------------------------------------------------------------------------------------------------

    def commit(self, acknowledged: Callable[[Branch, int], object]) -> None:
        """A client commits; called back when it is told so."""
        if self.host.ailments.is_write_hanging:
            return
        if self.host.ailments.is_wal_full:
            self.end()  # PANIC: could not write to file: No space left on device
            return
        self.data.lsn += RECORD_BYTES
        branch, lsn = self.data.branch, self.data.lsn
        self.waiting.append((lsn, lambda: acknowledged(branch, lsn)))
        self.send()
        self.release()

    def release(self) -> None:
        """Tell every client whose commit enough standbys have."""
        if not self.waiting:
            return
        limit_lsn = self._synchronous_lsn(self.names)
        done = [tell for lsn, tell in self.waiting if lsn <= limit_lsn]
        self.waiting = [found for found in self.waiting if found[0] > limit_lsn]
        for tell in done:
            tell()

    def _synchronous_lsn(self, text: str) -> int:
        names = names_of(text)
        if names is None or names == SyncNames():
            return self.data.lsn
        reached = sorted(
            (self.senders[name].acked_lsn if name in self.senders else 0 for name in names.names), reverse=True
        )
        return reached[names.count - 1]

    def send(self) -> None:
        """Send what is new to every standby."""
        for link in self.senders.values():
            self._send(link)
        self._watch_acknowledgements()

    def _send(self, link: Link) -> None:
        standby = link.standby
        link.sent_lsn = self.data.lsn
        self.network.send(
            self.host.name, standby.host.name, standby.process, standby.receive, link, self.data.branch, self.data.lsn
        )

    def _watch_acknowledgements(self) -> None:
        if not self._retransmitting and any(link.acked_lsn < self.data.lsn for link in self.senders.values()):
            self._retransmitting = True
            self.kernel.after(self.process, RETRANSMIT_US, self._retransmit)

    def _retransmit(self) -> None:
        self._retransmitting = False
        for name, link in list(self.senders.items()):
            if link.acked_lsn >= self.data.lsn:
                continue
            if self.kernel.now_us - link.last_us > SENDER_TIMEOUT_US:
                del self.senders[name]
            else:
                self._send(link)
        self._watch_acknowledgements()

    def receive(self, link: Link, branch: Branch, lsn: int) -> None:
        """A standby gets WAL, puts it on disk and says so."""
        if self.host.ailments.is_write_hanging:
            return  # it is sent again
        if link is not self.link or not self.in_recovery or self.has_ended:
            return
        reached = branch.reach_lsn(lsn, self.data.branch)
        if reached is None or reached < self.data.lsn:
            return
        self.data.branch, self.data.lsn = branch, max(lsn, self.data.lsn)
        self.data.newest_tli = max(self.data.newest_tli, branch.tli)
        self.has_streamed = True
        upstream = link.upstream
        self.network.send(self.host.name, upstream.host.name, upstream.process, upstream.hear, link, self.data.lsn)

    def hear(self, link: Link, lsn: int) -> None:
        """A standby says how far it is."""
        link.last_us = self.kernel.now_us
        if self.senders.get(link.standby.host.name) is link and lsn > link.acked_lsn:
            link.acked_lsn = lsn
            self.release()

    def lose(self, link: Link) -> None:
        """The other end of a connection is gone."""
        if self.senders.get(link.standby.host.name) is link and link.standby is not self:
            del self.senders[link.standby.host.name]
        if self.link is link:
            self.link = None
            self.connect_soon(RETRY_US)

    # ---- following ---------------------------------------------------------------------------------------------------

    def follow(self, upstream: Upstream | None) -> None:
        """Another primary_conninfo takes effect."""
        changed = upstream != self.data.upstream
        self.data.upstream = upstream
        if changed:
            if self.link is not None:
                self._tell_end(self.link, self.link.upstream)
                self.link = None
            self.connect_soon(0)

    def connect_soon(self, delay_us: int) -> None:
        """Try to stream, after a while."""
        self._retry += 1
        self.kernel.after(self.process, delay_us + self.network.delay_us(), self._connect, self._retry)

    def _connect(self, retry: int) -> None:
        upstream = self.data.upstream
        if retry != self._retry or upstream is None or not self.in_recovery or self.link is not None:
            return
        there = self.host.find(upstream.host)
        mine = (self.host.name, upstream.host)
        if there is None or not self.network.is_open(*mine) or not self.network.is_open(*mine[::-1]):
            self.connect_soon(RETRY_US)
            return
        reached = there.data.branch.reach_lsn(there.data.lsn, self.data.branch)
        if not there.is_ready or there.has_ended or reached is None or reached < self.data.lsn:
            self.connect_soon(RETRY_US)
            return
        self.link = Link(self, there, self.kernel.now_us)
        there.senders[self.host.name] = self.link
        there._send(self.link)
        there._watch_acknowledgements()
        self.kernel.after(self.process, STATUS_EVERY_US, self._tell_status, self.link, 0)

    def _tell_status(self, link: Link, silent_us: int) -> None:
        """Every few seconds a receiver speaks; what is not there any more answers that the connection is unknown."""
        if link is not self.link:
            return
        there, mine = link.upstream, (self.host.name, link.upstream.host.name)
        is_known = not there.has_ended and there.senders.get(self.host.name) is link
        is_reached = self.network.is_open(*mine) and self.network.is_open(*mine[::-1])
        silent_us = 0 if is_reached else silent_us + STATUS_EVERY_US
        if (is_reached and not is_known) or silent_us >= RECEIVER_TIMEOUT_US:
            self.lose(link)
        else:
            self.kernel.after(self.process, STATUS_EVERY_US, self._tell_status, link, silent_us)

    # ---- being asked -------------------------------------------------------------------------------------------------

    def promote(self, timeline: int) -> Work:
        """Out of recovery, on a new branch, of this number at the least."""
        if not self.in_recovery or self.promoting:
            return
        self.promoting = True
        yield 20 * MS + self.kernel.rng.randrange(60) * MS
        while self.kernel.now_us < self.replays_until_us or not self.is_ready:
            yield 10 * MS
        data = self.data
        data.branch = Branch(max(data.newest_tli + 1, timeline), data.branch, data.lsn)
        data.newest_tli = data.branch.tli
        if self.link is not None:
            self._tell_end(self.link, self.link.upstream)
            self.link = None
        self.in_recovery, self.has_checkpointed = False, False
        data.control_state, data.min_recovery_lsn = "in production", 0
        self.host.look(self)

    def probe(self) -> Probe:
        """What a look at it shows."""
        data, upstream = self.data, self.data.upstream
        common = {
            "timeline": data.branch.tli,
            "system_id": data.system_id,
            "server_version": 160004,
            "postmaster_started_at": f"start-{self.pid}",
        }
        if not self.in_recovery:
            return Probe(
                in_recovery=False,
                flushed_lsn=data.lsn,
                synchronous_standby_names=self.names,
                standbys=tuple(
                    Standby(
                        application_name=name,
                        state="streaming",
                        write_lsn=link.acked_lsn,
                        flush_lsn=link.acked_lsn,
                        replay_lsn=link.acked_lsn,
                    )
                    for name, link in sorted(self.senders.items())
                ),
                **common,  # type: ignore[arg-type]
            )
        is_replaying = self.kernel.now_us < self.replays_until_us and not self.has_streamed
        return Probe(
            in_recovery=True,
            received_lsn=data.lsn if self.has_streamed else 0,
            replayed_lsn=data.checkpoint_lsn if is_replaying else data.lsn,
            is_replaying=is_replaying,
            synchronous_standby_names=self.names,
            receiver_status="streaming" if self.link is not None else None,
            upstream_host=upstream.host if upstream else None,
            upstream_port=upstream.port if upstream else None,
            **common,  # type: ignore[arg-type]
        )

    def history(self) -> TimelineHistory:
        """How it came to its timeline."""
        return TimelineHistory(
            timeline=self.data.branch.tli,
            system_id=self.data.system_id,
            in_recovery=self.in_recovery,
            switches=self.data.branch.history(),
        )


class Host:
    """A node's disk, its present server, and the way to the others'."""

    def __init__(self, kernel: Kernel, network: Network, name: str, find: Callable[[str], Server | None]) -> None:
        self.kernel, self.network, self.name = kernel, network, name
        self.find = find
        self.data = Data()
        self.ailments = Ailments()
        self.server: Server | None = None
        self.changed = Signal()
        self.look: Callable[[Server], None] = lambda _: None
        self.on_end: Callable[[Server], None] = lambda _: None
        self._pids = 100

    def start(self, *, in_recovery: bool) -> Server:
        """A new postmaster."""
        self._pids += 1
        self.server = Server(self, self._pids, in_recovery=in_recovery)
        self.kernel.start(self.server.process, self.server.recover())
        return self.server

    def ended(self, server: Server) -> None:
        """Called by a server at its end."""
        if self.server is server:
            self.server = None
        self.on_end(server)
        self.changed.fire()
