"""A TCP proxy of the tests' own that hands on what it gets after a delay, which can be changed at any time."""

import asyncio
import contextlib
import threading
from typing import Self

from effects.clock import now_ms

CHUNK_BYTES = 65_536


class DelayingProxy:
    """One proxy in a thread of its own, as a context manager. The order of what passes is kept."""

    def __init__(self, host: str, upstream: tuple[str, int]) -> None:
        """Prepares it. host: the address that it listens on. upstream: address and port that it hands on to."""
        self.delay_ms = 0
        """How late answers are handed on to the client."""
        self.endpoint = ""
        self._host, self._upstream = host, upstream
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, self._host, 0))
        host, port = server.sockets[0].getsockname()
        self.endpoint = f"{host}:{port}"
        self._is_ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            there = asyncio.create_task(self._hand_on(reader, up_writer, is_delayed=False))
            back = asyncio.create_task(self._hand_on(up_reader, writer, is_delayed=True))
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            there.cancel()
            back.cancel()
            up_writer.close()
        writer.close()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_delayed: bool) -> None:
        waiting: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due_ms, chunk = await waiting.get()
                await asyncio.sleep(max(0, due_ms - now_ms()) / 1000)
                writer.write(chunk)
                await writer.drain()

        delivering = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK_BYTES):
                    waiting.put_nowait((now_ms() + (self.delay_ms if is_delayed else 0), chunk))
        finally:
            delivering.cancel()
