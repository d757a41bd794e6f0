"""Logs on their way: a node's segments as one tar, and logs taken out of a tar or fetched from a node.

A tar may come from anybody. Only regular files named as segments are taken out of it, each into a directory of its own
place in the tar, under a name made here: nothing that a tar says becomes a path.
"""

import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio.to_thread
import httpx

from effects.errors import LogUnavailable
from effects.log_reader import SEGMENT_PATTERN, segments_of

CHUNK_BYTES = 1 << 18
SEGMENT_MAX_BYTES = 1 << 32
FETCH_TIMEOUT_S = 30


async def archived(directory: Path) -> AsyncIterator[bytes]:
    """The log's segments as a tar, in pieces; a segment that grows meanwhile is taken as long as it was at its turn.

    Args:
        directory: the log; its segments are in a directory "log" of the tar.

    Raises: LogUnavailable for a segment that cannot be read.
    """
    for segment in segments_of(directory):
        try:
            size_bytes = segment.stat().st_size
            async for piece in _member(segment, f"log/{segment.name}", size_bytes):
                yield piece
        except FileNotFoundError:
            continue  # retention removed it
        except OSError as error:
            raise LogUnavailable(f"{segment}: {error.strerror}") from error
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


async def _member(segment: Path, name: str, size_bytes: int) -> AsyncIterator[bytes]:
    told = tarfile.TarInfo(name)
    told.size, told.mode = size_bytes, 0o644
    with segment.open("rb") as file:
        yield told.tobuf(tarfile.PAX_FORMAT)
        left = size_bytes
        while left:
            piece = await anyio.to_thread.run_sync(file.read, min(CHUNK_BYTES, left))
            if not piece:
                raise LogUnavailable(f"{segment} became shorter while it was read")
            left -= len(piece)
            yield piece
    yield b"\0" * (-size_bytes % tarfile.BLOCKSIZE)


@contextmanager
def fetched(source: str) -> Iterator[list[Path]]:
    """The logs in a tar, or of the node at a URL, in a temporary directory that goes with the block.

    Args:
        source: a file, or such as http://10.0.0.1:8008.

    Raises: LogUnavailable when there is none, or it holds no log.
    """
    with TemporaryDirectory(prefix="matriarch-logs-") as temporary:
        directory = Path(temporary)
        if is_url(source):
            tar = directory / "fetched.tar"
            _fetch(f"{source.rstrip('/')}/log/archive", tar)
        else:
            tar = Path(source)
        yield _unpacked(tar, directory / "logs", source)


def is_url(source: str) -> bool:
    """True for what is to be fetched."""
    return source.startswith(("http://", "https://"))


def is_tar(source: Path) -> bool:
    """True for a file that is a tar, packed or not."""
    return source.is_file() and not source.match(SEGMENT_PATTERN) and tarfile.is_tarfile(source)


def _fetch(url: str, into: Path) -> None:
    try:
        with (
            httpx.stream("GET", url, timeout=FETCH_TIMEOUT_S, follow_redirects=False) as answer,
            into.open("wb") as file,
        ):
            if answer.status_code != httpx.codes.OK:
                raise LogUnavailable(f"{url} answered {answer.status_code}; is it a node of this version?")
            for piece in answer.iter_bytes():
                file.write(piece)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LogUnavailable(f"{url}: {error or type(error).__name__}") from error


def _unpacked(tar: Path, into: Path, source: str) -> list[Path]:
    logs: dict[str, Path] = {}
    try:
        with tarfile.open(tar) as opened:
            for member in opened:
                name = Path(member.name)
                if not member.isreg() or not name.match(SEGMENT_PATTERN):
                    continue
                if member.size > SEGMENT_MAX_BYTES:
                    raise LogUnavailable(f"{source}: {member.name[:80]!r} is larger than a segment can be")
                place = blake2b(str(name.parent).encode(), digest_size=8).hexdigest()
                _take_out(opened, member, logs.setdefault(str(name.parent), into / place) / name.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise LogUnavailable(f"{source}: not a tar of logs ({type(error).__name__})") from error
    if not logs:
        raise LogUnavailable(f"{source}: no log segments ({SEGMENT_PATTERN}) in it")
    return [logs[place] for place in sorted(logs)]


def _take_out(opened: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = opened.extractfile(member)
    assert content is not None  # a regular file has one
    with content, path.open("wb") as file:
        while piece := content.read(CHUNK_BYTES):
            file.write(piece)
