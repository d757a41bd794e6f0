"""HTTPS for the API. Source: Patroni, restapi.certfile and what belongs to it; Python, ssl.SSLContext."""

import ssl
from pathlib import Path

from msgspec import Struct

from effects.errors import ConfigError
from effects.settings_types import Secret

VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class TlsSettings(Struct, frozen=True, kw_only=True):
    """What the API's end of a TLS connection needs."""

    certfile: Path
    keyfile: Path | None = None
    keyfile_password: Secret | None = None
    cafile: Path | None = None
    ciphers: str | None = None
    verify_client: str = "none"


class ApiTls:
    """The API's certificate, which can be read again while the API runs: new connections get the new one."""

    def __init__(self, settings: TlsSettings) -> None:
        """Reads certificate and key. Raises: ConfigError."""
        self._settings = settings
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.verify_mode = VERIFY[settings.verify_client]
        self._load_chain(self.context)
        try:
            if settings.cafile is not None:
                self.context.load_verify_locations(settings.cafile)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError([f"restapi.cafile {settings.cafile}: {_reason(error)}"]) from error
        try:
            if settings.ciphers:
                self.context.set_ciphers(settings.ciphers)
        except ssl.SSLError as error:
            raise ConfigError([f"restapi.ciphers {settings.ciphers!r}: {_reason(error)}"]) from error

    def reload(self) -> None:
        """Reads certificate and key again. Raises: ConfigError, and then the old ones stay."""
        self._load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # so that a broken pair is not half taken
        self._load_chain(self.context)

    def _load_chain(self, context: ssl.SSLContext) -> None:
        settings = self._settings
        secret = settings.keyfile_password
        # Without a password OpenSSL would ask for one on the terminal.
        password = secret.reveal() if secret else ""
        try:
            context.load_cert_chain(settings.certfile, settings.keyfile, password)
        except (ssl.SSLError, OSError, ValueError) as error:
            key = f", restapi.keyfile {settings.keyfile}" if settings.keyfile else ""
            raise ConfigError([f"restapi.certfile {settings.certfile}{key}: {_reason(error)}"]) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
