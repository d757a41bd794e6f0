"""Virtual time: what happens when, in whose process, decided by one seed.

Everything that happens is a call at an instant, made on behalf of a process. A process that is paused is called later,
one that was killed is not called at all. Work that takes time is a generator: it yields how long it takes in
microseconds, or a Signal to wait for.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

Work = Generator["int | Signal | tuple[Signal, int]", Any, Any]
"""It yields microseconds, a signal, or a signal and after how long to go on without it."""

MS = 1_000
S = 1_000_000


class Process:
    """Something that can be paused, continued, killed and started again."""

    __slots__ = ("backlog", "is_alive", "is_paused", "life", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = 0
        self.is_alive = True
        self.is_paused = False
        self.backlog: deque[tuple[int, Callable[..., object], tuple[Any, ...]]] = deque()

    @property
    def is_running(self) -> bool:
        """True when it is neither dead nor paused."""
        return self.is_alive and not self.is_paused


class Signal:
    """Something that work waits for."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[tuple[Task, int]] = []

    def add(self, task: "Task", token: int) -> None:
        """Call the task when it is fired, unless it went on meanwhile."""
        self._waiting.append((task, token))

    def fire(self) -> None:
        """Let everybody who waits go on."""
        waiting, self._waiting = self._waiting, []
        for task, token in waiting:
            if task.token == token:
                task.go_on_soon()


class Task:
    """Work under way in a process; `done` is called with what it returned, or the exception that it raised."""

    __slots__ = ("_done", "_kernel", "_process", "_work", "token")

    def __init__(
        self, kernel: "Kernel", process: Process, work: Work, done: Callable[[Any, Exception | None], object]
    ) -> None:
        self._kernel, self._process, self._work, self._done = kernel, process, work, done
        self.token = 0

    def go_on_soon(self) -> None:
        """Go on as soon as the process is called."""
        self.token += 1
        self._kernel.after(self._process, 0, self._go_on, self.token)

    def cancel(self) -> None:
        """Give it up where it is; nobody is told."""
        self.token += 1
        self._work.close()

    def _go_on(self, token: int) -> None:
        if token != self.token:
            return
        self.token = token = token + 1  # whatever else was to call it now comes too late
        try:
            wanted = next(self._work)
        except StopIteration as ended:
            self._done(ended.value, None)
            return
        except Outcome as error:
            self._done(None, error)
            return
        if isinstance(wanted, Signal):
            wanted.add(self, token)
        elif isinstance(wanted, tuple):
            wanted[0].add(self, token)
            self._kernel.after(self._process, wanted[1], self._go_on, token)
        else:
            self._kernel.after(self._process, wanted, self._go_on, token)


class Outcome(Exception):
    """Work that did not end well; subclasses say how."""


class Kernel:
    """The clock and the order of all that happens."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_us = 0
        self.calls = 0
        self._heap: list[tuple[int, int, Process, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self.world = Process("world")
        """On whose behalf what happens that nobody can stop."""

    def after(self, process: Process, delay_us: int, call: Callable[..., object], *args: Any) -> None:
        """Call on behalf of a process, if it still lives by then."""
        self._count += 1
        heapq.heappush(self._heap, (self.now_us + delay_us, self._count, process, process.life, call, args))

    def start(
        self, process: Process, work: Work, done: Callable[[Any, Exception | None], object] = lambda _, __: None
    ) -> Task:
        """Begin work on behalf of a process."""
        task = Task(self, process, work, done)
        task.go_on_soon()
        return task

    def run(self, until_us: int) -> None:
        """Let everything happen up to an instant."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            at_us, _, process, life, call, args = heapq.heappop(heap)
            self.now_us = at_us
            if life != process.life or not process.is_alive:
                continue
            if process.is_paused:
                process.backlog.append((life, call, args))
                continue
            self.calls += 1
            call(*args)
        self.now_us = until_us

    def pause(self, process: Process) -> None:
        """SIGSTOP."""
        process.is_paused = True

    def resume(self, process: Process) -> None:
        """SIGCONT: what it missed happens now, in its order."""
        process.is_paused = False
        backlog, process.backlog = process.backlog, deque()
        for life, call, args in backlog:
            if life == process.life:
                self.after(process, self.rng.randrange(100), call, *args)

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        process.life += 1
        process.is_alive = process.is_paused = False
        process.backlog.clear()

    def revive(self, process: Process) -> None:
        """A new process in its place."""
        process.life += 1
        process.is_alive, process.is_paused = True, False
        process.backlog.clear()


class Clock:
    """A node's CLOCK_BOOTTIME: begins anywhere and runs a little fast or slow; and its wall clock, which people set."""

    def __init__(self, kernel: Kernel, *, skew_ppm: int = 0, offset_ms: int = 0) -> None:
        self._kernel = kernel
        self._numerator = 1_000_000 + skew_ppm
        self._offset_us = offset_ms * 1_000
        self.wall_offset_ms = 1_790_000_000_000

    def now_ms(self) -> int:
        """Milliseconds since the node's boot."""
        return (self._kernel.now_us * self._numerator // 1_000_000 + self._offset_us) // 1_000

    def wait_us(self, until_ms: int) -> int:
        """How long it takes until the clock shows an instant."""
        target_us = until_ms * 1_000 - self._offset_us
        true_us = -(-target_us * 1_000_000 // self._numerator)
        return max(0, true_us - self._kernel.now_us)

    def unix_ms(self) -> int:
        """What the node's wall clock shows."""
        return self.now_ms() + self.wall_offset_ms
