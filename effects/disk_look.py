"""A program of its own that looks at a server's disk: a look that hangs in the kernel hangs nobody else.

It is run by its path, isolated, and needs the standard library only:
    python -I -S disk_look.py DATA_DIR UID GID
As the server's user, whose room counts, it answers each line on its input with one line on its output:
    look | write    ->    DATA_FREE WAL_FREE SEGMENT FAILURE DETAIL
all in bytes, "?" where it cannot be told; FAILURE is "-", "full" or "broken". "rest" closes what it keeps open, and has
no answer. "write" also writes a block and waits until it is on the disk. The
block lies in a file without a name, so no base backup, pg_rewind or person ever meets it; between looks that write the
same block is written again, which costs no journal.
"""

import errno
import os
import sys
from pathlib import Path

BLOCK = bytes(4096)
FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (errno.EIO, errno.EROFS)
SEGMENT_BYTES = 16 << 20
SEGMENT_NAME_LENGTH = 24
NAME = "pgsql_tmp_matriarch"
"""The name that the file has for a moment where the file system knows none without. Base backups leave out what begins
so. Source: PostgreSQL, "Base Backup"."""


class Writer:
    """Writes one block, again and again, into a file without a name."""

    def __init__(self, directory: str) -> None:
        self.directory, self.fd = directory, -1

    def write(self) -> None:
        """Returns when a block is on the disk. Raises: OSError, and begins anew the next time."""
        try:
            if self.fd < 0:
                self.fd = nameless_file(self.directory)
            os.pwrite(self.fd, BLOCK, 0)
            os.fdatasync(self.fd)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the file back: nothing of a server that does not run is kept open."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def nameless_file(directory: str) -> int:
    """A new file that is gone with its descriptor. Source: open(2), O_TMPFILE; not every file system has it."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    path = f"{directory}/{NAME}.{os.getpid()}"
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    Path(path).unlink()
    return fd


def free_bytes(directory: str) -> int:
    """What an ordinary user may still write. Source: statvfs(3)."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def segment_bytes(wal: str) -> int:
    """The size of one WAL segment, from one that is there."""
    with os.scandir(wal) as entries:
        sizes = (e.stat().st_size for e in entries if len(e.name) == SEGMENT_NAME_LENGTH)
        return next((size for size in sizes if size), SEGMENT_BYTES)


class Look:
    """The disk, or disks, of one data directory."""

    def __init__(self, data_dir: str) -> None:
        self.data, self.wal = Writer(data_dir), Writer(f"{data_dir}/pg_wal")
        self.segment_bytes = 0

    def answer(self, command: str) -> str:
        """One line. What says nothing about the disk, such as a missing directory, is not "broken"."""
        data, wal = self.data.directory, self.wal.directory
        try:
            self.segment_bytes = self.segment_bytes or segment_bytes(wal)
            room = f"{free_bytes(data)} {free_bytes(wal)} {self.segment_bytes}"
        except OSError as error:
            self._close()
            return f"? ? ? {'broken' if error.errno in BROKEN else '-'} {error.strerror}"
        try:
            self._write(command == "write")
        except OSError as error:
            failure = "full" if error.errno in FULL else "broken" if error.errno in BROKEN else "-"
            return f"{room} {failure} {error.strerror}"
        return f"{room} - -"

    def _write(self, is_wanted: bool) -> None:
        if not is_wanted:
            return
        self.data.write()
        if Path(self.data.directory).stat().st_dev != Path(self.wal.directory).stat().st_dev:
            self.wal.write()

    def _close(self) -> None:
        self.data.close()
        self.wal.close()
        self.segment_bytes = 0

    def rest(self) -> None:
        """Keep nothing open until the next look."""
        self._close()


def become(uid: int, gid: int) -> None:
    """The server's user, for good; the present one where that is already so."""
    if os.geteuid() == 0 and uid != 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def main(arguments: list[str]) -> None:
    """Answers until its input ends."""
    data_dir, uid, gid = arguments
    become(int(uid), int(gid))
    look = Look(data_dir)
    for line in sys.stdin:
        command = line.strip()
        if command == "rest":
            look.rest()
            continue
        print(look.answer(command), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
