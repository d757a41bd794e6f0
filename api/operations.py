"""What operators and other members ask this node to do. Each request becomes an event; the board shows what came of it.

Source: Patroni, REST API, the endpoints that write.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.access import Access
from api.answers import Rejected, json_answer, read_object, text_answer, text_of
from api.waiting import Desk
from effects.clock import unix_ms
from effects.errors import ConfigError
from fsm import status
from fsm.asking import Unreadable, check_schedule, read_restart
from fsm.dynamic import TTL_MAX_S, as_bool
from fsm.events import (
    FailsafeAsked,
    FailsafeCheckAsked,
    PromiseTryAsked,
    ReinitAsked,
    ReloadAsked,
    RestartAsked,
    RestartCancelAsked,
    SwitchoverAsked,
    SwitchoverCancelAsked,
    VoteAsked,
)
from fsm.failsafe_check import judged, why_not_to_check
from fsm.restart import restart_obstacle, restart_start_timeout_ms
from fsm.status import AskedSwitchover
from fsm.timing import REQUEST_TIMEOUT_MS, RESTART_STOP_MS, promise_answer_ms
from fsm.view import View
from fsm.vote import vote_revision

OBSTACLE_LASTS_S = 1.5
VOTE_WAIT_S = 0.3
"""How long a candidate is kept waiting for this node's vote; it gives its members 500 ms."""
SWITCHOVER_WAIT_LEAST_S = 10
TAKEN_WAIT_S = 2
"""How long a request may be on its way to the machine, which takes milliseconds."""
WAIT_S = REQUEST_TIMEOUT_MS / 1000 + 1
UNHEARD = "etcd is not heard of at present: nothing was asked for"

Reload = Callable[[str, str], Awaitable[ReloadAsked]]
"""Reads the node's settings again, for a request's id and who asked. Raises: ConfigError, and then changes nothing."""


Found = TypeVar("Found")


class Operations:
    """Answers requests that change something, to those who may make them."""

    def __init__(self, desk: Desk, access: Access, reload: Reload | None = None) -> None:
        self._desk, self._access, self._reload = desk, access, reload

    @property
    def routes(self) -> list[Route]:
        """Where each request goes."""
        endpoints = {
            ("POST", "/switchover"): self.switch_over,
            ("DELETE", "/switchover"): self.cancel_switchover,
            ("POST", "/failover"): self.fail_over,
            ("POST", "/restart"): self.restart,
            ("DELETE", "/restart"): self.cancel_restart,
            ("POST", "/reload"): self.reload,
            ("POST", "/reinitialize"): self.reinitialize,
            ("POST", "/failsafe"): self.confirm_failsafe,
            ("POST", "/vote"): self.vote,
            ("GET", "/failsafe/promise"): self.would_confirm_failsafe,
            ("GET", "/failsafe/check"): self.check_failsafe,
        }
        guarded = self._access.guarded
        return [
            Route(path, guarded(endpoint, self._desk.board), methods=[method])
            for (method, path), endpoint in endpoints.items()
        ]

    def _require_etcd(self) -> None:
        if not self._desk.view.etcd.is_watched:
            raise Rejected(503, UNHEARD)

    # ---- switchover and failover

    async def switch_over(self, request: Request) -> Response:
        """Hands the leadership on, and answers when that is done or will not be. Source: Patroni, POST /switchover."""
        return await self._hand_over(request, await read_object(request), is_failover=False)

    async def fail_over(self, request: Request) -> Response:
        """Makes a member the leader; with a leader named it is a switchover. Source: Patroni, POST /failover."""
        body = await read_object(request)
        # Looked at before a leader makes a switchover of it: without a candidate that one would go to anybody.
        if text_of(body, "candidate", "member") is None:
            raise Rejected(400, "Failover could be performed only to a specific candidate")
        if text_of(body, "scheduled_at"):
            raise Rejected(400, "a failover cannot be scheduled: leave out scheduled_at")
        return await self._hand_over(request, body, is_failover=text_of(body, "leader") is None)

    async def _hand_over(self, request: Request, body: dict[str, Any], *, is_failover: bool) -> Response:
        leader, candidate = text_of(body, "leader"), text_of(body, "candidate", "member")
        scheduled_at = text_of(body, "scheduled_at") or ""
        self._check_request(leader, candidate, scheduled_at, is_failover=is_failover)
        self._require_etcd()
        if not scheduled_at:
            await self._check_feasible(leader, candidate)
        asked = AskedSwitchover(
            leader=leader or self._desk.view.leader,
            candidate=candidate,
            revision=status.failover_revision(self._desk.view),
            is_failover=is_failover,
        )
        event = SwitchoverAsked(
            at_ms=self._desk.now_ms(),
            leader=leader,
            candidate=candidate,
            scheduled_at=scheduled_at,
            by=self._access.who(request),
        )
        self._desk.submit(event)
        return await (self._schedule_answer(asked) if scheduled_at else self._handover_answer(asked))

    def _check_request(
        self, leader: str | None, candidate: str | None, scheduled_at: str, *, is_failover: bool
    ) -> None:
        """Refuse what makes no sense. Source: Patroni, the order of its checks that answer 400 and 422."""
        is_paused = self._desk.view.dynamic.pause
        if not is_failover and leader is None:
            raise Rejected(400, "Switchover could be performed only from a specific leader")
        if scheduled_at and is_paused:
            raise Rejected(400, "a switchover cannot be scheduled in a paused state")
        if scheduled_at:
            _readable(lambda: check_schedule("scheduled_at", scheduled_at, unix_ms()))
        if candidate is None and is_paused:
            raise Rejected(400, "Switchover is possible only to a specific candidate in a paused state")
        if leader is not None and leader == candidate:
            raise Rejected(400, "Switchover target and source are the same")

    async def _check_feasible(self, leader: str | None, candidate: str | None) -> None:
        """Refuse what cannot be done; a look at the server may be a second old, so an obstacle must last longer."""

        def is_clear(view: View) -> bool | None:
            return status.switchover_obstacle(view, leader, candidate) is None or None

        if not await self._desk.found(is_clear, OBSTACLE_LASTS_S):
            raise Rejected(412, status.switchover_obstacle(self._desk.view, leader, candidate) or "not now")

    async def _schedule_answer(self, asked: AskedSwitchover) -> Response:
        written = await self._desk.found(lambda view: status.is_request_written(view, asked) or None, WAIT_S)
        if not written:
            raise Rejected(503, "etcd did not take the request: nobody knows whether it is scheduled")
        return text_answer("Switchover scheduled", 202)

    async def _handover_answer(self, asked: AskedSwitchover) -> Response:
        wait_s = 2 * max(SWITCHOVER_WAIT_LEAST_S, self._desk.view.dynamic.loop_wait_s)
        match await self._desk.found(lambda view: status.switchover_outcome(view, asked), wait_s):
            case "moved":
                return text_answer(self._moved_line(asked))
            case "dropped":
                leads = f'"{asked.leader}" still leads' if asked.leader else "nobody leads"
                raise Rejected(503, f"{asked.kind} failed: the request was dropped, {leads}")
            case _:
                raise Rejected(503, f"{asked.kind} status unknown after {wait_s} s")

    def _moved_line(self, asked: AskedSwitchover) -> str:
        """The words that tools look for."""
        leader = self._desk.view.leader
        verb = "failed over" if asked.is_failover else "switched over"
        if asked.candidate in (None, leader):
            return f'Successfully {verb} to "{leader}"'
        return f'{verb.capitalize()} to "{leader}" instead of "{asked.candidate}"'

    async def cancel_switchover(self, request: Request) -> Response:
        """Drops the scheduled switchover. Source: Patroni, DELETE /switchover."""
        self._require_etcd()
        view = self._desk.view
        if view.failover is None or not status.is_switchover_scheduled(view):
            raise Rejected(404, "no switchover is scheduled")
        request_id = self._desk.new_request_id()
        revision = view.failover.mod_revision
        event = SwitchoverCancelAsked(
            at_ms=self._desk.now_ms(), request_id=request_id, revision=revision, by=self._access.who(request)
        )
        self._desk.submit(event)
        answer = await self._desk.answer(request_id, WAIT_S)
        match answer.ending:
            case "done":
                return text_answer("scheduled switchover deleted")
            case "conflict":
                raise Rejected(409, f"the scheduled switchover was not deleted: {answer.detail}")
            case _:
                raise Rejected(503, f"nobody knows whether the switchover was deleted: {answer.detail}")

    # ---- restart and reload

    async def restart(self, request: Request) -> Response:
        """Restarts the server in place, and answers when it is back. Source: Patroni, POST /restart."""
        body = await read_object(request, is_optional=True)
        if "schedule" in body and self._desk.view.dynamic.pause:
            raise Rejected(500, "a restart cannot be scheduled in a paused state")
        wall_ms = unix_ms()
        wish = _readable(lambda: read_restart(body, wall_ms))
        view = self._desk.view
        obstacle = restart_obstacle(view, wish)
        if not wish.schedule and obstacle is not None:
            raise Rejected(503, obstacle)
        request_id = self._desk.new_request_id()
        event = RestartAsked(
            at_ms=self._desk.now_ms(),
            request_id=request_id,
            wish=wish,
            unix_ms=wall_ms if wish.schedule else 0,
            by=self._access.who(request),
        )
        self._desk.submit(event)
        if wish.schedule:
            return await self._scheduled_restart_answer(request_id)
        wait_ms = RESTART_STOP_MS + restart_start_timeout_ms(view, wish.timeout_ms) + REQUEST_TIMEOUT_MS
        answer = await self._desk.answer(request_id, wait_ms / 1000)
        if answer.ending != "done":
            raise Rejected(503, f"restart failed: {answer.detail}" if answer.ending != "refused" else answer.detail)
        return text_answer("restarted successfully")

    async def _scheduled_restart_answer(self, request_id: str) -> Response:
        answer = await self._desk.answer(request_id, WAIT_S)
        match answer.ending:
            case "done":
                return text_answer("Restart scheduled", 202)
            case "conflict":
                raise Rejected(409, answer.detail)
            case _:
                raise Rejected(503, f"the restart is not scheduled: {answer.detail}")

    async def cancel_restart(self, request: Request) -> Response:
        """Drops the scheduled restart. Source: Patroni, DELETE /restart."""
        request_id = self._desk.new_request_id()
        event = RestartCancelAsked(at_ms=self._desk.now_ms(), request_id=request_id, by=self._access.who(request))
        self._desk.submit(event)
        answer = await self._desk.answer(request_id, WAIT_S)
        match answer.ending:
            case "done":
                return text_answer("scheduled restart deleted")
            case "refused":
                raise Rejected(404, answer.detail)
            case _:
                raise Rejected(503, f"nobody knows whether the restart was deleted: {answer.detail}")

    async def reload(self, request: Request) -> Response:
        """Reads the node's settings again, as SIGHUP does. Source: Patroni, POST /reload."""
        if self._reload is None:
            raise Rejected(503, "this node has no settings to read again")
        request_id = self._desk.new_request_id()
        try:
            event = await self._reload(request_id, self._access.who(request))
        except ConfigError as error:
            raise Rejected(503, f"the settings were not read again: {'; '.join(error.faults)}") from error
        self._desk.submit(event)
        return text_answer("reload scheduled", 202)

    # ---- reinitialize

    async def reinitialize(self, request: Request) -> Response:
        """Begins to replace this node's data by a new base backup. Source: Patroni, POST /reinitialize.

        Answered once the status tells of it: who asks at once after that is not told of the old server.
        """
        body = await read_object(request, is_optional=True)
        is_forced, is_from_leader = (as_bool(body.get(name), False) for name in ("force", "from_leader"))
        self._check_reinit(is_forced)
        asked = ReinitAsked(
            at_ms=self._desk.now_ms(), by=self._access.who(request), is_from_leader=is_from_leader, is_forced=is_forced
        )
        self._desk.submit(asked)
        if not await self._desk.found(lambda view: status.has_taken_reinit(view, asked.at_ms) or None, TAKEN_WAIT_S):
            self._check_reinit(is_forced)
            raise Rejected(503, f"the agent did not take the request within {TAKEN_WAIT_S} s")
        return text_answer("reinitialize started")

    def _check_reinit(self, is_forced: bool) -> None:
        obstacle = status.reinit_obstacle(self._desk.view, is_forced=is_forced)
        if obstacle is not None:
            raise Rejected(503, obstacle)

    # ---- failsafe

    async def confirm_failsafe(self, request: Request) -> Response:
        """Promises a leader without etcd to let it go on. Source: Patroni, POST /failsafe."""
        body = await read_object(request)
        leader = text_of(body, "name")
        if leader is None:
            raise Rejected(400, '"name" is missing: the leader that asks')
        self._check_failsafe(leader)
        asked = FailsafeAsked(
            at_ms=self._desk.now_ms(),
            leader=leader,
            ttl_s=_ttl_of(body),
            conn_url=text_of(body, "conn_url") or "",
            api_url=text_of(body, "api_url") or "",
        )
        self._desk.submit(asked)
        reason = await self._failsafe_refusal(asked)
        if reason:
            raise Rejected(503, f'this node does not promise "{leader}" to let it go on: {reason}')
        return text_answer("Accepted", headers={"lsn": str(self._desk.view.position_lsn)})

    async def _failsafe_refusal(self, asked: FailsafeAsked) -> str:
        """Why the leader is not confirmed; empty once the promise that it asks for is on disk."""
        dynamic = self._desk.view.dynamic
        wait_ms = promise_answer_ms(dynamic.failsafe_timeout_ms, dynamic.ttl_s)

        def look(view: View) -> str | None:
            return "" if status.has_promised(view, asked) else status.failsafe_refusal(view, asked)

        reason = await self._desk.found(look, wait_ms / 1000)
        return f"it is not on disk within {wait_ms} ms" if reason is None else reason

    async def would_confirm_failsafe(self, request: Request) -> Response:
        """Whether a leader without etcd would be promised to go on, by the access that POST /failsafe needs.

        Binds nobody; that the disk would take a promise is tried out.
        """
        leader = request.query_params.get("leader")
        if not leader:
            raise Rejected(400, '"leader" is missing: who would ask')
        reason = status.failsafe_obstacle(self._desk.view, leader) or await self._obstacle_of_the_disk()
        return json_answer({"name": self._desk.view.name, "would_promise": not reason, "reason": reason})

    async def _obstacle_of_the_disk(self) -> str:
        """What is in the way of a promise on disk; a rehearsal that is under way tells as well as another one."""
        asked = self._desk.view.asked.get("try-promise")
        request_id = asked.request_id if asked else self._desk.new_request_id()
        if asked is None:
            self._desk.submit(PromiseTryAsked(at_ms=self._desk.now_ms(), request_id=request_id))
        answer = await self._desk.answer(request_id, WAIT_S)
        return "" if answer.ending == "done" else f"the promise would not reach the disk: {answer.detail}"

    async def check_failsafe(self, request: Request) -> Response:
        """Whether the members would let this leader go on if etcd went away now, and if not because of whom."""
        obstacle = why_not_to_check(self._desk.view)
        if obstacle is not None:
            raise Rejected(503, obstacle)
        request_id = self._desk.new_request_id()
        asked = FailsafeCheckAsked(at_ms=self._desk.now_ms(), request_id=request_id, by=self._access.who(request))
        self._desk.submit(asked)
        answer = await self._desk.answer(request_id, WAIT_S)
        if answer.ending != "done":
            raise Rejected(503, f"the members were not asked: {answer.detail}")
        view = self._desk.view
        return json_answer(judged(view, view.failsafe_answers))

    def _check_failsafe(self, leader: str) -> None:
        view = self._desk.view
        if not view.dynamic.failsafe_mode:
            raise Rejected(502, "failsafe mode is off")
        if status.is_leading_in_any_way(view) or leader == view.name:
            raise Rejected(500, "Running as a leader")

    # ---- elections

    async def vote(self, request: Request) -> Response:
        """This node's status, once its standby receives nothing more, so that what it says of its WAL stays true.

        Without a vote, which `matriarch.vote_revision` tells, it is answered all the same.
        """
        body = await read_object(request)
        candidate, revision = text_of(body, "candidate"), body.get("sync_revision")
        if candidate is None or not isinstance(revision, int) or revision == 0:
            raise Rejected(400, '"candidate" (a member\'s name) and "sync_revision" (a number but 0) are needed')
        self._desk.submit(VoteAsked(at_ms=self._desk.now_ms(), candidate=candidate, sync_revision=revision))
        await self._desk.found(lambda view: vote_revision(view) == revision or None, VOTE_WAIT_S)
        view, now_ms = self._desk.view, self._desk.now_ms()
        fields = status.status_fields(view, status.standing_at(view, now_ms))
        return json_answer({**fields, "matriarch": fields["matriarch"] | status.ages(view, now_ms)})


def _ttl_of(body: dict[str, Any]) -> int:
    """How long the leader counts on the answer; 0 if it does not say, as Patroni does not."""
    ttl_s = body.get("ttl", 0)
    if not isinstance(ttl_s, int) or not 0 <= ttl_s <= TTL_MAX_S:
        raise Rejected(400, f'"ttl" is not a number of seconds from 0 to {TTL_MAX_S}')
    return ttl_s


def _readable(read: Callable[[], Found]) -> Found:
    """What is read from a request. Raises: Rejected for what makes no sense."""
    try:
        return read()
    except Unreadable as error:
        raise Rejected(error.status, str(error)) from error
