"""PATCH and PUT /config: how a patch is merged, what is refused, what is told when, and what the log may see."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.access import Access
from effects.config_desk import ConfigDesk
from fsm.asked import Answer, ConfigChange, Ending
from fsm.entries import encode, make_entry
from fsm.events import AnyEvent, ConfigAsked
from fsm.facts import Key
from fsm.machine import step
from fsm.view import Etcd, View
from tests.api.asking import Surroundings, ask, ask_json, surroundings
from tests.views import NOW_MS, leader_view, with_key

pytestmark = pytest.mark.anyio

KNOWN: dict[str, Any] = {
    "ttl": 30,
    "loop_wait": 10,
    "postgresql": {"parameters": {"work_mem": "4MB", "ssl_passphrase_command": "s3cret"}},
}
REVISION = 17


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a leader, a log, and an inbox whose requests end well."""
    async with surroundings(tmp_path) as found:
        ending(found, "done")
        yield found


def ending(around: Surroundings, how: Ending, detail: str = "") -> None:
    """Lets every request end so."""

    def react(event: AnyEvent) -> None:
        assert isinstance(event, ConfigAsked)
        answer = Answer(request_id=event.request_id, ending=how, detail=detail)
        around.show(leader_view(answers=(answer,)))

    around.react = react


def desk_of(known: Any = KNOWN) -> ConfigDesk:
    """A desk over a configuration."""
    text = None if known is None else known if isinstance(known, str) else json.dumps(known)
    return ConfigDesk(lambda: (text, REVISION))


PATCHES: list[tuple[Any, Any]] = [
    ({"ttl": 20}, {**KNOWN, "ttl": 20}),
    ({"ttl": None}, {key: value for key, value in KNOWN.items() if key != "ttl"}),
    ({"nothing": None}, KNOWN),
    ({"ttl": "30"}, KNOWN),
    ({"pause": True}, {**KNOWN, "pause": True}),
    ({"mine": {"a": {"b": None, "c": 1}}}, {**KNOWN, "mine": {"a": {"c": 1}}}),
    (
        {"postgresql": {"parameters": {"work_mem": None, "max_connections": 200}, "use_pg_rewind": True}},
        {
            **KNOWN,
            "postgresql": {
                "parameters": {"ssl_passphrase_command": "s3cret", "max_connections": 200},
                "use_pg_rewind": True,
            },
        },
    ),
    ({"postgresql": {"parameters": {"ssl_passphrase_command": "***"}}, "ttl": 40}, {**KNOWN, "ttl": 40}),
    ({"synchronous_mode": "quorum"}, {**KNOWN, "synchronous_mode": "quorum"}),
]


@pytest.mark.parametrize(("patch", "wanted"), PATCHES)
async def test_patch_is_merged_when_it_is_usable(around: Surroundings, patch: Any, wanted: Any) -> None:
    """null deletes, objects merge, equal as text is equal; the answer is the whole, without secrets."""
    desk = desk_of()
    answer = await ask_json(around.app(configs=desk), "/config", patch, "PATCH")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.text == json.dumps(wanted, separators=(",", ":")).replace("s3cret", "***")
    asked = [event for event in around.submitted if isinstance(event, ConfigAsked)]
    assert bool(asked) == (wanted != KNOWN)
    if asked:
        assert json.loads(desk.text_of(asked[0].request_id)) == wanted
        assert (asked[0].revision, asked[0].by) == (REVISION, "192.0.2.1")


async def test_second_patch_builds_on_the_first_when_the_watch_has_not_told_of_it_yet(around: Surroundings) -> None:
    """Two changes in a row are no conflict."""
    desk = desk_of()
    app = around.app(configs=desk)
    await ask_json(app, "/config", {"ttl": 20}, "PATCH")
    first = around.submitted[0]
    assert isinstance(first, ConfigAsked)
    desk.note_written(first.request_id, REVISION + 1)
    answer = await ask_json(app, "/config", {"loop_wait": 5}, "PATCH")
    second = around.submitted[1]
    assert isinstance(second, ConfigAsked)
    assert (answer.json["ttl"], answer.json["loop_wait"], second.revision) == (20, 5, REVISION + 1)


async def test_put_replaces_when_it_is_usable(around: Surroundings) -> None:
    """Whatever was there, at whatever revision."""
    desk = desk_of(None)
    answer = await ask_json(around.app(configs=desk), "/config", {"ttl": 20, "x": None}, "PUT")
    assert (answer.status, answer.json) == (200, {"ttl": 20})
    assert isinstance(around.submitted[0], ConfigAsked)
    assert around.submitted[0].revision == 0


DEEP = b'{"ttl":' + b'{"a":' * 40 + b"1" + b"}" * 41
ABYSS = b'{"a":' * 9_000 + b"1" + b"}" * 9_000
UNUSABLE: list[dict[str, Any]] = [
    {"ttl": 2},
    {"ttl": 2.5},
    {"ttl": "soon"},
    {"ttl": True},
    {"ttl": [30]},
    {"ttl": -(10**30)},
    {"ttl": 10**30},
    {"ttl": "9" * 5000},
    {"ttl": "٣٠"},
    {"loop_wait": 0},
    {"retry_timeout": 0},
    {"maximum_lag_on_failover": -1},
    {"primary_start_timeout": "x"},
    {"synchronous_mode": "sometimes"},
    {"synchronous_mode": {"on": 1}},
    {"synchronous_mode_strict": 2},
    {"synchronous_node_count": 0},
    {"failsafe_mode": "maybe"},
    {"failsafe_timeout": 99},
    {"failsafe_timeout": 10_001},
    {"failsafe_timeout": "soon"},
    {"failsafe_timeout": 8_000},
    {"ttl": 3, "failsafe_timeout": 500},
    {"pause": []},
    {"member_slots_ttl": "a while"},
    {"slots": []},
    {"ignore_slots": {}},
    {"standby_cluster": "n1"},
    {"postgresql": "fast"},
    {"postgresql": {"parameters": ["work_mem"]}},
    {"postgresql": {"parameters": {"work_mem": {"a": 1}}}},
    {"postgresql": {"parameters": {"work mem; DROP TABLE x": "1"}}},
    {"postgresql": {"parameters": {"work_mem": "a\0b"}}},
    {"postgresql": {"parameters": {"": "1"}}},
    {"postgresql": {"use_pg_rewind": "perhaps"}},
    {"postgresql": {"pg_hba": "trust"}},
    {"postgresql": {"pg_hba": [1]}},
]
HOSTILE: list[tuple[bytes | None, int]] = [
    (None, 411),
    (b"", 400),
    (b"{}", 400),
    (b"[]", 400),
    (b"null", 400),
    (b'"ttl"', 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"ttl": NaN}', 400),
    (b'{"ttl": 1e999}', 400),
    (b" " * 70_000, 413),
    (b'{"ttl": ' + b"9" * 5_000 + b"}", 400),
    (DEEP, 400),
    (ABYSS, 400),
    *((json.dumps(body).encode(), 400) for body in UNUSABLE),
]


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize(("body", "status"), HOSTILE)
async def test_change_is_refused_when_no_node_could_use_it(
    around: Surroundings, method: str, body: bytes | None, status: int
) -> None:
    """One line that says what is wrong, no secret, and nothing was asked for."""
    answer = await ask(around.app(configs=desk_of()), "/config", method, body)
    assert (answer.status, answer.text.count("\n"), around.submitted) == (status, 0, [])
    assert answer.text
    assert len(answer.text) < 400
    assert "s3cret" not in answer.text


@pytest.mark.parametrize(
    ("how", "patch_status", "put_status"), [("conflict", 409, 409), ("failed", 503, 502), ("unknown", 503, 502)]
)
async def test_change_is_told_as_it_ended_when_it_was_not_written(
    around: Surroundings, how: Ending, patch_status: int, put_status: int
) -> None:
    """Patroni's codes."""
    ending(around, how, "because")
    app = around.app(configs=desk_of())
    for method, status in (("PATCH", patch_status), ("PUT", put_status)):
        answer = await ask_json(app, "/config", {"ttl": 20}, method)
        assert (answer.status, "because" in answer.text) == (status, True)


@pytest.mark.parametrize(
    ("view", "known", "patch_status", "put_status"),
    [
        (leader_view(etcd=Etcd(lost_since_ms=NOW_MS)), KNOWN, 503, 502),
        (View(), KNOWN, 503, 502),
        (leader_view(), None, 503, 200),
        (leader_view(), "broken", 503, 200),
        (leader_view(), "{}", 503, 200),
    ],
)
async def test_change_needs_etcd_and_a_patch_something_to_change_when_asked_for(
    around: Surroundings, view: View, known: Any, patch_status: int, put_status: int
) -> None:
    """PUT also mends a key that nobody can read."""
    for method, status in (("PATCH", patch_status), ("PUT", put_status)):
        around.show(view)
        answer = await ask_json(around.app(configs=desk_of(known)), "/config", {"ttl": 20}, method)
        assert (answer.status, bool(answer.text)) == (status, True)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_change_is_refused_when_credentials_are_missing(around: Surroundings, method: str) -> None:
    """Reading stays open."""
    app = around.app(access=Access(("admin", "secret")), configs=desk_of())
    assert (await ask_json(app, "/config", {"ttl": 20}, method)).status == 401
    assert around.submitted == []
    assert (await ask(app, "/config")).status == 200


async def test_log_shows_who_changed_what_and_no_secret_when_a_change_is_decided(around: Surroundings) -> None:
    """The entry names places, old and new values; neither it nor the effect holds what must not be seen."""
    patch = {"ttl": 20, "postgresql": {"parameters": {"ssl_passphrase_command": "n3w", "work_mem": None}}}
    await ask_json(around.app(configs=desk_of()), "/config", patch, "PATCH")
    event = around.submitted[0]
    assert isinstance(event, ConfigAsked)
    assert event.changes == (
        ConfigChange(path="ttl", old="30", new="20"),
        ConfigChange(path="postgresql.parameters.work_mem", old='"4MB"'),
        ConfigChange(path="postgresql.parameters.ssl_passphrase_command", old="***", new="***"),
    )
    decision = step(with_key(leader_view(), "config", Key(value="{}", mod_revision=REVISION)), event)
    entry = encode(make_entry(decision, event, boot="b", wall="w")).decode()
    assert '"ChangeConfig"' in entry
    assert "n3w" not in entry
    assert "s3cret" not in entry


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ({"ttl": 2}, "3 or more, 86400 at the most (etcd keeps a lease for 2 s at the least"),
        ({"failsafe_timeout": 8_000}, "allowed with a ttl of 30 s are 7450 ms at the most"),
        ({"ttl": 3, "failsafe_timeout": 500}, "allowed with a ttl of 3 s are 450 ms at the most"),
    ],
    ids=["ttl", "timeout", "timeout for the ttl"],
)
async def test_refusal_says_why_when_a_span_of_time_would_not_be_safe(
    around: Surroundings, patch: dict[str, Any], reason: str
) -> None:
    """What is allowed, and for which reason."""
    answer = await ask_json(around.app(configs=desk_of()), "/config", patch, "PATCH")
    assert (answer.status, reason in answer.text, around.submitted) == (400, True, [])
