"""Performs the effects on this node's PostgreSQL server and its data directory."""

import logging
from collections.abc import Callable
from functools import partial

import anyio
from anyio import to_thread

from effects.board import Progress
from effects.clock import now_ms, wall_time
from effects.clone import CloneProgress, clone
from effects.errors import FenceUnavailable, PostgresError
from effects.lanes import Lane, Report
from effects.parameters import HBA, ParameterCheck, Usable, too_low_for_its_wal
from effects.postgres import PostgresServer
from effects.processes import are_doomed, end_leftovers, kill_server, running_postmaster, server_processes
from effects.rewind import RewindProgress, rewind
from effects.server_settings import ServerSettings
from effects.sources import FenceSource
from effects.timelines import read_leader_history
from effects.waiting import end_stale_senders, put_names_in_force, read_mark, write_names
from fsm import effects as do
from fsm.dynamic import Dynamic
from fsm.events import (
    AnyResult,
    DirectoryRead,
    Done,
    FenceArmed,
    HistoryRead,
    ParametersApplied,
    ReplayNeedsRead,
    ServerDoomed,
    ServerStarted,
    SyncMarked,
    WatchdogFed,
)

logger = logging.getLogger(__name__)

DOOM_LOOK_MS = 500
"""How often a server that does not go is looked at, whether it ever will."""

OnProgress = Callable[[Progress | None], None]


class Server:
    """One server, its fence and its directory; `dynamic` gives the cluster's configuration as it is now."""

    def __init__(
        self, settings: ServerSettings, fence: FenceSource, dynamic: Callable[[], Dynamic], on_progress: OnProgress
    ) -> None:
        self._settings, self._fence, self._dynamic = settings, fence, dynamic
        self._on_progress = on_progress
        self._check = ParameterCheck()
        self._report: Report = lambda _: None

    def lanes(self, report: Report) -> list[Lane]:
        """Four lanes: the fence waits for nothing, nor do names that clients wait for; the server not for SQL."""
        self._report = report
        return [
            Lane(
                "fence",
                {
                    do.ArmFence: self.arm,
                    do.DisarmFence: self.disarm,
                    do.FeedWatchdog: self.feed_watchdog,
                    do.ReleaseWatchdog: self.release_watchdog,
                    do.FenceServer: self.stop,
                    do.EndLeftovers: self.end_leftovers,
                    do.StopServer: self.stop,
                },
                report,
            ),
            Lane(
                "server",
                {
                    do.ReadDataDirectory: self.read_directory,
                    do.InitDb: self.init_db,
                    do.StopToRestart: self.stop,
                    do.StartPrimary: self.start_primary,
                    do.StartStandby: self.start_standby,
                    do.Follow: self.follow,
                    do.ReloadServer: self.reload,
                    do.ApplyParameters: self.apply_parameters,
                    do.Promote: self.promote,
                    do.ClearDataDirectory: self.clear_directory,
                    do.Clone: self.clone,
                    do.Rewind: self.rewind,
                },
                report,
            ),
            Lane(
                "names",
                {
                    do.SetSyncNames: self.set_sync_names,
                    do.ReleaseSyncNames: self.release_sync_names,
                    do.EndStaleSenders: self.end_stale_senders,
                },
                report,
            ),
            Lane(
                "sql",
                {
                    do.ReadSyncMark: self.read_sync_mark,
                    do.Checkpoint: self.checkpoint,
                    do.ReadReplayNeeds: self.read_replay_needs,
                    do.PrepareCluster: self.prepare_cluster,
                    do.ReadLeaderHistory: self.read_leader_history,
                },
                report,
            ),
        ]

    @property
    def _server(self) -> PostgresServer:
        return PostgresServer(self._settings, self._fence.link)

    async def _usable(self) -> tuple[PostgresServer, Usable]:
        """The server, and the configuration that it can run with as things are now."""
        usable = await self._check.usable(self._settings, self._dynamic())
        return PostgresServer(usable.settings, self._fence.link), usable

    # ---- fence ------------------------------------------------------------------------------------------------------

    async def arm(self, effect: do.ArmFence) -> AnyResult:
        """The deadline, confirmed by the fence."""
        watchdog_s = await self._fence.link.arm(effect.until_ms)
        return FenceArmed(until_ms=effect.until_ms, watchdog_s=watchdog_s)

    async def disarm(self, effect: do.DisarmFence) -> AnyResult:
        """No deadline."""
        await self._fence.link.disarm()
        return Done()

    async def feed_watchdog(self, effect: do.FeedWatchdog) -> AnyResult:
        """A watchdog that the fence feeds, with a timeout that is short enough. Raises: PostgresError."""
        device, link = self._settings.watchdog_device, self._fence.link
        found_s = await link.start_watchdog(device, effect.timeout_s, effect.slack_ms, self._settings.watchdog_driver)
        if found_s > effect.timeout_max_s:
            await link.stop_watchdog(device)
            most = f"at most {effect.timeout_max_s} s would be early enough"
            raise PostgresError(f"{device} counts {found_s} s and takes no other timeout; {most}")
        return WatchdogFed(asked_s=effect.timeout_s, timeout_s=found_s)

    async def release_watchdog(self, effect: do.ReleaseWatchdog) -> AnyResult:
        """No watchdog, also none that a fence before left running."""
        await self._fence.link.stop_watchdog(self._settings.watchdog_device)
        return Done()

    async def stop(self, effect: do.FenceServer | do.StopServer | do.StopToRestart) -> AnyResult:
        """No server: answers when its last process is gone. A fence that does not answer is done without."""
        try:
            await self._fence.link.stop(effect.mode, effect.kill_after_ms)
        except FenceUnavailable as error:
            logger.warning("%s: killing the server without it", error)
            await kill_server(self._settings.data_dir)
            self._fence.tell_gone()
            return Done()
        except PostgresError:
            if (await self._fence.link.status()).pid is not None:
                raise
            return Done()  # it was gone before it was asked to go
        await self._until_gone(is_fencing=isinstance(effect, do.FenceServer))
        return Done()

    async def end_leftovers(self, effect: do.EndLeftovers) -> AnyResult:
        """Nothing left of a server whose postmaster and fence ended together. Raises: OSError."""
        await end_leftovers(self._settings.data_dir, self._settings.program("postgres"))
        return Done()

    async def _until_gone(self, *, is_fencing: bool) -> None:
        """Return when no process is left; of a server that is fenced, also when what is left is as good as gone.

        A process that waits for a disk cannot be killed before that answers, which may be never.
        """
        while True:
            with anyio.move_on_after(DOOM_LOOK_MS / 1000):
                await self._fence.wait_until_gone()
                return
            pid = self._fence.server_pid
            if is_fencing and pid is not None and are_doomed(server_processes(self._settings.data_dir)):
                self._report(ServerDoomed(at_ms=now_ms(), pid=pid))
                return

    # ---- server -----------------------------------------------------------------------------------------------------

    async def read_directory(self, effect: do.ReadDataDirectory) -> AnyResult:
        """What the data directory holds."""
        return DirectoryRead(directory=await self._server.read_data_directory())

    async def init_db(self, effect: do.InitDb) -> AnyResult:
        """A new cluster."""
        await self._server.init_db(timeout_ms=effect.timeout_ms)
        return Done()

    async def start_primary(self, effect: do.StartPrimary) -> AnyResult:
        """A server that will accept writes until its deadline."""
        server, usable = await self._usable()
        await to_thread.run_sync(write_names, self._settings, effect.names.text if effect.names is not None else None)
        pid = await server.start("primary", None, usable.parameters, armed_until_ms=effect.armed_until_ms)
        return ServerStarted(pid=pid)

    async def start_standby(self, effect: do.StartStandby) -> AnyResult:
        """A server in recovery, where no commit waits for anybody."""
        server, usable = await self._usable()
        await to_thread.run_sync(write_names, self._settings, None)
        pid = await server.start("standby", effect.upstream, usable.parameters, armed_until_ms=None)
        return ServerStarted(pid=pid)

    async def follow(self, effect: do.Follow) -> AnyResult:
        """Another upstream."""
        server, usable = await self._usable()
        await server.follow(effect.upstream, usable.parameters)
        return Done()

    async def reload(self, effect: do.ReloadServer) -> AnyResult:
        """Files written anew from the newest settings, and read by the server."""
        server, usable = await self._usable()
        await server.follow(effect.upstream, usable.parameters)
        return Done()

    def take_settings(self, settings: ServerSettings) -> None:
        """Use these from now on: after the node's own settings were read again."""
        self._settings = settings

    async def apply_parameters(self, effect: do.ApplyParameters) -> AnyResult:
        """The running server told of the configuration as it is now, less what PostgreSQL would refuse."""
        if running_postmaster(self._settings.data_dir) != effect.pid:
            raise PostgresError(f"the server with pid {effect.pid} does not run any more")
        server, usable = await self._usable()
        before = server.client_rules()
        await server.follow(effect.upstream, usable.parameters)
        bad_rules = await self._check.keep_good_rules(usable.settings, before)
        refused = usable.refused | ({HBA: bad_rules} if bad_rules else {})
        return ParametersApplied(pid=effect.pid, config_revision=effect.config_revision, refused=refused)

    async def promote(self, effect: do.Promote) -> AnyResult:
        """A promotion under way; the next probe tells when it is done."""
        await self._server.promote(effect.timeline)
        return Done()

    async def clear_directory(self, effect: do.ClearDataDirectory) -> AnyResult:
        """An empty data directory."""
        await self._server.clear_data_directory(keep_aside=effect.keep_aside)
        return Done()

    async def clone(self, effect: do.Clone) -> AnyResult:
        """A base backup of the upstream."""
        source = effect.upstream.name
        self._cloned(source, CloneProgress())
        try:
            await clone(self._settings, effect.upstream, partial(self._cloned, source), timeout_ms=effect.timeout_ms)
        finally:
            self._on_progress(None)
        return Done()

    async def rewind(self, effect: do.Rewind) -> AnyResult:
        """A data directory on the upstream's timeline."""
        _, usable = await self._usable()
        try:
            await rewind(
                usable.settings,
                effect.upstream,
                effect.timeline,
                self._rewound,
                parameters=usable.parameters,
                timeout_ms=effect.timeout_ms,
            )
        finally:
            self._on_progress(None)
        return Done()

    def _cloned(self, source: str, so_far: CloneProgress) -> None:
        self._on_progress(
            Progress(
                work="base backup",
                bytes_done=so_far.bytes_done,
                bytes_total=so_far.bytes_total,
                phase=so_far.phase,
                source=source,
            )
        )

    def _rewound(self, so_far: RewindProgress) -> None:
        self._on_progress(Progress(work="pg_rewind", bytes_done=so_far.bytes_done, bytes_total=so_far.bytes_total))

    # ---- whom commits wait for ---------------------------------------------------------------------------------------

    async def set_sync_names(self, effect: do.SetSyncNames) -> AnyResult:
        """Names in force, as a session of the server shows."""
        await put_names_in_force(self._settings, effect.names.text, effect.timeout_ms)
        return Done()

    async def release_sync_names(self, effect: do.ReleaseSyncNames) -> AnyResult:
        """The operator's own names, at the server's next moment."""
        await put_names_in_force(self._settings, None, effect.timeout_ms)
        return Done()

    async def end_stale_senders(self, effect: do.EndStaleSenders) -> AnyResult:
        """One connection for each of these standbys."""
        await end_stale_senders(self._settings, effect.standbys)
        return Done()

    async def read_sync_mark(self, effect: do.ReadSyncMark) -> AnyResult:
        """Up to where WAL may have been acknowledged under earlier names."""
        names, flushed_lsn = await read_mark(self._settings, is_first=effect.is_first)
        return SyncMarked(names=names, flushed_lsn=flushed_lsn)

    # ---- SQL --------------------------------------------------------------------------------------------------------

    async def checkpoint(self, effect: do.Checkpoint) -> AnyResult:
        """A finished checkpoint."""
        await self._server.checkpoint()
        return Done()

    async def read_replay_needs(self, effect: do.ReadReplayNeeds) -> AnyResult:
        """What of the running standby is lower than its WAL needs."""
        return ReplayNeedsRead(pid=effect.pid, too_low=await too_low_for_its_wal(self._settings))

    async def prepare_cluster(self, effect: do.PrepareCluster) -> AnyResult:
        """The roles of a new cluster."""
        await self._server.prepare_cluster()
        return Done()

    async def read_leader_history(self, effect: do.ReadLeaderHistory) -> AnyResult:
        """How the upstream came to its timeline."""
        left_ms = max(1, effect.timeout_ms)
        history = await read_leader_history(self._settings, effect.upstream, left_ms)
        return HistoryRead(leader=effect.upstream.name, history=history, wall=wall_time())
