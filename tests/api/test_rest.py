"""Whom the command line says it is, and whom it trusts, by the `ctl` settings."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.cli.demo.plan import make_plan, settings_text
from api.cli.rest import RestClient, base_url, ctl_credentials, ctl_tls
from effects.errors import ConfigError, MatriarchError
from effects.settings import load
from effects.settings_types import Settings
from fsm.wire import Member

LOGIN = {"username": "rest", "password": "one"}
CTL_LOGIN = {"username": "ctl", "password": "two"}


def settings_with(directory: Path, **sections: dict[str, Any]) -> Settings:
    """A node's settings with more in some sections."""
    plan = make_plan(list(range(1, 8)), ["a", "b", "c"])
    found = yaml.safe_load(settings_text(plan, plan.nodes[0], directory / "node", directory))
    for section, more in sections.items():
        found[section] = found.get(section, {}) | more
    path = directory / "patroni.yml"
    path.write_text(yaml.safe_dump(found))
    return load(path, {})


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({}, None),
        ({"restapi": {"authentication": LOGIN}}, ("rest", "one")),
        ({"ctl": {"authentication": CTL_LOGIN}}, ("ctl", "two")),
        ({"restapi": {"authentication": LOGIN}, "ctl": {"authentication": CTL_LOGIN}}, ("ctl", "two")),
    ],
    ids=["nobody", "restapi", "ctl", "both"],
)
def test_credentials_are_ctls_when_it_has_any(
    tmp_path: Path, sections: dict[str, Any], wanted: tuple[str, str] | None
) -> None:
    """Else those that the node's own API asks for."""
    assert ctl_credentials(settings_with(tmp_path, **sections)) == wanted


def test_certificates_are_not_checked_when_ctl_is_insecure(tmp_path: Path) -> None:
    """And only then."""
    assert ctl_tls(settings_with(tmp_path, ctl={"insecure": True})).verify_mode is ssl.CERT_NONE
    context = ctl_tls(settings_with(tmp_path))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_file_is_named_when_it_is_no_certificate(tmp_path: Path) -> None:
    """One line with the path."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"ctl: .*wrong\.pem"):
        ctl_tls(settings_with(tmp_path, ctl={"cacert": str(wrong)}))


def test_member_is_named_when_it_does_not_answer(tmp_path: Path) -> None:
    """No traceback, no credentials; looking at its status is no error."""
    member = Member(name="n2", api_url="http://127.0.0.1:1/patroni")
    assert base_url(member) == "http://127.0.0.1:1"
    with RestClient(settings_with(tmp_path, ctl={"authentication": CTL_LOGIN})) as client:
        assert client.status(member) is None
        with pytest.raises(MatriarchError, match=r"n2 does not answer at http://127\.0\.0\.1:1: ") as caught:
            client.post(member, "/reinitialize", {})
    assert "two" not in str(caught.value)
