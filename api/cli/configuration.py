"""`matriarch show-config`: the dynamic configuration as etcd has it, or every setting in force and what follows."""

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import click

from api.cli.options import config_option, json_option
from effects.effective import InForce, settings_in_force
from effects.errors import MatriarchError
from effects.settings import load, load_client
from effects.settings_types import ClientSettings, Settings
from fsm.dynamic import Dynamic, parse_dynamic
from fsm.wire import compact, json_object
from fsm.worst_case import WorstCase, seconds, worst_cases


@click.command("show-config")
@config_option
@json_option
@click.option("--effective", is_flag=True, help="Every setting in force, where it comes from, and the worst cases.")
def show_config(config: Path | None, as_json: bool, effective: bool) -> None:
    """Show the cluster's dynamic configuration as it stands in etcd (YAML), as `patronictl show-config` does.

    With --effective: every setting that is in force on this node, whether it comes from etcd, from this node's file or
    variables or is a default, and how long clients may be without a primary at the worst, with the arithmetic.
    """
    import msgspec

    client = load_client(config, os.environ)
    text = anyio.run(_read_config, client)
    if effective:
        settings = load(config, os.environ)
        rows = settings_in_force(config, os.environ, text)
        cases = worst_cases(_dynamic(text, settings))
        if as_json:
            found = {"settings": rows, "worst_cases": cases}
            click.echo(msgspec.json.encode(found).decode())
        else:
            _show(rows, cases)
        return
    if text is None:
        raise MatriarchError(
            f"the cluster {client.scope} has no configuration in etcd yet: it is written when the cluster is made"
        )
    click.echo(text if as_json else _as_yaml(text), nl=as_json)


async def _read_config(settings: ClientSettings) -> str | None:
    from effects.etcd_access import read_keys

    _, keys = await read_keys(settings)
    return next((key.value for key in keys if key.key == "config"), None)


def _dynamic(text: str | None, settings: Settings) -> Dynamic:
    return parse_dynamic(text if text is not None else compact(settings.bootstrap.dcs))


def _as_yaml(text: str) -> str:
    import yaml

    return yaml.safe_dump(json_object(text), default_flow_style=False, allow_unicode=True, width=200)


def _show(rows: list[InForce], cases: list[WorstCase]) -> None:
    for line in _lines(rows, cases):
        click.echo(line)


def _lines(rows: list[InForce], cases: list[WorstCase]) -> Iterator[str]:
    name_width = max(len(row.name) for row in rows)
    value_width = min(40, max(len(row.value) for row in rows))
    for row in rows:
        remark = f" ({row.remark})" if row.remark else ""
        yield f"{row.name:<{name_width}}  {row.value:<{value_width}}  {row.source}{remark}"
    yield ""
    yield "How long clients may be without a primary, at the worst:"
    for case in cases:
        yield ""
        yield f"  {case.case}: {'no bound' if case.at_most_ms is None else seconds(case.at_most_ms)}"
        yield from click.wrap_text(
            case.because, width=108, initial_indent="    ", subsequent_indent="    "
        ).splitlines()
