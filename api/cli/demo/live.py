"""The demo in a terminal: a view that redraws in place, and keys that break and mend the cluster."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import anyio
import anyio.abc
from rich.console import Console
from rich.live import Live

from api.cli.demo.cluster import DemoCluster
from api.cli.demo.keys import HANGUP, Keys
from api.cli.demo.picture import ClusterPicture
from api.cli.demo.view import log_screen, screen
from api.cli.demo.watcher import Watcher
from api.cli.lines import is_worth_showing
from effects.errors import ProgramFailed

LOOK_EVERY_S = 0.3
PAGE_LINES = 10


class LiveView:
    """What the person at the terminal sees and does."""

    def __init__(self, cluster: DemoCluster, watcher: Watcher, console: Console) -> None:
        self._cluster, self._watcher, self._console = cluster, watcher, console
        self._chosen: str | None = None
        self._message = "three agents are starting, each with a server of its own"
        self._is_log_open = False
        self._back = 0
        self._is_over = anyio.Event()
        self._tasks: anyio.abc.TaskGroup

    async def run(self) -> int:
        """Shows the cluster until the person leaves; the exit status. Raises: MatriarchError when an agent gives up."""
        await self._cluster.start()
        failure: Exception | None = None
        live = Live(console=self._console, screen=True, auto_refresh=False)
        with Keys() as keys, _closed_after(live):
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._take_keys, keys)
                try:
                    await self._show(live)
                except Exception as error:  # noqa: BLE001 - raised below, outside the task group
                    failure = error
                self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return 0

    async def _show(self, live: Live) -> None:
        while not self._is_over.is_set():
            picture = await self._watcher.look()
            self._check_agents()
            self._choose_first(picture)
            self._draw(live)
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._is_over.wait()

    def _check_agents(self) -> None:
        """An agent that gives up ends the demo while there is nothing to see yet; later it is part of the story."""
        for node in self._cluster.nodes:
            try:
                node.check()
            except ProgramFailed as error:
                if self._chosen is None:
                    raise
                self._message = str(error)

    def _choose_first(self, picture: ClusterPicture) -> None:
        if self._chosen is None and picture.primary is not None:
            self._chosen = picture.primary.name
            self._message = "the keys act on the member with the mark"

    def _draw(self, live: Live) -> None:
        height = self._console.size.height
        picture = self._watcher.picture
        if self._is_log_open:
            entries = [entry for entry in picture.news if is_worth_showing(entry)]
            self._back = min(self._back, max(0, len(entries) - 1))
            view = log_screen(entries, back=self._back, height=height)
        else:
            view = screen(
                picture,
                chosen=self._chosen,
                message=self._message,
                how_to_connect=how_to_connect(self._cluster),
                height=height,
            )
        try:
            live.update(view, refresh=True)
        except OSError:
            self._is_over.set()  # the terminal was closed

    # ---- keys -------------------------------------------------------------------------------------------------------

    async def _take_keys(self, keys: Keys) -> None:
        async for key in keys.pressed():
            if key in ("q", HANGUP):
                self._is_over.set()
                return
            self._take(key)

    def _take(self, key: str) -> None:
        actions: dict[str, Callable[[], None]] = {
            "c": self._crash,
            "f": self._freeze,
            "b": self._bring_back,
            "s": self._switch_over,
            "l": self._toggle_log,
            "up": functools.partial(self._scroll, 1),
            "down": functools.partial(self._scroll, -1),
            "page up": functools.partial(self._scroll, PAGE_LINES),
            "page down": functools.partial(self._scroll, -PAGE_LINES),
        }
        if key.isdecimal() and 0 < int(key) <= len(self._cluster.nodes):
            self._chosen = self._cluster.nodes[int(key) - 1].name
        elif key in actions:
            actions[key]()

    def _crash(self) -> None:
        if self._chosen:
            had_any = bool(self._cluster.node(self._chosen).leftovers())
            self._cluster.node(self._chosen).crash()
            done = (
                "agent, fence and server were killed (kill -9)" if had_any else "nothing of it runs; b brings it back"
            )
            self._message = f"{self._chosen}: {done}"

    def _freeze(self) -> None:
        if self._chosen:
            node = self._cluster.node(self._chosen)
            node.freeze()
            frozen = "the agent is frozen (SIGSTOP); its fence holds the server to the lease"
            self._message = f"{self._chosen}: {frozen if node.agent_pid else 'no agent runs that could be frozen'}"

    def _bring_back(self) -> None:
        if self._chosen:
            node = self._cluster.node(self._chosen)
            was_up = node.agent_pid is not None and not node.is_frozen
            node.bring_back()
            self._message = f"{self._chosen}: {'its agent runs already' if was_up else 'brought back'}"

    def _switch_over(self) -> None:
        primary = self._watcher.picture.primary
        candidate = self._chosen if primary is not None and self._chosen != primary.name else None
        self._message = f"switchover to {candidate or 'any standby'} ..."
        self._tasks.start_soon(self._ask_for_switchover, candidate)

    async def _ask_for_switchover(self, candidate: str | None) -> None:
        self._message = f"switchover: {await self._watcher.switch_over(candidate)}"

    def _toggle_log(self) -> None:
        self._is_log_open, self._back = not self._is_log_open, 0

    def _scroll(self, lines: int) -> None:
        self._back = max(0, self._back + lines)


def how_to_connect(cluster: DemoCluster) -> str:
    """A line that tells how to reach the primary, wherever it is."""
    ports = ",".join(str(node.postgres_port) for node in cluster.plan.nodes)
    hosts = ",".join("127.0.0.1" for _ in cluster.plan.nodes)
    url = f"host={hosts} port={ports} user=postgres target_session_attrs=read-write"
    return f'psql "{url}" (password in {cluster.workspace.root}/demo.json)'


@contextlib.contextmanager
def _closed_after(live: Live) -> Iterator[None]:
    """Starts the view, and ends it even when the terminal is gone."""
    live.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            live.stop()
