"""Signals are kept until somebody takes them, across an exec too."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HANDING_ON = """
import os, signal, sys, anyio
from effects.signals import Signals
signals = Signals()
if len(sys.argv) == 1:
    signals.install()
    os.kill(os.getpid(), signal.SIGHUP)     # noted before the exec, and taken by nobody
    signals.hand_on()
    os.kill(os.getpid(), signal.SIGTERM)    # comes while no program has a handler
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
signals.install()
async def first_two():
    found = []
    async for number in signals.each():
        found.append(number.name)
        if len(found) == 2:
            return found
print(sorted(anyio.run(first_two)))
"""


def test_signals_wait_for_the_successor_when_the_agent_is_exchanged() -> None:
    """None is lost, and none ends the process."""
    ended = subprocess.run(
        [sys.executable, "-c", HANDING_ON], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "['SIGHUP', 'SIGTERM']\n", "")
