"""`matriarch verify` on logs that lie on a disk."""

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from api.cli.main import main
from effects.log_reader import GENESIS, encode_line, next_tip
from fsm.entries import Entry, SnapshotEntry, encode, make_entry
from fsm.verify.findings import CHECKS
from fsm.view import View
from tests.fsm.world import World, new_leader


def write_log(directory: Path, world: World, *, is_wrong: bool = False) -> Path:
    """The log of a story, in one segment."""
    entries = [make_entry(decision, event, boot="b", wall="w") for event, decision in world.decisions]
    if is_wrong:
        moved = next(number for number, entry in enumerate(entries) if entry.rule)
        entries[moved] = replace(entries[moved], rule="R2")
    directory.mkdir()
    lines: list[Entry | SnapshotEntry] = [SnapshotEntry(seq=0, node="", wall="", view=View()), *entries]
    tip = GENESIS
    with (directory / "000000000001.jsonl").open("wb") as segment:
        for number, line in enumerate(lines):
            segment.write(encode_line("entry" if number else "snapshot", tip, encode(line)))
            tip = next_tip(tip, encode(line))
    return directory


def status_of(*arguments: str) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_command_says_what_it_looked_at_when_nothing_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each check is named with how often it looked; the exit status is 0."""
    log = write_log(tmp_path / "n1", new_leader())
    assert status_of("verify", str(log)) == 0
    told = capsys.readouterr().out
    assert all(f"  {check} " in told for check in CHECKS)
    assert "WRONG" not in told


def test_command_names_node_entry_and_check_when_something_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding leads to the entry that it is about; the exit status is 1, also as JSON."""
    log = write_log(tmp_path / "n1", new_leader(), is_wrong=True)
    assert status_of("verify", str(log)) == 1
    assert ": move: R2 does not lead from" in capsys.readouterr().out
    assert status_of("verify", "--json", str(log)) == 1
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["found"]["move"] == 1
    assert {finding["node"] for finding in told["findings"]} == {"n1"}


def test_command_refuses_when_there_is_no_such_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that does not exist is bad usage: exit status 2, and a line that names it."""
    assert status_of("verify", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
