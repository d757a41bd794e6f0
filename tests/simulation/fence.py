"""The fence and its server's end, as effects/fence.py keeps them: a deadline on the node's clock, and no opinion."""

from collections.abc import Callable

from tests.simulation.kernel import MS, Clock, Kernel, Process, Signal
from tests.simulation.postgres import Host, Server

QUIT_US = (5 * MS, 110 * MS)
"""How long the last process of a server lives after SIGQUIT."""
KILL_AFTER_US = 150 * MS


class Fence:
    """The parent of a node's server. It outlives its agent; its server does not outlive it."""

    def __init__(self, kernel: Kernel, clock: Clock, host: Host) -> None:
        self._kernel, self._clock, self._host = kernel, clock, host
        self.process = Process(f"{host.name}/fence")
        self.died = Signal()
        self.armed_until_ms: int | None = None
        self.has_fired = False
        self.watchdog_s: int | None = None
        """The timeout of the watchdog that it feeds. Resets are left out: nothing here stalls a fence but SIGSTOP."""
        self._alarm = 0
        self.notify: Callable[[str, Server], None] = lambda _, __: None
        """Tells the agent what happened to a server: spawned, exited."""
        host.on_end = self._noticed
        self.child: Server | None = None
        """The server that this very process started."""
        self.on_any_end: Callable[[Server], None] = lambda _: None

    def arm(self, until_ms: int | None) -> None:
        """Another deadline, or none."""
        self.armed_until_ms = until_ms
        self.watchdog_s = self.watchdog_s if until_ms is not None else None
        self._alarm += 1
        if until_ms is not None:
            self._kernel.after(self.process, self._clock.wait_us(until_ms), self._fire, self._alarm)

    def start(self, *, in_recovery: bool, armed_until_ms: int | None) -> Server:
        """Start the server as a child."""
        self.arm(armed_until_ms)
        self.has_fired = False
        server = self.child = self._host.start(in_recovery=in_recovery)
        self.notify("spawned", server)
        return server

    def _fire(self, alarm: int) -> None:
        if alarm != self._alarm or self._host.server is None:
            return
        self.has_fired = True
        end_server(self._kernel, self._host.server)

    def _noticed(self, server: Server) -> None:
        self.armed_until_ms = self.watchdog_s = None
        self._alarm += 1
        self.on_any_end(server)
        if self.process.is_alive:
            self._kernel.after(self.process, self._kernel.rng.randrange(3 * MS), self._tell_end, server)

    def _tell_end(self, server: Server) -> None:
        self.notify("exited", server)

    def die(self) -> None:
        """The fence is killed: the kernel sends its server SIGQUIT. Source: prctl(2), PR_SET_PDEATHSIG."""
        self._kernel.kill(self.process)
        self.watchdog_s = self.child = None
        self.died.fire()
        server = self._host.server
        if server is not None:
            self._kernel.after(server.process, self._kernel.rng.randrange(*QUIT_US), server.end)


def end_server(kernel: Kernel, server: Server) -> None:
    """SIGQUIT to every process, SIGKILL to what is left; a stopped process hears only the second."""
    kernel.after(server.process, kernel.rng.randrange(*QUIT_US), server.end)
    kernel.after(kernel.world, KILL_AFTER_US, server.end)
