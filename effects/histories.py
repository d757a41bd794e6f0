"""Timeline history files that keep numbers free: PostgreSQL begins the timeline after the newest that it has a file of.

A file that keeps a number free holds a comment only. PostgreSQL reads it as a timeline without ancestors: it never
follows it, and standbys fetch it like any other. Left as the newest one it would keep a standby from starting, because
it is taken for the timeline to recover to; so such files are removed before a start.
Source: PostgreSQL, timeline.c: findNewestTimeLine, readTimeLineHistory; xlogrecovery.c, rescanLatestTimeLine.
"""

import re
from pathlib import Path

from effects.files import write_atomically
from effects.server_settings import ServerSettings

COMMENT = "# kept free by Matriarch: another server of this cluster may have begun this timeline\n"
NAME = re.compile(r"[0-9A-F]{8}\.history")
TIMELINES_AT_ONCE_MAX = 1_000
"""So many promotions that a standby never heard of are a mistake somewhere else."""


def newest_timeline(settings: ServerSettings) -> int:
    """The newest timeline that the server has a history file of; 1, which never has one, if there is none."""
    return max((int(path.name[:8], 16) for path in _histories(settings)), default=1)


def keep_timelines_free(settings: ServerSettings, timeline: int) -> None:
    """Lets the server's next promotion begin a timeline of this number, unless it knows a newer one already.

    Where WAL is archived, so are these: whoever restores looks for the newest timeline without a gap. Raises: OSError.
    """
    newest = newest_timeline(settings)
    if timeline - newest > TIMELINES_AT_ONCE_MAX:
        return
    for number in range(newest + 1, timeline):
        name = f"{number:08X}.history"
        write_atomically(_wal(settings) / name, COMMENT, settings.run_as)
        write_atomically(_wal(settings) / "archive_status" / f"{name}.ready", "", settings.run_as)


def remove_vain_histories(settings: ServerSettings) -> None:
    """Removes files that keep numbers free for a promotion that never came: those above every real one."""
    for path in sorted(_histories(settings), reverse=True):
        if path.read_text(errors="replace") != COMMENT:
            return
        path.unlink()
        (path.parent / "archive_status" / f"{path.name}.ready").unlink(missing_ok=True)


def _wal(settings: ServerSettings) -> Path:
    return settings.data_dir / "pg_wal"


def _histories(settings: ServerSettings) -> list[Path]:
    wal = _wal(settings)
    return [path for path in wal.iterdir() if NAME.fullmatch(path.name)] if wal.is_dir() else []
