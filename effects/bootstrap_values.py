"""Tells which settings have no effect: of `bootstrap.dcs` what etcd says otherwise, in etcd what is not built yet."""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from effects.redaction import HIDDEN, is_secret_name
from effects.settings_unbuilt import unbuilt_in
from fsm.config_change import bent_values
from fsm.wire import json_object

LENGTH_MAX = 60

logger = logging.getLogger(__name__)


class IgnoredValues:
    """Compares this node's own first configuration with that in etcd; tells at the start, and when it changes."""

    def __init__(self, first: Mapping[str, Any]) -> None:
        self._first = dict(first)
        self._told = self._told_unbuilt = self._told_bent = ""

    def tell(self, config: str | None) -> None:
        """Logs one line when there is something to tell that was not told before. config: the text in etcd."""
        if config is None:
            return
        self._tell_unbuilt(config)
        self._tell_bent(config)
        line = "; ".join(differences(self._first, json_object(config)))
        if line != self._told and line:
            logger.info(
                "bootstrap.dcs counts only while a cluster is made; ignored, as etcd says otherwise: %s. "
                "Change the value in etcd, as `patronictl edit-config` does, or remove it here",
                line,
            )
        self._told = line

    def _tell_unbuilt(self, config: str) -> None:
        line = "; ".join(unbuilt_in(json_object(config)))
        if line != self._told_unbuilt and line:
            logger.warning("settings in etcd that have no effect here yet: %s", line)
        self._told_unbuilt = line

    def _tell_bent(self, config: str) -> None:
        line = "; ".join(bent_values(json_object(config)))
        if line != self._told_bent and line:
            logger.warning("settings in etcd that count as something else than they say: %s", line)
        self._told_bent = line


def differences(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each setting of `first` that `now` lacks or has another value for; secrets are not shown."""
    present = dict(_leaves(now))
    return [
        f"{path} is {_shown(path, value)} here, {_shown(path, present[path]) if path in present else 'not set'} in etcd"
        for path, value in _leaves(first)
        if path not in present or _compared(value) != _compared(present[path])
    ]


def _leaves(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value


def _compared(value: object) -> str:
    """By the text, as Patroni compares; a truth value in whichever word."""
    word = str(value).strip().lower()
    return {"on": "true", "yes": "true", "off": "false", "no": "false"}.get(word, word)


def _shown(path: str, value: object) -> str:
    if is_secret_name(path):
        return HIDDEN
    text = json.dumps(value, default=str)
    return text if len(text) <= LENGTH_MAX else text[: LENGTH_MAX - 1] + "…"
