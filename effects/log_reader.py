"""The format of the transition log, and reading it: no agent, no event loop, nothing but the files.

A log is a directory of segments, `<first seq>.jsonl`. A line is a JSON object whose envelope has fixed widths, so that
it is split and verified by slicing, without decoding:

    {"crc":"<8 hex>","prev":"<16 hex>","entry":<body>}          one input of the agent and what it decided
    {"crc":"<8 hex>","prev":"<16 hex>","snapshot":<body>}       first line of a segment, which so replays alone

`crc` is the CRC-32 of prev and body: it finds damage. `prev` is the BLAKE2b-8 of the line before (its prev and its
body): it finds lines and segments that were removed, added or put in another order. It runs on across segments.

Of a body only `seq` is known here. In an entry it is the entry's own; in a snapshot, that of the last entry included.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal
from zlib import crc32

import msgspec

from effects.errors import LogCorrupt, LogUnavailable

Kind = Literal["snapshot", "entry"]

SEGMENT_PATTERN = "[0-9]" * 12 + ".jsonl"
GENESIS = b"0" * 16
"""`prev` of the first line of a log: nothing came before."""

_CRC = slice(8, 16)
_PREV = slice(26, 42)
_HEAD = slice(0, 42)
_ENTRY, _SNAPSHOT = b'","entry":', b'","snapshot":'
_ENTRY_BODY, _SNAPSHOT_BODY = 42 + len(_ENTRY), 42 + len(_SNAPSHOT)
ENVELOPE_BYTES = _ENTRY_BODY + len(b"}\n")
"""What a line of an entry is longer than its body."""
_SHOWN_BYTES = 60


class Line(msgspec.Struct, frozen=True):
    """One verified line. `missing` counts the entries just before it that never reached the disk (a gap)."""

    kind: Kind
    seq: int
    body: bytes
    path: Path
    line_number: int
    missing: int = 0


class Fault(msgspec.Struct, frozen=True):
    """One line that is not what was written, or does not follow the line before it."""

    path: Path
    line_number: int
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line_number}: expected {self.expected}, found {self.found}"


class Torn(msgspec.Struct, frozen=True):
    """An unfinished last line: what a crash, or reading while the agent writes, leaves behind. Not a fault."""

    path: Path
    line_number: int
    torn_bytes: int


class SegmentScan(msgspec.Struct):
    """What one pass over a segment found. `good_bytes` ends with the last line whose checksum holds."""

    path: Path
    bytes_total: int
    good_bytes: int = 0
    first_prev: bytes | None = None
    tip: bytes = GENESIS
    last_seq: int = 0
    snapshot: bytes | None = None
    entries_after_snapshot: int = 0


class _Numbered(msgspec.Struct):
    seq: int = 0


class _DamagedError(ValueError):
    """A line that cannot be believed; internal to this module."""

    def __init__(self, expected: str, found: str) -> None:
        self.expected, self.found = expected, found


_decode_seq = msgspec.json.Decoder(_Numbered).decode


def seq_of(body: bytes) -> int:
    """The `seq` of a body, 0 where it has none. Raises ValueError when that cannot be read."""
    try:
        return _decode_seq(body).seq
    except msgspec.DecodeError as error:
        raise ValueError(f"not a body of the log: {error}") from error


def next_tip(prev: bytes, body: bytes) -> bytes:
    """The `prev` of the line that follows a line with this prev and body."""
    return blake2b(prev + body, digest_size=8).hexdigest().encode()


def encode_line(kind: Kind, prev: bytes, body: bytes) -> bytes:
    """One line of the log, with its line feed."""
    return b'{"crc":"%08x","prev":"%s","%s":%s}\n' % (crc32(body, crc32(prev)), prev, kind.encode(), body)


def segments_of(directory: Path) -> list[Path]:
    """The segments of a log, oldest first."""
    return sorted(directory.glob(SEGMENT_PATTERN))


def first_seq_of(segment: Path) -> int:
    """The seq of the first entry of a segment, by its name; 0 for a file that bears another name."""
    first_seq = segment.name.partition(".")[0]
    return int(first_seq) if first_seq.isdecimal() else 0


def _split(raw: bytes) -> tuple[Kind, bytes, bytes]:
    """Kind, prev and body of one line whose checksum holds; raises _DamagedError for any other."""
    kind: Kind
    if raw.startswith(_ENTRY, 42):
        kind, body = "entry", raw[_ENTRY_BODY:-2]
    elif raw.startswith(_SNAPSHOT, 42):
        kind, body = "snapshot", raw[_SNAPSHOT_BODY:-2]
    else:
        raise _DamagedError("a line of the log", _shown(raw))
    prev = raw[_PREV]
    crc = b"%08x" % crc32(body, crc32(prev))
    if raw[_HEAD] != b'{"crc":"%s","prev":"%s' % (crc, prev) or not raw.endswith(b"}\n"):
        raise _DamagedError(f"crc {crc.decode()}", _shown(raw))
    return kind, prev, body


def _shown(raw: bytes) -> str:
    """The start of a damaged line, fit for an error text."""
    return repr(raw[:_SHOWN_BYTES])[1:] + ("…" if len(raw) > _SHOWN_BYTES else "")


def _numbered(body: bytes) -> int:
    try:
        return seq_of(body)
    except ValueError as error:
        raise _DamagedError("a body with its seq", str(error)) from error


class _Chain:
    """Follows one log line by line: what the next `prev` must be, and where the reading stands."""

    def __init__(self) -> None:
        self.tip: bytes | None = None  # None: any prev will do (first line read, or after damage)
        self.torn: Torn | None = None
        self.scan: SegmentScan

    def lines(self, path: Path, start: int = 0) -> Iterator[Line | Fault]:
        """Every line of a segment, good or not; a torn last line is noted in `torn`. Raises OSError."""
        if self.torn is not None:
            self.tip = None
            yield Fault(self.torn.path, self.torn.line_number, "a whole line: a later segment follows", "a torn one")
        self.torn = None
        with path.open("rb", buffering=1 << 18) as segment:
            segment.seek(0, 2)
            self.scan = SegmentScan(path, segment.tell(), start)
            segment.seek(start)
            yield from self._verified(path, segment, start)

    def _verified(self, path: Path, segment: BinaryIO, start: int) -> Iterator[Line | Fault]:
        offset = start
        for line_number, raw in enumerate(segment, 1):
            offset += len(raw)
            if not raw.endswith(b"\n"):
                self.torn = Torn(path, line_number, len(raw))
                return
            try:
                kind, prev, body = _split(raw)
                seq = _numbered(body)
            except _DamagedError as damaged:
                self.tip = None
                yield Fault(path, line_number, damaged.expected, damaged.found)
                continue
            if self.tip is not None and prev != self.tip:
                yield Fault(path, line_number, f"prev {self.tip.decode()}", f"prev {prev.decode()}")
            self.tip = next_tip(prev, body)
            self._note(kind, seq, prev, body)
            self.scan.good_bytes = offset
            self.scan.tip = self.tip
            yield Line(kind, seq, body, path, line_number)

    def _note(self, kind: Kind, seq: int, prev: bytes, body: bytes) -> None:
        scan = self.scan
        scan.last_seq = max(scan.last_seq, seq)
        if scan.first_prev is None:
            scan.first_prev = prev
        if kind == "snapshot":
            scan.snapshot, scan.entries_after_snapshot = body, 0
        else:
            scan.entries_after_snapshot += 1


def scan_segment(path: Path, newest_max: int) -> tuple[SegmentScan, deque[tuple[int, bytes]]]:
    """One pass over a segment, and its newest entries as (seq, body). Raises OSError."""
    chain = _Chain()
    newest: deque[tuple[int, bytes]] = deque(maxlen=newest_max)
    for found in chain.lines(path):
        if isinstance(found, Line) and found.kind == "entry":
            newest.append((found.seq, found.body))
    return chain.scan, newest


def find_faults(segments: Sequence[Path]) -> list[Fault]:
    """Every fault in adjacent segments of one log, in order; a torn end of the last one is none. Raises OSError."""
    chain = _Chain()
    return [found for path in segments for found in chain.lines(path) if isinstance(found, Fault)]


class LogReading:
    """Iterates over the verified lines of one or more logs; `torn` then names the unfinished last lines met."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._logs = [segments_of(path) if path.is_dir() else [path] for path in paths]
        self.torn: list[Torn] = []

    def __iter__(self) -> Iterator[Line]:
        for segments in self._logs:
            yield from self._one_log(segments)

    def _one_log(self, segments: list[Path]) -> Iterator[Line]:
        chain = _Chain()
        last_seq: int | None = None
        for path in segments:
            for found in _readable(chain, path):
                if isinstance(found, Fault):
                    raise LogCorrupt(str(found))
                is_entry = found.kind == "entry"
                missing = 0 if last_seq is None else found.seq - last_seq - is_entry
                yield found if missing <= 0 else msgspec.structs.replace(found, missing=missing)
                if is_entry or found.seq:  # a snapshot need not be numbered
                    last_seq = found.seq
        if chain.torn is not None:
            self.torn.append(chain.torn)


def _readable(chain: _Chain, path: Path) -> Iterator[Line | Fault]:
    try:
        yield from chain.lines(path)
    except OSError as error:
        raise LogUnavailable(f"{path}: {error.strerror}") from error


def read_log(paths: Iterable[Path]) -> LogReading:
    """The lines of logs, verified, in the order they were written.

    paths: directories (a log each: its segments must follow each other) and single segments (each read alone).
    Returns an iterable of Line; after it was read its `torn` names unfinished last lines, which are no corruption.
    Raises, while it is read, LogCorrupt (path:line, what was expected and found), and LogUnavailable for a file that
    cannot be read.
    """
    return LogReading(paths)


def read_entries(directory: Path, after: int, limit: int) -> list[tuple[int, bytes]]:
    """The first `limit` entries with a seq above `after`, as (seq, body), without reading what lies before them.

    Raises LogCorrupt or LogUnavailable. A segment that retention removes meanwhile is passed over.
    """
    entries: list[tuple[int, bytes]] = []
    for path in _segments_after(directory, after):
        try:
            entries += islice(_entries_of(path, after), limit - len(entries))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LogUnavailable(f"{path}: {error.strerror}") from error
        if len(entries) >= limit:
            break
    return entries


def _entries_of(path: Path, after: int) -> Iterator[tuple[int, bytes]]:
    for found in _Chain().lines(path, _offset_after(path, after)):
        if isinstance(found, Fault):
            raise LogCorrupt(str(find_faults([path])[0]))  # read from the start: the line number counts from there
        if found.kind == "entry" and found.seq > after:
            yield found.seq, found.body


def _segments_after(directory: Path, after: int) -> list[Path]:
    """The segments that may hold entries above `after`."""
    segments = segments_of(directory)
    begun = sum(first_seq_of(path) <= after + 1 for path in segments)
    return segments[max(begun - 1, 0) :]


def _offset_after(path: Path, after: int) -> int:
    """Where the first line with a seq above `after` starts, found by halving: lines are in the order of their seq."""
    with path.open("rb") as segment:
        low, high = 0, segment.seek(0, 2)
        while low < high:
            middle = (low + high) // 2
            start, raw = _line_from(segment, middle, low)
            if not raw.endswith(b"\n") or start >= high:
                high = middle
                continue
            try:
                seq = seq_of(_split(raw)[2])
            except ValueError:
                return 0  # damage: read from the start, which says exactly where
            low, high = (start + len(raw), high) if seq <= after else (low, middle)
    return low


def _line_from(segment: BinaryIO, offset: int, line_start: int) -> tuple[int, bytes]:
    """The first whole line at or behind an offset, and where it starts; `line_start` is a known start of a line."""
    if offset == line_start:
        segment.seek(offset)
        return offset, segment.readline()
    segment.seek(offset - 1)
    segment.readline()
    start = segment.tell()
    return start, segment.readline()
