"""The fence's end of the kernel's watchdog: a device that resets the machine unless it is fed.

Loaded by effects/fence.py when it starts; standard library only, as the fence itself. The fence feeds it for as long as
it does its own work, and while a deadline is armed only as far as a reset still comes before the lease ends: the device
guards against a kernel that runs the server but not the fence. A device that does not take SETTIMEOUT, or cannot be
switched off again, is used as it is.

Source: Linux, Documentation/watchdog/watchdog-api.rst; <linux/watchdog.h>; Patroni, "Watchdog support".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable

FEED_EVERY_MS = 1000
ALIVE, MAGIC_CLOSE = b"1", b"V"
GETSUPPORT, SETTIMEOUT, GETTIMEOUT = 0x80285700, 0xC0045706, 0x80045707
CAN_SET_TIMEOUT, CAN_CLOSE = 0x0080, 0x0100
SUPPORT = struct.Struct("=II32s")
TESTING = "testing"
"""Patroni's driver for a FIFO in place of a device: what an ioctl would say is written into it as text."""


def ask_device(fd: int, request: int, argument: bytes) -> bytes:
    """What the driver answers. The only place that speaks ioctl."""
    return fcntl.ioctl(fd, request, argument)


class Kernel:
    """A device of the kernel. `ask`: as `ask_device`."""

    def __init__(self, ask: Callable[[int, int, bytes], bytes] = ask_device) -> None:
        self.ask = ask

    def set_timeout(self, fd: int, timeout_s: int) -> tuple[int, bool]:
        """The timeout that the device has now, and whether it can be switched off again."""
        options, _, _ = SUPPORT.unpack(self.ask(fd, GETSUPPORT, bytes(SUPPORT.size)))
        if options & CAN_SET_TIMEOUT:
            self.ask(fd, SETTIMEOUT, struct.pack("=i", timeout_s))
        (found_s,) = struct.unpack("=i", self.ask(fd, GETTIMEOUT, bytes(4)))
        return found_s, bool(options & CAN_CLOSE)


class Fifo:
    """A FIFO that a test reads. Source: Patroni, watchdog.driver "testing"."""

    @staticmethod
    def set_timeout(fd: int, timeout_s: int) -> tuple[int, bool]:
        """The timeout that was asked for; a FIFO refuses nothing."""
        os.write(fd, b"Ctimeout=%d\n" % timeout_s)
        return timeout_s, True


class Watchdog:
    """At most one open device."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self.path = ""
        self.timeout_s = self.slack_ms = 0
        self.can_close = False
        self.fed_at_ms = 0

    def start(self, path: str, timeout_s: int, slack_ms: int, driver: str, at_ms: int) -> None:
        """Opens the device, which begins to count, or gives the open one another timeout. Raises: OSError."""
        if self.fd is not None and path != self.path:
            self.stop()
        if self.fd is None:
            self.open(path)
        assert self.fd is not None
        self.slack_ms = slack_ms
        try:
            kind = Fifo() if driver == TESTING else Kernel()
            self.timeout_s, self.can_close = kind.set_timeout(self.fd, timeout_s)
            self._feed(at_ms)
        except OSError:
            self.can_close = True  # what can be done is done: a driver that knows no better ignores the letter
            self.stop()
            raise

    def open(self, path: str) -> None:
        """Opens the device, which begins to count. Raises: OSError."""
        self.fd, self.path = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), path
        self.can_close = True

    def stop(self) -> None:
        """Switches the device off and lets go of it; one that cannot be switched off is fed on."""
        if self.fd is None or not self.can_close:
            return
        with contextlib.suppress(OSError):
            os.write(self.fd, MAGIC_CLOSE)
        self._let_go()

    def _let_go(self) -> None:
        fd, self.fd, self.timeout_s = self.fd, None, 0
        with contextlib.suppress(OSError):
            os.close(fd or -1)

    def turn(self, at_ms: int, armed_until_ms: int | None) -> str:
        """Feeds the device if it is time and allowed; what went wrong, or ""."""
        if self.fd is None or at_ms < self.fed_at_ms + FEED_EVERY_MS or not self._may_feed(at_ms, armed_until_ms):
            return ""
        try:
            self._feed(at_ms)
        except OSError as error:
            self._let_go()  # without the letter: the machine may be reset, as it would be by a feeder that died
            return f"{self.path}: {error.strerror}"
        return ""

    def _feed(self, at_ms: int) -> None:
        assert self.fd is not None
        os.write(self.fd, ALIVE)
        self.fed_at_ms = at_ms

    def _may_feed(self, at_ms: int, armed_until_ms: int | None) -> bool:
        """With nothing armed, always; else while a device fed now would still reset the machine in time."""
        return armed_until_ms is None or at_ms + self.timeout_s * 1000 <= armed_until_ms + self.slack_ms

    def next_wake_ms(self, at_ms: int, armed_until_ms: int | None) -> int | None:
        """When to feed again; None when there is nothing to feed, or it may not be fed before a new deadline."""
        next_ms = max(at_ms, self.fed_at_ms + FEED_EVERY_MS)
        return next_ms if self.fd is not None and self._may_feed(next_ms, armed_until_ms) else None
