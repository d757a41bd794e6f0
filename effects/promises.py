"""The promise to a leader without etcd on disk: one small file in the agent's own directory, there for its next agent.

A disk that hangs holds one thread for as long as it likes; every later write is refused at once until it is over.
The protocol is written down in docs/failsafe.md.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from effects.errors import ConfigError, PromiseUnkept
from effects.files import remove_durably, write_atomically
from effects.lanes import Lane, Perform, Report
from fsm import effects as do
from fsm.events import AnyResult, Done, PromiseKept
from fsm.facts import KeptPromise

FILE_NAME = "promise.json"
REHEARSAL_NAME, REHEARSAL_BYTES = "promise.try", 200
UNREADABLE_HOLDS_MS = 60_000
"""How long a node holds back whose promise cannot be read: twice the usual ttl."""
THREADS_MAX = 2
"""One that hangs, and one that finds that out."""

logger = logging.getLogger(__name__)


class Promises:
    """Performs the effects that make a promise durable. `boot`: the machine's boot, which its instants count from."""

    def __init__(self, state_dir: Path, boot: str) -> None:
        self._path, self._boot = state_dir / FILE_NAME, boot
        self._lock = threading.Lock()
        self._threads = anyio.CapacityLimiter(THREADS_MAX)

    def lanes(self, report: Report) -> list[Lane]:
        """One lane of its own: nothing stands before a promise, and a disk that hangs stands before nothing else."""
        performers: dict[type[do.Effect], Perform] = {
            do.KeepPromise: self.keep,
            do.ForgetPromise: self.forget,
            do.TryPromise: self.rehearse,
        }
        return [Lane("promises", performers, report)]

    async def keep(self, effect: do.KeepPromise) -> AnyResult:
        """The promise on disk. Raises: PromiseUnkept."""
        kept = KeptPromise(
            leader=effect.leader, boot=self._boot, asked_at_ms=effect.asked_at_ms, until_ms=effect.until_ms
        )
        text = msgspec.json.encode(kept).decode()
        await self._in_thread(lambda: write_atomically(self._path, text))
        return PromiseKept(leader=effect.leader, asked_at_ms=effect.asked_at_ms, until_ms=effect.until_ms)

    async def forget(self, effect: do.ForgetPromise) -> AnyResult:
        """No promise on disk. Raises: PromiseUnkept."""
        await self._in_thread(lambda: remove_durably(self._path))
        return Done()

    async def rehearse(self, effect: do.TryPromise) -> AnyResult:
        """A file of the same size written and removed. Raises: PromiseUnkept."""
        await self._in_thread(self._write_and_remove)
        return Done()

    def _write_and_remove(self) -> None:
        path = self._path.with_name(REHEARSAL_NAME)
        write_atomically(path, " " * REHEARSAL_BYTES)
        remove_durably(path)

    async def _in_thread(self, work: Callable[[], object]) -> None:
        def alone() -> None:
            if not self._lock.acquire(blocking=False):
                raise PromiseUnkept(f"{self._path}: the disk has not answered an earlier write yet")
            try:
                work()
            except OSError as error:
                raise PromiseUnkept(f"{self._path}: {error.strerror or error}") from error
            finally:
                self._lock.release()

        await anyio.to_thread.run_sync(alone, abandon_on_cancel=True, limiter=self._threads)


def read_promise(state_dir: Path) -> KeptPromise | None:
    """What an earlier agent of this node promised; None if nothing. What cannot be understood holds back for a while.

    Raises: ConfigError when the file cannot be read at all.
    """
    path = state_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptPromise)
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "it says whether this node may be promoted now; make it readable for the agent"
        raise ConfigError([f"{path}: {error.strerror}; {remedy}"]) from None
    except msgspec.DecodeError as error:
        held_s = UNREADABLE_HOLDS_MS // 1000
        logger.warning("%s is damaged (%s): this node does not stand for %d s", path, error, held_s)
        return KeptPromise(leader="", boot="", asked_at_ms=0, until_ms=UNREADABLE_HOLDS_MS)
