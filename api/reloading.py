"""Reading the node's settings again while it runs: POST /reload and SIGHUP. Source: Patroni, "reload scope"."""

import logging
from collections.abc import Callable

import anyio.to_thread
from msgspec.structs import replace

from api.access import Access
from api.tls import ApiTls
from effects.allowlist import Allowlist
from effects.clock import now_ms
from effects.peers import Peers
from effects.server import Server
from effects.server_settings import ServerSettings
from effects.settings_types import RestApiSettings, Settings
from fsm.events import Identity, ReloadAsked

FIXED = ("scope", "namespace", "name", "etcd", "state_dir", "run_as", "watchdog")
"""Settings that a running agent keeps until it is started again."""

logger = logging.getLogger(__name__)


def configure_access(access: Access, restapi: RestApiSettings) -> None:
    """Let the API go by these settings."""
    headers = dict(restapi.http_extra_headers)
    if restapi.certfile is not None:
        headers |= restapi.https_extra_headers
    access.take(
        credentials_of(restapi),
        Allowlist(restapi.allowlist, has_members=restapi.allowlist_include_members),
        needs_certificate=restapi.certfile is not None and restapi.verify_client != "none",
        headers=headers,
    )


def credentials_of(restapi: RestApiSettings) -> tuple[str, str] | None:
    """What requests that change something must bring, and what this node brings to others."""
    if restapi.username is None or restapi.password is None:
        return None
    return restapi.username, restapi.password.reveal()


class SettingsReader:
    """Reads the settings again and hands them to those who go by them; all or nothing."""

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        identity_of: Callable[[Settings], Identity],
        server_settings_of: Callable[[Settings], ServerSettings],
    ) -> None:
        """`reread` reads the settings from where they came. Raises: ConfigError, when called."""
        self._settings, self._reread = settings, reread
        self._identity_of, self._server_settings_of = identity_of, server_settings_of
        self._server: tuple[Server, ServerSettings] | None = None
        self._access: Access | None = None
        self._peers: Peers | None = None
        self._tls: ApiTls | None = None

    def serve(
        self,
        *,
        access: Access | None = None,
        tls: ApiTls | None = None,
        peers: Peers | None = None,
        server: tuple[Server, ServerSettings] | None = None,
    ) -> None:
        """Name who goes by the settings."""
        self._access, self._tls = access or self._access, tls or self._tls
        self._peers, self._server = peers or self._peers, server or self._server

    async def read(self, request_id: str, by: str) -> ReloadAsked:
        """The event that tells the machine. Raises: ConfigError, and then everything is as it was."""
        settings = await anyio.to_thread.run_sync(self._reread)
        server_settings = self._server_settings_of(settings)
        if self._tls is not None:
            await anyio.to_thread.run_sync(self._tls.reload)
        for warning in (*settings.warnings, *_not_taken(self._settings, settings)):
            logger.warning("%s", warning)
        self._hand_out(settings, server_settings)
        identity = self._identity_of(settings)
        logger.info("the settings were read again")
        return ReloadAsked(
            at_ms=now_ms(),
            request_id=request_id,
            tags=identity.tags,
            clone_on_rewind_failure=identity.clone_on_rewind_failure,
            clone_on_divergence=identity.clone_on_divergence,
            by=by,
        )

    def _hand_out(self, settings: Settings, found: ServerSettings) -> None:
        if self._access is not None:
            configure_access(self._access, settings.restapi)
        if self._peers is not None:
            self._peers.take_credentials(credentials_of(settings.restapi))
        if self._server is not None:
            server, known = self._server
            # Addresses, directories and passwords stay: a running server and its upstreams go by them.
            taken = replace(known, parameters=found.parameters, pg_hba=found.pg_hba, pg_ident=found.pg_ident)
            server.take_settings(taken)
            self._server = server, taken


def _not_taken(old: Settings, new: Settings) -> list[str]:
    """What was changed in the file and needs the agent to be started again."""
    places = [(name, getattr(old, name), getattr(new, name)) for name in FIXED]
    places += [
        (f"postgresql.{name}", getattr(old.postgresql, name), getattr(new.postgresql, name))
        for name in ("listen_hosts", "listen_port", "connect_address", "data_dir", "bin_dir", "authentication")
    ]
    places += [
        (f"restapi.{name}", getattr(old.restapi, name), getattr(new.restapi, name))
        for name in ("listen_host", "listen_port", "connect_address", "certfile", "keyfile", "cafile", "verify_client")
    ]
    return [f"{name}: changed, and taken over when the agent is started again" for name, a, b in places if a != b]
