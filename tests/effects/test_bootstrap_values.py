"""What of this node's bootstrap.dcs is ignored is told once, and again when it changes."""

import json
import logging

import pytest

from effects.bootstrap_values import IgnoredValues, differences


def test_differences_are_none_when_the_values_mean_the_same() -> None:
    """A number as text, a truth value in another word, and what only etcd has are no differences."""
    first = {"ttl": 30, "synchronous_mode": "on", "postgresql": {"use_pg_rewind": True}, "standby_cluster": None}
    now = {"ttl": "30", "synchronous_mode": True, "postgresql": {"use_pg_rewind": "yes", "use_slots": True}, "x": 1}
    assert differences(first, now) == []


def test_differences_tell_both_values_when_they_are_no_secrets() -> None:
    """Where a name says that there may be a secret, neither value is shown."""
    first = {"ttl": 30, "postgresql": {"parameters": {"archive_command": "key=abc", "max_connections": 200}}}
    now = {"ttl": 20, "postgresql": {"parameters": {"archive_command": "key=def"}}}
    assert differences(first, now) == [
        "ttl is 30 here, 20 in etcd",
        "postgresql.parameters.archive_command is *** here, *** in etcd",
        "postgresql.parameters.max_connections is 200 here, not set in etcd",
    ]


def test_ignored_values_are_told_once_when_nothing_changes(caplog: pytest.LogCaptureFixture) -> None:
    """One line at the start, another when the difference changes, none when there is none."""
    ignored = IgnoredValues({"ttl": 30})
    with caplog.at_level(logging.INFO, "effects.bootstrap_values"):
        for ttl_s in (30, 20, 20, 25, 30):
            ignored.tell(json.dumps({"ttl": ttl_s}))
        ignored.tell(None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "ttl is 30 here, 20 in etcd" in told[0]
    assert "ttl is 30 here, 25 in etcd" in told[1]


def test_values_in_etcd_are_told_once_when_they_count_as_something_else(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody wrote them by hand; the nearest that is safe counts, and why is said."""
    ignored = IgnoredValues({})
    with caplog.at_level(logging.WARNING, "effects.bootstrap_values"):
        for _ in range(2):
            ignored.tell(json.dumps({"ttl": 1, "failsafe_timeout": 5_000}))
        ignored.tell(json.dumps({"ttl": "20s", "failsafe_timeout": 500}))
    (told,) = [record.getMessage() for record in caplog.records]
    assert '"ttl" is "1", and 3 s count: 3 s at the least, for etcd keeps a lease for 2 s at the least' in told
    assert '"failsafe_timeout" is "5000", and 450 ms count' in told
