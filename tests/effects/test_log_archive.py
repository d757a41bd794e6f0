"""Logs in a tar: what a node sends is what is read, and a hostile tar writes nothing where it should not."""

import contextlib
import io
import tarfile
from pathlib import Path

import pytest

from effects.errors import LogUnavailable
from effects.log_archive import archived, fetched, is_tar
from effects.log_reader import segments_of
from tests.effects.test_log import append_all, running, seqs, snapshot

pytestmark = pytest.mark.anyio
SEGMENT = "000000000001.jsonl"


async def log_of_two_segments(directory: Path) -> Path:
    """A log that another segment was begun in."""
    async with running(directory) as (log, _):
        await append_all(log, 1, 500)
        log.start_segment(snapshot(500))
        await append_all(log, 501, 600)
    assert len(segments_of(directory)) == 2
    return directory


async def test_log_is_whole_when_it_went_through_a_tar(tmp_path: Path) -> None:
    """Every segment, every entry, in a directory that is gone afterwards."""
    directory = await log_of_two_segments(tmp_path / "original")
    tar = tmp_path / "fetched.tar"
    tar.write_bytes(b"".join([piece async for piece in archived(directory)]))
    assert is_tar(tar)
    with fetched(str(tar)) as logs:
        (log,) = logs
        assert seqs(log) == seqs(directory) == list(range(1, 601))
    assert not log.exists()


async def test_logs_of_several_nodes_are_found_when_a_tar_is_packed(tmp_path: Path) -> None:
    """One log for each directory in it, whatever else lies beside."""
    directory = await log_of_two_segments(tmp_path / "original")
    tar = tmp_path / "all"
    with tarfile.open(tar, "w:gz") as opened:
        for node in ("n1", "n2"):
            opened.add(directory, f"./backup/{node}/log")
        opened.add(__file__, "backup/readme.txt")
    with fetched(str(tar)) as logs:
        assert [seqs(log) for log in logs] == [list(range(1, 601))] * 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"../../{SEGMENT}", tarfile.REGTYPE),
        (f"/etc/{SEGMENT}", tarfile.REGTYPE),
        (SEGMENT, tarfile.SYMTYPE),
        (SEGMENT, tarfile.LNKTYPE),
        (SEGMENT, tarfile.CHRTYPE),
        (SEGMENT, tarfile.FIFOTYPE),
    ],
)
def test_nothing_lands_outside_when_a_tar_is_hostile(
    tmp_path: Path, name: str, kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither paths nor links nor devices of a tar become any here."""
    inside = tmp_path / "a" / "b" / "temporary"
    inside.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(inside))
    tar = tmp_path / "hostile.tar"
    with tarfile.open(tar, "w") as opened:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        content = b"x" if kind == tarfile.REGTYPE else b""
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content))
    before = _paths(tmp_path, inside)
    with contextlib.suppress(LogUnavailable), fetched(str(tar)) as logs:
        assert all(inside in log.parents for log in logs)
    assert _paths(tmp_path, inside) == before
    assert not Path(f"/etc/{SEGMENT}").exists()


def _paths(directory: Path, besides: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if besides not in path.parents}


@pytest.mark.parametrize("content", [b"", b"no tar", b"\0" * 1024, b"\x1f\x8b\x08broken"])
async def test_tar_is_refused_in_a_line_when_it_is_none(tmp_path: Path, content: bytes) -> None:
    """Whatever is wrong with it."""
    tar = tmp_path / "x.tar"
    tar.write_bytes(content)
    with pytest.raises(LogUnavailable) as refusal, fetched(str(tar)):
        raise AssertionError("it was taken")
    assert str(tar) in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_node_is_named_when_nothing_answers_there() -> None:
    """A port that nobody listens at."""
    with pytest.raises(LogUnavailable, match=r"http://127\.0\.0\.1:9/log/archive"), fetched("http://127.0.0.1:9/"):
        raise AssertionError("it answered")
