"""Listens to a server that seems silent, beyond the time for an answer: on the session that it had answered on, and on
fresh ones. One byte on any of them shows that it is slow and not dead.

Sockets of our own, since libpq closes a session whose question was given up.
"""

import contextlib
import os
import socket
from collections.abc import Iterator

from effects.server_settings import ServerSettings
from effects.sql import socket_path, startup_message

KNOCKS_MAX = 4


class Ear:
    """The sockets on which the own server may still say something."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._sockets: list[socket.socket] = []

    @contextlib.contextmanager
    def listening(self, fd: int) -> Iterator[None]:
        """Goes on listening to a session whose question is given up inside. fd: the session's socket."""
        held = socket.socket(fileno=os.dup(fd))
        try:
            yield
        except Exception:
            held.close()  # it was answered, or is broken
            raise
        except BaseException:
            self._sockets.append(held)
            raise
        held.close()

    def knock(self) -> None:
        """One more session, as far as its first message; a server that can, answers it. Never waits."""
        if len(self._sockets) > KNOCKS_MAX:
            return
        with contextlib.suppress(OSError):  # the queue is full, or nobody listens
            knocking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                knocking.setblocking(False)
                knocking.connect(os.fspath(socket_path(self._settings)))
                knocking.send(startup_message(self._settings))
            except OSError:
                knocking.close()
                raise
            self._sockets.append(knocking)

    def has_heard(self) -> bool:
        """True when something came in on any of them. A session that was closed without a word says nothing."""
        return any(self._has_heard(one) for one in list(self._sockets))

    def _has_heard(self, one: socket.socket) -> bool:
        try:
            if one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return True
        except BlockingIOError:
            return False
        except OSError:
            pass
        self._sockets.remove(one)
        one.close()
        return False

    def close(self) -> None:
        """Listens no more."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()
