"""Which postmaster runs on a data directory. Source: PostgreSQL, "Database File Layout", postmaster.pid."""

from pathlib import Path


def running_postmaster(data_dir: Path) -> int | None:
    """The pid of the postmaster that runs on `data_dir`; None when none does, or its pid file is a dead one's.

    The pid file alone proves nothing: after a crash its number may belong to any process, so it must also be at work
    in this directory, as every postmaster is.
    """
    pid = None
    try:
        first, *_ = (data_dir / "postmaster.pid").read_text().splitlines()
        # A negative number is a single-user server's.
        pid = abs(int(first))
        return pid if Path(f"/proc/{pid}/cwd").samefile(data_dir) else None
    except PermissionError:
        return pid  # somebody else's process, which cannot be told from a postmaster: better taken for one
    except (OSError, ValueError):
        return None
