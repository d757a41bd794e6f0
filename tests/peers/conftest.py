"""One real cluster of ours for all tests of a module, with enough data in it that a base backup takes seconds."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.cli.demo.servers import primary_connection
from tests.cluster.harness import RealCluster, running_cluster
from tests.peers.nodes import SCOPE
from tests.peers.patronictl import Patronictl

LOGIN = {"username": "operator", "password": secrets.token_urlsafe(12)}
MANY = "CREATE TABLE many AS SELECT g, repeat(md5(g::text), 8) AS text FROM generate_series(1, 500000) AS g"
"""About 140 MB."""


@pytest.fixture(scope="module")
async def real(anyio_backend: str) -> AsyncIterator[RealCluster]:
    """Three nodes, of which each copies no more than 48 MB a second and wants to know who asks."""
    every = {"postgresql": {"basebackup": [{"max-rate": "48M"}]}, "restapi": {"authentication": LOGIN}}
    async with running_cluster(nodes={"*": every}) as (found, _):
        with primary_connection(found.cluster.plan) as connection:
            connection.execute(MANY)
        yield found


@pytest.fixture(scope="module")
def patronictl(real: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> Patronictl:
    """The real patronictl, configured for that cluster."""
    plan = real.cluster.plan
    directory: Path = tmp_path_factory.mktemp("patronictl")
    found = Patronictl(directory, SCOPE, plan.etcd_port, ctl={"authentication": LOGIN})
    found.allow(f"127.0.0.1:{node.postgres_port}:*:postgres:{plan.superuser_password}" for node in plan.nodes)
    return found
