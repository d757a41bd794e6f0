"""Prints lines, and does not mind when nobody can read them any more: the demo must still clean up."""

from rich.console import Console, RenderableType

from effects.clock import now_ms


class Teller:
    """Prints each line with the seconds since the start before it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_ms = now_ms()

    def say(self, line: str) -> None:
        """Prints one line."""
        self.show(f"{(now_ms() - self._began_ms) / 1000:6.1f} s  {line}")

    def show(self, content: RenderableType) -> None:
        """Prints something as it is."""
        try:
            self._console.print(content, markup=False, highlight=False, soft_wrap=isinstance(content, str))
        except OSError:
            self._console.quiet = True
