"""The picture of the table, as Mermaid, DOT, SVG, JSON and a page. Drawn from TABLE: it cannot tell another story."""

import inspect
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal
from xml.sax.saxutils import escape

import msgspec
from msgspec import Struct

from fsm.dump import table_text
from fsm.heat import Heat, heat_text, short, width_of
from fsm.picture import Arrow, Chip, draw, style
from fsm.states import State
from fsm.table import DUTIES, TABLE, Guard, Rule

Kind = Literal["settle", "stand", "lead", "step down", "repair", "mended"]


class Look(Struct, frozen=True, kw_only=True):
    """How a kind of rule is drawn: its colour in light and dark, and its line."""

    light: str
    dark: str
    line: Literal["plain", "bold", "dashed"]
    meaning: str


LOOKS: dict[Kind, Look] = {
    "settle": Look(light="#57606a", dark="#9aa4af", line="plain", meaning="takes its place, nothing is at stake"),
    "stand": Look(light="#0969da", dark="#58a6ff", line="plain", meaning="stands for election"),
    "lead": Look(light="#1a7f37", dark="#3fb950", line="bold", meaning="becomes leader"),
    "step down": Look(light="#cf222e", dark="#ff7b72", line="bold", meaning="stops leading, fence first"),
    "repair": Look(light="#9a6700", dark="#d29922", line="dashed", meaning="the data must be mended or replaced"),
    "mended": Look(light="#8250df", dark="#bc8cff", line="plain", meaning="comes back from repair"),
}

CAPTIONS: dict[State, str] = {
    State.BOOTSTRAPPING: "finds out what there is",
    State.REPLICA: "follows, accepts no writes",
    State.CANDIDATE: "finds out whether to lead",
    State.LEADER: "holds the key, accepts writes",
    State.REWINDING: "pg_rewind mends the data",
    State.REINIT: "gets a new base backup",
}
"""What a node does in each state, in a few words; fsm/states.py says what each guarantees."""

IN_REPAIR = (State.REWINDING, State.REINIT)
MERMAID_LINKS = {"plain": "-->", "bold": "==>", "dashed": "-.->"}
DOT_STYLES = {"plain": "solid", "bold": "bold", "dashed": "dashed"}


def kind_of(rule: Rule) -> Kind:
    """What kind of move a rule makes."""
    if rule.target is State.LEADER:
        return "lead"
    if rule.source is State.LEADER:
        return "step down"
    if rule.target in IN_REPAIR:
        return "repair"
    if rule.source in IN_REPAIR:
        return "mended"
    return "stand" if rule.target is State.CANDIDATE else "settle"


def _ways() -> dict[tuple[State, State], list[Rule]]:
    """The rules by where they lead from and to, in the order of the table: one arrow each."""
    ways: dict[tuple[State, State], list[Rule]] = {}
    for rule in TABLE:
        ways.setdefault((rule.source, rule.target), []).append(rule)
    return ways


def _ids(rules: Iterable[Rule]) -> str:
    return " ".join(rule.id for rule in rules)


# ---- Mermaid and DOT -------------------------------------------------------------------------------------------------


def _warmth(rules: Iterable[Rule], heat: Heat) -> int:
    """How many moves an arrow stands for."""
    return sum(heat.of(rule.id) for rule in rules)


def _labels(rules: Iterable[Rule], heat: Heat | None) -> str:
    """The rules of an arrow, each with its number where there is one."""
    return _ids(rules) if heat is None else ", ".join(f"{rule.id}: {short(heat.of(rule.id))}" for rule in rules)


def as_mermaid(state: State | None = None, heat: Heat | None = None) -> str:
    """The table as a Mermaid flowchart, the present state lit. Source: Mermaid, "Flowcharts".

    With `heat` an arrow is as thick as its rules fired often, and dashed if they never did.
    """
    lines = ["flowchart LR"]
    lines += [f'    {s}(["{s}"])' for s in State]
    styles = []
    for number, ((source, target), rules) in enumerate(_ways().items()):
        look = LOOKS[kind_of(rules[0])]
        link = MERMAID_LINKS[look.line if heat is None else "plain"]
        lines.append(f'    {source} {link}|"{_labels(rules, heat)}"| {target}')
        styles.append(f"    linkStyle {number} stroke:{look.light},color:{look.light}{_mermaid_warmth(rules, heat)}")
    lines += [*styles, "    classDef present fill:#1a7f37,stroke:#1a7f37,color:#ffffff"]
    if state is not None:
        lines.append(f"    class {state} present")
    return "\n".join(lines) + "\n"


def _mermaid_warmth(rules: Iterable[Rule], heat: Heat | None) -> str:
    if heat is None:
        return ""
    count = _warmth(rules, heat)
    return f",stroke-width:{width_of(count)}px" + ("" if count else ",stroke-dasharray:3 6")


def as_dot(state: State | None = None, heat: Heat | None = None) -> str:
    """The table as a Graphviz digraph, the present state lit. Source: Graphviz, "DOT Language".

    With `heat` an arrow is as thick as its rules fired often, and dashed if they never did.
    """
    lines = [
        "digraph matriarch {",
        '    rankdir=LR; bgcolor="transparent"; node [shape=box, style="rounded,filled", fillcolor="#f6f8fa"];',
        '    node [fontname="sans-serif"]; edge [fontname="sans-serif", fontsize=11];',
    ]
    for s in State:
        lit = ', fillcolor="#1a7f37", fontcolor="#ffffff"' if s is state else ""
        lines.append(f'    {s} [label="{s}\\n{CAPTIONS[s]}"{lit}];')
    for (source, target), rules in _ways().items():
        look = LOOKS[kind_of(rules[0])]
        style = f'color="{look.light}", fontcolor="{look.light}", {_dot_line(look, rules, heat)}'
        lines.append(f'    {source} -> {target} [label="{_labels(rules, heat)}", {style}];')
    return "\n".join([*lines, "}"]) + "\n"


def _dot_line(look: Look, rules: Iterable[Rule], heat: Heat | None) -> str:
    if heat is None:
        return f"style={DOT_STYLES[look.line]}"
    count = _warmth(rules, heat)
    return f"style={'solid' if count else 'dashed'}, penwidth={width_of(count)}"


# ---- SVG -------------------------------------------------------------------------------------------------------------


def as_svg(state: State | None = None, heat: Heat | None = None, *, has_looks: bool = True) -> str:
    """The table as an SVG picture for light and dark, the present state lit; each rule tells its reason on hover.

    With `heat` every rule shows its number, an arrow is as thick as its rules fired often, and what never fired is
    dashed and hollow. has_looks: False leaves out the style, for a page that has it from `as_css`.
    """
    arrows = [
        Arrow(
            source=source,
            target=target,
            kind=kind_of(rules[0]).replace(" ", "-"),
            chips=tuple(_chip(rule, heat) for rule in rules),
            width=None if heat is None else width_of(_warmth(rules, heat)),
        )
        for (source, target), rules in _ways().items()
    ]
    counted = None if heat is None else heat.summary
    return draw(
        arrows, captions=CAPTIONS, looks=_css_looks(), legend=_legend(), lit=state, counted=counted, has_looks=has_looks
    )


def as_css() -> str:
    """The looks of the SVG picture, for a page that draws it itself."""
    return style(_css_looks())


def _chip(rule: Rule, heat: Heat | None) -> Chip:
    told = f"{rule.id}: {rule.because}"
    if heat is None:
        return Chip(label=rule.id, told=told)
    count = heat.of(rule.id)
    fired = f"fired {count:,} times" if count else "never fired"
    return Chip(label=rule.id, told=f"{told} ({fired})", count=short(count), is_cold=not count)


def _css_looks() -> dict[str, tuple[str, str, str]]:
    return {kind.replace(" ", "-"): (look.light, look.dark, look.line) for kind, look in LOOKS.items()}


def _legend() -> list[tuple[str, str]]:
    return [(kind.replace(" ", "-"), escape(f"{kind}: {look.meaning}")) for kind, look in LOOKS.items()]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(state: State | None = None, heat: Heat | None = None) -> str:
    """States, rules and duties as one JSON object, the present state marked; guards with what they hold for.

    With `heat` each rule has `fired` too, and the object `seeds`.
    """
    found = {
        "states": [{"state": s, "caption": CAPTIONS[s], "is_present": s is state} for s in State],
        "rules": [_rule_fields(rule, heat) for rule in TABLE],
        "duties": [
            {
                "id": duty.id,
                "states": sorted(duty.states),
                "guards": _guard_fields(duty.guards),
                "order": duty.order.__name__,
                "because": duty.because,
            }
            for duty in DUTIES
        ],
    }
    return msgspec.json.encode(found if heat is None else {**found, "seeds": heat.seeds}).decode()


def _rule_fields(rule: Rule, heat: Heat | None) -> dict[str, Any]:
    fired = {} if heat is None else {"fired": heat.of(rule.id)}
    return {
        **fired,
        "id": rule.id,
        "source": rule.source,
        "target": rule.target,
        "kind": kind_of(rule),
        "guards": _guard_fields(rule.guards),
        "fence": rule.fence.__name__ if rule.fence else None,
        "because": rule.because,
    }


def _guard_fields(guards: Iterable[Guard]) -> list[dict[str, str]]:
    return [{"name": g.__name__, "says": (inspect.getdoc(g) or "").partition("\n")[0]} for g in guards]


def as_text(_: State | None = None, heat: Heat | None = None) -> str:
    """The rules and duties as text; with `heat` how often each rule fired instead."""
    return table_text() if heat is None else heat_text(heat)


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE_HEAD = """\
# The state machine

<!-- Generated from fsm/table.py. Do not edit: python -m tests.golden_update -->

Every decision of Matriarch is a row on this page. A node is in one of six states. At every event the first **rule**
of its state whose guards are all true moves it; then the **duties** of the state whose guards are all true, and that
are neither under way nor backing off, are given to their executors.

![The six states and the rules between them](fsm.svg)
"""


def page_text() -> str:
    """The page docs/fsm.md: the picture, the rules and the duties."""
    return "\n".join(
        [PAGE_HEAD, "```mermaid", as_mermaid() + "```", "", *_kind_rows(), *_rule_rows(), *_duty_rows(), *_guard_rows()]
    )


def _kind_rows() -> list[str]:
    rows = [f"| {kind} | {look.line} | {look.meaning} |" for kind, look in LOOKS.items()]
    return ["| kind of rule | line | what it means |", "|---|---|---|", *rows, ""]


def _rule_rows() -> list[str]:
    rows = [
        f"| {rule.id} | {rule.source} | {rule.target} | {_names(rule.guards)} | {rule.because} |"
        + (f" `{rule.fence.__name__}` |" if rule.fence else " |")
        for rule in TABLE
    ]
    head = ["## Rules, in the order in which they are tried", "", "| rule | from | to | when | because | first |"]
    return [*head, "|---|---|---|---|---|---|", *rows, ""]


def _duty_rows() -> list[str]:
    rows = [
        f"| {duty.id} | {_states(duty.states)} | {_names(duty.guards)} | {duty.because} "
        f"| {duty.first_ms} to {duty.most_ms} ms |"
        for duty in DUTIES
    ]
    head = ["## Duties, in the order of their urgency", "", "| duty | in | when | because | again after a failure |"]
    return [*head, "|---|---|---|---|---|", *rows, ""]


def _guard_rows() -> list[str]:
    guards = {g.__name__: g for g in chain.from_iterable([*(r.guards for r in TABLE), *(d.guards for d in DUTIES)])}
    rows = [f"| `{name}` | {_guard_fields([guards[name]])[0]['says']} |" for name in sorted(guards)]
    return ["## Guards", "", "| guard | holds when |", "|---|---|", *rows, ""]


def _names(guards: Iterable[Guard]) -> str:
    return ", ".join(f"`{guard.__name__}`" for guard in guards)


def _states(states: tuple[State, ...]) -> str:
    return "every state" if set(states) == set(State) else ", ".join(sorted(states))
