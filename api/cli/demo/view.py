"""How the demo looks: pictures into tables and lines. Pure."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from api.cli.demo.picture import ClusterPicture, MemberPicture, is_news, lag_bytes
from api.cli.lines import COLOURS, decided_text, lsn_text, seen_text
from fsm.entries import Entry

KEYS = "[1-3] choose  [c]rash  [f]reeze  [b]ring back  [s]witch over  [l]og  [q]uit"
LOG_KEYS = "up/down, page up/down: scroll   [l] back   [q]uit"
PROCESS_STYLES = {"up": "green", "frozen": "blue", "down": "red"}
MIB = 1024 * 1024
NEWS_LINES_MIN = 3
LINES_AROUND_NEWS = 16
"""Lines of the screen that the member table, the addresses and the keys take."""


def bytes_text(amount: int) -> str:
    """A number of bytes for people, such as 3.2 MB."""
    if amount < 1024:
        return f"{amount} B"
    return f"{amount / 1024:.0f} kB" if amount < MIB else f"{amount / MIB:.1f} MB"


def seconds_text(span_ms: int | None) -> str:
    """A span for people, such as 3.1 s; empty where there is none."""
    return "" if span_ms is None else f"{span_ms / 1000:.1f} s"


def doing_text(member: MemberPicture) -> str:
    """What a node's server does, in a word or two."""
    if member.process == "down":
        return "agent down"
    if member.process == "frozen":
        return "agent frozen"
    if not member.is_answering:
        return "starting"
    if member.server == "creating replica" and member.copied_bytes is not None:
        return f"cloning, {bytes_text(member.copied_bytes)}"
    return "streaming" if member.is_streaming else member.server


def role_text(member: MemberPicture) -> str:
    """PostgreSQL's role, as far as it was heard a moment ago."""
    return member.role if member.is_answering else "?"


def member_cells(picture: ClusterPicture, member: MemberPicture) -> tuple[str, ...]:
    """One row of the member table as plain text: role, state, server, timeline, LSN, lag, lease left."""
    lag = lag_bytes(picture, member)
    return (
        role_text(member),
        member.state if member.is_answering else "-",
        doing_text(member),
        str(member.timeline or "-"),
        lsn_text(member.lsn) if member.lsn else "-",
        "-" if lag is None else bytes_text(lag),
        seconds_text(member.lease_left_ms) or "-",
    )


def member_table(picture: ClusterPicture, chosen: str | None) -> Table:
    """All members; the chosen one is marked."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "member", "role", "state", "server", "TL", "LSN", "lag", "lease"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("TL", "lag", "lease") else "left")
    for number, member in enumerate(picture.members, 1):
        mark = "▶" if member.name == chosen else " "
        role, state, doing, *others = member_cells(picture, member)
        table.add_row(
            f"{mark}{number}",
            member.name,
            Text(role, style="bold green" if member.is_primary else ""),
            Text(state, style=COLOURS.get(state, "dim")),
            Text(doing, style=PROCESS_STYLES[member.process] if member.process != "up" else ""),
            *others,
        )
    return table


def entry_line(entry: Entry) -> str:
    """One entry as one line of plain text."""
    decided = decided_text(entry)
    return f"{entry.wall[11:23]} {entry.node} {entry.after:13} {seen_text(entry)}" + (
        f" => {decided}" if decided else ""
    )


def entry_text(entry: Entry) -> Text:
    """One entry as one line, its state in colour and a move in bold."""
    line = Text(entry_line(entry), no_wrap=True, overflow="ellipsis", style="bold" if entry.rule else "")
    line.stylize(COLOURS.get(entry.after, ""), 16, 29)
    return line


def address_lines(picture: ClusterPicture, how_to_connect: str) -> RenderableType:
    """Where the APIs listen, and how to get a psql."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(*(Text(f"{member.name} {member.api_url}") for member in picture.members))
    paths = Text("each answers /primary /patroni /cluster /log /fsm?format=svg", style="dim")
    return Group(table, paths, Text(how_to_connect, style="dim", no_wrap=True, overflow="ellipsis"))


def headline(picture: ClusterPicture) -> str:
    """What is going on, in one line, with the ttl in force."""
    primary = picture.primary
    if picture.is_settled and primary is not None:
        what = f"{primary.name} is the primary, the others stream from it"
    elif primary is not None:
        waiting = ", ".join(m.name for m in picture.members if not m.is_settled)
        what = f"{primary.name} is the primary; not (yet) with it: {waiting or 'two primaries?'}"
    elif all(not member.timeline for member in picture.members):
        what = "the cluster is being made: initdb, then two clones"
    elif former := next((m for m in picture.members if m.process != "up" and m.state == "leader"), None):
        may_write = "its server may write until its fence ends it, within the ttl"
        what = f"{former.name} is {former.process}; {may_write if former.process == 'frozen' else 'its lease runs out'}"
    else:
        what = "no primary"
    return f"{what} · ttl {picture.ttl_s} s"


def screen(
    picture: ClusterPicture, *, chosen: str | None, message: str, how_to_connect: str, height: int
) -> RenderableType:
    """The whole live view.

    Args:
        picture: the cluster.
        chosen: the member that the keys act on.
        message: what the last key did.
        how_to_connect: a line that tells how to reach the server.
        height: lines of the terminal.
    """
    room = max(NEWS_LINES_MIN, height - LINES_AROUND_NEWS)
    news = [entry_text(entry) for entry in picture.news if is_news(entry)][-room:]
    return Group(
        Panel(member_table(picture, chosen), title=f"matriarch demo: {headline(picture)}", title_align="left"),
        Panel(Group(*news) if news else Text("nothing yet"), title="newest log entries", title_align="left"),
        address_lines(picture, how_to_connect),
        Text(message, style="yellow", no_wrap=True, overflow="ellipsis"),
        Text(KEYS, style="reverse"),
    )


def log_screen(entries: Sequence[Entry], *, back: int, height: int) -> RenderableType:
    """All entries that say something, scrolled `back` lines from the newest."""
    room = max(1, height - 3)
    end = len(entries) - back
    shown = [entry_text(entry) for entry in entries[max(0, end - room) : end]]
    title = f"transition log, {len(entries)} entries" + (f", {back} below" if back else "")
    return Group(Panel(Group(*shown), title=title, title_align="left"), Text(LOG_KEYS, style="reverse"))


def member_line(picture: ClusterPicture, member: MemberPicture) -> str:
    """One member as one line of plain text, without what changes all the time: lines are printed on changes."""
    role, state, doing, timeline, *_ = member_cells(picture, member)
    return f"{member.name}: {role}, {state}, {doing}, timeline {timeline}"


def changed_lines(before: ClusterPicture, after: ClusterPicture) -> list[str]:
    """The lines of the members whose line is another now."""
    pairs = zip(before.members, after.members, strict=True)
    lines = [(member_line(before, old), member_line(after, new)) for old, new in pairs]
    return [new for old, new in lines if _without_progress(old) != _without_progress(new)]


def _without_progress(line: str) -> str:
    return line.split("cloning")[0]
