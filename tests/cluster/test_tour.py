"""The acceptance test: the tour as anybody may run it."""

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
