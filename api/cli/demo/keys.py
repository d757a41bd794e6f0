"""Single keys from a terminal, without Enter and without echo; the terminal is as before afterwards."""

import os
import sys
import termios
import tty
from collections.abc import AsyncIterator
from types import TracebackType

import anyio

READ_BYTES = 64
SEQUENCES = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[5~": "page up", "\x1b[6~": "page down"}
HANGUP = "hangup"
"""What is read, for ever, from a terminal that was closed."""


def split_keys(text: str) -> list[str]:
    """The keys in what was read at once: characters, and names for the arrows and the like."""
    keys: list[str] = []
    while text:
        sequence = next((known for known in SEQUENCES if text.startswith(known)), None)
        keys.append(SEQUENCES[sequence] if sequence else text[0])
        text = text[len(sequence or text[0]) :]
    return keys


class Keys:
    """The keyboard of this process's terminal, as a context manager."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)

    def __enter__(self) -> "Keys":
        tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        except termios.error:
            return  # the terminal is gone

    async def pressed(self) -> AsyncIterator[str]:
        """Each key as it is pressed; `hangup` is the last when the terminal goes away."""
        while True:
            await anyio.wait_readable(self._fd)
            try:
                read = os.read(self._fd, READ_BYTES)
            except OSError:
                read = b""
            if not read:
                yield HANGUP
                return
            for key in split_keys(read.decode(errors="replace")):
                yield key
