"""What lies in the data directory: pg_controldata's answer, and the agent's own marks of work left unfinished."""

import os
import stat
from pathlib import Path
from typing import Literal

from effects.errors import PostgresError
from effects.files import remove_durably, write_atomically
from effects.programs import run_program
from effects.server_settings import ServerSettings
from fsm.facts import DataDirectory

CONTROLDATA_TIMEOUT_MS = 5000
WARNING_CHARACTERS_MAX = 300
# PostgreSQL starts with a data directory of 0700 or 0750 only. Source: PostgreSQL, initdb --allow-group-access.
FORBIDDEN_RIGHTS = 0o027

Work = Literal["initializing", "cloning", "rewinding"]
Unfinished = Literal["unfinished_init", "unfinished_clone", "unfinished_rewind"]
# In the order of their danger: a half rewound directory looks most like a sound one.
UNFINISHED: dict[Work, Unfinished] = {
    "rewinding": "unfinished_rewind",
    "cloning": "unfinished_clone",
    "initializing": "unfinished_init",
}
# Settings that a standby must not have lower than its primary had. Source: PostgreSQL, "Hot Standby", Administrator.
FLOORS = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}

ControlFile = dict[str, str]


# ---- marks of unfinished work ----------------------------------------------------------------------------------------


def mark(settings: ServerSettings, work: Work) -> None:
    """Notes durably that `work` on the data directory began. Raises: OSError."""
    write_atomically(settings.state_dir / work, f"{settings.data_dir}\n")


def unmark(settings: ServerSettings, work: Work) -> None:
    """Notes durably that `work` is complete, or that nothing of it is left. Raises: OSError."""
    remove_durably(settings.state_dir / work)


def unmark_all(settings: ServerSettings) -> None:
    """Forgets all unfinished work, once what it left behind is gone. Raises: OSError."""
    for work in UNFINISHED:
        unmark(settings, work)


def unfinished_work(settings: ServerSettings) -> Unfinished | None:
    """The condition that the marks tell of, or None when no work was left unfinished."""
    found = (condition for work, condition in UNFINISHED.items() if (settings.state_dir / work).exists())
    return next(found, None)


# ---- pg_controldata --------------------------------------------------------------------------------------------------


async def read_control_file(settings: ServerSettings) -> ControlFile:
    """What pg_controldata prints, label by label.

    Raises: PostgresError when it cannot read the file or does not trust it. Source: PostgreSQL, pg_controldata.
    """
    argv = [settings.program("pg_controldata"), "-D", str(settings.data_dir)]
    ended = await run_program(argv, run_as=settings.run_as, timeout_ms=CONTROLDATA_TIMEOUT_MS)
    text = ended.check().stdout
    # It prints all fields and exits with status 0 when the checksum or the version is wrong. Only a warning tells: on
    # stdout up to PostgreSQL 15, on stderr later.
    if text.startswith("WARNING: ") or "warning: " in ended.stderr:
        raise PostgresError((ended.stderr or text)[:WARNING_CHARACTERS_MAX])
    return parse_control_file(text)


def parse_control_file(text: str) -> ControlFile:
    """The labels and values of pg_controldata's text."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {label.strip(): value.strip() for label, separator, value in pairs if separator}


def control_floors(control: ControlFile) -> dict[str, int]:
    """The least values with which a standby may replay this cluster's WAL, by parameter."""
    return {name: int(control[label]) for label, name in FLOORS.items() if control.get(label, "").isdecimal()}


def parse_lsn(text: str) -> int:
    """Bytes from the start of WAL, from PostgreSQL's "16/B374D848". Source: PostgreSQL, pg_lsn."""
    high, separator, low = text.partition("/")
    if not separator:
        raise PostgresError(f"not a WAL position: {text!r}")
    return (int(high, 16) << 32) + int(low, 16)


# ---- the fact --------------------------------------------------------------------------------------------------------


async def read_data_directory(settings: ServerSettings) -> DataDirectory:
    """What lies in the data directory while no server runs on it; never raises for what it finds there.

    Marks of unfinished work win over a control file that looks sound, and do not count where nothing is left.
    """
    try:
        names = _list(settings.data_dir)
        if names is None:
            return DataDirectory(condition="absent")
        if not names:
            return DataDirectory(condition="empty")
        unfinished = unfinished_work(settings)
        if unfinished:
            return await _describe_unfinished(settings, unfinished)
        _check_directory(settings, names)
        return describe(await read_control_file(settings), "cluster", is_base_backup="backup_label" in names)
    except (OSError, PostgresError, ValueError, KeyError) as error:
        return DataDirectory(condition="unreadable", detail=_one_line(error))


def describe(
    control: ControlFile, condition: Unfinished | Literal["cluster"], *, is_base_backup: bool = False
) -> DataDirectory:
    """The fact that a control file states. Raises: KeyError, ValueError, PostgresError on a text of another shape."""
    return DataDirectory(
        condition=condition,
        is_base_backup=is_base_backup,
        system_id=control["Database system identifier"],
        timeline=int(control["Latest checkpoint's TimeLineID"]),
        control_state=control["Database cluster state"],
        checkpoint_lsn=parse_lsn(control["Latest checkpoint location"]),
        min_recovery_lsn=parse_lsn(control["Minimum recovery ending location"]),
        min_recovery_timeline=int(control["Min recovery ending loc's timeline"]),
        data_checksums=control["Data page checksum version"] != "0",
        wal_log_hints=control["wal_log_hints setting"] == "on",
    )


async def _describe_unfinished(settings: ServerSettings, condition: Unfinished) -> DataDirectory:
    try:
        return describe(await read_control_file(settings), condition)
    except (PostgresError, ValueError, KeyError) as error:
        return DataDirectory(condition=condition, detail=_one_line(error))


def _list(directory: Path) -> list[str] | None:
    """The names in a directory; None when there is no such directory."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names, not paths
    except FileNotFoundError:
        return None


def _check_directory(settings: ServerSettings, names: list[str]) -> None:
    """Raises PostgresError, saying what is wrong, when no server could start on this directory."""
    path = settings.data_dir
    found = path.stat()
    if "PG_VERSION" not in names:
        raise PostgresError(f"{path} is neither empty nor a data directory: it holds {names[0]} but no PG_VERSION")
    if found.st_uid != settings.owner_uid:
        raise PostgresError(f"{path} belongs to user {found.st_uid}, PostgreSQL runs as {settings.owner_uid}: chown it")
    if stat.S_IMODE(found.st_mode) & FORBIDDEN_RIGHTS:
        raise PostgresError(f"{path} has rights {stat.S_IMODE(found.st_mode):04o}, PostgreSQL wants 0700 or 0750")


def _one_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"pg_controldata did not tell {error}"
    return " ".join(str(error).split())
