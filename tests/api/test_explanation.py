"""`matriarch explain` without a cluster: its text, what it completes, and how it refuses."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
import yaml

from api.cli.explain import complete_words, explain
from api.cli.explanation import duty_lines, failover_lines, node_lines, rule_lines
from api.cli.main import COMMANDS
from effects.embedded import free_ports
from fsm.explain import explain_at
from fsm.prognosis import prognosis
from fsm.table import DUTIES, TABLE
from tests.views import NOW_MS, leader_view, standby_view


def plain(lines: Iterable[str]) -> str:
    """What is left where no terminal reads."""
    return click.unstyle("\n".join(lines))


def test_node_is_told_in_a_line_a_rule_when_it_is_explained() -> None:
    """Every rule out of its state with the guards that it lacks, and what its promotion would leave behind."""
    text = plain(node_lines(explain_at(standby_view(), NOW_MS)))
    assert text.startswith("n2 is replica for ")
    standing = next(line for line in text.splitlines() if line.startswith("  R1 "))
    assert "-> candidate" in standing
    assert "is_leader_key_free" in standing
    assert "promoted now: how much WAL of the last leader is lost is unknown" in text


def test_rule_is_told_with_every_guard_when_it_is_asked_for() -> None:
    """A guard a line, with what it holds for; a rule of another state says so."""
    found = explain_at(standby_view(), NOW_MS, "R1")
    text = plain(rule_lines(found.name, found.rules[0], found.state))
    assert "on n2 it does not hold" in text
    assert "no is_leader_key_free etcd says that nobody holds the leader key." in " ".join(text.split())
    other = explain_at(standby_view(), NOW_MS, "L4")
    assert "on n2 it is not tried: n2 is replica" in plain(rule_lines("n2", other.rules[0], other.state))


def test_duty_is_told_with_every_guard_when_it_is_asked_for() -> None:
    """How it stands first."""
    found = explain_at(leader_view(), NOW_MS, "promote")
    text = plain(duty_lines(found.name, found.duties[0]))
    assert text.startswith("promote: the holder of the leader key is the primary\non n1 it is not wanted")
    assert "is_promotable" in text


def test_failover_is_told_with_all_members_when_it_is_asked_for() -> None:
    """Who wins, why nobody else, how long, and how much."""
    lines = plain(failover_lines(prognosis(leader_view()))).splitlines()
    assert lines[0] == "if n1 vanished now: n2 would be promoted"
    assert lines[1].split()[:2] == ["n1", "leads"]
    assert lines[2].split()[:2] == ["n2", "wins"]
    assert lines[3].startswith("writable again: 31 s at most: the lease was renewed just before")
    assert lines[4] == "bytes at risk: 40: by what n1 and n2 tell now"


def test_rules_and_duties_are_completed_when_a_word_begins_so() -> None:
    """With what each is for; nothing is asked over the network."""
    context = click.Context(explain)
    argument = explain.params[0]
    assert [item.value for item in complete_words(context, argument, "ask-")] == [
        duty.id for duty in DUTIES if duty.id.startswith("ask-")
    ]
    assert len(complete_words(context, argument, "")) == len(TABLE) + len(DUTIES)
    assert "explain" in COMMANDS


def run_command(settings: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PATRONI_", "MATRIARCH_"))}
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "explain", "-c", str(settings), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def settings_path(tmp_path: Path) -> Path:
    """A node's settings, with an etcd and an agent where nobody listens."""
    etcd, api = free_ports(2)
    settings = {
        "scope": "demo",
        "name": "n1",
        "etcd3": {"hosts": f"127.0.0.1:{etcd}"},
        "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
        "postgresql": {
            "listen": "127.0.0.1:5432",
            "connect_address": "127.0.0.1:5432",
            "data_dir": str(tmp_path / "data"),
            "authentication": {
                "superuser": {"username": "postgres", "password": "hunter2"},
                "replication": {"username": "replicator", "password": "hunter3"},
            },
        },
    }
    path = tmp_path / "patroni.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n1", "n2"], "at most one node"),
        (["R1", "L1"], "at most one node"),
        (["--failover", "R1"], "--failover says who would win"),
        (["a", "b", "c"], "at most one node"),
    ],
)
def test_command_refuses_in_words_when_it_is_used_badly(settings_path: Path, words: list[str], said: str) -> None:
    """Exit status 2, before anybody is asked."""
    ended = run_command(settings_path, *words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr


@pytest.mark.parametrize("words", [[], ["n1"], ["R1"], ["--failover"], ["--json"]])
def test_command_says_who_does_not_answer_when_nobody_does(settings_path: Path, words: list[str]) -> None:
    """Neither etcd nor this node's agent: exit status 1, no traceback, no secret."""
    ended = run_command(settings_path, *words)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "n1 does not answer at http://127.0.0.1:" in ended.stderr
    assert "does its agent run?" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hunter" not in ended.stderr


def test_command_cannot_ask_another_node_when_etcd_does_not_tell_where_it_is(settings_path: Path) -> None:
    """The one node whose address is known is named."""
    ended = run_command(settings_path, "n2")
    assert ended.returncode == 1
    assert "only n1 can be asked from here" in ended.stderr
