"""The drawing behind `diagram.as_svg`: fixed places for the six states, curved arrows with a chip for each rule."""

from collections.abc import Iterable, Mapping
from math import hypot
from xml.sax.saxutils import escape

from msgspec import Struct

from fsm.heat import short, width_of
from fsm.states import State

WIDTH, HEIGHT = 1180, 750
HEAT_HEIGHT = HEIGHT + 44
BOX_WIDTH, BOX_HEIGHT = 226, 66
CHIP_WIDTH, CHIP_HEIGHT, CHIP_GAP = 34, 22, 5
COUNTED_CHIP_WIDTH, COUNTED_CHIP_HEIGHT = 40, 34
CHIPS_A_ROW = 3
COUNTED_CHIPS_A_ROW = 4
ARROW_GAP = 7

PLACES: dict[State, tuple[int, int]] = {
    State.BOOTSTRAPPING: (140, 300),
    State.CANDIDATE: (590, 90),
    State.REPLICA: (590, 300),
    State.LEADER: (1040, 300),
    State.REWINDING: (410, 505),
    State.REINIT: (800, 505),
}

BENDS: dict[tuple[State, State], int] = {
    (State.BOOTSTRAPPING, State.CANDIDATE): -60,
    (State.BOOTSTRAPPING, State.REWINDING): -26,
    (State.BOOTSTRAPPING, State.REINIT): 245,
    (State.BOOTSTRAPPING, State.REPLICA): -28,
    (State.REPLICA, State.BOOTSTRAPPING): -28,
    (State.CANDIDATE, State.LEADER): -60,
    (State.LEADER, State.REPLICA): 0,
    (State.REWINDING, State.REINIT): 0,
    (State.REPLICA, State.REWINDING): -34,
    (State.REWINDING, State.REPLICA): -24,
    (State.REPLICA, State.REINIT): -34,
    (State.REINIT, State.REPLICA): -34,
}
"""How far an arrow bends from the straight line, in pixels to its right-hand side; new pairs get BEND."""
BEND = -44

COLD_STYLE = (
    " .cold{stroke-width:1.5;stroke-dasharray:3 4} .cold-text.cold-text{font-size:13px;font-weight:700}"
    " .count.count{font-size:11px;font-weight:600}"
)

LEGEND_COUNTS = (1, 100, 10_000, 1_000_000)
"""The numbers whose thickness the legend shows."""

Point = tuple[float, float]


class Chip(Struct, frozen=True, kw_only=True):
    """One rule on an arrow."""

    label: str
    told: str
    """What it tells on hover."""
    count: str | None = None
    """How often it fired, in few characters; None where nobody counted."""
    is_cold: bool = False
    """True when it was counted, and never fired."""


class Arrow(Struct, frozen=True, kw_only=True):
    """One arrow and the rules on it."""

    source: State
    target: State
    kind: str
    chips: tuple[Chip, ...]
    width: float | None = None
    """How thick it is by what was counted; None for its kind's own line."""

    @property
    def is_cold(self) -> bool:
        """True when none of its rules ever fired."""
        return all(chip.is_cold for chip in self.chips)


def draw(
    arrows: Iterable[Arrow],
    *,
    captions: Mapping[State, str],
    looks: Mapping[str, tuple[str, str, str]],
    legend: Iterable[tuple[str, str]],
    lit: State | None,
    counted: str | None = None,
    has_looks: bool = True,
) -> str:
    """The SVG text.

    Args:
        arrows: what leads where.
        captions: the small text in each state's box.
        looks: for each kind of arrow its colour in light, in dark, and its line (plain, bold, dashed).
        legend: kind and text of each line of the legend.
        lit: the state that is shown as the present one.
        counted: what the numbers on the chips are of; None where nothing was counted.
        has_looks: whether it brings its own style; without, whoever shows it does.
    """
    drawn = list(arrows)
    height = HEIGHT if counted is None else HEAT_HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif">',
            "<title>The six states of a Matriarch node and the rules between them</title>",
            *_styles(looks, is_counted=counted is not None, has_looks=has_looks),
            _markers(looks),
            f'<rect class="page" width="{WIDTH}" height="{height}"/>',
            *(_line(arrow) for arrow in drawn),
            *(_box(state, captions[state], is_lit=state is lit) for state in State),
            *(_chips(arrow) for arrow in drawn),
            *_legend(legend),
            *(_heat_legend(counted) if counted is not None else ()),
            "</svg>",
            "",
        ]
    )


# ---- geometry --------------------------------------------------------------------------------------------------------


def _control(source: State, target: State) -> Point:
    """The control point of the quadratic curve from one state to another."""
    (x1, y1), (x2, y2) = PLACES[source], PLACES[target]
    bend = BENDS.get((source, target), BEND) * 2
    length = hypot(x2 - x1, y2 - y1)
    return (x1 + x2) / 2 - (y2 - y1) / length * bend, (y1 + y2) / 2 + (x2 - x1) / length * bend


def _border(state: State, towards: Point, gap: int) -> Point:
    """Where the line from a state's middle towards a point leaves its box, and a little further."""
    x, y = PLACES[state]
    dx, dy = towards[0] - x, towards[1] - y
    scale = min(
        (BOX_WIDTH / 2 + gap) / abs(dx) if dx else float("inf"),
        (BOX_HEIGHT / 2 + gap) / abs(dy) if dy else float("inf"),
    )
    return x + dx * scale, y + dy * scale


def _curve(arrow: Arrow) -> tuple[Point, Point, Point]:
    control = _control(arrow.source, arrow.target)
    return _border(arrow.source, control, 0), control, _border(arrow.target, control, ARROW_GAP)


def _middle(arrow: Arrow) -> Point:
    (x1, y1), (cx, cy), (x2, y2) = _curve(arrow)
    return (x1 + 2 * cx + x2) / 4, (y1 + 2 * cy + y2) / 4


# ---- parts -----------------------------------------------------------------------------------------------------------


def _styles(looks: Mapping[str, tuple[str, str, str]], *, is_counted: bool, has_looks: bool) -> Iterable[str]:
    if has_looks:
        yield f"<style>{style(_without_dashes(looks) if is_counted else looks, is_counted=is_counted)}</style>"


def style(looks: Mapping[str, tuple[str, str, str]], *, is_counted: bool = False) -> str:
    """The drawing's looks as CSS, for light and dark. is_counted: for a picture with numbers."""
    widths = {"plain": "stroke-width:2", "bold": "stroke-width:4", "dashed": "stroke-width:2.5;stroke-dasharray:9 6"}
    light = [f".{k}{{stroke:{a};{widths[line]}}} .{k}-fill{{fill:{a}}}" for k, (a, _, line) in looks.items()]
    dark = [f".{k}{{stroke:{b}}} .{k}-fill{{fill:{b}}}" for k, (_, b, _) in looks.items()]
    return (
        ".page{fill:#ffffff} .box{fill:#f6f8fa;stroke:#8c959f;stroke-width:1.5}"
        " .lit{fill:#1a7f37;stroke:#1a7f37} .name{fill:#1f2328;font-size:19px;font-weight:600}"
        " .small{fill:#59636e;font-size:13px} .on-lit{fill:#ffffff}"
        " .chip{fill:#ffffff;font-size:13px;font-weight:700} .way{fill:none}"
        + (COLD_STYLE if is_counted else "")
        + f" {' '.join(light)}"
        " @media (prefers-color-scheme: dark){.page{fill:#0d1117} .box{fill:#161b22;stroke:#6e7681}"
        " .lit{fill:#2ea043;stroke:#2ea043} .name{fill:#e6edf3} .small{fill:#9198a1} .on-lit{fill:#ffffff}"
        f" .chip{{fill:#0d1117}} {' '.join(dark)}}}"
    )


def _markers(looks: Mapping[str, tuple[str, str, str]]) -> str:
    tips = [
        f'<marker id="tip-{kind}" viewBox="0 0 10 10" refX="4" refY="5" markerWidth="15" markerHeight="15" '
        f'orient="auto" markerUnits="userSpaceOnUse"><path class="{kind}-fill" d="M0 0 L10 5 L0 10 z"/></marker>'
        for kind in looks
    ]
    return f"<defs>{''.join(tips)}</defs>"


def _without_dashes(looks: Mapping[str, tuple[str, str, str]]) -> dict[str, tuple[str, str, str]]:
    """The looks for a picture with numbers, where a dashed line means "never" and nothing else."""
    return {kind: (light, dark, "plain") for kind, (light, dark, _) in looks.items()}


def _line(arrow: Arrow) -> str:
    (x1, y1), (cx, cy), (x2, y2) = _curve(arrow)
    path = f"M{x1:.1f} {y1:.1f} Q{cx:.1f} {cy:.1f} {x2:.1f} {y2:.1f}"
    warmth = "" if arrow.width is None else f' style="{_warmth(arrow.width, is_cold=arrow.is_cold)}"'
    return f'<path class="way {arrow.kind}"{warmth} d="{path}" marker-end="url(#tip-{arrow.kind})"/>'


def _warmth(width: float, *, is_cold: bool) -> str:
    return f"stroke-width:{width}" + (";stroke-dasharray:3 6" if is_cold else "")


def _box(state: State, caption: str, *, is_lit: bool) -> str:
    x, y = PLACES[state]
    lit = ("lit", "on-lit") if is_lit else ("", "")
    corner = f'x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}"'
    return (
        f'<g data-state="{state}"><rect class="box {lit[0]}" {corner} '
        f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="14"/>'
        f'<text class="name {lit[1]}" x="{x}" y="{y - 3}" text-anchor="middle">{state}</text>'
        f'<text class="small {lit[1]}" x="{x}" y="{y + 18}" text-anchor="middle">{escape(caption)}</text></g>'
    )


def _chips(arrow: Arrow) -> str:
    """The rules of an arrow around its middle, a few in a row."""
    x, y = _middle(arrow)
    counted = arrow.width is not None
    width, height = (COUNTED_CHIP_WIDTH, COUNTED_CHIP_HEIGHT) if counted else (CHIP_WIDTH, CHIP_HEIGHT)
    a_row = COUNTED_CHIPS_A_ROW if counted and len(arrow.chips) > 2 * CHIPS_A_ROW else CHIPS_A_ROW
    rows = [arrow.chips[n : n + a_row] for n in range(0, len(arrow.chips), a_row)]
    top = y - (len(rows) * (height + CHIP_GAP) - CHIP_GAP) / 2
    drawn = []
    for place, row in enumerate(rows):
        left = x - (len(row) * (width + CHIP_GAP) - CHIP_GAP) / 2
        for column, chip in enumerate(row):
            at = (left + column * (width + CHIP_GAP), top + place * (height + CHIP_GAP))
            drawn.append(_chip(at, chip, arrow.kind) if chip.count is None else _counted(at, chip, arrow.kind))
    return "".join(drawn)


def _chip(at: Point, chip: Chip, kind: str) -> str:
    x, y = at
    return (
        f'<g data-rule="{escape(chip.label)}"><title>{escape(chip.told)}</title>'
        f'<rect class="{kind}-fill" x="{x:.1f}" y="{y:.1f}" width="{CHIP_WIDTH}" '
        f'height="{CHIP_HEIGHT}" rx="7"/><text class="chip" x="{x + CHIP_WIDTH / 2:.1f}" y="{y + 15.5:.1f}" '
        f'text-anchor="middle">{escape(chip.label)}</text></g>'
    )


def _counted(at: Point, chip: Chip, kind: str) -> str:
    """A rule and its number below; one that never fired is hollow, with a dashed edge."""
    x, y = at
    middle = x + COUNTED_CHIP_WIDTH / 2
    box = f'x="{x:.1f}" y="{y:.1f}" width="{COUNTED_CHIP_WIDTH}" height="{COUNTED_CHIP_HEIGHT}" rx="7"'
    if chip.is_cold:
        shape, text = f'<rect class="page {kind} cold" {box}/>', "name cold-text"
    else:
        shape, text = f'<rect class="{kind}-fill" {box}/>', "chip"
    return (
        f"<g><title>{escape(chip.told)}</title>{shape}"
        f'<text class="{text}" x="{middle:.1f}" y="{y + 14.5:.1f}" text-anchor="middle">{escape(chip.label)}</text>'
        f'<text class="{text} count" x="{middle:.1f}" y="{y + 28.5:.1f}" text-anchor="middle">{chip.count}</text></g>'
    )


def _legend(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    """The kinds of arrows, in two columns at the bottom."""
    for number, (kind, text) in enumerate(rows):
        x, y = 40 + number % 3 * 375, HEIGHT - 50 + number // 3 * 26
        yield f'<path class="way {kind}" d="M{x} {y} h44" marker-end="url(#tip-{kind})"/>'
        yield f'<text class="small" x="{x + 60}" y="{y + 4}">{text}</text>'


def _heat_legend(counted: str) -> Iterable[str]:
    """What the thickness and the dashes mean, below the kinds."""
    y = HEIGHT + 14
    yield f'<path class="way settle" style="{_warmth(width_of(0), is_cold=True)}" d="M40 {y} h44"/>'
    yield f'<text class="small" x="100" y="{y + 4}">dashed, hollow, 0: never fired</text>'
    for number, count in enumerate(LEGEND_COUNTS):
        x = 340 + number * 108
        yield f'<path class="way settle" style="{_warmth(width_of(count), is_cold=False)}" d="M{x} {y} h44"/>'
        yield f'<text class="small" x="{x + 52}" y="{y + 4}">{short(count)}</text>'
    yield f'<text class="small" x="790" y="{y + 4}">moves, by logarithm; {escape(counted)}</text>'
