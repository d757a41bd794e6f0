"""Hands an event to the agent, and waits until the board shows what came of it."""

import uuid
from collections.abc import Callable
from typing import TypeVar

import anyio

from effects.board import Board
from fsm.asked import Answer
from fsm.events import AnyEvent
from fsm.requests import answer_of
from fsm.view import View

Submit = Callable[[AnyEvent], None]
Found = TypeVar("Found")


class Desk:
    """The way from a request to its answer."""

    def __init__(self, board: Board, submit: Submit, now_ms: Callable[[], int]) -> None:
        self.board, self._submit, self.now_ms = board, submit, now_ms

    @property
    def view(self) -> View:
        """What the node knows by the newest snapshot."""
        return self.board.current.view

    @staticmethod
    def new_request_id() -> str:
        """A name that no other request has."""
        return uuid.uuid4().hex

    def submit(self, event: AnyEvent) -> None:
        """Give the event to the agent."""
        self._submit(event)

    async def found(self, look: Callable[[View], Found | None], wait_s: float) -> Found | None:
        """What `look` finds in the first snapshot in which it finds something; None if the time passes."""
        with anyio.move_on_after(wait_s):
            while True:
                found = look(self.view)
                if found is not None:
                    return found
                await self.board.changed()
        return None

    async def answer(self, request_id: str, wait_s: float) -> Answer:
        """How the request ended; "unknown" if the time passes."""
        found = await self.found(lambda view: answer_of(view, request_id), wait_s)
        return found or Answer(request_id=request_id, ending="unknown", detail=f"no answer within {wait_s:g} s")
