"""What the files of the transition log say, damaged or not, and what opening them makes of it."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effects.errors import LogCorrupt, LogUnavailable
from effects.log import TransitionLog
from effects.log_reader import GENESIS, encode_line, next_tip, read_entries, read_log, segments_of


def entry(seq: int, filling: str = "") -> bytes:
    """The body of an entry."""
    return b'{"v":1,"seq":%d,"node":"n1","filling":"%s"}' % (seq, filling.encode())


def snapshot(seq: int) -> bytes:
    """The body of a snapshot that includes the entries up to a seq."""
    return b'{"v":1,"seq":%d,"view":{}}' % seq


def write_segments(directory: Path, *lengths: int) -> list[Path]:
    """A log of segments with so many entries each, written straight in the documented format."""
    directory.mkdir(exist_ok=True)
    tip, seq = GENESIS, 0
    for length in lengths:
        with (directory / f"{seq + 1:012d}.jsonl").open("wb") as segment:
            segment.write(encode_line("snapshot", tip, snapshot(seq)))
            tip = next_tip(tip, snapshot(seq))
            for seq in range(seq + 1, seq + length + 1):  # noqa: B020 - goes on where the last segment ended
                segment.write(encode_line("entry", tip, entry(seq)))
                tip = next_tip(tip, entry(seq))
    return segments_of(directory)


def seqs(path: Path) -> list[int]:
    """The seq of every entry in a log."""
    return [line.seq for line in read_log([path]) if line.kind == "entry"]


def test_log_cuts_a_torn_tail_when_the_last_line_ends_at_any_byte(tmp_path: Path) -> None:
    """Wherever a crash cut the last line, the entries before it stay and the torn bytes are kept aside."""
    whole = write_segments(tmp_path / "whole", 3)[0].read_bytes()
    last_line_start = whole[:-1].rindex(b"\n") + 1
    for end in range(last_line_start, len(whole)):
        directory = tmp_path / str(end)
        directory.mkdir()
        segment = directory / "000000000001.jsonl"
        segment.write_bytes(whole[:end])
        torn_bytes = end - last_line_start
        reading = read_log([directory])
        assert [line.seq for line in reading] == [0, 1, 2]
        assert [torn.torn_bytes for torn in reading.torn] == ([torn_bytes] if torn_bytes else [])
        _, recovered = TransitionLog.open(directory)
        assert (recovered.last_seq, recovered.torn_bytes) == (2, torn_bytes)
        assert recovered.entries_after_snapshot == 2
        assert segment.read_bytes() == whole[:last_line_start]
        assert (recovered.kept_aside is None) == (torn_bytes == 0)
        if recovered.kept_aside is not None:
            assert recovered.kept_aside.read_bytes() == whole[last_line_start:end]


def test_reading_finds_every_flipped_bit_when_a_segment_is_damaged(tmp_path: Path) -> None:
    """No single flipped bit goes unseen; only the last line feed makes a torn line of it."""
    segment = write_segments(tmp_path, 2)[0]
    whole = segment.read_bytes()
    for position in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << (position % 8)
        segment.write_bytes(damaged)
        reading = read_log([tmp_path])
        if position // 8 == len(whole) - 1:
            assert len(list(reading)) == 2
            assert reading.torn
            continue
        with pytest.raises(LogCorrupt, match=r"000000000001\.jsonl:\d: expected"):
            list(reading)


@pytest.mark.parametrize("order", [(0, 2, 3), (0, 2, 1, 3), (0, 1, 1, 2, 3)])
def test_reading_finds_the_broken_chain_when_lines_are_removed_moved_or_doubled(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Lines that are each good, but not in the order they were written, are found by the chain."""
    segment = write_segments(tmp_path, 3)[0]
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(
        LogCorrupt, match=r"000000000001\.jsonl:\d+: expected prev [0-9a-f]{16}, found prev [0-9a-f]{16}"
    ):
        list(read_log([tmp_path]))


def test_reading_finds_the_missing_segment_when_one_was_removed_from_the_middle(tmp_path: Path) -> None:
    """The chain runs across segments; each segment alone still reads."""
    first, middle, last = write_segments(tmp_path, 3, 3, 3)
    assert seqs(tmp_path) == list(range(1, 10))
    middle.unlink()
    with pytest.raises(LogCorrupt, match="000000000007"):
        list(read_log([tmp_path]))
    assert [line.seq for line in read_log([first, last]) if line.kind == "entry"] == [1, 2, 3, 7, 8, 9]


def test_reading_calls_a_torn_line_corrupt_when_another_segment_follows(tmp_path: Path) -> None:
    """Only the end of the log may be torn."""
    first, _ = write_segments(tmp_path, 3, 3)
    first.write_bytes(first.read_bytes()[:-5])
    with pytest.raises(LogCorrupt, match=r"000000000001\.jsonl:4: expected a whole line"):
        list(read_log([tmp_path]))


def test_reading_raises_log_unavailable_when_the_file_does_not_exist(tmp_path: Path) -> None:
    """The operating system's errors are renamed."""
    with pytest.raises(LogUnavailable, match="No such file"):
        list(read_log([tmp_path / "000000000001.jsonl"]))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), max_size=4),
    is_last_bare=st.booleans(),
    after=st.integers(0, 50),
    limit=st.integers(1, 20),
)
def test_read_entries_equals_a_filter_over_the_whole_log_when_reading_anywhere(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], is_last_bare: bool, after: int, limit: int
) -> None:
    """Finding the place by halving gives what reading everything gives."""
    directory = tmp_path_factory.mktemp("log")
    write_segments(directory, *lengths, *[0] * is_last_bare)
    expected = [seq for seq in seqs(directory) if seq > after][:limit]
    assert [seq for seq, _ in read_entries(directory, after, limit)] == expected


def test_open_reports_the_fault_and_goes_on_when_an_older_segment_is_damaged(tmp_path: Path) -> None:
    """Damage in the middle is named, and costs neither later entries nor the start."""
    first, _ = write_segments(tmp_path, 3, 3)
    content = bytearray(first.read_bytes())
    content[content.index(b'"seq":2')] ^= 1
    first.write_bytes(content)
    log, recovered = TransitionLog.open(tmp_path)
    assert recovered.last_seq == 6
    assert [(fault.path, fault.line_number) for fault in recovered.faults] == [(first, 3)]
    assert log.degraded is None


def test_open_keeps_later_entries_when_the_damage_is_in_the_middle_of_the_last_segment(tmp_path: Path) -> None:
    """A tail is cut behind the last good line, never before it: a seq that was used is not used again."""
    (segment,) = write_segments(tmp_path, 5)
    content = bytearray(segment.read_bytes())
    content[content.index(b'"seq":2')] ^= 1
    segment.write_bytes(bytes(content) + b'{"crc":"0123')
    _, recovered = TransitionLog.open(tmp_path)
    assert (recovered.last_seq, recovered.torn_bytes, len(recovered.faults)) == (5, 12, 1)


def test_open_steps_back_a_segment_when_the_last_one_holds_nothing_good(tmp_path: Path) -> None:
    """A segment without one good line is set aside whole, and the chain goes on from the one before."""
    _, last = write_segments(tmp_path, 3, 2)
    last.write_bytes(b"\0" * 100)
    _, recovered = TransitionLog.open(tmp_path)
    assert (recovered.last_seq, recovered.torn_bytes) == (3, 100)
    assert recovered.kept_aside is not None
    assert recovered.kept_aside.read_bytes() == b"\0" * 100
    assert not last.exists()


def test_open_checks_the_newest_segments_first_when_the_log_is_large(tmp_path: Path) -> None:
    """What was not checked is said, and the last segment is always checked."""
    first, last = write_segments(tmp_path, 30, 3)
    first.write_bytes(b"damaged\n" + first.read_bytes())
    _, recovered = TransitionLog.open(tmp_path, verify_bytes_max=last.stat().st_size)
    assert (recovered.faults, recovered.unverified_bytes) == ((), first.stat().st_size)


WRITER = """
import sys, anyio
from pathlib import Path
from effects.log import TransitionLog

async def main():
    log, recovered = TransitionLog.open(Path(sys.argv[1]))
    log.start_segment(b'{"seq":%d}' % recovered.last_seq)
    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        seq = recovered.last_seq
        while True:
            seq += 1
            log.append(seq, b'{"seq":%d}' % seq)
            if seq % 7 == 0 and await log.durable(seq, 5000):
                print(seq, flush=True)

anyio.run(main)
"""


def test_log_keeps_every_durable_entry_when_the_agent_is_killed(tmp_path: Path) -> None:
    """What `durable` answered True for is there after kill -9, life after life, in one chain."""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        written = seqs(tmp_path)
        assert written == list(range(1, len(written) + 1))
        assert acknowledged[-1] <= written[-1]
