"""Whom commits wait for, at a real server."""

from pathlib import Path

import pytest

from effects.pgconfig import GENERATED
from effects.programs import RunAs
from effects.waiting import put_names_in_force
from tests.effects.servers import running_nodes

pytestmark = pytest.mark.anyio


@pytest.mark.servers
async def test_names_come_into_force_when_somebody_else_wrote_the_configuration(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """A server that Patroni or an older agent started is taken up as it runs: names must not be stuck in it."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        path = node.settings.data_dir / GENERATED
        kept = [line for line in path.read_text().splitlines() if "sync" not in line]
        path.write_text("\n".join([*kept, "synchronous_standby_names = 'n2'", "# the end, without a line break"]))
        for text in ("n3", ""):
            await put_names_in_force(node.settings, text, timeout_ms=5_000)
            assert (await node.prober.probe(2000)).synchronous_standby_names == text
        assert path.read_text().count("postgresql.sync.conf") == 1
