"""Health checks: what HAProxy, Kubernetes, VIP managers and other members ask many times a second.

Answered from the newest snapshot, by the clock at the moment of the request; never from SQL or etcd. The text of a
status is encoded once for a snapshot and standing, and only its ages are written anew.
"""

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl

from msgspec import to_builtins

from api.answers import encode_json
from effects.board import Board, Published
from effects.clock import wall_time
from fsm import status
from fsm.metrics import metrics_text
from fsm.status import ANY, Standing, Wish
from fsm.view import View

Question = Callable[[View, int, Wish], bool]

QUERIES_REMEMBERED_MAX = 512


class Check(NamedTuple):
    """What a path asks. Paths for the leader pay no heed to tags."""

    question: Question
    minds_tags: bool = True


def _is_writable(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_writable(view, now_ms)


def _is_leading(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_leading_to_somewhere(view, now_ms)


def _is_standby_leader(view: View, now_ms: int, wish: Wish) -> bool:
    return False  # standby clusters are not supported yet


def _is_readable(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_writable(view, now_ms) or status.is_readable_standby(view, now_ms, wish)


def _is_healthy(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_healthy(view, now_ms)


def _is_synchronous(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_synchronous_standby(view) and status.is_readable_standby(view, now_ms, wish)


def _is_quorum(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_quorum_standby(view) and status.is_readable_standby(view, now_ms, wish)


def _is_asynchronous(view: View, now_ms: int, wish: Wish) -> bool:
    waited_for = status.is_synchronous_standby(view) or status.is_quorum_standby(view)
    return not waited_for and status.is_readable_standby(view, now_ms, wish)


def _is_readable_synchronous(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_writable(view, now_ms) or _is_synchronous(view, now_ms, wish)


def _is_readable_quorum(view: View, now_ms: int, wish: Wish) -> bool:
    return status.is_writable(view, now_ms) or _is_quorum(view, now_ms, wish)


def _with_cluster_view(question: Question) -> Question:
    """The question, answered no while nobody knows what the `sync` key says."""
    return lambda view, now_ms, wish: status.has_cluster_view(view, now_ms) and question(view, now_ms, wish)


# The first word found anywhere in the path decides. Source: Patroni, GET health endpoints.
CHECK_BY_WORD: tuple[tuple[str, Check], ...] = (
    ("standby_leader", Check(_is_standby_leader, minds_tags=False)),
    ("standby-leader", Check(_is_standby_leader, minds_tags=False)),
    ("leader", Check(_is_leading, minds_tags=False)),
    ("master", Check(_is_writable, minds_tags=False)),
    ("primary", Check(_is_writable, minds_tags=False)),
    ("read-write", Check(_is_writable, minds_tags=False)),
    ("replica", Check(status.is_readable_standby)),
    ("read-only", Check(_is_readable)),
    ("health", Check(_is_healthy)),
)
CHECK_BY_PATH: dict[str, Check] = {
    path: Check(_with_cluster_view(question))
    for question, paths in {
        _is_synchronous: ("/sync", "/synchronous"),
        _is_quorum: ("/quorum",),
        _is_asynchronous: ("/async", "/asynchronous"),
        _is_readable_synchronous: ("/read-only-sync", "/read-only-synchronous"),
        _is_readable_quorum: ("/read-only-quorum",),
    }.items()
    for path in paths
}


@lru_cache(QUERIES_REMEMBERED_MAX)
def check_of(path: str) -> Check | None:
    """What a path asks, by Patroni's ordered substring matching; None for a path that asks nothing."""
    if path == "/":
        path = "/primary"
    for word, check in CHECK_BY_WORD:
        if word in path and not (word == "read-only" and ("sync" in path or "quorum" in path)):
            return check
    return CHECK_BY_PATH.get(path)


@lru_cache(QUERIES_REMEMBERED_MAX)
def wish_of(query: bytes) -> Wish:
    """What the query asks for beyond the path; the first value of a name counts."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1")):
        found.setdefault(name, value)
    return Wish(
        lag_bytes=status.parse_lag_bytes(found.get("lag")),
        replication_state=found.get("replication_state"),
        tags=tuple((name.removeprefix("tag_"), value) for name, value in found.items() if name.startswith("tag_")),
        lag_mode="write" if found.get("mode") == "write" else "apply",
    )


class HealthChecks:
    """Answers every GET, HEAD and OPTIONS that no other part of the API does."""

    def __init__(self, board: Board, now_ms: Callable[[], int]) -> None:
        self._board = board
        self._now_ms = now_ms
        self._encoded: tuple[Published, Standing, bytes] | None = None

    def answer(self, method: str, path: str, query: bytes) -> tuple[int, bytes]:
        """Status and body. HEAD and OPTIONS always ask about health, whatever GET has at that path, and get no body."""
        now_ms, published = self._now_ms(), self._board.current
        if method != "GET":
            return self._code(published.view, now_ms, path, query), b""
        match path.split("/", 2)[1:2]:
            case ["liveness"]:
                return 200 if status.is_alive(published.view, now_ms) else 503, b""
            case ["readiness"]:
                return 200 if status.is_ready(published.view, now_ms, wish_of(query)) else 503, b""
            case ["patroni"]:
                return 200, self._status(published, now_ms)
            case _:
                return self._code(published.view, now_ms, path, query), self._status(published, now_ms)

    def metrics(self) -> str:
        """The node's metrics. Source: Patroni, GET /metrics."""
        now_ms, view = self._now_ms(), self._board.current.view
        seen_s = _unix_time_s(status.etcd_seen_at_ms(view), now_ms)
        return metrics_text(view, status.standing_at(view, now_ms), seen_s, now_ms)

    def _code(self, view: View, now_ms: int, path: str, query: bytes) -> int:
        check = check_of(path)
        if check is None:
            return 503
        wish = wish_of(query) if query else ANY
        if check.minds_tags and not status.has_tags(view, wish.tags):
            return 503
        return 200 if check.question(view, now_ms, wish) else 503

    def _status(self, published: Published, now_ms: int) -> bytes:
        """The status JSON: what is encoded already, with the ages at this instant put into its last object."""
        standing = status.standing_at(published.view, now_ms)
        if self._encoded is None or self._encoded[0] is not published or self._encoded[1] != standing:
            self._encoded = (published, standing, self._encode(published, standing, now_ms))
        ages = "".join(f', "{name}": {age_ms}' for name, age_ms in status.ages(published.view, now_ms).items())
        return b"%s%s}}" % (self._encoded[2], ages.encode())

    def _encode(self, published: Published, standing: Standing, now_ms: int) -> bytes:
        """The status JSON without the ages and the two braces at its end."""
        fields = status.status_fields(
            published.view,
            standing,
            dcs_last_seen_s=_unix_time_s(status.etcd_seen_at_ms(published.view), now_ms),
            is_log_degraded=published.is_log_degraded,
            progress=to_builtins(published.progress),
        )
        return encode_json(fields).removesuffix(b"}}")


def _unix_time_s(at_ms: int | None, now_ms: int) -> int:
    """An instant as Patroni's JSON writes it, 0 for none."""
    if at_ms is None:
        return 0
    return int(datetime.fromisoformat(wall_time()).timestamp() - (now_ms - at_ms) / 1000)
