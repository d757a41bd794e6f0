"""What is fixed about one PostgreSQL server for the life of the agent: where it lies, who runs it, who logs in."""

import os
from pathlib import Path

import msgspec

from effects.programs import RunAs


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A role of the server and its password, which no representation shows.

    `options`: how it connects over TCP, as libpq has it (sslmode, sslcert and so on). Source: Patroni `authentication`.
    """

    username: str
    password: str
    options: dict[str, str] = {}

    @property
    def public_options(self) -> dict[str, str]:
        """The options that may stand in a program's arguments, where every user of the machine can read them."""
        return {name: value for name, value in self.options.items() if name != "sslpassword"}

    def __repr__(self) -> str:
        return f"Login(username={self.username!r}, password='***')"

    __str__ = __repr__


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One server as this node's configuration describes it. `run_as` None: the agent's own user runs PostgreSQL."""

    scope: str
    name: str
    data_dir: Path
    bin_dir: Path
    state_dir: Path
    """The agent's own directory (0700), beside the data directory; it exists before anything here is used."""
    listen_host: str
    port: int
    socket_dir: Path
    superuser: Login
    replication: Login
    rewind: Login
    parameters: dict[str, str] = {}
    """This node's own parameters, above the cluster's. Source: Patroni, postgresql.parameters."""
    pg_hba: tuple[str, ...] = ()
    first_pg_hba: tuple[str, ...] = ()
    """What counts where neither this node nor the cluster says anything. Source: Patroni, bootstrap.pg_hba."""
    pg_ident: tuple[str, ...] = ()
    initdb_options: tuple[str, ...] = ()
    """Further words for initdb, such as "--locale=de_DE.UTF-8"."""
    basebackup_options: tuple[str, ...] = ()
    """Further words for pg_basebackup, such as "--max-rate=100M". Source: Patroni, postgresql.basebackup."""
    rewind_options: tuple[str, ...] = ()
    bin_names: dict[str, str] = {}
    """What programs are called here that are not called as PostgreSQL calls them."""
    custom_conf: str | None = None
    """A file that is included instead of postgresql.base.conf."""
    pgpass: Path | None = None
    """Where the password file shall lie instead of in `private_dir`."""
    run_as: RunAs | None = None
    watchdog_device: str = "/dev/watchdog"
    watchdog_driver: str = "default"

    def program(self, name: str) -> str:
        """The whole path of one of PostgreSQL's programs."""
        return str(self.bin_dir / self.bin_names.get(name, name))

    @property
    def owner_uid(self) -> int:
        """The user that the data directory must belong to."""
        return self.run_as.uid if self.run_as else os.geteuid()

    @property
    def private_dir(self) -> Path:
        """Where files lie that PostgreSQL's programs must read and nobody else may: 0700 of the user who runs them.

        Beside `state_dir`, not in it: that one is closed to every user but the agent's.
        """
        return self.state_dir.with_name(f"{self.state_dir.name}.postgres")

    @property
    def passfile(self) -> Path:
        """The password file of the server's WAL receiver, pg_basebackup and pg_rewind. Source: PostgreSQL, pgpass."""
        return self.pgpass or self.private_dir / "pgpass"

    @property
    def promotion_permit(self) -> Path:
        """The file without which the server does not come out of recovery; see `end_of_recovery` of pgconfig."""
        return self.private_dir / "promotion-permit"

    @property
    def socket_lock(self) -> Path:
        """The lock file of the server's Unix socket. Source: PostgreSQL, pqcomm.c, UNIXSOCK_PATH."""
        return self.socket_dir / f".s.PGSQL.{self.port}.lock"

    @property
    def output_file(self) -> Path:
        """What the server prints."""
        return self.state_dir / "postgres.log"
