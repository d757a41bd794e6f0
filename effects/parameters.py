"""The configuration that a server can run with: the cluster's and this node's own, less what PostgreSQL would refuse.

Without this, one bad value in etcd would keep every server of the cluster from starting at the next failover.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from anyio import to_thread

from effects.controldata import control_floors, read_control_file
from effects.errors import MatriarchError
from effects.files import write_atomically
from effects.hba import hba_fault
from effects.pgcheck import rejected_parameters, without_parameters
from effects.pgconfig import parameters_in_effect, recovery_parameters
from effects.redaction import is_secret_name
from effects.server_settings import ServerSettings
from effects.sql import local_connection
from fsm.dynamic import Dynamic

RESERVING = ("superuser_reserved_connections", "reserved_connections")
HBA = "pg_hba"
PRELOADING = ("shared_preload_libraries", "session_preload_libraries")
KNOWN_LIBRARY = "libpqwalreceiver.so"

logger = logging.getLogger(__name__)


class Usable(msgspec.Struct, frozen=True, kw_only=True):
    """What the files may be written from, and what was left out, each with the reason."""

    settings: ServerSettings
    parameters: dict[str, object]
    refused: dict[str, str]


class ParameterCheck:
    """Asks the server's own program, once for each configuration: a start after a crash has no time to ask again."""

    def __init__(self) -> None:
        self._checked: tuple[Mapping[str, str], dict[str, str]] | None = None
        self._bad_rules: dict[tuple[str, ...], str] = {}

    async def usable(self, settings: ServerSettings, dynamic: Dynamic) -> Usable:
        """The settings with the cluster's rules for clients, and the dynamic parameters, without what is refused."""
        settings, refused = self._with_rules(settings, dynamic)
        asked = dynamic.parameters | recovery_parameters(dynamic.recovery_conf)
        bad = await self._refused_parameters(settings, asked)
        settings, parameters = without_parameters(settings, asked, bad)
        return Usable(settings=settings, parameters=parameters, refused=refused | bad)

    def _with_rules(self, settings: ServerSettings, dynamic: Dynamic) -> tuple[ServerSettings, dict[str, str]]:
        """This node's own rules win over the cluster's; bad ones are not written, so that those there stay in force."""
        rules = settings.pg_hba or dynamic.pg_hba or settings.first_pg_hba
        fault = self._bad_rules.get(rules) or hba_fault(rules)
        settings = msgspec.structs.replace(
            settings, pg_hba=() if fault else rules, pg_ident=settings.pg_ident or dynamic.pg_ident
        )
        return settings, {HBA: fault} if fault else {}

    async def _refused_parameters(self, settings: ServerSettings, asked: Mapping[str, str]) -> dict[str, str]:
        in_effect = parameters_in_effect(settings, asked)
        if self._checked is None or self._checked[0] != in_effect:
            try:
                found = await rejected_parameters(settings, asked)
            except (MatriarchError, OSError) as error:
                logger.warning("the parameters could not be checked, and are used as they are: %s", error)
                return {}
            missing = await to_thread.run_sync(_missing_libraries, settings, in_effect)
            self._checked = (in_effect, _told(found | _reserving_too_many(in_effect) | missing))
        return self._checked[1]

    async def keep_good_rules(self, settings: ServerSettings, before: str | None) -> str | None:
        """Let the running server judge the pg_hba.conf that was just written; a bad one gives way to what was before.

        before: the file's text before; None if there was none. Returns: what is wrong, None if nothing is.
        Source: PostgreSQL, pg_hba_file_rules.
        """
        path = settings.data_dir / "pg_hba.conf"
        if before is None or not settings.pg_hba or path.read_text() == before:
            return None
        try:
            async with local_connection(settings, "-c statement_timeout=2s") as connection:
                cursor = await connection.execute(
                    "SELECT format('line %s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL"
                )
                row = await cursor.fetchone()
        except MatriarchError as error:
            logger.warning("the rules in pg_hba.conf could not be checked, and are used as they are: %s", error)
            return None
        if row is None:
            return None
        self._bad_rules = {settings.pg_hba: str(row[0])}
        await to_thread.run_sync(write_atomically, path, before, settings.run_as)
        return str(row[0])


async def too_low_for_its_wal(settings: ServerSettings) -> tuple[str, ...]:
    """The parameters of the running standby that are lower than its control file says that its WAL needs.

    Such a standby pauses its replay, and can only go on after a restart; nothing in SQL tells it from one that
    somebody paused. Raises: PostgresError, ProgramFailed. Source: PostgreSQL, "Hot Standby", Administrator's Overview.
    """
    floors = control_floors(await read_control_file(settings))
    async with local_connection(settings, "-c statement_timeout=2s") as connection:
        cursor = await connection.execute(
            "SELECT name, setting::bigint FROM pg_settings WHERE name = ANY(%s)", (list(floors),)
        )
        running = {str(name): int(value) for name, value in await cursor.fetchall()}
    return tuple(sorted(name for name, value in running.items() if value < floors[name]))


def _told(refused: dict[str, str]) -> dict[str, str]:
    """The reasons as they may be logged: PostgreSQL repeats the value in most of them."""
    return {name: "the value is not valid" if is_secret_name(name) else why for name, why in refused.items()}


def _reserving_too_many(in_effect: Mapping[str, str]) -> dict[str, str]:
    """Connections kept for superusers that would leave none for others: PostgreSQL refuses to start with them."""
    reserved = {name: _whole(in_effect.get(name), default) for name, default in zip(RESERVING, (3, 0), strict=True)}
    most = int(in_effect["max_connections"])
    if sum(reserved.values()) < most:
        return {}
    reason = f"{' + '.join(reserved)} = {sum(reserved.values())}, allowed: less than max_connections, which is {most}"
    return {name: reason for name in RESERVING if name in in_effect}


def _missing_libraries(settings: ServerSettings, in_effect: Mapping[str, str]) -> dict[str, str]:
    """Libraries to be loaded that are not there: with one of them the server, or every session, ends at once.

    Nothing is said where the directory of libraries is not known, or others are searched too.
    """
    directory = _library_directory(settings)
    if directory is None or "dynamic_library_path" in in_effect:
        return {}
    found = {}
    for parameter in PRELOADING:
        names = [name.strip().strip('"') for name in in_effect.get(parameter, "").split(",")]
        missing = [name for name in names if name and not _is_library(directory, name)]
        if missing:
            found[parameter] = f"{', '.join(missing)} is not in {directory}; install it on this node, or leave it out"
    return found


def _library_directory(settings: ServerSettings) -> Path | None:
    """Where PostgreSQL's libraries are: beside its programs, known by the one that every server has."""
    root = Path(settings.program("postgres")).resolve().parent.parent
    places = (root / "lib", root / "lib" / "postgresql", root / "lib64", root / "lib64" / "pgsql")
    return next((place for place in places if (place / KNOWN_LIBRARY).exists()), None)


def _is_library(directory: Path, name: str) -> bool:
    path = directory / name.removeprefix("$libdir/")
    return path.exists() or path.with_name(path.name + ".so").exists()


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default
