"""The newest snapshot of this node, published after every step. Readers never wait for anything but the next one."""

import anyio
from msgspec import Struct

from fsm.view import View


class Progress(Struct, frozen=True, kw_only=True):
    """How far long work on the data directory is. `bytes_total` is an estimate, 0 while there is none."""

    work: str
    bytes_done: int
    bytes_total: int
    phase: str = ""
    """Which part of the work it is at, in the words of its module."""
    source: str = ""
    """The member that is copied."""


class Published(Struct, frozen=True, kw_only=True):
    """What a reader sees: what the node knows, and how often its server should be looked at."""

    view: View
    probe_every_ms: int | None = None
    is_log_degraded: bool = False
    loop_lag_ms: int = 0
    progress: Progress | None = None
    """What a base backup or pg_rewind under way has done; None while there is none. It decides nothing."""


class Board:
    """Holds the newest snapshot; one writer, any number of readers."""

    def __init__(self) -> None:
        self.current = Published(view=View())
        self._changed = anyio.Event()

    def publish(self, published: Published) -> None:
        """Replace the snapshot and wake everybody who waits for a change."""
        self.current = published
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> Published:
        """The next snapshot that is published after this call."""
        await self._changed.wait()
        return self.current
