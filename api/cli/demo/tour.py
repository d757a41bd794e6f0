"""The tour: three faults under a client that never stops writing, and a verdict over what came of them."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from api.cli.demo import measure, processes, servers
from api.cli.demo.cluster import DemoCluster
from api.cli.demo.measure import Fault, Notices
from api.cli.demo.picture import ClusterPicture
from api.cli.demo.teller import Teller
from api.cli.demo.verdict import Check, Outage, Verdict, verdict_view
from api.cli.demo.view import changed_lines, headline
from api.cli.demo.watcher import Watcher
from api.cli.demo.writer import Writer
from effects.clock import now_ms
from effects.errors import LogCorrupt, LogUnavailable, MatriarchError
from effects.log_reader import read_log
from fsm.entries import Entry, decode_entry
from fsm.replay import Replay

LOOK_EVERY_S = 0.1
FIRST_ROWS = 200
ROWS_AFTER_A_FAULT = 100
START_TIMEOUT_S = 90.0
FAULT_TIMEOUT_S = 45.0
NOTES = (
    "downtime: the longest time without an acknowledged row, as the client saw it; the rest of it after promote is the "
    "client's own reconnection. detect: until a node saw the leader key free (with a silent host that is the lease, "
    "ttl) or the server gone; in the switchover, until the old primary had stopped and released the key. decide: until "
    "the promotion or the start was ordered. promote: until the server accepted writes.",
    f"The {servers.UNSENT_ROWS} rows that were written while the WAL senders were frozen reached no standby, and were "
    "lost with their node on purpose: that is what asynchronous replication may lose. The writer was paused meanwhile, "
    "so they are not among its rows.",
)


class TourFailed(MatriarchError):
    """Something did not come about within its time."""


async def run_tour(cluster: DemoCluster, watcher: Watcher, teller: Teller) -> int:
    """Tells the whole story; 0 when everything held, else 1. Raises: MatriarchError when it cannot go on."""
    return await Tour(cluster, watcher, teller).run()


class Tour:
    """One telling of the story."""

    def __init__(self, cluster: DemoCluster, watcher: Watcher, teller: Teller) -> None:
        self._cluster, self._watcher, self._teller = cluster, watcher, teller
        self._plan = cluster.plan
        self._writer = Writer(cluster.plan)
        self._faults: list[Fault] = []
        self._checks: list[Check] = []
        self._began_ms = now_ms()

    async def run(self) -> int:
        """From the empty directory to the verdict."""
        self._say("starting one etcd and three agents, each a process with a data directory of its own")
        await self._cluster.start()
        await self._until(lambda picture: picture.is_settled, "one primary and two streaming standbys", START_TIMEOUT_S)
        async with self._writing():
            await self._kill_the_node()
            await self._kill_the_server()
            await self._switch_over()
            await self._until_rows(ROWS_AFTER_A_FAULT)
        await self._check_the_data()
        await self._check_the_standing()
        self._say("stopping everything, then deciding every log entry again")
        with anyio.CancelScope(shield=True):
            await self._cluster.stop()
        verdict = await anyio.to_thread.run_sync(self._judge)
        self._teller.show(verdict_view(verdict))
        return 0 if verdict.holds else 1

    # ---- the faults -------------------------------------------------------------------------------------------------

    async def _kill_the_node(self) -> None:
        old = self._primary()
        self._say(f"1. {old} is the primary; its node will be killed: agent, fence and server (kill -9)")
        await self._write_what_nobody_receives()
        fault_ms = now_ms()
        self._cluster.node(old).crash()
        self._writer.resume()
        new = await self._until_written("another primary", lambda name: name != old)
        self._note("node killed", old, new, fault_ms, measure.frees_the_leader_key, was_paused=True)
        self._say(f"   {old} comes back: its data went another way, so pg_rewind has work to do")
        back_ms = now_ms()
        self._cluster.node(old).bring_back()
        await self._until(lambda picture: picture.is_settled, f"{old} to stream from {new}", FAULT_TIMEOUT_S)
        has_rewound = measure.came_back_by_rewind(await self._entries(), old, back_ms)
        self._check(f"{old} came back through pg_rewind", has_rewound, "rewound" if has_rewound else "no rewind logged")

    async def _write_what_nobody_receives(self) -> None:
        self._writer.pause()
        if not await anyio.to_thread.run_sync(servers.wait_until_level, self._plan):
            raise TourFailed("the standbys did not catch up with the primary")
        for pid in await anyio.to_thread.run_sync(servers.sender_pids, self._plan):
            processes.send(pid, signal.SIGSTOP)
        await anyio.to_thread.run_sync(servers.write_unsent, self._plan)
        self._say(f"   with its WAL senders frozen it commits {servers.UNSENT_ROWS} rows that reach no standby")

    async def _kill_the_server(self) -> None:
        old = self._primary()
        self._say(f"2. only the server of {old} is killed (kill -9 of the postmaster)")
        await self._until_rows(ROWS_AFTER_A_FAULT)
        fault_ms = now_ms()
        self._cluster.node(old).crash_server()
        new = await self._until_written("a primary again", lambda name: bool(name))
        self._note("server killed", old, new, fault_ms, measure.ends_the_server)
        await self._until(lambda picture: picture.is_settled, "all three to stream again", FAULT_TIMEOUT_S)

    async def _switch_over(self) -> None:
        old = self._primary()
        new = next(member.name for member in self._watcher.picture.members if member.name != old)
        self._say(f"3. a planned switchover from {old} to {new}")
        await self._until_rows(ROWS_AFTER_A_FAULT)
        fault_ms = now_ms()
        answer = await self._watcher.switch_over(new)
        self._say(f"   POST /switchover: {answer}")
        await self._until_written(f"{new} as primary", lambda name: name == new)
        self._note("switchover", old, new, fault_ms, measure.frees_the_leader_key)
        await self._until(lambda picture: picture.is_settled, f"{old} to stream from {new}", FAULT_TIMEOUT_S)

    def _note(
        self, what: str, old: str, new: str, fault_ms: int, notices: Notices, *, was_paused: bool = False
    ) -> None:
        fault = Fault(
            what=what,
            before=old,
            after=new,
            at_ms=fault_ms,
            until_ms=now_ms(),
            was_paused=was_paused,
            notices=notices,
        )
        self._faults.append(fault)
        gap_ms = measure.longest_gap_ms(self._instants(), fault)
        self._say(f"   {new} accepts writes; {gap_ms} ms without an acknowledged row")

    # ---- waiting ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(servers.make_tables, self._plan)
        self._writer.start()
        try:
            await self._until_rows(FIRST_ROWS)
            self._say("a client writes row after row, and remembers which were acknowledged")
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._writer.stop)

    async def _until(self, is_so: Callable[[ClusterPicture], bool], what: str, timeout_s: float) -> ClusterPicture:
        """The first picture in which it is so. Raises: TourFailed when that takes too long."""
        with anyio.move_on_after(timeout_s):
            while True:
                before, picture = self._watcher.picture, await self._watcher.look()
                self._tell_changes(before, picture)
                if is_so(picture):
                    return picture
                await anyio.sleep(LOOK_EVERY_S)
        raise TourFailed(f"waited {timeout_s:.0f} s in vain for {what}; {self._last_words()}")

    async def _until_written(self, what: str, is_wanted: Callable[[str], bool]) -> str:
        """The primary's name, once it is a wanted one and rows were acknowledged since this call."""
        rows = len(self._writer.acknowledged) + ROWS_AFTER_A_FAULT // 10
        picture = await self._until(
            lambda seen: _is_primary(seen, is_wanted) and len(self._writer.acknowledged) > rows,
            what,
            FAULT_TIMEOUT_S,
        )
        assert picture.primary is not None
        return picture.primary.name

    async def _until_rows(self, count: int) -> None:
        wanted = len(self._writer.acknowledged) + count
        await self._until(lambda _: len(self._writer.acknowledged) >= wanted, f"{count} rows", FAULT_TIMEOUT_S)

    def _tell_changes(self, before: ClusterPicture, after: ClusterPicture) -> None:
        for node in self._cluster.nodes:
            node.check()
        for line in changed_lines(before, after):
            self._say(f"     {line}")
        if after.is_settled and not before.is_settled:
            self._say(f"     {headline(after)}")

    def _last_words(self) -> str:
        return "; ".join(f"{node.name}: {node.last_lines()!r}" for node in self._cluster.nodes)

    def _primary(self) -> str:
        primary = self._watcher.picture.primary
        if primary is None:
            raise TourFailed("there is no primary")
        return primary.name

    def _say(self, line: str) -> None:
        self._teller.say(line)

    # ---- the verdict ------------------------------------------------------------------------------------------------

    def _check(self, what: str, holds: bool, found: str) -> None:
        self._checks.append(Check(what=what, holds=holds, found=found))

    def _instants(self) -> list[int]:
        return [row.at_ms for row in self._writer.acknowledged]

    async def _entries(self) -> list[Entry]:
        return await anyio.to_thread.run_sync(self._read_entries)

    def _read_entries(self) -> list[Entry]:
        directories = [node.log_dir for node in self._cluster.nodes]
        return [decode_entry(line.body) for line in read_log(directories) if line.kind == "entry"]

    async def _check_the_data(self) -> None:
        await anyio.to_thread.run_sync(servers.wait_until_level, self._plan)
        acknowledged = {row.row_id for row in self._writer.acknowledged}
        unsent: dict[str, int] = {}
        for node in self._plan.nodes:
            ids, unsent[node.name] = await anyio.to_thread.run_sync(servers.rows_of, self._plan, node)
            missing = len(acknowledged - ids)
            found = f"{len(acknowledged)} acknowledged, {missing} missing"
            self._check(f"every acknowledged row is on {node.name}", missing == 0 and bool(acknowledged), found)
        found = ", ".join(f"{name} has {count}" for name, count in unsent.items())
        self._check("the rows that never left the killed node are nowhere", not any(unsent.values()), found)

    async def _check_the_standing(self) -> None:
        standings = [await anyio.to_thread.run_sync(servers.standing_of, self._plan, node) for node in self._plan.nodes]
        timelines = {standing.timeline for standing in standings}
        holds = len(timelines) == 1 and None not in timelines and sum(s.is_primary for s in standings) == 1
        roles = (f"{s.name} {'primary' if s.is_primary else 'standby'} on timeline {s.timeline}" for s in standings)
        self._check("one primary, all three on one timeline", holds, ", ".join(roles))

    def _judge(self) -> Verdict:
        entries = self._read_entries()
        for node in self._cluster.nodes:
            found = replay_verdict(node.log_dir)
            self._check(f"the log of {node.name} replays without a difference", not found[0], found[1])
        seconds = (now_ms() - self._began_ms) / 1000
        title = f"matriarch demo, the tour: ttl {self._watcher.picture.ttl_s} s, {seconds:.0f} s in all"
        return Verdict(title=title, outages=self._outages(entries), checks=tuple(self._checks), notes=NOTES)

    def _outages(self, entries: list[Entry]) -> tuple[Outage, ...]:
        instants = self._instants()
        return tuple(
            Outage(
                fault=fault.what,
                before=fault.before,
                after=fault.after,
                downtime_ms=measure.longest_gap_ms(instants, fault),
                phases=measure.phases(entries, fault),
            )
            for fault in self._faults
        )


def _is_primary(picture: ClusterPicture, is_wanted: Callable[[str], bool]) -> bool:
    return picture.primary is not None and is_wanted(picture.primary.name)


def replay_verdict(directory: Path) -> tuple[bool, str]:
    """Whether deciding a node's log again gave something else, and what was found, in one line."""
    replay = Replay()
    try:
        for line in read_log([directory]):
            if replay.take(line.kind, line.body, line.missing) is not None:
                break
    except (LogCorrupt, LogUnavailable) as error:
        return True, str(error)
    verdict = replay.verdict
    if verdict.difference is not None:
        return True, f"entry {verdict.difference.seq} differs in {verdict.difference.part}"
    return not verdict.entries, f"{verdict.entries} entries, {verdict.moves} moves"
