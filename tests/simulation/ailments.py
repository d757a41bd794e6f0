"""What may be wrong with a node besides being down: starts and stops, disk, programs, watchdog."""


class Ailments:
    """All well at first; faults set these, and end them."""

    __slots__ = (
        "clone_fails",
        "is_wal_full",
        "is_write_hanging",
        "start_fails",
        "start_takes_us",
        "stop_takes_us",
        "watchdog_fails",
    )

    def __init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        """Nothing is wrong."""
        self.clone_fails = False
        self.start_fails = False
        """The server ends while it starts."""
        self.start_takes_us = 0
        """How much longer a start takes."""
        self.stop_takes_us = 0
        """How much longer an orderly stop takes."""
        self.is_write_hanging = False
        """What the server writes does not come back."""
        self.is_wal_full = False
        """The server ends when it writes."""
        self.watchdog_fails = False
