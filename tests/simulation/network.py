"""Who reaches whom: one-way cuts, delays and loss between hosts. A lost message is silence, never an error."""

from collections.abc import Callable
from typing import Any

from tests.simulation.kernel import Kernel, Process


class Network:
    """The ways between hosts, by name."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.cut: set[tuple[str, str]] = set()
        """Ways that are cut, each for one direction."""
        self.loss = 0.0
        self.doubled = 0.0
        """How many of all messages come twice."""
        self.slow_us = 0
        """What every message takes longer at the most."""

    def is_open(self, source: str, target: str) -> bool:
        """True when a message from one host to another gets there."""
        return (source, target) not in self.cut

    def delay_us(self) -> int:
        """How long a message is on its way."""
        rng = self._kernel.rng
        delay_us = 150 + rng.randrange(400)
        if rng.random() < 0.01:
            delay_us += rng.randrange(30_000)
        return delay_us + (rng.randrange(self.slow_us) if self.slow_us else 0)

    def send(self, source: str, target: str, process: Process, call: Callable[..., object], *args: Any) -> None:
        """Call on behalf of the target's process, if the message gets there."""
        if self.is_open(source, target) and not (self.loss and self._kernel.rng.random() < self.loss):
            self._kernel.after(process, self.delay_us(), call, *args)
            if self.doubled and self._kernel.rng.random() < self.doubled:
                self._kernel.after(process, self.delay_us(), call, *args)

    def cut_between(self, one: str, others: tuple[str, ...], *, ways: str = "both") -> None:
        """Cut a host from others. ways: both, out (what it sends), in (what it gets)."""
        for other in others:
            if ways in ("both", "out"):
                self.cut.add((one, other))
            if ways in ("both", "in"):
                self.cut.add((other, one))

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.cut.clear()
        self.loss, self.doubled, self.slow_us = 0.0, 0.0, 0
