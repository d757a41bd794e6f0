"""Around every kind of demo: the workspace, the cluster, the signals that end it, and an end that leaves nothing."""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from api.cli.demo.cluster import DemoCluster
from api.cli.demo.watcher import Watcher
from api.cli.demo.workspace import open_workspace
from effects.embedded import etcd_binary, postgres_bin_dir
from effects.errors import MatriarchError

Story = Callable[[DemoCluster, Watcher], Awaitable[int]]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_session(story: Story, *, postgres: str | None, keep: Path | None, told_status: int) -> int:
    """Runs one story on a fresh or kept cluster, and ends every process and file of it, however it goes.

    Args:
        story: what to do with the cluster; returns the exit status.
        postgres: "16", "18" or a directory of PostgreSQL's programs; None for the default.
        keep: a directory to keep; None for a temporary one.
        told_status: the exit status when a signal ends the story.

    Raises: ConfigError, MatriarchError.
    """
    postgres_bin_dir(postgres)  # missing programs are told before anything is made
    etcd_binary()
    status, failure = told_status, None
    async with anyio.create_task_group() as tasks:
        told = anyio.CancelScope()
        # The receiver outlives the story: a second Ctrl-C must not break off the cleaning.
        await tasks.start(_cancel_on_signal, told)
        try:
            with told:
                status = await _run(story, postgres, keep)
        except MatriarchError as error:
            failure = error  # raised here it would come out as an exception group
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return status


async def _run(story: Story, postgres: str | None, keep: Path | None) -> int:
    workspace = await anyio.to_thread.run_sync(open_workspace, keep)
    try:
        await anyio.to_thread.run_sync(workspace.find_postgres, postgres)
        cluster = DemoCluster(workspace)
        try:
            async with Watcher(cluster) as watcher:
                return await story(cluster, watcher)
        finally:
            with anyio.CancelScope(shield=True):
                await cluster.stop()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(workspace.close)


async def _cancel_on_signal(
    scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
    with anyio.open_signal_receiver(*heeded) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
