"""Where events come from by themselves: the etcd watch, the server's probes, the fence's notices."""

import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Any

import anyio

from effects.board import Board
from effects.clock import now_ms, unix_ms
from effects.errors import EtcdError, FenceUnavailable, MatriarchError, ServerMute, ServerStarting, WatchCompacted
from effects.etcd import EtcdClient
from effects.etcd_types import KeyChange as WatchedChange
from effects.fence_link import Exited, FenceLink, FenceNotice, Fired, LastFired, Lost, Spawned
from effects.keys import as_change
from effects.lanes import Report
from effects.probe import Prober
from effects.pulse import Pulse
from effects.redaction import without_secrets
from fsm.dynamic import is_configuration
from fsm.events import (
    ClusterRead,
    EtcdLost,
    FenceConnected,
    FenceLost,
    KeysChanged,
    ServerExited,
    ServerProbed,
    ServerSilent,
    ServerSpawned,
)
from fsm.facts import FenceKill, KeyChange

READ_TIMEOUT_MS = 3_000
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 2.0
PROBE_TIMEOUT_MS = 2_500

logger = logging.getLogger(__name__)


class EtcdSource:
    """Reads the cluster's keys and then hears of every change; begins anew whenever the watch breaks."""

    def __init__(
        self,
        client: EtcdClient,
        prefix: str,
        report: Report,
        progress_every_ms: Callable[[], int],
        on_config: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """on_config: called with the text of the `config` key, secrets and all, whenever it was read or changed."""
        self._client, self._prefix, self._report = client, prefix, report
        self._progress_every_ms, self._on_config = progress_every_ms, on_config
        self.config: str | None = None
        """The dynamic configuration as it stands in etcd, secrets and all; never in an event."""
        self.config_revision = 0
        self.last_config: str | None = None
        """The one that etcd held last, whether or not it holds it still: in force until there is another."""

    async def run(self) -> None:
        """Watch until cancelled."""
        pause_s = RETRY_FIRST_S
        told = ""
        while True:
            try:
                read = await self._client.read_prefix(self._prefix, timeout_ms=READ_TIMEOUT_MS)
                self.config, self.config_revision = None, 0  # unless it is among what was read
                keys = tuple(self._heard(as_change(self._prefix, key)) for key in read.keys)
                self._report(ClusterRead(at_ms=now_ms(), revision=read.revision, keys=keys, unix_ms=unix_ms()))
                pause_s, told = RETRY_FIRST_S, ""
                await self._follow(read.revision)
            except WatchCompacted:
                continue
            except EtcdError as error:
                if str(error) != told:
                    told = str(error)
                    self._report(EtcdLost(at_ms=now_ms(), detail=told))
                await anyio.sleep(pause_s)
                pause_s = min(RETRY_MOST_S, pause_s * 2)

    async def _follow(self, revision: int) -> None:
        """Report changes until the watch breaks; then all is read anew, for the machine asks what is true now."""
        self._client.expect_progress(self._progress_every_ms())
        async with contextlib.aclosing(self._client.watch(self._prefix, revision + 1)) as batches:
            async for batch in batches:
                if batch.changes:
                    changes = tuple(self._heard(self._as_fact(change)) for change in batch.changes)
                    self._report(
                        KeysChanged(at_ms=now_ms(), revision=batch.revision, changes=changes, unix_ms=unix_ms())
                    )
                self._client.expect_progress(self._progress_every_ms())  # the ttl may have changed

    def _heard(self, change: KeyChange) -> KeyChange:
        """The change as it may be logged; the configuration itself is kept for those who must write it."""
        if change.key == "config":
            self.config_revision = change.mod_revision
            self._take_config(change.value)
        return without_secrets(change)

    def _take_config(self, text: str | None) -> None:
        if text is None or is_configuration(text):
            self.config, self.last_config = text, text or self.last_config
            self._on_config(text)
        else:
            logger.error("the config key in etcd holds no JSON object; what was in force before stays in force")

    def _as_fact(self, change: WatchedChange) -> KeyChange:
        return KeyChange(
            key=change.key.removeprefix(self._prefix),
            value=change.value,
            mod_revision=change.mod_revision,
            create_revision=change.create_revision,
            lease_id=change.lease_id,
        )


class ProbeSource:
    """Looks at the server as often as the newest snapshot asks for."""

    def __init__(self, board: Board, prober: Prober, report: Report, pulse: Pulse) -> None:
        self._board, self._prober, self._report, self._pulse = board, prober, report, pulse

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            pid = self._board.current.view.server.pid
            if self._board.current.probe_every_ms is None or pid is None:
                await self._board.changed()
                continue
            began_ms = now_ms()
            await self._probe(pid, began_ms)
            await self._until_due(pid, began_ms)

    async def _probe(self, pid: int, began_ms: int) -> None:
        try:
            probe = await self._prober.probe(PROBE_TIMEOUT_MS)
        except ServerStarting as error:
            self._report(ServerSilent(at_ms=now_ms(), pid=pid, detail=str(error), starting=True))
        except ServerMute as error:
            lag_ms = self._pulse.worst_ms(began_ms)
            self._report(
                ServerSilent(at_ms=now_ms(), pid=pid, detail=str(error), mute=True, began_ms=began_ms, lag_ms=lag_ms)
            )
        except MatriarchError as error:
            self._report(ServerSilent(at_ms=now_ms(), pid=pid, detail=str(error)))
        else:
            self._report(ServerProbed(at_ms=now_ms(), pid=pid, probe=probe, took_ms=now_ms() - began_ms))

    async def _until_due(self, pid: int, began_ms: int) -> None:
        """Wait out the pause, which a new snapshot may shorten, or end when there is another server."""
        while True:
            current = self._board.current
            if current.probe_every_ms is None or current.view.server.pid != pid:
                return
            left_ms = began_ms + current.probe_every_ms - now_ms()
            if left_ms <= 0:
                return
            with anyio.move_on_after(left_ms / 1000):
                await self._board.changed()


class FenceSource:
    """Keeps a connection to the fence, which it starts if there is none, and tells what the fence notices."""

    def __init__(
        self,
        connect: Callable[[], Any],
        find_postmaster: Callable[[], int | None],
        find_leftovers: Callable[[], list[int]],
        report: Report,
    ) -> None:
        """find_leftovers: gives the processes of a server that has no postmaster any more."""
        self._connect, self._report = connect, report
        self._find_postmaster, self._find_leftovers = find_postmaster, find_leftovers
        self._pid: int | None = None
        self._link: FenceLink | None = None
        self._gone = anyio.Event()
        self._is_server_running = False
        self._fired: Fired | None = None

    @property
    def link(self) -> FenceLink:
        """The connection. Raises: FenceUnavailable while there is none."""
        if self._link is None:
            raise FenceUnavailable("there is no connection to the fence")
        return self._link

    @property
    def server_pid(self) -> int | None:
        """The postmaster of the server that the fence holds, or held when it was last heard; None if there is none."""
        return self._pid

    async def wait_until_gone(self) -> None:
        """Return when no process of a server is left."""
        while self._is_server_running:
            await self._gone.wait()

    async def run(self) -> None:
        """Connect, and again whenever the connection breaks, until cancelled."""
        while True:
            try:
                link: FenceLink = await self._connect()
            except FenceUnavailable as error:
                self._report(FenceLost(at_ms=now_ms(), detail=str(error)))
                await anyio.sleep(0.5)
                continue
            async with link:
                await self._serve(link)
            await anyio.sleep(0.05)

    async def _serve(self, link: FenceLink) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.run)
            try:
                status = await link.status()
            except MatriarchError as error:
                self._report(FenceLost(at_ms=now_ms(), detail=str(error)))
                tasks.cancel_scope.cancel()
                return
            self._link = link
            adopted = None if status.pid is not None else await self._adopt(link)
            self._set_running(status.pid or adopted)
            leftovers = 0 if status.pid or adopted else len(self._find_leftovers())
            self._report(
                FenceConnected(
                    at_ms=now_ms(),
                    pid=status.pid or adopted,
                    armed_until_ms=status.armed_until_ms,
                    is_adopted=adopted is not None or status.is_adopted,
                    watchdog_s=status.watchdog_s,
                    lacks=status.lacks,
                    kill=_as_fact(status.fired),
                    leftovers=leftovers,
                )
            )
            async for notice in link.notices():
                self._take(notice)
            self._link = None
            tasks.cancel_scope.cancel()

    async def _adopt(self, link: FenceLink) -> int | None:
        """A server that runs although this fence did not start it: what an earlier fence left, or a person started."""
        pid = self._find_postmaster()
        if pid is None:
            return None
        try:
            await link.adopt(pid, None)
        except MatriarchError:
            return None  # it was just ending
        return pid

    def tell_gone(self) -> None:
        """Tell what the fence could not: that no process of its server is left."""
        if self._pid is not None:
            pid, at_ms = self._pid, now_ms()
            self._set_running(None)
            self._report(ServerExited(at_ms=at_ms, pid=pid, signal=signal.SIGKILL, exited_at_ms=at_ms))

    def _take(self, notice: FenceNotice) -> None:
        match notice:
            case Spawned():
                self._set_running(notice.pid)
                self._report(ServerSpawned(at_ms=now_ms(), pid=notice.pid))
            case Fired():
                self._fired = notice
            case Exited():
                self._set_running(None)
                self._report(
                    ServerExited(
                        at_ms=now_ms(),
                        pid=notice.pid,
                        status=notice.status,
                        signal=notice.signal,
                        fired=self._fired is not None,
                        exited_at_ms=notice.at_ms,
                        gone_at_ms=notice.gone_at_ms,
                        killed=notice.leftovers_killed,
                        kill=_as_fact(self._fired),
                    )
                )
                self._fired = None
            case Lost():
                self._set_running(None)
                self._report(FenceLost(at_ms=now_ms(), detail=notice.reason))

    def _set_running(self, pid: int | None) -> None:
        self._pid, self._is_server_running = pid, pid is not None
        if pid is None:
            self._gone.set()
            self._gone = anyio.Event()


def _as_fact(fired: Fired | LastFired | None) -> FenceKill | None:
    """What the fence says of a kill, as it is logged."""
    if fired is None:
        return None
    return FenceKill(
        armed_until_ms=fired.armed_until_ms,
        at_ms=fired.at_ms,
        gone_at_ms=fired.gone_at_ms,
        processes=fired.processes,
        killed=fired.killed,
    )
