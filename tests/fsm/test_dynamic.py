"""What the `config` key means, whatever somebody wrote into it."""

import json
from typing import Any

import pytest

from fsm.dynamic import Dynamic, parse_dynamic


@pytest.mark.parametrize(
    ("written", "field", "meant"),
    [
        ({"synchronous_mode_strict": "on"}, "synchronous_mode_strict", True),
        ({"synchronous_mode_strict": "maybe"}, "synchronous_mode_strict", False),
        ({"synchronous_node_count": 2}, "synchronous_node_count", 2),
        ({"synchronous_node_count": 0}, "synchronous_node_count", 1),
        ({"synchronous_node_count": "two"}, "synchronous_node_count", 1),
        ({"maximum_lag_on_syncnode": "1048576"}, "maximum_lag_on_syncnode_bytes", 1_048_576),
        ({"maximum_lag_on_syncnode": -7}, "maximum_lag_on_syncnode_bytes", -1),
        ({"ttl": "1min"}, "ttl_s", 60),
        ({"ttl": "20 parsecs"}, "ttl_s", 30),
        ({"ttl": True}, "ttl_s", 30),
        ({"maximum_lag_on_failover": "2MB"}, "maximum_lag_on_failover_bytes", 2_097_152),
        ({"max_timelines_history": 5}, "max_timelines_history", 5),
        ({"max_timelines_history": -1}, "max_timelines_history", 0),
        ({"postgresql": {"pg_hba": ["local all all trust", 7]}}, "pg_hba", ("local all all trust", "7")),
        ({"postgresql": {"pg_hba": "local all all trust"}}, "pg_hba", ()),
        ({"postgresql": {"pg_ident": ["m root postgres"]}}, "pg_ident", ("m root postgres",)),
        ({"postgresql": {"parameters": {"a": True, "b": 1, "c": None}}}, "parameters", {"a": "on", "b": "1"}),
        ({"postgresql": {"parameters": ["a"]}}, "parameters", {}),
        ({"postgresql": ["a"]}, "parameters", {}),
    ],
)
def test_dynamic_reads_a_setting_when_it_is_written(written: dict[str, Any], field: str, meant: object) -> None:
    """Each setting has its meaning, and what cannot be read has the default."""
    assert getattr(parse_dynamic(json.dumps(written)), field) == meant


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7", '{"ttl": {}}'])
def test_dynamic_is_the_default_when_nothing_can_be_read(text: str | None) -> None:
    """Whatever is in the key, there is always a configuration."""
    assert parse_dynamic(text) == Dynamic()
