"""Settings with units are shown as PostgreSQL shows them."""

import pytest

from fsm.units import shown_setting


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        ("16384", "8kB", "128MB"),
        ("131072kB", "8kB", "128MB"),
        ("1GB", "8kB", "1GB"),
        ("10240", "MB", "10GB"),
        ("90", "s", "90s"),
        ("3600", "s", "1h"),
        ("1500", "ms", "1500ms"),
        ("0", "8kB", "0"),
        ("200", "", "200"),
        ("-1", "8kB", "-1"),
        ("on", "", "on"),
        ("12 apples", "8kB", "12 apples"),
        ("0.5GB", "8kB", "0.5GB"),
    ],
)
def test_setting_is_shown_in_the_largest_whole_unit_when_it_has_one(value: str, unit: str, shown: str) -> None:
    """However an amount was written, it is told as SHOW tells it."""
    assert shown_setting(value, unit) == shown
