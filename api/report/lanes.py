"""The lanes of the report: each node's states over time, who took writes, and the times in which nobody did."""

from collections.abc import Iterator

from api.text import as_html
from fsm.states import State
from fsm.story.chronicle import Chronicle, Lane
from fsm.story.telling import span_text

WIDTH, LABEL_WIDTH = 1_160, 110
LANE_HEIGHT, GAP, TOP = 26, 14, 28
LETTERS = {
    State.BOOTSTRAPPING: "B",
    State.REPLICA: "R",
    State.CANDIDATE: "C",
    State.LEADER: "L",
    State.REWINDING: "W",
    State.REINIT: "I",
}
"""As the rules out of each state begin: a lane is readable without colour."""
LETTER_WIDTH, WORD_WIDTH = 12, 90
TICKS = 6


def lanes_svg(chronicle: Chronicle) -> str:
    """The picture; empty for a chronicle of nothing."""
    if not chronicle.lanes:
        return ""
    since_ms = min(lane.since_ms for lane in chronicle.lanes)
    until_ms = max([log.last_ms for log in chronicle.logs] + [since_ms + 1])
    scale = _Scale(since_ms, until_ms)
    nodes = [log.node for log in chronicle.logs]
    height = TOP + len(nodes) * (LANE_HEIGHT + GAP) + 10
    parts = [*_outages(chronicle, scale, height), *_ticks(scale, height)]
    for row, node in enumerate(nodes):
        top = TOP + row * (LANE_HEIGHT + GAP)
        end_ms = next(log.last_ms for log in chronicle.logs if log.node == node)
        parts.append(f'<text x="0" y="{top + 18}">{as_html(node[:14])}</text>')
        parts += [_lane(lane, scale, top, end_ms) for lane in chronicle.lanes if lane.node == node]
        parts += _reigns(chronicle, node, scale, top, end_ms)
    legend = ", ".join(f"{letter} {state}" for state, letter in LETTERS.items())
    return (
        f'<svg class="lanes" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="states of each node over time">'
        f"{''.join(parts)}</svg><p>{legend}; a thick frame: its server took writes; shaded: nobody did.</p>"
    )


class _Scale:
    """Instants to places."""

    def __init__(self, since_ms: int, until_ms: int) -> None:
        self.since_ms, self.until_ms = since_ms, until_ms

    def x(self, common_ms: int) -> float:
        """Where an instant lies."""
        share = (common_ms - self.since_ms) / (self.until_ms - self.since_ms)
        return LABEL_WIDTH + share * (WIDTH - LABEL_WIDTH)


def _lane(lane: Lane, scale: _Scale, top: int, end_ms: int) -> str:
    left, right = scale.x(lane.since_ms), scale.x(lane.until_ms or end_ms)
    width = max(1.0, right - left)
    told = f"{lane.node} {lane.state} for {span_text((lane.until_ms or end_ms) - lane.since_ms)}"
    rule = f", by {lane.rule}" if lane.rule else ""
    label = str(lane.state) if width > WORD_WIDTH else LETTERS[lane.state] if width > LETTER_WIDTH else ""
    on = " class='on'" if lane.state is not State.REPLICA else ""
    text = f'<text{on} x="{left + 4:.1f}" y="{top + 17}">{label}</text>' if label else ""
    return (
        f'<g><title>{as_html(told + rule)}</title><rect class="{lane.state}" x="{left:.1f}" y="{top}" '
        f'width="{width:.1f}" height="{LANE_HEIGHT}"/>{text}</g>'
    )


def _reigns(chronicle: Chronicle, node: str, scale: _Scale, top: int, end_ms: int) -> Iterator[str]:
    for reign in chronicle.reigns:
        if reign.node == node:
            left, right = scale.x(reign.since_ms), scale.x(reign.until_ms or end_ms)
            yield (
                f'<rect class="reign" x="{left:.1f}" y="{top - 3}" width="{max(2.0, right - left):.1f}" '
                f'height="{LANE_HEIGHT + 6}"><title>{as_html(node)} took writes, TL {reign.timeline}</title></rect>'
            )


def _outages(chronicle: Chronicle, scale: _Scale, height: int) -> Iterator[str]:
    for outage in chronicle.outages:
        left, right = scale.x(outage.since_ms), scale.x(outage.until_ms or scale.until_ms)
        yield (
            f'<rect class="outage" x="{left:.1f}" y="{TOP - 8}" width="{max(1.5, right - left):.1f}" '
            f'height="{height - TOP}"><title>nobody took writes</title></rect>'
        )


def _ticks(scale: _Scale, height: int) -> Iterator[str]:
    for number in range(TICKS + 1):
        at_ms = scale.since_ms + (scale.until_ms - scale.since_ms) * number // TICKS
        anchor = "end" if number == TICKS else "start"
        label = f"+{span_text(at_ms - scale.since_ms)}"
        yield f'<text class="soft" x="{scale.x(at_ms):.1f}" y="14" text-anchor="{anchor}">{label}</text>'
