"""`matriarch restart-agent`: the agent beside this node's server becomes the one on the disk; the server goes on."""

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from api.cli.options import json_option
from api.cli.rest import RestClient
from effects.clock import now_ms
from effects.errors import MatriarchError
from effects.settings import load
from effects.settings_types import Settings
from fsm.wire import Member

LOOK_EVERY_S = 0.1


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How it went. `took_ms`: from the request until the successor answered."""

    restarted: bool
    pid: int
    took_ms: int
    instance: str = ""
    refused: str = ""


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=90.0, show_default=True,
              help="Wait no longer than so many seconds for the new agent.")  # fmt: skip
@json_option
def restart_agent(config: Path | None, timeout_s: float, as_json: bool) -> int:
    """Restart the agent of CONFIG (as given to `run`) in place, and wait until the new one answers.

    The new code and settings are tried first; if they would not start, the old agent goes on. The server, its clients,
    the lease and the leader key are not touched, and the REST API refuses nobody: connections wait a moment.

    Exit status: 0 the new agent answers, 1 it was refused or did not come, 2 bad settings.
    """
    settings = load(config, os.environ)
    pid = agent_pid(settings)
    with RestClient(settings) as client:
        before = client.status(_self(settings))
        asked_at_ms = now_ms()
        os.kill(pid, signal.SIGUSR2)
        outcome = _wait(client, settings, pid, _instance(before), asked_at_ms, int(timeout_s * 1000))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(outcome).decode())
    elif outcome.restarted:
        click.echo(f"the agent of {settings.name} (pid {pid}) was restarted in place within {outcome.took_ms} ms")
    else:
        click.echo(f"matriarch: the agent of {settings.name} was not restarted: {outcome.refused}", err=True)
    return 0 if outcome.restarted else 1


def agent_pid(settings: Settings) -> int:
    """The process of the agent that runs on these settings. Raises: MatriarchError when there is none to restart."""
    path = settings.state_dir / "agent.lock"
    if not _is_locked(path):
        raise MatriarchError(f"no agent runs on {settings.state_dir}; start one with `matriarch run`")
    text = path.read_text().strip()
    if not text.isdecimal():
        raise MatriarchError(f"{path} does not name the agent's process: it is of an older version; restart it by hand")
    if not _catches(int(text), signal.SIGUSR2):
        raise MatriarchError(f"process {text} is still starting, or is none that restarts in place; try again")
    return int(text)


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _catches(pid: int, number: signal.Signals) -> bool:
    """True when the process has a handler for a signal; without one it would be ended. Source: proc(5), SigCgt."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (number - 1) & 1)


def _self(settings: Settings) -> Member:
    scheme = "https" if settings.restapi.certfile else "http"
    return Member(name=settings.name, api_url=f"{scheme}://{settings.restapi.connect_address}/patroni")


def _ours(status: dict[str, Any] | None) -> dict[str, Any]:
    found = (status or {}).get("matriarch")
    return found if isinstance(found, dict) else {}


def _instance(status: dict[str, Any] | None) -> str:
    return str(_ours(status).get("instance") or "")


def _wait(client: RestClient, settings: Settings, pid: int, before: str, asked_at_ms: int, timeout_ms: int) -> Outcome:
    """How the restart went, as soon as that is known."""
    refused = ""
    while not refused:
        status = client.status(_self(settings))
        instance, passed_ms = _instance(status), now_ms() - asked_at_ms
        if instance and instance != before:
            return Outcome(restarted=True, pid=pid, took_ms=passed_ms, instance=instance)
        refused = _refusal(_ours(status), asked_at_ms)
        if not refused and passed_ms >= timeout_ms:
            refused = f"it did not answer within {timeout_ms} ms; its messages say more"
        if not refused and not _is_locked(settings.state_dir / "agent.lock"):
            refused = "it has ended; its messages say why, and the server is the fence's until another agent is started"
        time.sleep(LOOK_EVERY_S)
    return Outcome(restarted=False, pid=pid, took_ms=now_ms() - asked_at_ms, refused=refused)


def _refusal(ours: dict[str, Any], asked_at_ms: int) -> str:
    told = ours.get("agent_restart")
    if not isinstance(told, dict) or told.get("asked_at_ms", 0) < asked_at_ms:
        return ""
    return str(told.get("refused") or "")
