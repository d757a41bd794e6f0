"""What passes from one agent to the next in the same process: sockets, lock, words. Real programs do it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from effects.errors import ConfigError
from effects.successor import HandedOver, Inherited, faults_in, take_inherited

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60

SUCCEEDING = """
import os, socket, sys
from effects.successor import HandedOver, Inherited, become_successor, take_inherited
found = take_inherited(os.environ)
if not found.is_successor:
    listening = socket.create_server(("127.0.0.1", 0))
    lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    print(listening.getsockname()[1], os.getpid(), os.fstat(lock).st_ino, flush=True)
    sys.stdin.readline()
    told = HandedOver(listen="here", standing="writable", fixed={"name": "n1"})
    sys.exit(become_successor(Inherited([listening], lock, told)))
assert "LISTEN_FDS" not in os.environ
found.sockets[0].setblocking(True)
client = found.sockets[0].accept()[0]
client.sendall(f"{os.getpid()} {os.fstat(found.lock_fd).st_ino} {found.told.standing}".encode())
"""

FAILING = """
import os, socket, sys
from effects.successor import HandedOver, Inherited, become_successor
kept = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert kept == 3
with socket.create_server(("127.0.0.1", 0)) as listening:
    before = [os.fstat(fd).st_ino for fd in (3, 4)]
    sys.executable = "/nowhere/python"
    print(become_successor(Inherited([listening], kept, HandedOver())))
    assert [os.fstat(fd).st_ino for fd in (3, 4)] == before
    assert not os.get_inheritable(3)
"""

ACTIVATED = """
import os, sys
from effects.successor import take_inherited
found = take_inherited(os.environ)
print(found.is_successor, found.is_activated, [one.getsockname()[1] for one in found.sockets])
"""

AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="api.socket")
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""


def program(text: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """A program of its own, in the checkout."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )


def test_successor_has_sockets_and_lock_when_it_took_over(tmp_path: Path) -> None:
    """A connection made before the exec is answered after it, by the same process."""
    with program(SUCCEEDING, str(tmp_path / "lock")) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        port, pid, inode = running.stdout.readline().split()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=DEADLINE_S) as client:
            running.stdin.write("now\n")
            running.stdin.flush()
            assert client.recv(100).decode().split() == [pid, inode, "writable"]
        _, said = running.communicate(timeout=DEADLINE_S)
    assert (running.returncode, said) == (0, "")


def test_agent_goes_on_when_its_successor_cannot_be_executed(tmp_path: Path) -> None:
    """The reason is told, and every file descriptor is what it was."""
    with program(FAILING, str(tmp_path / "kept")) as running:
        told, said = running.communicate(timeout=DEADLINE_S)
    assert (running.returncode, told, said) == (0, "/nowhere/python: No such file or directory\n", "")


def test_sockets_are_taken_when_systemd_made_them() -> None:
    """The variables of socket activation are enough, whatever the settings say about where to listen."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number, port = listening.fileno(), listening.getsockname()[1]
        with program(AS_SYSTEMD, str(number), ACTIVATED, pass_fds=(number,)) as running:
            told, said = running.communicate(timeout=DEADLINE_S)
    assert (told, said) == (f"False True [{port}]\n", "")


@pytest.mark.parametrize("pid", ["1", "", "me"])
def test_nothing_is_inherited_when_the_variables_are_for_another_process(pid: str) -> None:
    """A program that this agent started must not take its sockets."""
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "OTHER": "kept"}
    found = take_inherited(environ)
    assert (found.sockets, found.lock_fd, found.told, environ) == ([], None, None, {"OTHER": "kept"})


@pytest.mark.parametrize(
    ("told", "serves"),
    [
        (HandedOver(listen="a:1"), True),
        (HandedOver(listen="a:2"), False),
        (HandedOver(listen="a:2", is_activated=True), True),
    ],
)
def test_sockets_are_kept_when_they_listen_where_the_settings_say(told: HandedOver, serves: bool) -> None:
    """After a change of restapi.listen the old address is let go of; systemd's is the unit's affair."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Inherited([listening], None, told)
        assert found.serves("a:1") == serves
        assert bool(found.sockets_for("a:1")) == serves
        assert (listening.fileno() >= 0) == serves


def test_settings_of_another_node_are_refused_when_compared() -> None:
    """Each is named, with what it was."""
    found = Inherited(told=HandedOver(fixed={"name": "n1", "scope": "main"}))
    found.check({"name": "n1", "scope": "main", "newer": "x"})
    with pytest.raises(ConfigError, match="scope: changed from main to other; that needs"):
        found.check({"name": "n1", "scope": "other"})


def test_words_of_an_unknown_agent_are_no_obstacle_when_they_cannot_be_read() -> None:
    """A successor of another version starts all the same."""
    found = take_inherited({"MATRIARCH_HANDED_OVER": '["?"]'})
    assert found.is_successor
    assert os.environ.get("MATRIARCH_HANDED_OVER") is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("noise\nmatriarch: a.yml:3: x\nmatriarch: y\n", "a.yml:3: x; y"),
        ("Traceback\n  File\nSyntaxError: invalid syntax\n\n", "SyntaxError: invalid syntax"),
        ("", ""),
    ],
)
def test_faults_are_told_in_one_line_when_a_trial_failed(said: str, told: str) -> None:
    """Its own lines where there are any, else the last."""
    assert faults_in(said) == told
