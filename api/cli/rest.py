"""The command line's questions to a node's REST API: address, TLS and credentials as the `ctl` settings say."""

import ssl
from typing import Any

import httpx
import msgspec

from effects.errors import ConfigError, MatriarchError
from effects.settings_types import ClientSettings, Secret, Settings
from fsm.explain import Explanation
from fsm.wire import Member

ANSWER_TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 2.0
EXPLANATION_TIMEOUT_S = 5.0
OK = 200


class RestClient:
    """Speaks to any member of the cluster. Use it as a context manager."""

    def __init__(self, settings: ClientSettings | Settings) -> None:
        credentials = ctl_credentials(settings)
        self._client = httpx.Client(
            auth=httpx.BasicAuth(*credentials) if credentials else None,
            verify=ctl_tls(settings),
            timeout=ANSWER_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> "RestClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def status(self, member: Member) -> dict[str, Any] | None:
        """What GET /patroni says; None while the member does not answer."""
        try:
            answer = self._client.get(f"{base_url(member)}/patroni", timeout=STATUS_TIMEOUT_S)
            found = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def explanation(self, member: Member, about: str = "") -> Explanation:
        """What GET /explain says. Raises: MatriarchError when there is no answer, or one that says something else."""
        try:
            params = {"about": about} if about else {}
            answer = self._client.get(f"{base_url(member)}/explain", params=params, timeout=EXPLANATION_TIMEOUT_S)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            remedy = "does its agent run? `matriarch list` shows the members"
            raise MatriarchError(f"{member.name} does not answer at {base_url(member)}: {reason}; {remedy}") from None
        if answer.status_code != OK:
            raise MatriarchError(f"{member.name} does not explain itself: {answer.status_code} {answer.text[:600]}")
        try:
            return msgspec.json.decode(answer.content, type=Explanation)
        except msgspec.MsgspecError as error:
            raise MatriarchError(
                f"{member.name} explains itself in the words of another program or version: {error}"
            ) from None

    def get(self, member: Member, path: str) -> tuple[int, Any]:
        """Status and what the answer holds: JSON, else its text. Raises: MatriarchError when there is none."""
        try:
            answer = self._client.get(f"{base_url(member)}{path}")
        except httpx.HTTPError as error:
            raise _silent(member, error) from None
        try:
            return answer.status_code, answer.json()
        except ValueError:
            return answer.status_code, " ".join(answer.text.split())

    def post(self, member: Member, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """Status and text of the answer to a request. Raises: MatriarchError when there is none."""
        try:
            answer = self._client.post(f"{base_url(member)}{path}", json=body)
        except httpx.HTTPError as error:
            raise _silent(member, error) from None
        return answer.status_code, " ".join(answer.text.split())


def _silent(member: Member, error: httpx.HTTPError) -> MatriarchError:
    reason = str(error) or type(error).__name__
    return MatriarchError(f"{member.name} does not answer at {base_url(member)}: {reason}")


def base_url(member: Member) -> str:
    """The root of a member's API. Source: Patroni, api_url, which ends with /patroni."""
    return member.api_url.rsplit("/", 1)[0]


def ctl_credentials(settings: ClientSettings | Settings) -> tuple[str, str] | None:
    """Who asks: the user of the `ctl` settings, else that of `restapi`. Source: Patroni, ctl.authentication."""
    for username, password in (
        (settings.ctl.username, settings.ctl.password),
        (settings.restapi.username, settings.restapi.password),
    ):
        if username is not None and password is not None:
            return username, password.reveal()
    return None


def ctl_tls(settings: ClientSettings | Settings) -> ssl.SSLContext:
    """Whom to trust, and this client's own certificate. Source: Patroni, ctl.insecure, ctl.cacert, ctl.certfile.

    Raises: ConfigError when a file cannot be used.
    """
    ctl = settings.ctl
    authority = ctl.cacert or settings.restapi.cafile
    try:
        context = ssl.create_default_context(cafile=str(authority) if authority and not ctl.insecure else None)
        if ctl.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if ctl.certfile is not None:
            context.load_cert_chain(ctl.certfile, ctl.keyfile, _revealed(ctl.keyfile_password))
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (authority, ctl.certfile, ctl.keyfile) if path)
        raise ConfigError([f"ctl: {files}: {error.strerror or error}"]) from None
    return context


def _revealed(secret: Secret | None) -> str | None:
    return secret.reveal() if secret else None
