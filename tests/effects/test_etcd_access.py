"""The etcd client and who may do what: users, passwords, tokens, TLS; against real etcd servers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from effects.embedded import EmbeddedEtcd
from effects.errors import ConfigError, EtcdRefused, EtcdUnavailable
from effects.etcd import EtcdClient
from effects.etcd_types import EtcdTls, put
from effects.etcd_wire import etcdrpc
from tests.effects.etcd_watching import TIMEOUT_MS, Watching, values_below

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


# Users and passwords -------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded_etcd(tmp_path: Path) -> AsyncIterator[EmbeddedEtcd]:
    """An etcd with authentication: root with password "secret", tokens that live 1 s."""
    with EmbeddedEtcd(tmp_path, is_fsync_off=True, arguments=["--auth-token-ttl", "1"]) as server:
        async with EtcdClient([server.endpoint]) as admin:
            auth = admin._endpoints[0].auth
            await auth.UserAdd(etcdrpc.AuthUserAddRequest(name="root", password="secret"))
            await auth.UserAdd(etcdrpc.AuthUserAddRequest(name="guest", password="guest"))
            await auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user="root", role="root"))
            await auth.AuthEnable(etcdrpc.AuthEnableRequest())
        yield server


async def test_client_renews_its_token_when_it_expired(guarded_etcd: EmbeddedEtcd, prefix: str) -> None:
    """With user and password calls and watches work, also after etcd has forgotten the token."""
    async with EtcdClient([guarded_etcd.endpoint], username="root", password="secret") as client:
        lease = await client.grant_lease(60, timeout_ms=TIMEOUT_MS)
        for kill_token in (False, True):
            if kill_token:
                client._token = "unknown.1"
            await client.transact([], [put(prefix + "a", "1", lease.lease_id)], timeout_ms=TIMEOUT_MS)
            client._token = "unknown.2" if kill_token else client._token
            await client.renew_lease(lease.lease_id, timeout_ms=TIMEOUT_MS)
            assert await values_below(client, prefix) == {"a": "1"}
            watch = Watching(client, prefix, 1)
            assert (await watch.changes(1))[0].value == "1"
            await watch.aclose()


async def test_watch_stands_again_when_its_token_expired(guarded_etcd: EmbeddedEtcd, prefix: str) -> None:
    """A watch with an expired token ends as unavailable, and the next one has a new token."""
    async with EtcdClient([guarded_etcd.endpoint], username="root", password="secret") as client:
        client._token, client._token_since_ms = "unknown.3", -(10**9)
        assert isinstance(await Watching(client, prefix, 1).end(), EtcdUnavailable)
        watch = Watching(client, prefix, 1)
        await watch.open()
        await watch.aclose()


@pytest.mark.parametrize(
    ("username", "password"), [("root", "wrong"), ("nobody", "secret"), (None, None)], ids=["password", "user", "none"]
)
async def test_calls_are_refused_when_the_login_is_wrong(
    guarded_etcd: EmbeddedEtcd, prefix: str, username: str | None, password: str | None
) -> None:
    """A wrong user, a wrong password and no login at all are refusals, and the password is in none of their texts."""
    async with EtcdClient([guarded_etcd.endpoint], username=username, password=password) as client:
        with pytest.raises(EtcdRefused) as caught:
            await client.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)
    assert str(password) not in str(caught.value)


async def test_calls_are_refused_when_the_user_has_no_permission(guarded_etcd: EmbeddedEtcd, prefix: str) -> None:
    """A user without a role for the keys is refused reads, writes and watches."""
    async with EtcdClient([guarded_etcd.endpoint], username="guest", password="guest") as client:
        with pytest.raises(EtcdRefused, match="permission denied"):
            await client.read_prefix(prefix, timeout_ms=TIMEOUT_MS)
        with pytest.raises(EtcdRefused, match="permission denied"):
            await client.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)
        assert isinstance(await Watching(client, prefix, 1).end(), EtcdRefused)


async def test_calls_work_when_a_login_is_given_that_etcd_does_not_ask_for(
    etcd_server: EmbeddedEtcd, prefix: str
) -> None:
    """User and password are harmless while authentication is not enabled."""
    async with EtcdClient([etcd_server.endpoint], username="root", password="secret") as client:
        assert (await client.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)).applied


# TLS -----------------------------------------------------------------------------------------------------------------


async def test_client_speaks_tls_when_an_authority_is_given(tmp_path: Path, prefix: str) -> None:
    """With the right authority calls work; without one the server is not trusted and nothing is sent."""
    with EmbeddedEtcd(tmp_path, is_fsync_off=True, scheme="https", arguments=["--auto-tls"]) as server:
        # etcd signs its own certificate and keeps it here, so the certificate is its own authority.
        certificate = tmp_path / server.name / "fixtures" / "client" / "cert.pem"
        async with EtcdClient([server.endpoint], tls=EtcdTls(ca_file=certificate)) as client:
            assert (await client.transact([], [put(prefix + "a", "1")], timeout_ms=TIMEOUT_MS)).applied
            assert await values_below(client, prefix) == {"a": "1"}
        async with EtcdClient([server.endpoint], tls=EtcdTls()) as stranger:
            with pytest.raises(EtcdUnavailable):
                await stranger.transact([], [put(prefix + "a", "2")], timeout_ms=2000)


async def test_client_names_the_file_when_a_tls_file_is_missing(tmp_path: Path) -> None:
    """A file that cannot be read is the operator's fault and is named."""
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        EtcdClient(["127.0.0.1:2379"], tls=EtcdTls(ca_file=tmp_path / "missing.pem"))
