"""What the tests with real PostgreSQL servers share: nodes with a fence each, and conditions to wait for."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio

from effects.clock import now_ms
from effects.clone import clone
from effects.embedded import free_ports
from effects.errors import PostgresError
from effects.fence_link import FenceLink
from effects.postgres import PostgresServer
from effects.probe import Prober
from effects.programs import RunAs
from effects.server_settings import Login, ServerSettings
from effects.sql import local_connection
from fsm.facts import Probe, Upstream

PATIENCE_MS = 30_000
POLL_S = 0.01

# Passwords that have to be escaped in a password file, a connection string, SQL and a configuration file.
SUPERUSER = Login(username="postgres", password="super:se'cret\\")
REPLICATION = Login(username="Replicator", password="repl:se'cret\\ x")
REWIND = Login(username="rewinder", password='rew"ind %s')


def settings_for(base: Path, name: str, bin_dir: Path, run_as: RunAs | None, port: int) -> ServerSettings:
    """Settings of a node below `base`, with the agent's directory made."""
    state_dir = base / "matriarch" / name
    state_dir.mkdir(parents=True, mode=0o700)
    state_dir.parent.chmod(0o755)
    return ServerSettings(
        scope="demo's",
        name=name,
        data_dir=base / name,
        bin_dir=bin_dir,
        state_dir=state_dir,
        listen_host="127.0.0.1",
        port=port,
        socket_dir=base / f"{name}.s",
        superuser=SUPERUSER,
        replication=REPLICATION,
        rewind=REWIND,
        parameters={"shared_buffers": "16MB"},
        run_as=run_as,
    )


class Node:
    """A server, its fence and its prober."""

    def __init__(self, settings: ServerSettings, fence: FenceLink) -> None:
        self.settings, self.fence = settings, fence
        self.server = PostgresServer(settings, fence)
        self.prober = Prober(settings)

    @property
    def upstream(self) -> Upstream:
        """Where other nodes reach this one."""
        return Upstream(name=self.settings.name, host="127.0.0.1", port=self.settings.port)

    async def become_first_primary(self) -> Probe:
        """Makes a cluster, starts it for writing and prepares it."""
        await self.server.init_db(timeout_ms=PATIENCE_MS)
        with measured("start of a primary until it answers"):
            await self.server.start("primary", None, {}, armed_until_ms=None)
            probe = await self.until(lambda probe: not probe.in_recovery)
        await self.server.prepare_cluster()
        return probe

    async def become_standby_of(self, source: "Node") -> Probe:
        """Clones `source` and streams from it."""
        with measured("clone"):
            await clone(self.settings, source.upstream, ignore_progress, timeout_ms=PATIENCE_MS)
        with measured("start of a standby until it streams"):
            await self.server.start("standby", source.upstream, {}, armed_until_ms=None)
            return await self.until_streaming()

    async def until(self, is_so: Callable[[Probe], bool]) -> Probe:
        """The first probe for which `is_so`; the last error or probe is shown when patience ends."""
        last: object = None
        deadline_ms = now_ms() + PATIENCE_MS
        while now_ms() < deadline_ms:
            try:
                last = probe = await self.prober.probe(2000)
                if is_so(probe):
                    return probe
            except PostgresError as error:
                last = error
            await anyio.sleep(POLL_S)
        raise AssertionError(f"{self.settings.name}: {last}\n{self.output()[-2000:]}")

    async def until_streaming(self, timeline: int | None = None) -> Probe:
        """The first probe of a standby whose receiver streams (from `timeline`)."""
        return await self.until(
            lambda probe: probe.receiver_status == "streaming" and timeline in (None, probe.timeline)
        )

    async def until_replayed(self, lsn: int) -> Probe:
        """The first probe of a standby that has replayed as far as `lsn`."""
        return await self.until(lambda probe: probe.replayed_lsn >= lsn)

    async def promote(self) -> Probe:
        """Promotes and returns the first probe as a primary."""
        with measured("promotion until it is out of recovery"):
            await self.server.promote()
            return await self.until(lambda probe: not probe.in_recovery)

    async def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Runs one statement as the superuser; the rows it gives, if any."""
        async with local_connection(self.settings) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []

    async def stop(self, mode: str = "fast") -> None:
        """Stops the server, if one runs, and returns when nothing of it is left. mode "kill" is a crash."""
        status = await self.fence.status()
        if status.pid is None:
            return
        if mode == "kill":
            await self.fence.arm(now_ms() - 1)
        else:
            await self.fence.stop("immediate" if mode == "immediate" else "fast")
        await until(self.has_ended)

    async def has_ended(self) -> bool:
        """True when nothing of the server is left."""
        return (await self.fence.status()).pid is None

    def output(self) -> str:
        """What the server has printed."""
        path = self.settings.output_file
        return path.read_text() if path.exists() else ""


def ignore_progress(progress: object) -> None:
    """For those who do not want to know."""


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Returns once `is_so`; fails when patience ends."""
    with anyio.fail_after(PATIENCE_MS / 1000):
        while not await is_so():  # noqa: ASYNC110 - what is waited for is in other processes
            await anyio.sleep(POLL_S)


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Prints how long the block took; never asserted."""
    began_ms = now_ms()
    yield
    print(f"{what}: {now_ms() - began_ms} ms")


@asynccontextmanager
async def running_nodes(directory: Path, bin_dir: Path, run_as: RunAs | None, *names: str) -> AsyncIterator[list[Node]]:
    """Nodes with a fence each and nothing made yet; all of it is stopped and ended afterwards."""
    base = directory / uuid.uuid4().hex[:8]
    base.mkdir(mode=0o755)
    nodes: list[Node] = []
    async with anyio.create_task_group() as tasks:
        try:
            for name, port in zip(names, free_ports(len(names)), strict=True):
                settings = settings_for(base, name, bin_dir, run_as, port)
                fence = await FenceLink.connect_or_start(settings.state_dir)
                await tasks.start(fence.run)
                nodes.append(Node(settings, fence))
            yield nodes
        finally:
            with anyio.CancelScope(shield=True):
                for node in nodes:
                    await _end(node)
            tasks.cancel_scope.cancel()


async def _end(node: Node) -> None:
    node.prober.close()
    await node.stop("immediate")
    await node.fence.quit()
    await node.fence.aclose()
