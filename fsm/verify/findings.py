"""The checks by name, and what they found."""

from collections import Counter

from fsm.facts import Fact

CHECKS = {
    "replay": "every entry is decided again as it was recorded",
    "move": "every move is a row of the table, from the state that the entry before it left",
    "outcome": "every effect has one outcome, save those under way when an agent ended",
    "lease": "a lease's life is counted from when its renewal was sent",
    "fence": "the fence confirms the deadline that it was given, which is no later than the leadership's",
    "primary": "a server is made a primary only by a leader whose key hangs on its lease, with an armed fence",
    "deadline": "what only a leader may do is ordered before the deadline, and nobody leads after it",
    "leaving": "who ceases to lead begins by ending its server",
    "candidate": "who stands may be promoted, by its tags, its timeline and the sync key",
    "votes": "in quorum mode a candidate heard enough votes for that very sync key",
    "loss": "what a promotion may leave behind was estimated before it",
    "keys": "all nodes saw the same history of keys in etcd",
    "reigns": "no two nodes led at the same revision of etcd",
    "timelines": "each timeline was begun once, and written by one node",
    "sync": "who took the leader key stood by the sync key that was in force at that revision",
    "positions": "who was promoted held all that its primary knew it to have on disk",
}
"""What each check asks of the logs. `matriarch verify` says how often it had something to look at."""

FINDINGS_MAX = 20
"""How many findings of one check are told: the first ones matter."""


class Finding(Fact, frozen=True, kw_only=True):
    """Something that must not be."""

    check: str
    node: str
    seq: int
    text: str

    def __str__(self) -> str:
        return f"{self.node}#{self.seq}: {self.check}: {self.text}"


class Book:
    """How often each check looked at something, and what it found."""

    def __init__(self) -> None:
        self.looked: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.findings: list[Finding] = []

    def check(self, check: str, holds: bool, node: str, seq: int, text: str) -> None:
        """Count a look, and note what is wrong if it does not hold."""
        self.looked[check] += 1
        if holds:
            return
        self.found[check] += 1
        if self.found[check] <= FINDINGS_MAX:
            self.findings.append(Finding(check=check, node=node, seq=seq, text=text))
