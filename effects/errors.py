"""The errors that cross a border inside Matriarch: one small tree.

Foreign exceptions (grpc, psycopg, OSError) are renamed into one of these once, in the module that meets them first.
"""


class MatriarchError(Exception):
    """Anything that Matriarch raises on purpose; its text is one line that a person can act on."""


class ConfigError(MatriarchError):
    """The operator's: settings that are missing or wrong. Carries every fault found, not only the first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class ConfigUnusable(MatriarchError):
    """The operator's: a dynamic configuration that no node could use. Its text says where, and what is allowed."""


class EtcdError(MatriarchError):
    """The world's: a call to etcd that did not end in a usable answer."""


class EtcdUnavailable(EtcdError):
    """No endpoint answered, or none that has a leader; the call was certainly not applied."""


class EtcdOutcomeUnknown(EtcdError):
    """The answer to a write was lost: it may or may not have been applied. Read again to find out."""


class EtcdRefused(EtcdError):
    """etcd answered and said no: not authorised, bad password, request invalid."""


class LeaseGone(EtcdError):
    """The lease is no longer known to etcd: it expired or was revoked, and its keys are gone."""


class WatchCompacted(EtcdError):
    """The revision to resume from was compacted away: read everything again."""


class PostgresError(MatriarchError):
    """The world's: a PostgreSQL program or query that failed."""


class ServerStarting(PostgresError):
    """The server is up but takes no connections yet: it starts or recovers. Source: SQLSTATE 57P03."""


class ServerMute(PostgresError):
    """The server said nothing at all within the time for an answer: no row, no error, no refusal."""


class ProgramFailed(PostgresError):
    """A PostgreSQL program ended with a status other than 0. Carries the command, the status and the end of stderr."""

    def __init__(self, program: str, status: int, stderr: str) -> None:
        self.program, self.status, self.stderr = program, status, stderr
        super().__init__(f"{program} ended with status {status}: {_telling_line(stderr)}")


def _telling_line(stderr: str) -> str:
    """The last line that says what failed: hints, details and clean-up may come after it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    failures = [line for line in lines if "error:" in line or "fatal:" in line.lower()]
    return (failures or lines or ["no message"])[-1]


class PromiseUnkept(MatriarchError):
    """The world's: a promise to a leader without etcd that did not reach the disk; it must not be confirmed."""


class FenceUnavailable(MatriarchError):
    """The fence process cannot be reached or does not answer."""


class LogCorrupt(MatriarchError):
    """An entry of the transition log does not match its checksum or its predecessor."""


class LogUnavailable(MatriarchError):
    """The disk under the transition log refuses, is full or was taken away."""
