"""How well this process's own loop runs: whoever judges that others do not answer must have been able to hear them."""

from collections import deque

import anyio

from effects.clock import now_ms

BEAT_MS = 500
KEPT = 120
"""So many beats that came late are remembered: a minute of nothing else."""


class Pulse:
    """Beats while the loop runs, and remembers the beats that came late."""

    def __init__(self) -> None:
        self._beat_at_ms = now_ms()
        self._late: deque[tuple[int, int]] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Beat until cancelled."""
        self._beat_at_ms = now_ms()
        while True:
            await anyio.sleep(BEAT_MS / 1000)
            at_ms = now_ms()
            late_ms = at_ms - self._beat_at_ms - BEAT_MS
            if late_ms >= BEAT_MS:
                self._late.append((at_ms, late_ms))
            self._beat_at_ms = at_ms

    def worst_ms(self, since_ms: int) -> int:
        """The longest that the loop stood still and that ended after an instant, the present beat included."""
        overdue_ms = max(0, now_ms() - self._beat_at_ms - BEAT_MS)
        return max(overdue_ms, *(late_ms for at_ms, late_ms in self._late if at_ms >= since_ms), 0)
