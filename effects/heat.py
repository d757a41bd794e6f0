"""Reading how often each rule fired: from the numbers of a simulation, or from transition logs."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from effects.errors import ConfigError
from effects.log_archive import is_tar
from effects.log_reader import read_log
from fsm.heat import Heat

LOG_BEGINS = b'{"crc":"'
LOOKED_AT_BYTES = 256
ALLOWED = (
    'a JSON object such as {"rules": {"R1": 12}, "seeds": 3}, as python -m tests.simulation --coverage FILE writes it, '
    "or a transition log: a segment, a directory, a tar or a node's URL"
)


class _Coverage(msgspec.Struct):
    rules: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    seeds: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Moved(msgspec.Struct):
    rule: str | None = None


_coverages = msgspec.json.Decoder(_Coverage)
_moves = msgspec.json.Decoder(_Moved)


def is_coverage(path: Path) -> bool:
    """True when a file, by how it begins, holds neither a transition log nor a tar."""
    if not path.is_file() or is_tar(path):
        return False
    with path.open("rb") as file:
        return not file.read(LOOKED_AT_BYTES).startswith(LOG_BEGINS)


def read_coverage(path: Path) -> Heat:
    """The numbers in a file. Raises: ConfigError when it holds something else."""
    try:
        found = _coverages.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}; allowed: {ALLOWED}"]) from None
    return _checked(str(path), Heat(rules=found.rules, seeds=found.seeds))


def count_moves(logs: Iterable[Path]) -> Heat:
    """How often each rule fired in logs. Raises: LogCorrupt, LogUnavailable, ConfigError when all are another's."""
    logs = list(logs)
    counted = Counter(
        rule for line in read_log(logs) if line.kind == "entry" and (rule := _moves.decode(line.body).rule)
    )
    return _checked(", ".join(map(str, logs)), Heat(rules=dict(counted)))


def _checked(where: str, heat: Heat) -> Heat:
    if heat.strangers and len(heat.strangers) == len(heat.rules):
        names = ", ".join(heat.strangers)
        raise ConfigError([f"{where}: names {names}, and none of them is a rule of this version's table"])
    return heat
