"""Serves the API with uvicorn inside the agent's own event loop: no process, thread or signal handler of its own."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.types import ASGIApp

from api.access import CERTIFIED
from api.quick import QuickProtocol
from api.tls import ApiTls
from effects.errors import ConfigError

BACKLOG = 4096
"""Connections that may wait while nobody takes them: a restart in place may take seconds on a busy machine."""
LEAVE_WITHIN_S = 0.3
"""How long answers under way may take once the API ends; streams and long waits are then cut."""
HANDSHAKE_S = 0.05
"""How long a TLS handshake may take before its connection is known, and then has a request on the way."""
POLL_S = 0.005
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves the process's signals alone and can be ended by cancelling it."""

    def __init__(self, config: uvicorn.Config, tell_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = tell_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def main_loop(self) -> None:
        """Wait to be cancelled. uvicorn would wake up ten times a second, for limits and headers that are not used."""
        await self.on_tick(0)
        await anyio.sleep_forever()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        return nullcontext()

    async def close(self, finish_within_s: float) -> None:
        """Take no more requests, give everybody who waits for an answer the time to get it, then cut off.

        A connection that was just taken has its request on the way: closed now, it would be reset. A stream is cut: it
        has begun long ago and has no end.
        """
        for server in getattr(self, "servers", []):
            server.close()
        with anyio.move_on_after(finish_within_s):
            await self._until_nobody_waits()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait_for_tasks()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in self.server_state.tasks:
            task.cancel()
        await self._wait_for_tasks()

    async def _until_nobody_waits(self) -> None:
        """Return when every connection has had its answer begun; those that shake hands are not known yet."""
        await anyio.sleep(HANDSHAKE_S)
        while any(_is_waiting(found) for found in self.server_state.connections):  # noqa: ASYNC110 - uvicorn's own
            await anyio.sleep(POLL_S)

    async def _wait_for_tasks(self) -> None:
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=LEAVE_WITHIN_S)


def _is_waiting(connection: object) -> bool:
    """True for a connection that has not brought a request yet, or was not answered yet."""
    cycle = getattr(connection, "cycle", None)
    return cycle is None or not (cycle.response_complete or cycle.response_started)


class _Protocol(QuickProtocol):
    """uvicorn's HTTP, which also notes whether the client showed a certificate."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # The context takes only certificates that `restapi.cafile` vouches for.
        certificate = self.transport.get_extra_info("peercert")
        self.scope["state"] = {**self.scope.get("state", {}), CERTIFIED: bool(certificate)}


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    tls: ApiTls | None = None,
    *,
    sockets: Sequence[socket.socket] = (),
    finish_within_s: Callable[[], float] = lambda: LEAVE_WITHIN_S,
    task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `task_status` tells the port once connections are taken.

    Args:
        app: the ASGI application.
        host: a name or an address to listen on; "" or "*" for all of them.
        port: 0 for any that is free.
        tls: the certificate to serve HTTPS with; None serves HTTP.
        sockets: listening already, and left open at the end, so that nobody is refused; without any they are made.
        finish_within_s: how long requests under way may take once it is cancelled.

    Raises: ConfigError when the address cannot be listened on. Source: Patroni, restapi.listen.
    """
    served = [one.dup() for one in sockets] or await bind(host, port)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_worth_telling)
    server = _Server(config, lambda: task_status.started(served[0].getsockname()[1]))
    try:
        await server.serve(served)
    finally:
        with anyio.CancelScope(shield=True):
            await server.close(finish_within_s())
        close_sockets(served)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """uvicorn reports a request that was cut off as an error; here that only means that the agent ends."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


async def bind(host: str, port: int) -> list[socket.socket]:
    """One bound socket for each address of a host. Raises: ConfigError."""
    try:
        found = await anyio.getaddrinfo(
            None if host in ("", "*") else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return _bind_each([(family, address) for family, _, _, _, address in found])
    except OSError as error:
        reason = "address already in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError([f"restapi.listen {host}:{port}: {reason}"]) from error


def _bind_each(addresses: list[tuple[socket.AddressFamily, tuple[str, int]]]) -> list[socket.socket]:
    """All or nothing, but for addresses of a protocol that this machine does not have."""
    bound: list[socket.socket] = []
    lacking: OSError | None = None
    for family, address in addresses:
        try:
            same_port = bound[0].getsockname()[1] if bound else address[1]  # where any free one was asked for
            bound.append(_bind(family, (address[0], same_port)))
        except OSError as error:
            if error.errno not in _NOT_HERE:
                close_sockets(bound)
                raise
            lacking = error
    if not bound and lacking is not None:
        raise lacking
    return bound


def _bind(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def close_sockets(sockets: Sequence[socket.socket]) -> None:
    """Close all of them."""
    for one in sockets:
        one.close()
