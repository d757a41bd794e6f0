"""The configuration files of the server: Patroni's file scheme, its layers of parameters and its controlled ones.

postgresql.conf is generated; what was there before is kept once as postgresql.base.conf and included first. Layers:
built-in defaults, the cluster's dynamic configuration, this node's own; the controlled parameters, which must agree in
the whole cluster, come from the dynamic configuration only. Source: Patroni, "Patroni configuration"; PostgreSQL,
"Setting Parameters" and "Hot Standby".
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from psycopg.conninfo import make_conninfo

from effects.errors import PostgresError
from effects.files import make_directory, remove_durably, write_atomically
from effects.hba import has_own_access, has_own_replication
from effects.server_settings import Login, ServerSettings
from fsm.dynamic import CONTROLLED_LEAST
from fsm.facts import Upstream

Role = Literal["primary", "standby"]
Parameters = Mapping[str, object]

HEADER = "# Written by Matriarch at every start and change: edit postgresql.base.conf or the cluster's configuration."
HBA_HEADER = "# Written by Matriarch because postgresql.pg_hba is not set."
OWN_ACCESS_HEADER = "# Written by Matriarch, as postgresql.pg_hba, which follows, has no line for its socket."
REFUSAL = (
    "matriarch: this promotion was not ordered by the agent of this node; ask for a switchover or failover instead"
)
GUARD_BYTES_MAX = 1_023
"""What PostgreSQL 14 and 15 take of a recovery_end_command. Source: PostgreSQL, MAXPGPATH."""
GENERATED, BASE = "postgresql.conf", "postgresql.base.conf"
# Included last, see effects/waiting.py.
SYNC_NAMES = "postgresql.sync.conf"
INCLUDES_BASE = re.compile(rf"^\s*include\s.*{re.escape(BASE)}", re.MULTILINE)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")
ESCAPES = str.maketrans({"'": "''", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"})
# Written by ALTER SYSTEM or pg_basebackup -R, these would win over the generated file and tie the server elsewhere.
RECOVERY_PARAMETER = re.compile(r"\s*(primary_conninfo|primary_slot_name|recovery_target\w*)\b", re.IGNORECASE)
# A WAL receiver that finds a host silent gives up after this, so that the server can try again.
RECEIVER_CONNECT_TIMEOUT_S = 5
# Not controlled, only better here than PostgreSQL's own default; every layer may override them.
DEFAULTS: dict[str, str] = {
    # A standby whose new upstream is not up yet tries again after this, instead of after 5 s.
    "wal_retrieve_retry_interval": "500ms",
}


# ---- controlled parameters -------------------------------------------------------------------------------------------


def at_least(minimum: int) -> Callable[[object], str]:
    """A reader of whole numbers from `minimum`; it raises ValueError for anything else."""

    def read(value: object) -> str:
        if isinstance(value, bool) or int(str(value)) < minimum:
            raise ValueError(value)
        return str(int(str(value)))

    return read


def read_switch(value: object) -> str:
    """Returns "on" or "off". Raises: ValueError."""
    word = str(value).strip().lower()
    if word in ("on", "true", "yes", "1"):
        return "on"
    if word in ("off", "false", "no", "0"):
        return "off"
    raise ValueError(value)


def read_wal_level(value: object) -> str:
    """A WAL level with which replication works; "hot_standby" is the old name of "replica". Raises: ValueError."""
    level = {"hot_standby": "replica", "replica": "replica", "logical": "logical"}.get(str(value).strip().lower())
    if level is None:
        raise ValueError(value)
    return level


def read_keep_size(value: object) -> str:
    """A size of at least one WAL segment, in megabytes where no unit is given. Raises: ValueError."""
    found = re.fullmatch(r"\s*(\d+)\s*(kB|MB|GB|TB)?\s*", str(value))
    if found is None:
        raise ValueError(value)
    size_kb = int(found[1]) * {"kB": 1, "MB": 1024, "GB": 1024**2, "TB": 1024**3}[found[2] or "MB"]
    if size_kb < 16 * 1024:
        raise ValueError(value)
    return f"{size_kb // 1024}MB"


# Name, default and reader; a value that cannot be read gives the default. Source: Patroni, controlled parameters.
CONTROLLED: dict[str, tuple[str, Callable[[object], str]]] = {
    "wal_level": ("replica", read_wal_level),
    "max_connections": ("100", at_least(CONTROLLED_LEAST["max_connections"])),
    "max_wal_senders": ("10", at_least(CONTROLLED_LEAST["max_wal_senders"])),
    "max_replication_slots": ("10", at_least(CONTROLLED_LEAST["max_replication_slots"])),
    "max_worker_processes": ("8", at_least(CONTROLLED_LEAST["max_worker_processes"])),
    "max_locks_per_transaction": ("64", at_least(CONTROLLED_LEAST["max_locks_per_transaction"])),
    "max_prepared_transactions": ("0", at_least(CONTROLLED_LEAST["max_prepared_transactions"])),
    "track_commit_timestamp": ("off", read_switch),
    "wal_log_hints": ("on", read_switch),
    "wal_keep_size": ("128MB", read_keep_size),
}
# Never settable by anyone: they follow from where this node is and what it is.
FIXED = ("listen_addresses", "port", "cluster_name", "unix_socket_directories", "hot_standby")
# Source: Patroni, `recovery_conf`, which leaves these out too.
NOT_OF_RECOVERY = re.compile(
    r"recovery_target\w*|primary_conninfo|primary_slot_name|standby_mode|\w*trigger_file", re.IGNORECASE
)
# wal_keep_segments is the name that wal_keep_size had before PostgreSQL 13, counted in segments.
IGNORED = (*FIXED, "wal_keep_segments", "primary_conninfo", "recovery_target_timeline")
# May change while the server runs, so it must not be on its command line.
RELOADABLE = ("wal_keep_size",)


def controlled_parameters(dynamic: Parameters) -> dict[str, str]:
    """The controlled parameters as the dynamic configuration sets them, each with its default where it does not."""
    asked = {name.lower(): value for name, value in dynamic.items()}
    segments = str(asked.get("wal_keep_segments", ""))
    if segments.isdecimal():
        asked.setdefault("wal_keep_size", int(segments) * 16)
    return {name: _read_or_default(name, asked.get(name)) for name in CONTROLLED}


def _read_or_default(name: str, value: object) -> str:
    default, read = CONTROLLED[name]
    try:
        return default if value is None else read(value)
    except ValueError:
        return default


def fixed_parameters(settings: ServerSettings) -> dict[str, str]:
    """The parameters that follow from where this node is."""
    return {
        "listen_addresses": settings.listen_host,
        "port": str(settings.port),
        "cluster_name": settings.scope,
        "unix_socket_directories": str(settings.socket_dir),
        "hot_standby": "on",
    }


def parameters_in_effect(settings: ServerSettings, dynamic: Parameters) -> dict[str, str]:
    """All parameters of the generated file but those of recovery. dynamic: `postgresql.parameters` of the cluster.

    A parameter set to None is not written; a name that PostgreSQL could not parse is left out.
    """
    layers = (DEFAULTS, dynamic, settings.parameters)
    asked = {name.lower(): value for layer in layers for name, value in layer.items() if NAME.fullmatch(name)}
    free = {name: written(value) for name, value in asked.items() if value is not None and name not in IGNORED}
    return free | controlled_parameters(dynamic) | fixed_parameters(settings)


def command_line_parameters(settings: ServerSettings, dynamic: Parameters, floors: Mapping[str, int]) -> list[str]:
    """The words for the server's command line that keep ALTER SYSTEM from changing what must agree in the cluster.

    floors: the least values with which a standby may replay its primary's WAL; the file still says what is wanted, so
    the server itself reports the difference as pending a restart. Source: PostgreSQL, "Hot Standby", Administrator.
    """
    wanted = controlled_parameters(dynamic) | fixed_parameters(settings)
    raised = {name: str(max(floors[name], int(wanted[name]))) for name in wanted if name in floors}
    return [f"--{name}={value}" for name, value in sorted((wanted | raised).items()) if name not in RELOADABLE]


def recovery_parameters(recovery_conf: Parameters) -> dict[str, str]:
    """What `recovery_conf` sets, as parameters: since PostgreSQL 12 they are such. Source: Patroni, `recovery_conf`."""
    return {
        name: written(value)
        for name, value in recovery_conf.items()
        if value is not None and not NOT_OF_RECOVERY.fullmatch(name)
    }


def written(value: object) -> str:
    """A value of JSON or YAML as PostgreSQL writes it."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


# ---- the text of the files -------------------------------------------------------------------------------------------


def quote(value: str) -> str:
    """A value in the quotes of a configuration file. Raises: PostgresError when it holds a NUL.

    Source: PostgreSQL, "Parameter Interaction via the Configuration File".
    """
    if "\0" in value:
        raise PostgresError("a parameter's value cannot hold a NUL character")
    return f"'{value.translate(ESCAPES)}'"


def server_conf(settings: ServerSettings, dynamic: Parameters, upstream: Upstream | None) -> str:
    """The text of postgresql.conf. upstream: where to receive WAL from; None receives none."""
    wanted = parameters_in_effect(settings, dynamic)
    parameters = wanted | {
        "recovery_end_command": end_of_recovery(settings, wanted.get("recovery_end_command", "")),
        "recovery_target_timeline": "latest",
        # Written even when empty, for the included file may hold one.
        "primary_conninfo": primary_conninfo(settings, upstream) if upstream else "",
    }
    lines = [f"{name} = {quote(value)}" for name, value in sorted(parameters.items())]
    base = quote(settings.custom_conf or BASE)
    return "\n".join([HEADER, f"include {base}", *lines, include_of_names(), ""])


def end_of_recovery(settings: ServerSettings, command: str) -> str:
    """What a standby runs at its promotion, before it accepts writes: without this agent's permit it ends instead.

    A promotion by hand, past the agent, would make a second primary for as long as it takes to notice. A command that
    is not found or cannot be executed (status 126 and above) is what PostgreSQL itself does not go on after.

    Until version 15 a command is cut where it is too long, and a shell that cannot parse a line exits with a status
    that PostgreSQL goes on after. So what must hold is a line of its own, and short enough.

    command: what was configured; it is run after that. Raises: PostgresError when the state directory's name is too
    long. Source: PostgreSQL, recovery_end_command; xlogarchive.c, ExecuteRecoveryCommand; POSIX, sh -c.
    """
    permit = shlex.quote(str(settings.promotion_permit)).replace("%", "%%")
    guard = f"test -e {permit} || {{ echo {shlex.quote(REFUSAL)} >&2; exit 126; }}"
    if len(guard.encode(errors="surrogateescape")) > GUARD_BYTES_MAX:
        raise PostgresError(
            f"{settings.promotion_permit} is too long a name for PostgreSQL: choose a shorter state_dir"
        )
    return f"{guard}\n{command}" if command else guard


def include_of_names() -> str:
    """The line of postgresql.conf, its last, that lets whom commits wait for be written elsewhere."""
    return f"include_if_exists {quote(SYNC_NAMES)}"


def primary_conninfo(settings: ServerSettings, upstream: Upstream) -> str:
    """How the WAL receiver reaches `upstream`, without the password, which is in the passfile."""
    return make_conninfo(
        host=upstream.host,
        port=upstream.port,
        user=settings.replication.username,
        dbname="postgres",
        passfile=str(settings.passfile),
        application_name=settings.name,
        connect_timeout=RECEIVER_CONNECT_TIMEOUT_S,
        **settings.replication.options,
    )


def host_based_authentication(settings: ServerSettings) -> str:
    """The text of pg_hba.conf: the configured lines, else passwords (SCRAM) for everyone everywhere.

    Patroni reaches its server over TCP unless told otherwise, so lines that served it may have none for the socket,
    which is the way that the agent takes; it is let in by a line of its own then.
    """
    if settings.pg_hba:
        return "\n".join([*_own_access(settings), *settings.pg_hba, ""])
    replication = _quoted_name(settings.replication.username)
    rows = (
        ("local", "all", "all", ""),
        ("local", "replication", replication, ""),
        ("host", "all", "all", "all"),
        ("host", "replication", replication, "all"),
    )
    return "\n".join([HBA_HEADER, *(" ".join(filter(None, (*row, "scram-sha-256"))) for row in rows), ""])


def _own_access(settings: ServerSettings) -> list[str]:
    rows = [
        (database, login.username)
        for database, login, has_it in (
            ("all", settings.superuser, has_own_access),
            ("replication", settings.replication, has_own_replication),
        )
        if login.password and not has_it(settings.pg_hba, login.username)
    ]
    # This method takes a SCRAM verifier as well as one that an older cluster made.
    lines = [f"local {database} {_quoted_name(username)} md5" for database, username in rows]
    return [OWN_ACCESS_HEADER, *lines] if lines else []


def _quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def passwords(*logins: Login) -> str:
    """The text of a password file that serves these logins on every server. Source: PostgreSQL, "The Password File"."""

    def escape(text: str) -> str:
        if "\n" in text:
            raise PostgresError("a password cannot hold a line break")
        return text.replace("\\", "\\\\").replace(":", "\\:")

    return "".join(f"*:*:*:{escape(login.username)}:{escape(login.password)}\n" for login in logins)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_passfile(settings: ServerSettings) -> None:
    """Writes the password file for the WAL receiver, pg_basebackup and pg_rewind. Raises: OSError."""
    make_directory(settings.private_dir, settings.run_as)
    make_directory(settings.passfile.parent, settings.run_as)
    unique = {login.username: login for login in (settings.rewind, settings.replication)}
    write_atomically(settings.passfile, passwords(*unique.values()), settings.run_as)


def write_server_files(settings: ServerSettings, dynamic: Parameters, upstream: Upstream | None) -> None:
    """Writes every configuration file but the signal file. Raises: OSError, PostgresError."""
    write_passfile(settings)
    _keep_base(settings)
    write_atomically(settings.data_dir / GENERATED, server_conf(settings, dynamic, upstream), settings.run_as)
    _write_hba(settings)
    if settings.pg_ident:
        write_atomically(settings.data_dir / "pg_ident.conf", "\n".join([*settings.pg_ident, ""]), settings.run_as)
    _strip_recovery_parameters(settings)


def write_signal_file(settings: ServerSettings, role: Role) -> None:
    """Makes the next start one as a standby, or as a primary. Source: PostgreSQL, standby.signal. Raises: OSError."""
    remove_durably(settings.data_dir / "recovery.signal")
    if role == "standby":
        write_atomically(settings.data_dir / "standby.signal", "", settings.run_as)
    else:
        remove_durably(settings.data_dir / "standby.signal")


def _keep_base(settings: ServerSettings) -> None:
    generated, base = settings.data_dir / GENERATED, settings.data_dir / BASE
    if base.exists():
        return
    text = generated.read_text(errors="replace") if generated.exists() else ""
    if text and not text.startswith(HEADER) and not re.search(INCLUDES_BASE, text):
        generated.rename(base)
    else:  # generated, here or where it was cloned from; what it was generated from is lost
        write_atomically(base, "# The original was not there.\n", settings.run_as)


def _write_hba(settings: ServerSettings) -> None:
    path = settings.data_dir / "pg_hba.conf"
    is_foreign = path.exists() and HBA_HEADER not in path.read_text(errors="replace")
    # Without configured lines, rules that somebody else wrote stay, as under Patroni.
    if settings.pg_hba or not is_foreign:
        write_atomically(path, host_based_authentication(settings), settings.run_as)


def _strip_recovery_parameters(settings: ServerSettings) -> None:
    path: Path = settings.data_dir / "postgresql.auto.conf"
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not RECOVERY_PARAMETER.match(line)]
    if kept != lines:
        write_atomically(path, "".join(kept), settings.run_as)
