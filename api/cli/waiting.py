"""How far a node's new base backup is, from one answer of GET /patroni to the next, and what came of it. Pure."""

from collections import deque
from typing import Any, Literal

from fsm.states import State

RATE_SPAN_MS = 10_000
MIB = 1 << 20

Outcome = Literal["done", "failed", "unknown"]


class Wait:
    """Follows one node until it streams again. `asked_at_ms`: when it was asked, on the clock of `take`."""

    def __init__(self, name: str, asked_at_ms: int) -> None:
        self.name, self.asked_at_ms = name, asked_at_ms
        self.step = "asked"
        self.source = ""
        self.trouble = ""
        self.bytes_done = self.bytes_total = 0
        self.outcome: Outcome | None = None
        self.detail = ""
        self._was_seen_at_work = False
        self._samples: deque[tuple[int, int]] = deque()

    def take(self, status: dict[str, Any] | None, at_ms: int) -> None:
        """One more answer, or that there was none."""
        if status is None:
            self.step = "does not answer"
            return
        ours = status.get("matriarch") or {}
        if status.get("state") == "creating replica" or ours.get("rebuilding"):
            self._take_work(ours.get("rebuilding") or {}, ours.get("progress") or {}, at_ms)
        elif ours.get("state") == State.LEADER or status.get("role") == "primary":
            self._end("failed", "it leads now, so its data are kept")
        elif status.get("state") == "running" and status.get("replication_state") == "streaming":
            self._judge(ours, at_ms)
        else:
            self.step = str(status.get("state") or "waiting")

    def _take_work(self, rebuilding: dict[str, Any], progress: dict[str, Any], at_ms: int) -> None:
        self._was_seen_at_work = True
        self.step = str(rebuilding.get("step") or "creating replica")
        self.trouble = str(rebuilding.get("last_failure") or "")
        if progress:
            self.step = f"{progress.get('work')}: {progress.get('phase')}"
            self.source = str(progress.get("source") or "")
            self._take_bytes(int(progress.get("bytes_done", 0)), int(progress.get("bytes_total", 0)), at_ms)

    def _take_bytes(self, done: int, total: int, at_ms: int) -> None:
        if done < self.bytes_done:
            self._samples.clear()  # it began anew
        if not self._samples or done != self.bytes_done:
            self._samples.append((at_ms, done))
        while self._samples and at_ms - self._samples[0][0] > RATE_SPAN_MS and len(self._samples) > 2:
            self._samples.popleft()
        self.bytes_done, self.bytes_total = done, max(done, total)

    def _judge(self, ours: dict[str, Any], at_ms: int) -> None:
        """It streams: with the new data, if its agent took a base backup since it was asked. A member that is Patroni's
        does not tell; if it was seen at work, that must do."""
        cloned_ago_ms = ours.get("cloned_ago_ms")
        if not ours and self._was_seen_at_work:
            self._end("done", "streams")
        elif not isinstance(cloned_ago_ms, int):
            self._end("unknown", "it streams, but nothing tells whether its data are new: its agent was started anew")
        elif cloned_ago_ms <= at_ms - self.asked_at_ms:
            self._end("done", "streams")
        else:
            self._end("failed", "it streams with its old data: the request was dropped")

    def _end(self, outcome: Outcome, detail: str) -> None:
        self.outcome, self.detail, self.step = outcome, detail, detail

    @property
    def bytes_per_s(self) -> float:
        """How fast the last seconds were; 0 while that is not known."""
        if len(self._samples) < 2:
            return 0.0
        (first_ms, first), (last_ms, last) = self._samples[0], self._samples[-1]
        return (last - first) * 1000 / (last_ms - first_ms) if last_ms > first_ms else 0.0

    @property
    def left_s(self) -> float | None:
        """How long the copying will take yet; None while that is not known."""
        left = self.bytes_total - self.bytes_done
        return left / self.bytes_per_s if self.bytes_per_s and self.bytes_total else None

    def amount(self) -> str:
        """Bytes, rate, and what is left; nothing while nothing was copied."""
        if not self.bytes_total:
            return ""
        amount = f"{self.bytes_done / MIB:.1f}/{self.bytes_total / MIB:.1f} MiB"
        if self.left_s is None:
            return amount
        return f"{amount} {self.bytes_per_s / MIB:.1f} MiB/s {_span(self.left_s)} left"

    def line(self) -> str:
        """All of it in one line, for a log."""
        parts = [f"{self.name}: {self.step}"]
        if self.source and self.outcome is None:
            parts.append(f"from {self.source}")
        if self.bytes_total and self.outcome is None:
            parts.append(self.amount())
        if self.trouble and self.outcome is None:
            parts.append(f"last failure: {self.trouble}")
        return ", ".join(parts)

    def fields(self) -> dict[str, Any]:
        """What `--json` tells of it."""
        return {"member": self.name, "outcome": self.outcome or "begun", "detail": self.detail or self.step}


def _span(seconds: float) -> str:
    """Hours, minutes and seconds, as short as it can be said."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
