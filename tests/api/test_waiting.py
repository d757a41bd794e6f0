"""How the command line follows a base backup: from answers of GET /patroni to an outcome that is true."""

from typing import Any

import pytest

from api.cli.waiting import MIB, Wait

ASKED_MS = 1_000_000
STREAMING = {"state": "running", "role": "replica", "replication_state": "streaming"}


def work(step: str = "base backup", done_mib: int | None = None, **rebuilding: Any) -> dict[str, Any]:
    """What a node says while its data are being replaced."""
    ours: dict[str, Any] = {"state": "reinit", "rebuilding": {"step": step, **rebuilding}}
    if done_mib is not None:
        ours["progress"] = {
            "work": "base backup", "phase": "copying", "source": "n1",
            "bytes_done": done_mib * MIB, "bytes_total": 400 * MIB,
        }  # fmt: skip
    return {"state": "creating replica", "matriarch": ours}


def streaming(**ours: Any) -> dict[str, Any]:
    """What a node says that streams."""
    return {**STREAMING, "matriarch": {"state": "replica", **ours}}


def after(*answers: dict[str, Any] | None) -> Wait:
    """A node that answered so, once a second."""
    wait = Wait("n2", ASKED_MS)
    for number, answer in enumerate(answers, start=1):
        wait.take(answer, ASKED_MS + number * 1_000)
    return wait


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (streaming(cloned_ago_ms=500), "done"),
        (streaming(cloned_ago_ms=60_000), "failed"),
        (streaming(), "unknown"),
        ({"state": "running", "role": "primary", "matriarch": {"state": "leader"}}, "failed"),
        ({"state": "starting", "matriarch": {"state": "reinit", "rebuilding": {"step": "starting"}}}, None),
        ({"state": "running", "role": "replica", "matriarch": {"state": "replica", "cloned_ago_ms": 1}}, None),
        (None, None),
        (STREAMING, "done"),
    ],
    ids=["new data", "older data", "restarted", "leads", "starting", "not streaming", "silent", "Patroni's"],
)
def test_outcome_is_told_when_it_is_known(last: dict[str, Any] | None, outcome: str | None) -> None:
    """Done is only who streams with data that were copied since it was asked."""
    assert after(work(), last).outcome == outcome


def test_rate_and_rest_are_told_when_bytes_come() -> None:
    """100 MiB in a second, and as much again takes as long."""
    wait = after(work("preparing"), work(done_mib=100), work(done_mib=200))
    assert wait.line() == "n2: base backup: copying, from n1, 200.0/400.0 MiB 100.0 MiB/s 0:02 left"


def test_rate_begins_anew_when_the_base_backup_does() -> None:
    """Fewer bytes than before are another attempt; why the last one failed is shown."""
    wait = after(work(done_mib=100), work(done_mib=300), work(done_mib=50, last_failure="no space"))
    assert wait.line() == "n2: base backup: copying, from n1, 50.0/400.0 MiB, last failure: no space"


def test_fields_say_what_the_last_look_said_when_asked_for() -> None:
    """For --json."""
    assert after(work("stopping the server")).fields() == {
        "member": "n2", "outcome": "begun", "detail": "stopping the server",
    }  # fmt: skip
