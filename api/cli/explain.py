"""`matriarch explain`: why a node moves or stays, and who would be promoted if the leader vanished now."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click
from click.shell_completion import CompletionItem

from api.cli.options import config_option, json_option
from fsm.table import DUTIES, TABLE

if TYPE_CHECKING:
    from effects.settings_types import ClientSettings
    from fsm.explain import Explanation
    from fsm.facts import PeerReport
    from fsm.prognosis import Prognosis
    from fsm.view import View
    from fsm.wire import Member

RULES, DUTY_NAMES = tuple(rule.id for rule in TABLE), tuple(duty.id for duty in DUTIES)
WORDS_MAX = 2


def complete_words(_context: click.Context, _argument: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The rules and duties that begin so. Nodes would have to be asked for, and a shell must not wait for that."""
    meanings = {rule.id: rule.because for rule in TABLE} | {duty.id: duty.because for duty in DUTIES}
    return [CompletionItem(name, help=why) for name, why in meanings.items() if name.startswith(incomplete)]


@click.command()
@click.argument("words", nargs=-1, metavar="[NODE] [RULE|DUTY]", shell_complete=complete_words)
@config_option
@click.option("--failover", "is_failover", is_flag=True, help="Who would be promoted if the leader vanished now.")
@json_option
def explain(words: tuple[str, ...], config: Path | None, is_failover: bool, as_json: bool) -> int:
    """Say why NODE moves or stays: each rule and duty with the guards that it lacks, or every guard of one of them.

    NODE is this node by default; without a node's own settings file, the leader. Exit status: 0 explained, or the
    RULE or DUTY that was asked about holds, or somebody would be promoted; 1 not, or nobody answers; 2 bad usage.
    """
    from effects.settings import load_client

    node, about = _read_words(words)
    if is_failover and about:
        raise click.UsageError(f"--failover says who would win, {about} is about one node; give one of them")
    settings = load_client(config, os.environ)
    if is_failover:
        return _explain_failover(settings, config, node, as_json=as_json)
    return _explain_node(settings, config, node, about, as_json=as_json)


def _read_words(words: Sequence[str]) -> tuple[str, str]:
    """The node and the rule or duty that were named, each "" if not. Raises: click.UsageError."""
    about = [word for word in words if word in RULES or word in DUTY_NAMES]
    nodes = [word for word in words if word not in about]
    if len(words) > WORDS_MAX or len(nodes) > 1 or len(about) > 1:
        raise click.UsageError(
            f"{' '.join(words)}: at most one node, and one rule ({RULES[0]} to {RULES[-1]}, see `matriarch fsm`) or "
            "duty (such as renew-lease) of it"
        )
    return (nodes or [""])[0], (about or [""])[0]


# ---- a node ----------------------------------------------------------------------------------------------------------


def _explain_node(settings: "ClientSettings", config: Path | None, node: str, about: str, *, as_json: bool) -> int:
    from api.cli.explanation import duty_lines, node_lines, rule_lines
    from api.cli.rest import RestClient

    with RestClient(settings) as client:
        found = client.explanation(_whom(settings, config, node), about)
    if as_json:
        _print_json(found)
    elif about:
        for rule in found.rules:
            _print(rule_lines(found.name, rule, found.state))
        for duty in found.duties:
            _print(duty_lines(found.name, duty))
    else:
        _print(node_lines(found))
    return 0 if not about or _holds(found) else 1


def _holds(found: "Explanation") -> bool:
    """True when what was asked about is so: the rule moves the node, the duty is wanted."""
    return any(rule.moves for rule in found.rules) or any(not duty.missing for duty in found.duties)


def _whom(settings: "ClientSettings", config: Path | None, node: str) -> "Member":
    """The member to ask; where etcd cannot tell, this node by its own settings. Raises: MatriarchError."""
    from api.cli.reading import read_cluster
    from effects.errors import EtcdError, MatriarchError

    try:
        view = anyio.run(read_cluster, settings)
    except EtcdError as error:
        return _own_agent(config, node, str(error))
    name = node or (settings.name if settings.name in view.members else view.leader or "")
    known = ", ".join(sorted(view.members)) or "none"
    if not view.members:
        raise MatriarchError(f"etcd knows no member of the cluster {settings.scope}; has an agent run with this scope?")
    if not name:
        raise MatriarchError(f"nobody leads the cluster {settings.scope}; name a member: {known}")
    if name not in view.members:
        raise click.UsageError(f"{name}: no such member, rule or duty; the members are: {known}")
    return view.members[name]


def _own_agent(config: Path | None, node: str, why: str) -> "Member":
    """This node's agent at the address of its own settings. Raises: MatriarchError where another one is meant."""
    from effects.errors import ConfigError, MatriarchError
    from effects.settings import load
    from fsm.wire import Member

    try:
        settings = load(config, os.environ)
    except ConfigError:
        raise MatriarchError(
            f"etcd does not tell where the agents are: {why}; name this node's own file with -c"
        ) from None
    if node not in ("", settings.name):
        raise MatriarchError(f"etcd does not tell where {node} is: {why}; only {settings.name} can be asked from here")
    click.echo(f"etcd does not answer ({why}); this is what {settings.name} knows", err=True)
    scheme = "https" if settings.restapi.certfile else "http"
    return Member(name=settings.name, api_url=f"{scheme}://{settings.restapi.connect_address}/patroni")


# ---- a failover ------------------------------------------------------------------------------------------------------


def _explain_failover(settings: "ClientSettings", config: Path | None, node: str, *, as_json: bool) -> int:
    from api.cli.explanation import failover_lines

    found = _prognosis(settings, config, node)
    if as_json:
        _print_json(found)
    else:
        _print(failover_lines(found))
    return 0 if found.winners else 1


def _prognosis(settings: "ClientSettings", config: Path | None, node: str) -> "Prognosis":
    """By etcd's keys and every member's answer; by one node's snapshot where that is named, or all that there is.

    Raises: MatriarchError when nobody answers.
    """
    from api.cli.reading import read_cluster
    from api.cli.rest import RestClient
    from effects.errors import EtcdError, MatriarchError
    from fsm.prognosis import prognosis

    with RestClient(settings) as client:
        if not node:
            try:
                view = anyio.run(read_cluster, settings)
            except EtcdError:
                pass
            else:
                return prognosis(view, _reports(client, settings, view))
        member = _whom(settings, config, node)
        found = client.explanation(member).failover
    if found is None:
        raise MatriarchError(f"{member.name} says nothing of a failover: its agent is of another version")
    return found


def _reports(client: object, settings: "ClientSettings", view: "View") -> "dict[str, PeerReport]":
    """What each member answered, all asked at once. Raises: MatriarchError when there is nobody, or nobody answers."""
    from api.cli.rest import RestClient
    from effects.errors import MatriarchError
    from effects.peers import parse_report

    assert isinstance(client, RestClient)
    if not view.members:
        raise MatriarchError(f"etcd knows no member of the cluster {settings.scope}; has an agent run with this scope?")
    with ThreadPoolExecutor(len(view.members)) as pool:
        answers = dict(zip(view.members, pool.map(client.status, view.members.values()), strict=True))
    reports = {name: parse_report(name, answer) for name, answer in answers.items() if answer is not None}
    if not reports:
        raise MatriarchError(f"no agent answers: asked {', '.join(m.api_url or m.name for m in view.members.values())}")
    return reports


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _print_json(found: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(found).decode())
