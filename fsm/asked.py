"""What was asked of this node through its API and is not done yet, and how the newest of it ended.

Each request carries an id, under which whoever asked finds the answer on the board.
"""

from typing import Literal

from msgspec import field

from fsm.facts import Fact
from fsm.states import State

Ending = Literal["done", "refused", "conflict", "failed", "unknown"]

ANSWERS_KEPT = 16
"""Answers are read within milliseconds; the rest is for readers that were held up."""


class Asked(Fact, frozen=True, kw_only=True):
    """A request that one duty performs once, not later than `until_ms`: nobody waits for it any longer."""

    request_id: str
    until_ms: int
    revision: int = 0
    """The revision of the key that the request was made for; 0 if any will do."""


class Restart(Fact, frozen=True, kw_only=True):
    """A restart of the server in place. It is begun while `pid` runs, and done when another answers."""

    request_id: str
    pid: int
    state: State
    asked_at_ms: int
    start_timeout_ms: int
    until_ms: int


class AgentRestart(Fact, frozen=True, kw_only=True):
    """A restart of the agent in place. `took_ms`: how long it took to try the new code; 0 until it was tried.

    `refused`: why it was not done, in one line; this agent goes on then.
    """

    request_id: str
    asked_at_ms: int
    until_ms: int
    took_ms: int = 0
    refused: str = ""


class RestartWish(Fact, frozen=True, kw_only=True):
    """Under which conditions a server is to be restarted, and how long its start may take (0: as configured).

    `schedule`: at which instant, "" for now. `conditions`: what was asked for, as it was written.
    """

    role: str | None = None
    postgres_version: int = 0
    restart_pending: bool = False
    timeout_ms: int = 0
    schedule: str = ""
    conditions: dict[str, str | int | float | bool | None] = field(default_factory=dict)


class ScheduledRestart(Fact, frozen=True, kw_only=True):
    """A restart for an instant. It is meant for the server that runs now: any other start of it makes it moot."""

    request_id: str
    wish: RestartWish
    pid: int
    postmaster_started_at: str
    due_at_ms: int


class Answer(Fact, frozen=True, kw_only=True):
    """How a request ended."""

    request_id: str
    ending: Ending
    detail: str = ""


class ConfigChange(Fact, frozen=True, kw_only=True):
    """One changed place of the dynamic configuration, as text without secrets; None where there is nothing."""

    path: str
    old: str | None = None
    new: str | None = None
