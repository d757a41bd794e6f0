"""Signals to this process: none is lost and none ends it unasked, from its first moment to its successor's first.

Handlers that come and go with an event loop leave moments at which a SIGHUP would end the agent.
Source: signal(7), "Signal mask and pending signals"; execve(2), which keeps both.
"""

import asyncio
import signal
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from types import FrameType

import anyio

OF_AGENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""What the agent obeys: stop, stop, read the settings again, become the agent on the disk."""


class Signals:
    """Keeps signals until somebody takes them. One of them in a process, and one reader at a time."""

    def __init__(self, numbers: Sequence[signal.Signals] = OF_AGENT) -> None:
        self._numbers = numbers
        self._noted: deque[int] = deque()
        self._wake: Callable[[], object] | None = None

    def install(self) -> None:
        """Keep them from now on, also those that waited across an exec. Call it from the main thread."""
        for number in self._numbers:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)
        if self._wake is not None:
            self._wake()

    async def each(self) -> AsyncGenerator[signal.Signals, None]:
        """Every signal in its order, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                while self._noted:
                    yield signal.Signals(self._noted.popleft())
                arrived = anyio.Event()
                self._wake = partial(loop.call_soon_threadsafe, arrived.set)
                if not self._noted:
                    await arrived.wait()
        finally:
            self._wake = None

    def hand_on(self) -> None:
        """Those that nobody took, and those that come, wait for whoever installs handlers next, across an exec."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        main = threading.main_thread().ident
        assert main is not None
        while self._noted:
            signal.pthread_kill(main, self._noted.popleft())
