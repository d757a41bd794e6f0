"""The agent: takes events one by one, lets `step` decide, writes the entry, and hands the effects to their executors.

It decides nothing and waits for nothing but the next event.
"""

import logging
from collections import deque

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus
from msgspec.structs import replace

from effects.board import Board, Progress, Published
from effects.clock import now_ms, wall_time
from effects.errors import MatriarchError
from effects.lanes import Lane, Lanes
from effects.log import TransitionLog
from effects.telling import lines
from fsm import effects as do
from fsm.effects import AnyEffect
from fsm.entries import SnapshotEntry, encode, make_entry
from fsm.events import AgentRestartAsked, AgentStarted, AnyEvent, AnyResult, Done, Identity, StopAsked, Ticked
from fsm.facts import KeptPromise
from fsm.machine import Decision, step
from fsm.view import View

LOOP_LAG_WARNED_MS = 500
PROGRESS_TOLD_EVERY_MS = 5_000

logging.getLogger("transitions").setLevel(logging.WARNING)  # it tells every callback at INFO

logger = logging.getLogger(__name__)


class Agent:
    """One node's loop. `report` is how everything that happens comes in."""

    def __init__(
        self,
        identity: Identity,
        boot: str,
        log: TransitionLog,
        last_seq: int,
        promise: KeptPromise | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        """`promise`: what an earlier agent of this node promised a leader without etcd. `in_place`: an agent became
        this one, in the same process."""
        self.board = Board()
        self.exit_status = 0
        self.is_succeeded = False
        """True once the agent on the disk is to take this one's place."""
        self._in_place = in_place
        self._identity, self._boot, self._log, self._promise = identity, boot, log, promise
        self._view = View(seq=last_seq)
        self._inbox: deque[AnyEvent] = deque()
        self._arrived = anyio.Event()
        self._wake_at_ms: int | None = None
        self._lanes: Lanes | None = None
        self._is_over = anyio.Event()
        self._told_degraded: str | None = None
        self._progress: Progress | None = None
        self._progress_told_ms = 0

    def report(self, event: AnyEvent) -> None:
        """Take an event; never waits."""
        self._inbox.append(event)
        self._arrived.set()

    def lane(self) -> Lane:
        """The agent's own executor: it can end the agent, for good or for its successor."""
        return Lane("agent", {do.Exit: self._exit, do.BecomeNewAgent: self._step_aside}, self.report)

    async def run(self, lanes: list[Lane], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Decide until an Exit effect ends it; afterwards `exit_status` tells how."""
        self._lanes = Lanes([*lanes, self.lane()], frozenset(AnyEffect.__args__))
        started = AgentStarted(
            at_ms=now_ms(),
            identity=self._identity,
            boot=self._boot,
            wall=wall_time(),
            promise=self._promise,
            in_place=self._in_place,
        )
        self.report(started)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._lanes.run, self._log.durable)
            tasks.start_soon(self._decide)
            task_status.started()
            await self._is_over.wait()
            tasks.cancel_scope.cancel()

    def note_progress(self, progress: Progress | None) -> None:
        """Show how far a clone or a rewind is; on the console every few seconds. None: it has ended."""
        self._progress = progress
        self.board.publish(replace(self.board.current, progress=progress))
        if (
            progress is not None
            and progress.bytes_total
            and now_ms() - self._progress_told_ms >= PROGRESS_TOLD_EVERY_MS
        ):
            self._progress_told_ms = now_ms()
            logger.info("%s: %d of about %d bytes", progress.work, progress.bytes_done, progress.bytes_total)

    def stop(self) -> None:
        """Ask the agent to end in good order."""
        self.report(StopAsked(at_ms=now_ms()))

    def restart(self, request_id: str) -> None:
        """Ask the agent to become the agent on the disk."""
        self.report(AgentRestartAsked(at_ms=now_ms(), request_id=request_id, by=request_id))

    async def _step_aside(self, effect: do.BecomeNewAgent) -> AnyResult:
        if self._log.degraded:
            raise MatriarchError(f"the log does not reach the disk, and a successor must read it: {self._log.degraded}")
        logger.info("the agent on the disk takes over in this process; server, lease and sockets stay as they are")
        self.is_succeeded = True
        self._is_over.set()
        await anyio.sleep_forever()  # what this agent would say from here on nobody would hear
        return Done()

    async def _exit(self, effect: do.Exit) -> AnyResult:
        self.exit_status = effect.status
        (logger.info if effect.status == 0 else logger.critical)("ending: %s", effect.reason)
        self._is_over.set()
        return Done()

    async def _decide(self) -> None:
        while True:
            event = await self._next_event()
            self._take(event)

    async def _next_event(self) -> AnyEvent:
        """The next event; the tick that the last decision asked for if nothing comes before."""
        while not self._inbox:
            wait_ms = None if self._wake_at_ms is None else self._wake_at_ms - now_ms()
            if wait_ms is not None and wait_ms <= 0:
                # Give the executors and the API a turn even in a chain of moves.
                await anyio.lowlevel.checkpoint()
                return Ticked(at_ms=now_ms())
            self._arrived = anyio.Event()
            with anyio.move_on_after(None if wait_ms is None else wait_ms / 1000):
                await self._arrived.wait()
        await anyio.lowlevel.checkpoint()
        return self._inbox.popleft()

    def _take(self, event: AnyEvent) -> None:
        if self._log.wants_segment:
            self._log.start_segment(encode(self._snapshot()))
        before, decision = self._view, step(self._view, event)
        self._view = decision.view
        self._wake_at_ms = decision.wake_at_ms
        self._log.append(decision.view.seq, encode(make_entry(decision, event, boot=self._boot, wall=wall_time())))
        self._publish(decision, event)
        self._tell(before, decision, event)
        assert self._lanes is not None
        for effect_id in decision.cancelled:
            self._lanes.cancel(effect_id)
        for issued in decision.effects:
            self._lanes.hand(issued)

    def _snapshot(self) -> SnapshotEntry:
        return SnapshotEntry(seq=self._view.seq, node=self._identity.name, wall=wall_time(), view=self._view)

    def _publish(self, decision: Decision, event: AnyEvent) -> None:
        lag_ms = now_ms() - event.at_ms
        if lag_ms > LOOP_LAG_WARNED_MS:
            logger.warning("an event waited %d ms before it was decided on", lag_ms)
        self.board.publish(
            Published(
                view=decision.view,
                probe_every_ms=decision.probe_every_ms,
                is_log_degraded=self._log.degraded is not None,
                loop_lag_ms=lag_ms,
                progress=self._progress,
            )
        )

    def _tell(self, before: View, decision: Decision, event: AnyEvent) -> None:
        for level, line in lines(before, decision, event):
            logger.log(level, "%s", line)
        degraded = self._log.degraded
        if degraded != self._told_degraded:
            self._told_degraded = degraded
            if degraded:
                logger.warning("the log does not reach the disk: %s", degraded)
            else:
                logger.info("the log reaches the disk again")
