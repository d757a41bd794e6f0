"""Isolation of executors: one lane a resource, one effect at a time in a lane, and always an answer.

A lane obeys each effect's deadline and expiry, can be cancelled, and turns whatever happens into an event. An exception
or a hang in one lane never delays another nor the loop that decides.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from effects import errors
from effects.clock import now_ms
from fsm.effects import Effect, Resource
from fsm.events import AnyEvent, AnyResult, Failed, FailureKind, Succeeded, Unknown
from fsm.machine import EFFECTS_PER_STEP_MAX, Issued

Perform = Callable[[Any], Awaitable[AnyResult]]
Report = Callable[[AnyEvent], None]
Durable = Callable[[int, int], Awaitable[bool]]

WRITE_AHEAD_WAIT_MS = 1_000
"""How long an irreversible effect waits for its entry to be on disk; a dead log disk must not stop a failover."""

QUEUE_MAX = 64

logger = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[Exception], FailureKind], ...] = (
    (errors.EtcdUnavailable, "unavailable"),
    (errors.EtcdRefused, "refused"),
    (errors.LeaseGone, "lease_gone"),
    (errors.FenceUnavailable, "fence"),
    (errors.ProgramFailed, "program"),
    (errors.PostgresError, "sql"),
    (errors.MatriarchError, "refused"),
    (OSError, "program"),
)


class Lane:
    """The executor of one resource: performs what it is handed, in order."""

    def __init__(self, resource: Resource, performers: Mapping[type[Effect], Perform], report: Report) -> None:
        self.resource = resource
        self._performers = dict(performers)
        self._report = report
        self._waiting: deque[Issued] = deque()
        self._arrived = anyio.Event()
        self._current: tuple[int, anyio.CancelScope] | None = None

    @property
    def kinds(self) -> frozenset[type[Effect]]:
        """The effects that this lane can perform."""
        return frozenset(self._performers)

    def hand(self, issued: Issued) -> None:
        """Queue an effect; one too many is refused at once rather than kept for a time when nobody wants it."""
        if len(self._waiting) >= QUEUE_MAX:
            self._report(_failed(issued, "refused", f"the queue of {self.resource} is full"))
            return
        self._waiting.append(issued)
        self._arrived.set()

    def cancel(self, effect_id: int) -> None:
        """Give an effect up, under way or still queued; its answer is then Failed("cancelled")."""
        if self._current and self._current[0] == effect_id:
            self._current[1].cancel()
        for issued in [waiting for waiting in self._waiting if waiting.effect_id == effect_id]:
            self._waiting.remove(issued)
            self._report(_failed(issued, "cancelled", "no longer wanted"))

    async def run(self, durable: Durable) -> None:
        """Perform what comes, until cancelled."""
        while True:
            while not self._waiting:
                self._arrived = anyio.Event()
                await self._arrived.wait()
            issued = self._waiting.popleft()
            self._report(await self._answer(issued, durable))

    async def _answer(self, issued: Issued, durable: Durable) -> AnyEvent:
        effect = issued.effect
        with anyio.CancelScope(deadline=anyio.current_time() + effect.timeout_ms / 1000) as scope:
            self._current = (issued.effect_id, scope)
            try:
                return await self._perform(issued, durable)
            except Exception as error:  # noqa: BLE001 - whatever went wrong becomes an answer
                return _renamed(issued, error)
            finally:
                self._current = None
        if scope.deadline <= anyio.current_time():
            return Unknown(
                at_ms=now_ms(),
                effect_id=issued.effect_id,
                duty=issued.duty,
                detail=f"no answer within {effect.timeout_ms} ms",
            )
        return _failed(issued, "cancelled", "no longer wanted")

    async def _perform(self, issued: Issued, durable: Durable) -> AnyEvent:
        effect = issued.effect
        if effect.is_irreversible:
            await durable(issued.effect_id // EFFECTS_PER_STEP_MAX, WRITE_AHEAD_WAIT_MS)
        valid_until_ms = getattr(effect, "valid_until_ms", None)
        if valid_until_ms is not None and now_ms() >= valid_until_ms:
            return _failed(issued, "expired", "it may not be done any more")
        result = await self._performers[type(effect)](effect)
        return Succeeded(at_ms=now_ms(), effect_id=issued.effect_id, duty=issued.duty, result=result)


def _renamed(issued: Issued, error: Exception) -> AnyEvent:
    """The answer that an exception amounts to; one that nobody expected is a bug and is logged as such."""
    if isinstance(error, errors.EtcdOutcomeUnknown):
        return Unknown(at_ms=now_ms(), effect_id=issued.effect_id, duty=issued.duty, detail=str(error))
    for kind, name in _KINDS:
        if isinstance(error, kind):
            return _failed(issued, name, str(error))
    logger.error("%s failed in an unforeseen way", issued.duty, exc_info=error)
    return _failed(issued, "bug", f"{type(error).__name__}: {error}")


def _failed(issued: Issued, kind: FailureKind, detail: str) -> Failed:
    return Failed(at_ms=now_ms(), effect_id=issued.effect_id, duty=issued.duty, kind=kind, detail=detail)


class Lanes:
    """All executors of an agent; finds the lane of an effect by its type."""

    def __init__(self, lanes: list[Lane], expected: frozenset[type[Effect]]) -> None:
        """Checks that every effect that can be decided has exactly one executor, so that none is missed at run time."""
        self._lanes = lanes
        self._by_kind = {kind: lane for lane in lanes for kind in lane.kinds}
        missing = {kind.__name__ for kind in expected - set(self._by_kind)}
        if missing:
            raise AssertionError(f"effects without an executor: {sorted(missing)}")

    def hand(self, issued: Issued) -> None:
        """Give an effect to its executor."""
        self._by_kind[type(issued.effect)].hand(issued)

    def cancel(self, effect_id: int) -> None:
        """Give an effect up, wherever it is."""
        for lane in self._lanes:
            lane.cancel(effect_id)

    async def run(self, durable: Durable) -> None:
        """Run every lane, each in its own task."""
        async with anyio.create_task_group() as tasks:
            for lane in self._lanes:
                tasks.start_soon(lane.run, durable, name=f"lane {lane.resource}")
