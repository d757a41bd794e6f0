"""Where changes of the dynamic configuration lie until they are written: outside of events, for they may hold secrets.

An event and an effect carry a request's id, and what changed without secrets; the text itself is only here.
"""

import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from effects.errors import ConfigUnusable, EtcdRefused
from effects.redaction import hidden_kept, redacted_config, shown_value
from fsm.asked import ConfigChange
from fsm.config_change import changed_places, fault_of, is_too_deep, merged
from fsm.wire import compact, json_object

KEPT_MAX = 16


class Prepared(Struct, frozen=True, kw_only=True):
    """A change that can be asked for. `shown`: the whole configuration after it, without secrets."""

    request_id: str
    revision: int
    changes: tuple[ConfigChange, ...]
    shown: str


class ConfigDesk:
    """Prepares changes of the configuration, and hands their text to whoever writes it."""

    def __init__(self, current: Callable[[], tuple[str | None, int]]) -> None:
        """`current` tells the text of the `config` key as etcd holds it, None if there is none, and its revision."""
        self._current = current
        self._written: tuple[str | None, int] = (None, 0)
        self._texts: OrderedDict[str, str] = OrderedDict()

    def patch(self, patch: dict[str, Any]) -> Prepared | None:
        """A patch of the present configuration, for that revision only; None when there is no present one.

        Raises: ConfigUnusable. Source: Patroni, PATCH /config.
        """
        text, revision = self._newest()
        known = json_object(text)
        if not known:
            return None
        _check_depth(patch)
        found = merged(known, hidden_kept(patch, known))
        return self._prepared(known, found, set(patch), revision)

    def replace(self, config: dict[str, Any]) -> Prepared:
        """Another configuration, whatever is there now. Raises: ConfigUnusable. Source: Patroni, PUT /config."""
        text, _ = self._newest()
        known = json_object(text)
        _check_depth(config)
        found = merged({}, hidden_kept(config, known))
        return self._prepared(known, found, set(found), 0)

    def text_of(self, request_id: str) -> str:
        """The text to write. Raises: EtcdRefused for a request that is long forgotten."""
        if request_id not in self._texts:
            raise EtcdRefused("the text of this change is not there any more")
        return self._texts[request_id]

    def note_written(self, request_id: str, revision: int) -> None:
        """The change is in etcd since this revision: whoever asks next builds on it, before the watch tells of it."""
        self._written = (self._texts.get(request_id), revision)

    def _newest(self) -> tuple[str | None, int]:
        heard = self._current()
        return self._written if self._written[1] > heard[1] else heard

    def _prepared(self, known: dict[str, Any], found: dict[str, Any], touched: set[str], revision: int) -> Prepared:
        fault = fault_of(found, touched)
        if fault is not None:
            raise ConfigUnusable(fault)
        request_id, text = uuid.uuid4().hex, compact(found)
        self._texts[request_id] = text
        while len(self._texts) > KEPT_MAX:
            self._texts.popitem(last=False)
        changes = tuple(
            ConfigChange(path=path, old=shown_value(path, old), new=shown_value(path, new))
            for path, old, new in changed_places(known, found)
        )
        return Prepared(request_id=request_id, revision=revision, changes=changes, shown=redacted_config(text))


def _check_depth(found: dict[str, Any]) -> None:
    if is_too_deep(found):
        raise ConfigUnusable("the configuration nests deeper than any setting does; nothing was changed")
