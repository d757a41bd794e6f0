"""The acceptance test: the tour as anybody may run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.demos import Demo, demo_directory, processes_of

pytestmark = pytest.mark.servers


def test_tour_holds_and_leaves_nothing_when_three_faults_are_made() -> None:
    """The tour ends with status 0, every verdict holds, and no process or file of it is left."""
    with demo_directory() as directory, Demo(directory, "--tour") as demo:
        status = demo.status()
        print(demo.output)
        assert status == 0
        assert "tour: everything held" in demo.output
        assert "FAILS" not in demo.output
        # One row each: rewind, the rows on three nodes, the lost rows, the standing, three logs.
        assert demo.output.count("holds") >= 9
        for fault in ("node killed", "server killed", "switchover"):
            assert fault in demo.output
        assert processes_of(directory) == []
        assert list(directory.iterdir()) == []


def test_postmortem_tells_the_tours_faults_when_it_reads_the_kept_logs(tmp_path: Path) -> None:
    """A node killed, a server killed and a switchover, each with who led before and after, and where the time went."""
    with demo_directory() as directory, Demo(directory, "--tour", "--keep", str(directory / "kept")) as demo:
        assert demo.status() == 0, demo.output
        told = run_postmortem(directory / "kept", "--json")
        report = tmp_path / "report.html"
        text = run_postmortem(directory / "kept", "-o", str(report))
    outages = [one["outage"] for one in json.loads(told)["outages"]]
    killed, restarted, switched = (one for one in outages if one["to_node"] is not None)
    assert "fell silent" in killed["cause"]
    assert killed["from_node"] != killed["to_node"] == restarted["from_node"] == restarted["to_node"]
    assert "signal 9" in restarted["cause"]
    assert (switched["rule"], switched["is_planned"], switched["from_node"]) == ("L2", True, killed["to_node"])
    for outage in (killed, restarted, switched):
        assert parts_ms(outage) == outage["until_ms"] - outage["since_ms"]
    assert not json.loads(told)["overlaps"]
    assert not json.loads(told)["doubts"]
    assert "Where the time went" in text
    assert report.read_text().startswith("<!DOCTYPE html>")


def parts_ms(outage: dict[str, Any]) -> int:
    """The parts that follow each other, together."""
    return sum(outage[f"{part}_ms"] for part in ("detect", "decide", "promote"))


def run_postmortem(directory: Path, *options: str) -> str:
    """What `matriarch postmortem` prints about the logs below a directory."""
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "postmortem", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
