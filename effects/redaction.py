"""Takes secrets out of what goes into an event: what is in an event is in the log, and the log is served.

Only the `config` key may hold any: PostgreSQL parameters such as a passphrase, or a command with a key in its words.
"""

import re
from typing import Any

import msgspec

from fsm.facts import KeyChange
from fsm.wire import compact

SECRET_WORDS = ("passw", "secret", "passphrase", "token", "_command", "credential", "conninfo")
HIDDEN = "***"
# In a line of pg_hba.conf. Source: PostgreSQL, LDAP and RADIUS authentication.
SECRET_OPTION = re.compile(r"(ldapbindpasswd|radiussecrets)=(\"[^\"]*\"|\S+)", re.IGNORECASE)


def without_secrets(change: KeyChange) -> KeyChange:
    """The change as it may be logged."""
    if change.key != "config" or not change.value:
        return change
    return msgspec.structs.replace(change, value=redacted_config(change.value))


def redacted_config(text: str) -> str:
    """A dynamic configuration with every value hidden whose name says that it is, or may hold, a secret."""
    if not any(word in text.lower() for word in SECRET_WORDS):
        return text
    try:
        return compact(_cleaned(msgspec.json.decode(text)))
    except msgspec.DecodeError:
        return "null"  # nobody can say what is in it, and it is no configuration either


def shown_value(path: str, value: Any) -> str | None:
    """One value of the dynamic configuration as text for events and messages; None for none."""
    if value is None:
        return None
    name = path.rpartition(".")[2]
    return HIDDEN if _is_secret(name, value) else compact(_cleaned(value))


def hidden_kept(new: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The configuration with every hidden value put back that somebody sent as it was shown to them."""
    found = {}
    for name, value in new.items():
        here = known.get(name)
        if isinstance(value, dict):
            found[name] = hidden_kept(value, here if isinstance(here, dict) else {})
        else:
            found[name] = here if value == HIDDEN and _is_secret(name, value) and here is not None else value
    return found


def _cleaned(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: HIDDEN if _is_secret(key, value) else _cleaned(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_cleaned(value) for value in found]
    return SECRET_OPTION.sub(rf"\1={HIDDEN}", found) if isinstance(found, str) else found


def _is_secret(name: str, value: Any) -> bool:
    return not isinstance(value, dict | list | bool) and is_secret_name(name)


def is_secret_name(name: str) -> bool:
    """True when a parameter of this name is, or may hold, a secret."""
    return any(word in name.lower() for word in SECRET_WORDS)
