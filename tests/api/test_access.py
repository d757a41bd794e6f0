"""Who may change something: by address, by certificate, by password; and the headers that every answer carries."""

import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.streams.tls import TLSAttribute

from api.access import CERTIFIED, Access
from api.server import serve
from api.tls import ApiTls, TlsSettings
from effects.allowlist import Allowlist
from effects.errors import ConfigError
from effects.peers import Peers
from effects.settings_types import Secret
from fsm import effects as do
from fsm.events import PeersHeard, ReloadAsked
from tests.api.asking import Surroundings, ask, ask_json, surroundings
from tests.views import NOW_MS, standby_view

pytestmark = pytest.mark.anyio
DEADLINE_S = 10


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    """A board that shows a replica, a log, and an inbox."""
    async with surroundings(tmp_path) as found:
        found.show(standby_view())
        yield found


# ---- allowlist -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "has_members", "members", "is_admitted"),
    [
        ([], False, [], True),
        (["192.0.2.1"], False, [], True),
        (["192.0.2.0/24"], False, [], True),
        (["192.0.2.77/24"], False, [], True),
        (["198.51.100.0/24", "::/0"], False, [], False),
        (["localhost"], False, [], False),
        ([], True, ["http://192.0.2.1:8008/patroni"], True),
        ([], True, ["http://192.0.2.2:8008/patroni", "http://[::1]:8008", "nonsense", ""], False),
        (["198.51.100.1"], False, ["http://192.0.2.1:8008/patroni"], False),
        ([], True, [], False),
    ],
)
async def test_allowlist_admits_whom_it_names_when_asked(
    entries: list[str], has_members: bool, members: list[str], is_admitted: bool
) -> None:
    """Addresses, networks, names and members; an empty list is open, one of nobody is not."""
    assert await Allowlist(entries, has_members=has_members).admits("192.0.2.1", members) == is_admitted


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
async def test_allowlist_looks_names_up_when_it_holds_any(address: str) -> None:
    """An IPv4 address counts as such also on an IPv6 socket."""
    assert await Allowlist(["localhost"]).admits(address)
    assert await Allowlist(["127.0.0.0/8"]).admits(address)


@pytest.mark.parametrize("address", ["", "unix:", "192.0.2.1; rm"])
async def test_allowlist_admits_nobody_when_the_address_is_none(address: str) -> None:
    """What cannot be read is not let in."""
    assert not await Allowlist(["0.0.0.0/0", "::/0"]).admits(address)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/switchover"), ("DELETE", "/switchover"), ("POST", "/failover"), ("POST", "/restart"),
        ("DELETE", "/restart"), ("POST", "/reload"), ("POST", "/reinitialize"), ("POST", "/failsafe"),
        ("PATCH", "/config"), ("PUT", "/config"),
    ],
)  # fmt: skip
async def test_every_change_is_refused_when_address_certificate_or_password_is_wrong(
    around: Surroundings, method: str, path: str
) -> None:
    """403, 403, 401, in this order, each with a reason; nothing is submitted. Reading needs none of it."""
    nobody = Allowlist(["198.51.100.1"])
    both = Access(("admin", "secret"), nobody, needs_certificate=True)
    certified = Access(("admin", "secret"), needs_certificate=True)
    for access, status, said in (
        (both, 403, "allowlist"),
        (certified, 403, "certificate"),
        (Access(("admin", "secret")), 401, "not authenticated"),
    ):
        app = around.app(access=access)
        answer = await ask(app, path, method, b'{"a": 1}')
        assert (answer.status, said in answer.text) == (status, True)
        assert (await ask(app, "/cluster")).status == 200
    assert around.submitted == []


# ---- headers ---------------------------------------------------------------------------------------------------------


async def test_answers_carry_the_configured_headers_when_they_carry_any(around: Surroundings) -> None:
    """Bare answers stay bare, an answer's own headers win, and what would break a header's line is left out."""
    headers = {"X-Frame-Options": "deny", "Content-Type": "x", "X-Evil": "a\r\nb: c", "bad name": "x"}
    app = around.app(access=Access(headers=headers))
    for path in ("/patroni", "/cluster", "/replica", "/metrics"):
        answer = await ask(app, path)
        assert answer.headers["x-frame-options"] == "deny"
        assert answer.headers["content-type"] != "x"
        assert {"x-evil", "bad name"} & set(answer.headers) == set()
    assert (await ask(app, "/replica", "OPTIONS")).headers == {"content-length": "0"}
    assert (await ask(app, "/liveness")).headers == {"content-length": "0"}


async def test_who_asked_is_user_and_address_when_users_are_told_apart(around: Surroundings) -> None:
    """The log names both."""
    auth = httpx.BasicAuth("admin", "secret").auth_flow(httpx.Request("POST", "http://n1/"))
    given = next(auth).headers["authorization"]
    await ask_json(around.app(("admin", "secret"), reload=read_again), "/reload", {}, authorization=given)
    assert isinstance(around.submitted[0], ReloadAsked)
    assert around.submitted[0].by == "admin@192.0.2.1"


# ---- HTTPS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA, and a server's and a client's certificate of it; the server's key has a passphrase."""
    directory = tmp_path_factory.mktemp("pki")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("server", "client"):
        key, request, certificate = f"{name}.key", f"{name}.csr", f"{name}.pem"
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed = ("x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*signed, "-out", certificate)
    openssl("rsa", "-aes256", "-passout", "pass:opensesame", "-in", "server.key", "-out", "locked.key")
    return directory


async def read_again(request_id: str, by: str) -> ReloadAsked:
    """Settings that can be read."""
    return ReloadAsked(at_ms=NOW_MS, request_id=request_id, by=by)


def tls_of(pki: Path, **more: object) -> ApiTls:
    """The API's certificate."""
    wanted = {"certfile": pki / "server.pem", "keyfile": pki / "server.key", "cafile": pki / "ca.pem", **more}
    return ApiTls(TlsSettings(**wanted))  # type: ignore[arg-type]  # the fields of TlsSettings


def client_context(pki: Path, *, has_certificate: bool) -> ssl.SSLContext:
    """A client that trusts the CA."""
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.check_hostname = False
    if has_certificate:
        context.load_cert_chain(pki / "client.pem", pki / "client.key")
    return context


@pytest.mark.parametrize(
    ("verify", "has_certificate", "read", "written"),
    [
        ("none", False, 200, 202),
        ("optional", False, 200, 403),
        ("optional", True, 200, 202),
        ("required", True, 200, 202),
        ("required", False, None, None),
    ],
)
async def test_https_is_served_when_there_is_a_certificate(
    around: Surroundings, pki: Path, verify: str, has_certificate: bool, read: int | None, written: int | None
) -> None:
    """verify_client as Patroni means it: optional lets everybody read, required lets nobody in without one."""
    app = around.app(access=Access(needs_certificate=verify != "none"), reload=read_again)
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, app, "127.0.0.1", 0, tls_of(pki, verify_client=verify))
        context = client_context(pki, has_certificate=has_certificate)
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=DEADLINE_S) as http:
            url = f"https://127.0.0.1:{port}"
            if read is None:
                with pytest.raises(httpx.HTTPError):
                    await http.get(f"{url}/replica")
            else:
                assert (await http.get(f"{url}/replica")).status_code == read
                assert (await http.post(f"{url}/reload")).status_code == written
        tasks.cancel_scope.cancel()


async def test_certificate_is_read_again_when_told_and_kept_when_broken(
    around: Surroundings, tmp_path: Path, pki: Path
) -> None:
    """New connections get the new one; a file that is no certificate changes nothing."""
    for name in ("server", "client"):
        for end in ("pem", "key"):
            (tmp_path / f"{name}.{end}").write_bytes((pki / f"{name}.{end}").read_bytes())
    tls = tls_of(pki, certfile=tmp_path / "server.pem", keyfile=tmp_path / "server.key")
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "127.0.0.1", 0, tls)

        async def subject() -> str:
            context = client_context(pki, has_certificate=False)
            stream = await anyio.connect_tcp("127.0.0.1", port, ssl_context=context, tls_standard_compatible=False)
            async with stream:
                found: Any = stream.extra(TLSAttribute.peer_certificate)
            return str(found["subject"][0][0][1])

        assert await subject() == "server"
        for end in ("pem", "key"):
            (tmp_path / f"server.{end}").write_bytes((tmp_path / f"client.{end}").read_bytes())
        tls.reload()
        assert await subject() == "client"
        (tmp_path / "server.pem").write_text("nonsense")
        with pytest.raises(ConfigError, match="certfile"):
            tls.reload()
        assert await subject() == "client"
        tasks.cancel_scope.cancel()


async def test_locked_key_is_opened_when_its_password_is_given(pki: Path) -> None:
    """Without it, or with a wrong one, the fault names the setting and no secret."""
    tls_of(pki, keyfile=pki / "locked.key", keyfile_password=Secret("opensesame"))
    for password in (None, Secret("wrong")):
        with pytest.raises(ConfigError, match="certfile") as told:
            tls_of(pki, keyfile=pki / "locked.key", keyfile_password=password)
        assert "wrong" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"certfile": Path("/none")}, "certfile /none"),
        ({"cafile": Path("/none")}, "cafile /none"),
        ({"ciphers": "x"}, "ciphers 'x'"),
    ],
)
async def test_fault_is_told_when_https_cannot_be_set_up(pki: Path, changes: dict[str, object], said: str) -> None:
    """The operator's words."""
    with pytest.raises(ConfigError, match=said):
        tls_of(pki, **changes)


async def test_members_are_asked_over_https_when_their_address_says_so(around: Surroundings, pki: Path) -> None:
    """Also one that demands a certificate."""
    context = client_context(pki, has_certificate=True)
    peers = Peers("n1", certificate=context)
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, around.app(), "127.0.0.1", 0, tls_of(pki, verify_client="required"))
        asked = do.AskPeers(timeout_ms=5_000, api_urls={"n2": f"https://127.0.0.1:{port}/patroni"})
        heard = await peers.ask(asked)
        assert isinstance(heard, PeersHeard)
        assert [report.role for report in heard.reports] == ["replica"]
        await peers.aclose()
        tasks.cancel_scope.cancel()


def test_certified_is_no_header_when_named() -> None:
    """A client cannot claim it: it is in the request's state, which the server alone writes."""
    assert "." in CERTIFIED
