"""The demo as a process: how it ends, what it leaves, and what it keeps."""

import json
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest

from effects.embedded import unprivileged_user
from tests.cluster.demos import SETTLED, Demo, demo_directory, processes_of, wait_until


@pytest.mark.servers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_leaves_nothing_when_it_gets_a_signal(number: signal.Signals) -> None:
    """Without a terminal it prints lines; a signal ends every process and removes every file, with status 0."""
    with demo_directory() as directory, Demo(directory) as demo:
        demo.until_told(SETTLED)
        demo.send(number)
        assert demo.status() == 0, demo.output
        assert "ttl 5 s" in demo.output
        assert "\x1b[" not in demo.output
        assert processes_of(directory) == []
        assert list(directory.iterdir()) == []


@pytest.mark.servers
def test_demo_leaves_nothing_when_it_gets_a_signal_while_it_starts() -> None:
    """Ended in the middle of initdb it cleans up as well."""
    with demo_directory() as directory, Demo(directory) as demo:
        demo.until_told("/patroni, PostgreSQL on")
        demo.send(signal.SIGTERM)
        assert demo.status() == 0, demo.output
        assert processes_of(directory) == []
        assert list(directory.iterdir()) == []


@pytest.mark.servers
def test_demo_draws_and_ends_when_q_is_pressed_in_a_terminal() -> None:
    """In a terminal it draws the members in place, obeys keys, and gives the terminal back at `q`."""
    with demo_directory() as directory, Demo(directory, has_terminal=True) as demo:
        demo.until_told(SETTLED)
        demo.press("l")
        demo.until_told("transition log, ")
        demo.press("l")
        demo.press("q")
        assert demo.status() == 0, demo.output
        assert "\x1b[?1049h" in demo.output, "it uses the other screen"
        assert "\x1b[?1049l" in demo.output, "and leaves it"
        assert processes_of(directory) == []
        assert list(directory.iterdir()) == []


@pytest.mark.servers
def test_demo_fails_over_when_the_primary_is_crashed_by_a_key() -> None:
    """The key `c` kills the chosen node, another one takes over, and `b` brings the first one back."""
    with demo_directory() as directory, Demo(directory, has_terminal=True) as demo:
        whole = demo.until_told(SETTLED)
        demo.press("c")
        down = demo.until_told("agent down", after=whole)
        again = demo.until_told("is the primary; not (yet) with it", after=down)
        demo.press("b")
        demo.until_told(SETTLED, after=again)
        demo.press("q")
        assert demo.status() == 0, demo.output
        assert processes_of(directory) == []


@pytest.mark.servers
def test_demo_leaves_nothing_when_its_terminal_is_closed() -> None:
    """Closing the window is as good as `q`."""
    with demo_directory() as directory, Demo(directory, has_terminal=True) as demo:
        demo.until_told(SETTLED)
        demo.close_terminal()
        demo.status()
        assert processes_of(directory) == []
        assert list(directory.iterdir()) == []


@pytest.mark.servers
def test_demo_ends_with_its_processes_when_it_is_killed() -> None:
    """Nobody cleans up after kill -9, but its processes end by themselves, and the next demo removes its files."""
    with demo_directory() as directory:
        with Demo(directory) as killed:
            killed.until_told(SETTLED)
            killed.send(signal.SIGKILL)
            assert killed.status() == -signal.SIGKILL
            wait_until(lambda: processes_of(directory) == [], killed)
        left = list(directory.iterdir())
        assert len(left) == 1
        with Demo(directory) as demo:
            demo.until_told("/patroni, PostgreSQL on")
            assert not left[0].exists()
            demo.send(signal.SIGTERM)
            assert demo.status() == 0, demo.output
        assert list(directory.iterdir()) == []


def system_identifier(keep: Path) -> str:
    """What the first node that answers says."""
    node = json.loads((keep / "demo.json").read_text())["nodes"][0]
    with urlopen(f"http://127.0.0.1:{node['api_port']}/patroni", timeout=5) as answer:
        return str(json.load(answer).get("database_system_identifier", ""))


@pytest.mark.servers
def test_demo_takes_its_cluster_up_again_when_its_directory_is_kept() -> None:
    """The second run has the same cluster and the same ports, and makes no new one."""
    found: list[str] = []
    plans: list[str] = []
    with demo_directory() as directory:
        keep = directory / "kept"
        for _ in range(2):
            with Demo(directory, "--keep", str(keep), "--postgres", "16") as demo:
                demo.until_told(SETTLED)
                wait_until(lambda: system_identifier(keep) != "", demo)
                found.append(system_identifier(keep))
                plans.append((keep / "demo.json").read_text())
                demo.send(signal.SIGTERM)
                assert demo.status() == 0, demo.output
                assert processes_of(directory) == []
        assert "init-db" not in demo.output
        assert found[0] == found[1]
        assert plans[0] == plans[1]
        assert (keep / "demo.json").stat().st_mode & 0o777 == 0o600
        assert (keep / "n1" / "patroni.yml").stat().st_mode & 0o777 == 0o600
        with Demo(directory, "--keep", str(keep), "--postgres", "18") as demo:
            assert demo.status() == 2
            assert "holds a cluster of PostgreSQL 16" in demo.output


def test_demo_names_the_remedy_when_the_programs_are_missing() -> None:
    """A wrong POSTGRES_BIN is bad usage, told in one line."""
    with demo_directory() as directory, Demo(directory, POSTGRES_BIN="/nowhere") as demo:
        assert demo.status() == 2
        assert demo.output.count("\n") == 1
        assert "set POSTGRES_BIN" in demo.output


def test_demo_names_the_remedy_when_the_kept_directory_is_foreign() -> None:
    """A directory with other things in it is left alone."""
    with demo_directory() as directory:
        (directory / "mine").write_text("precious")
        with Demo(directory, "--keep", str(directory)) as demo:
            assert demo.status() == 2
            assert "is not empty and holds no demo" in demo.output
        assert [path.name for path in directory.iterdir()] == ["mine"]


@pytest.mark.skipif(unprivileged_user() is None, reason="only root runs its servers as another user")
def test_demo_names_the_remedy_when_the_servers_user_cannot_reach_the_directory() -> None:
    """Root's servers run as somebody else, who must be able to pass."""
    with demo_directory() as directory:
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        with Demo(directory, "--keep", str(closed / "demo")) as demo:
            assert demo.status() == 2
            assert "cannot reach" in demo.output
            assert "--keep DIR" in demo.output


def test_demo_is_bad_usage_when_an_option_is_unknown() -> None:
    """Status 2, as for every wrong call."""
    with demo_directory() as directory, Demo(directory, "--nonsense") as demo:
        assert demo.status() == 2
