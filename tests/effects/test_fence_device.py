"""The watchdog that the fence feeds: a FIFO stands for the device, as with Patroni's driver `testing`.

What the FIFO cannot show is the ioctl: its numbers and its layout are compared with the kernel's header, and what
follows from a driver's answers is shown with a table of answers. No machine was reset for this.
"""

import contextlib
import os
import re
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from effects import fence_device
from effects.clock import now_ms
from effects.errors import PostgresError
from effects.fence_device import FEED_EVERY_MS, Kernel, Watchdog
from tests.effects.test_fence import Guard, end_fence, guarding, is_gone, until

pytestmark = pytest.mark.anyio
HEADER = Path("/usr/include/linux/watchdog.h")
TIMEOUT_S = 1


class Device:
    """The reading end of a FIFO: what a driver would have been told, and when."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.told: list[tuple[int, str]] = []
        self._fd = os.open(path, os.O_RDWR)
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while letters := os.read(self._fd, 4096).decode():
            at_ms = now_ms()
            self.told += [(at_ms, found) for found in re.findall(r"Ctimeout=\d+|1|V|end", letters)]
            if "end" in letters:
                return

    def __enter__(self) -> "Device":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._fd, b"end")
        self._thread.join()
        os.close(self._fd)

    @property
    def words(self) -> list[str]:
        """What it was told, without repetition."""
        found = [word for _, word in self.told]
        return [word for place, word in enumerate(found) if place == 0 or found[place - 1] != word]

    @property
    def fed_at_ms(self) -> list[int]:
        """When it was fed."""
        return [at_ms for at_ms, word in self.told if word == "1"]

    @property
    def would_reset_at_ms(self) -> int:
        """When the machine would be reset if nothing more came."""
        return self.fed_at_ms[-1] + TIMEOUT_S * 1000


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that nobody has opened yet."""
    with Device(tmp_path / "watchdog") as found:
        yield found


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A fence's directory; its fence and server are ended afterwards."""
    path = tmp_path / "guarded"
    path.mkdir()
    yield path
    end_fence(path)


async def start(guard: Guard, device: Device, slack_ms: int = 0) -> None:
    """The fence feeds the device."""
    assert await guard.link.start_watchdog(str(device.path), TIMEOUT_S, slack_ms, fence_device.TESTING) == TIMEOUT_S


async def test_device_is_fed_when_the_server_has_no_deadline_and_off_when_it_is_gone(
    directory: Path, device: Device
) -> None:
    """Before a promotion, and until the last process has ended: only then the letter."""
    async with guarding(directory) as guard:
        await start(guard, device)
        pid = await guard.start("/bin/sleep", "1000")
        await until(lambda: len(device.fed_at_ms) >= 3)
        assert (await guard.link.status()).watchdog_s == TIMEOUT_S
        await guard.link.stop("immediate")
        await guard.exited()
        await until(lambda: device.words[-1] == "V")
        assert is_gone(pid)
        assert device.words == [f"Ctimeout={TIMEOUT_S}", "1", "V"]
        assert (await guard.link.status()).watchdog_s is None


async def test_reset_would_come_in_time_when_the_deadline_is_not_renewed(directory: Path, device: Device) -> None:
    """However the fence would stop after any of its feedings, the machine is reset before deadline and slack are over;
    as it does not stop, the server is killed and the device is off."""
    async with guarding(directory) as guard:
        await start(guard, device, slack_ms=100)
        await guard.start("/bin/sleep", "1000", armed_for_ms=2_500)
        fired = await guard.fired()
        assert fired.armed_until_ms is not None
        assert len(device.fed_at_ms) >= 2
        assert device.would_reset_at_ms <= fired.armed_until_ms + 100
        await until(lambda: device.words[-1] == "V")


async def test_device_is_fed_again_when_the_deadline_is_renewed(directory: Path, device: Device) -> None:
    """Each renewal allows more; each answer says that the device is fed."""
    async with guarding(directory) as guard:
        await start(guard, device)
        await guard.start("/bin/sleep", "1000", armed_for_ms=900)
        assert len(device.fed_at_ms) <= 1
        assert await guard.link.arm(now_ms() + 60_000) == TIMEOUT_S
        fed = len(device.fed_at_ms)
        await until(lambda: len(device.fed_at_ms) >= fed + 2)
        await guard.link.disarm()
        await until(lambda: device.words[-1] == "V")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_device_starves_when_the_fence_does_not_run(
    directory: Path, device: Device, number: signal.Signals
) -> None:
    """Killed or frozen: there is no letter, so a device would reset the machine."""
    async with guarding(directory) as guard:
        await start(guard, device)
        await guard.start("/bin/sleep", "1000", armed_for_ms=60_000)
        await until(lambda: len(device.fed_at_ms) >= 2)
        fence_pid = (await guard.link.status()).fence_pid
        os.kill(fence_pid, number)
        try:
            await until(lambda: now_ms() > device.would_reset_at_ms)
            assert "V" not in device.words
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fence_pid, signal.SIGKILL)  # a frozen one would outlive the test for good


async def test_device_left_running_is_switched_off_when_a_new_fence_is_told(directory: Path, device: Device) -> None:
    """A fence that died without a server to guard must not cost the machine."""
    async with guarding(directory) as guard:
        await start(guard, device)
        os.kill((await guard.link.status()).fence_pid, signal.SIGKILL)
    async with guarding(directory) as guard:
        await guard.link.stop_watchdog(str(device.path))
        await until(lambda: device.words[-1] == "V")


async def test_device_left_running_is_fed_again_when_the_next_fence_is_told(directory: Path, device: Device) -> None:
    """A fence that died did not switch it off, so it counts on; the next one may open it and save the machine."""
    async with guarding(directory) as guard:
        await start(guard, device)
        os.kill((await guard.link.status()).fence_pid, signal.SIGKILL)
    async with guarding(directory) as guard:
        assert "V" not in device.words
        fed = len(device.fed_at_ms)
        await start(guard, device)
        await until(lambda: len(device.fed_at_ms) > fed)
        assert "V" not in device.words


async def test_device_is_off_when_the_fence_leaves(directory: Path, device: Device) -> None:
    """In good order, without a server."""
    async with guarding(directory) as guard:
        await start(guard, device)
        await guard.link.quit()
        await until(lambda: device.words[-1] == "V")


async def test_link_says_why_when_there_is_no_device(directory: Path, tmp_path: Path) -> None:
    """The operator reads it in the agent's messages."""
    async with guarding(directory) as guard:
        with pytest.raises(PostgresError, match=r"No such file or directory.*nowhere"):
            await guard.link.start_watchdog(str(tmp_path / "nowhere"), 10, 0, "default")
        with pytest.raises(PostgresError, match="Inappropriate ioctl"):
            await guard.link.start_watchdog("/dev/null", 10, 0, "default")
        assert (await guard.link.status()).watchdog_s is None


# ---- the ioctls, without a device -----------------------------------------------------------------------------------


class Driver:
    """A table of answers, in the kernel's layout."""

    def __init__(self, options: int, timeout_s: int) -> None:
        self.options, self.timeout_s, self.asked = options, timeout_s, list[int]()

    def ask(self, fd: int, request: int, argument: bytes) -> bytes:
        """What a driver with these options would answer."""
        self.asked.append(request)
        if request == fence_device.GETSUPPORT:
            assert len(argument) == 40
            return struct.pack("=II32s", self.options, 1, b"table of answers")
        if request == fence_device.SETTIMEOUT:
            (self.timeout_s,) = struct.unpack("=i", argument)
        return struct.pack("=i", self.timeout_s)


@pytest.mark.parametrize(
    ("options", "found"),
    [(0x8180, (25, True)), (0x8080, (25, False)), (0x8100, (60, True)), (0, (60, False))],
)
def test_timeout_is_the_drivers_when_it_takes_no_other(options: int, found: tuple[int, bool]) -> None:
    """What the device has counts, not what was asked for; and whether it can be switched off is the driver's word."""
    driver = Driver(options, timeout_s=60)
    assert Kernel(driver.ask).set_timeout(-1, 25) == found
    assert (fence_device.SETTIMEOUT in driver.asked) == bool(options & fence_device.CAN_SET_TIMEOUT)


@pytest.mark.skipif(not HEADER.exists(), reason="no linux-libc-dev: the numbers cannot be compared with the header")
def test_numbers_are_the_kernels_when_compared_with_its_header() -> None:
    """Direction, size, letter and number of each request, and the flags. Source: <asm-generic/ioctl.h>."""
    text = HEADER.read_text()
    numbers = {"GETSUPPORT": (2, 40), "SETTIMEOUT": (3, 4), "GETTIMEOUT": (2, 4)}
    for name, (direction, size) in numbers.items():
        found = re.search(rf"WDIOC_{name}\s+_IO\w+\(WATCHDOG_IOCTL_BASE, (\d+),", text)
        assert found is not None
        expected = direction << 30 | size << 16 | ord("W") << 8 | int(found[1])
        assert getattr(fence_device, name) == expected
    flags = dict(re.findall(r"WDIOF_(SETTIMEOUT|MAGICCLOSE)\s+(0x\w+)", text))
    assert (int(flags["SETTIMEOUT"], 16), int(flags["MAGICCLOSE"], 16)) == (
        fence_device.CAN_SET_TIMEOUT,
        fence_device.CAN_CLOSE,
    )


def test_device_that_cannot_be_switched_off_is_fed_on_when_it_is_stopped(device: Device) -> None:
    """Closed without the letter it would reset the machine."""
    watchdog = Watchdog()
    watchdog.start(str(device.path), TIMEOUT_S, 0, fence_device.TESTING, now_ms())
    watchdog.can_close = False
    watchdog.stop()
    assert watchdog.turn(watchdog.fed_at_ms + FEED_EVERY_MS, None) == ""
    assert (watchdog.fd is not None, device.words.count("V")) == (True, 0)
    watchdog.can_close = True
    watchdog.stop()
