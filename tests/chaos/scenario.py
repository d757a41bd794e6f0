"""What a scenario is, and the register of all of them."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from effects.clock import unix_ms
from tests.chaos.scene import Scene


class Course:
    """What a scenario tells while it goes on."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.problems: list[str] = []
        self.notes: dict[str, str] = {}
        self.began_ms = unix_ms()
        self.ended_ms: int | None = None
        self.settled_ms: int | None = None

    def begins(self) -> None:
        """The fault begins now."""
        self.began_ms = unix_ms()

    def ends(self) -> None:
        """The fault has ended now: from here the cluster recovers."""
        self.ended_ms = unix_ms()

    def settled(self) -> None:
        """The cluster has recovered, and what the scenario does from here is not counted to it."""
        self.settled_ms = unix_ms()

    def demand(self, holds: bool, otherwise: str) -> None:
        """Count a problem unless it holds."""
        if not holds:
            self.problems.append(otherwise)

    def note(self, what: str, value: object) -> None:
        """Tell what was measured or seen."""
        self.notes[what] = str(value)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One fault, and what is demanded beyond what is demanded of all."""

    name: str
    number: int
    """The number in the issue's list of faults."""
    text: str
    act: Callable[[Scene, Course], Awaitable[None]]
    wiring: str = "plain"
    short_mode: str | None = None
    """The synchronous mode in which `make chaos` runs it; None leaves it to `make chaos ALL=1`."""
    is_primary_lost: bool = True
    """True when the fault may cost the primary, and with it, in mode off, acknowledged rows."""
    two_ms_at_most: float = 0
    """How long two servers may take writes at once, where the fault itself makes the second one."""
    is_cluster_used_up: bool = False
    """True when the next scenario needs another cluster."""
    modes: tuple[str, ...] = ("off", "on", "strict", "quorum")


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, number: int, **wanted: Any) -> Callable[..., Callable[[Scene, Course], Awaitable[None]]]:
    """Register a function as a scenario; its docstring's first sentence tells what it does."""

    def register(act: Callable[[Scene, Course], Awaitable[None]]) -> Callable[[Scene, Course], Awaitable[None]]:
        assert act.__doc__ is not None
        text = " ".join(act.__doc__.split())
        SCENARIOS[name] = Scenario(name=name, number=number, text=text, act=act, **wanted)
        return act

    return register
