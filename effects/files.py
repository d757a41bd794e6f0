"""Small files that survive a crash: written whole or not at all, with the right owner and rights.

The agent may be root and the directory may belong to the user who runs PostgreSQL, so no link is ever followed for
writing: a new file is created beside the old one and renamed over it.
"""

import contextlib
import os
from pathlib import Path

from effects.programs import RunAs

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700


def write_atomically(path: Path, text: str, owner: RunAs | None = None, mode: int = PRIVATE_FILE) -> bool:
    """True when the file had to be written; a file that already says `text` is left alone.

    owner: who the file shall belong to; None is this process's own user. mode: its rights.
    Raises: OSError.
    """
    content = text.encode()
    if _says(path, content):
        return False
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        if owner:
            os.fchown(fd, owner.uid, owner.gid)
        file.write(content)
        file.flush()
        os.fsync(fd)
    beside.replace(path)
    sync_directory(path.parent)
    return True


def remove_durably(path: Path) -> None:
    """Removes a file if it is there, and makes sure that it stays removed after a crash."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Source: fsync(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path, owner: RunAs | None = None, mode: int = PRIVATE_DIRECTORY) -> None:
    """Makes a directory with this owner and mode where there is none; its parents get 0755 and this process's user."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
        path.chmod(mode)
        if owner:
            os.chown(path, owner.uid, owner.gid)


def own_directory(path: Path, owner: RunAs | None) -> None:
    """Makes `path` a directory of 0700 that belongs to `owner`, whether or not it is there already. Raises: OSError."""
    make_directory(path, owner)
    path.chmod(PRIVATE_DIRECTORY)
    if owner:
        os.chown(path, owner.uid, owner.gid)


def free_bytes(path: Path) -> int:
    """How much an ordinary user may still write to the file system of `path`. Source: statvfs(3)."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def used_bytes(directory: Path) -> int:
    """How much disk the files below `directory` occupy; files that vanish meanwhile are not counted."""
    return sum(_allocated(Path(parent) / name) for parent, _, names in os.walk(directory) for name in names)


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _says(path: Path, content: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == content
    except OSError:
        return False
