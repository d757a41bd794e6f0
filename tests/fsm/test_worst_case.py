"""The worst cases follow from the settings in force by an arithmetic that is shown."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.dynamic import Dynamic
from fsm.timing import fence_margin_ms
from fsm.worst_case import ETCD_EXPIRY_MS, WorstCase, worst_cases

DYNAMICS = st.builds(
    Dynamic,
    ttl_s=st.integers(3, 86_400),
    primary_start_timeout_s=st.integers(0, 10_000),
    failsafe_mode=st.booleans(),
    synchronous_mode=st.sampled_from(("off", "on", "quorum")),
    synchronous_mode_strict=st.booleans(),
)


def case_of(dynamic: Dynamic, words: str) -> WorstCase:
    """The one case whose name has these words in it."""
    (found,) = [case for case in worst_cases(dynamic) if words in case.case]
    return found


@pytest.mark.parametrize(("ttl_s", "total_ms"), [(30, 31_000), (5, 6_000)])
def test_silent_death_lasts_the_ttl_and_an_election_when_the_lease_was_just_renewed(ttl_s: int, total_ms: int) -> None:
    """All of the ttl, etcd's own delay, and the wait for the member that is dead."""
    found = case_of(Dynamic(ttl_s=ttl_s), "dies silently")
    assert found.at_most_ms == total_ms
    assert f"ttl ({ttl_s} s)" in found.because


def test_server_crash_ends_with_an_election_when_the_start_takes_too_long() -> None:
    """primary_start_timeout bounds it; 0 gives the key up at once."""
    assert case_of(Dynamic(primary_start_timeout_s=300), "server crashes").at_most_ms == 300_500
    assert case_of(Dynamic(primary_start_timeout_s=0), "server crashes").at_most_ms == 500


def test_lost_etcd_costs_nothing_when_failsafe_is_on() -> None:
    """Off, the primary stops within the ttl, and there is no bound for how long etcd is away."""
    assert case_of(Dynamic(failsafe_mode=True), "etcd is lost").at_most_ms == 0
    found = case_of(Dynamic(failsafe_mode=False, ttl_s=30), "etcd is lost")
    assert found.at_most_ms is None
    assert "stops 17 s to 27 s after etcd fell silent" in found.because


def test_synchronous_standby_is_told_of_only_when_commits_wait_for_one() -> None:
    """Two seconds, unless strict mode has nobody else to wait for."""
    assert [case for case in worst_cases(Dynamic()) if "synchronous" in case.case] == []
    assert case_of(Dynamic(synchronous_mode="on"), "synchronous").at_most_ms == 2_000
    strict = Dynamic(synchronous_mode="quorum", synchronous_mode_strict=True)
    assert case_of(strict, "synchronous").at_most_ms is None


@given(DYNAMICS)
def test_every_case_is_sound_when_the_settings_are_any(dynamic: Dynamic) -> None:
    """No bound is negative, each is explained in one line, and none promises more than the fence allows."""
    cases = worst_cases(dynamic)
    assert len({case.case for case in cases}) == len(cases)
    for case in cases:
        assert case.at_most_ms is None or case.at_most_ms >= 0
        assert case.because
        assert "\n" not in case.because
        assert not re.search(r"-\d", case.because), case.because
    # Whoever takes over does so after the fence has ended the old server.
    silent = case_of(dynamic, "primary's node dies silently").at_most_ms
    assert silent is not None
    assert silent >= dynamic.ttl_s * 1000 + ETCD_EXPIRY_MS > dynamic.ttl_s * 1000 - fence_margin_ms(dynamic.ttl_s)
