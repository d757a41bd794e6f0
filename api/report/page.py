"""The report of a chronicle: one self-contained HTML file, for a screen and for paper, with colour and without.

Everything from a log is escaped; there is no script in it, so what a hostile log says stays text.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from api.cli.lines import columns
from api.report.lanes import lanes_svg
from api.report.style import STYLE
from api.text import as_html
from fsm.diagram import as_svg
from fsm.entries import Entry
from fsm.story.chronicle import Chronicle
from fsm.story.outages import Outage
from fsm.story.telling import Reference, Sentence, Tale, doubts_of, near_misses, parts_of, span_text, tale_of

Entries = Mapping[tuple[str, int], Entry]


def wanted_entries(chronicle: Chronicle) -> dict[str, set[int]]:
    """The entries that the report links to, by node."""
    wanted: dict[str, set[int]] = {}
    for sentence in _all_sentences(chronicle):
        for reference in sentence.rests_on:
            wanted.setdefault(reference.node, set()).add(reference.seq)
    for lane in chronicle.lanes:
        wanted.setdefault(lane.node, set()).add(lane.seq)
    return wanted


def _all_sentences(chronicle: Chronicle) -> Iterable[Sentence]:
    for tale in tales_of(chronicle):
        yield from tale.sentences
        yield from tale.why_not
    yield from near_misses(chronicle)
    yield from doubts_of(chronicle)


def tales_of(chronicle: Chronicle) -> list[Tale]:
    """The outages as they are told, in their order."""
    return [tale_of(outage, number) for number, outage in enumerate(chronicle.outages, 1)]


def report_html(chronicle: Chronicle, entries: Entries, version: str) -> str:
    """The report.

    Args:
        chronicle: what is told.
        entries: those of `wanted_entries`, as far as the logs have them.
        version: who wrote it.
    """
    tales = tales_of(chronicle)
    body = [
        _head(chronicle, tales),
        _section("What could not be told", "doubts", _list(doubts_of(chronicle))),
        _section("Who led, and each node's states", "lanes", lanes_svg(chronicle)),
        *(_tale(tale) for tale in tales),
        _section("Near misses", "near", _list(near_misses(chronicle))),
        _section("Moves of each node", "moves", _moves(chronicle)),
        _section("The rules", "rules", as_svg()),
        _section("Timelines", "timelines", _reigns(chronicle)),
        _section("Logs and clocks", "clocks", _clocks(chronicle)),
        _section("Entries", "entries", _entries(entries)),
        f"<footer>matriarch postmortem {as_html(version)}</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{as_html(_title(chronicle))}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>\n"
    )


def _title(chronicle: Chronicle) -> str:
    return f"Postmortem of {', '.join(log.node for log in chronicle.logs) or 'no log'}"


def _section(title: str, name: str, content: str) -> str:
    return f'<section id="{name}"><h2>{as_html(title)}</h2>{content}</section>' if content else ""


def _head(chronicle: Chronicle, tales: Sequence[Tale]) -> str:
    unplanned = [tale.outage for tale in tales if not tale.outage.is_planned]
    total_ms = sum(outage.lasted_ms or 0 for outage in unplanned)
    verdict = (
        f'<p class="alarm"><strong>Two servers took writes at once by what the logs tell</strong>: '
        f'{len(chronicle.overlaps)} times; see <a href="#near">near misses</a>.</p>'
        if chronicle.overlaps
        else "<p>By these logs no two servers took writes at once.</p>"
    )
    items = "".join(f'<li><a href="#{_anchor(tale)}">{as_html(tale.title)}</a></li>' for tale in tales)
    spans = [instant.common_ms for instant in chronicle.instants]
    when = f"<p>{_time(min(spans))} to {_time(max(spans))} UTC.</p>" if spans else "<p>The logs tell of nothing.</p>"
    return (
        f"<header><h1>{as_html(_title(chronicle))}</h1>{when}{verdict}"
        f"<p>{len(unplanned)} unplanned and {len(tales) - len(unplanned)} planned times without a primary; "
        f"{span_text(total_ms)} of it unplanned.</p><ol class='tales'>{items}</ol></header>"
    )


def _anchor(tale: Tale) -> str:
    return f"outage-{tale.title.partition('.')[0]}"


def _tale(tale: Tale) -> str:
    why_not = f"<h3>Why not another node</h3>{_list(tale.why_not)}" if tale.why_not else ""
    content = f"{_bar(tale.outage)}{_list(tale.sentences, since_ms=tale.outage.since_ms)}{why_not}"
    return f'<section id="{_anchor(tale)}"><h2>{as_html(tale.title)}</h2>{content}</section>'


def _bar(outage: Outage) -> str:
    """The parts of an outage beside each other, each with its name and span: readable without colour."""
    parts = [(what, span) for what, span in parts_of(outage) if span is not None]
    if not parts:
        return ""
    cells = "".join(
        f'<div class="part {what}" style="flex-grow:{max(1, span)}"><b>{what}</b> {span_text(span)}</div>'
        for what, span in parts
    )
    return f'<div class="parts" role="img" aria-label="where the time went">{cells}</div>'


def _list(sentences: Sequence[Sentence], since_ms: int | None = None) -> str:
    if not sentences:
        return ""
    return f"<ul>{''.join(f'<li>{_sentence(sentence, since_ms)}</li>' for sentence in sentences)}</ul>"


def _sentence(sentence: Sentence, since_ms: int | None) -> str:
    when = ""
    if sentence.at_ms is not None:
        shown = f"{(sentence.at_ms - since_ms) / 1000:+.3f} s" if since_ms is not None else _time(sentence.at_ms)
        when = f'<time title="{_time(sentence.at_ms)}">{shown}</time> '
    links = " ".join(_link(reference) for reference in sentence.rests_on)
    return f"{when}{as_html(sentence.text)} {links}"


def _link(reference: Reference) -> str:
    return f'<a class="entry" href="#{_entry_anchor(reference.node, reference.seq)}">{as_html(str(reference))}</a>'


def _entry_anchor(node: str, seq: int) -> str:
    """An anchor of letters and digits alone, whatever a node calls itself."""
    return f"e-{node.encode().hex()}-{seq}"


def _moves(chronicle: Chronicle) -> str:
    rules = sorted({rule for log in chronicle.logs for rule in log.moves})
    if not rules:
        return ""
    head = "".join(f"<th>{as_html(log.node)}</th>" for log in chronicle.logs)
    rows = "".join(
        f"<tr><th>{as_html(rule)}</th>{''.join(_count(log.moves.get(rule, 0)) for log in chronicle.logs)}</tr>"
        for rule in rules
    )
    return f"<table><tr><th>rule</th>{head}</tr>{rows}</table>"


def _count(times: int) -> str:
    return f"<td>{times or ''}</td>"


def _reigns(chronicle: Chronicle) -> str:
    rows = "".join(
        f"<tr><td>{reign.timeline}</td><td>{as_html(reign.node)}</td><td>{_time(reign.since_ms)}</td>"
        f"<td>{_time(reign.until_ms) if reign.until_ms else 'the end of its log'}</td><td>{as_html(reign.end)}</td>"
        f"<td>{_link(Reference(node=reign.node, seq=reign.began.seq))}</td></tr>"
        for reign in chronicle.reigns
    )
    return f"<table><tr><th>timeline</th><th>node</th><th>from</th><th>to</th><th>end</th><th></th></tr>{rows}</table>"


def _clocks(chronicle: Chronicle) -> str:
    logs = {log.node: log for log in chronicle.logs}
    rows = "".join(
        f"<tr><td>{as_html(clock.node)}</td><td>{logs[clock.node].entries:,}</td>"
        f"<td>{_time(logs[clock.node].first_ms)}</td><td>{_time(logs[clock.node].last_ms)}</td>"
        f"<td>{clock.source}{f', {clock.shared} revisions, within {clock.spread_ms} ms' if clock.shared else ''}</td>"
        f"<td>{clock.wall_ahead_ms:+} ms</td></tr>"
        for clock in chronicle.clocks
    )
    head = "<tr><th>node</th><th>entries</th><th>first</th><th>last</th><th>laid by</th><th>wall clock ahead</th></tr>"
    return f"<table>{head}{rows}</table>"


def _entries(entries: Entries) -> str:
    return "".join(_entry(node, seq, entry) for (node, seq), entry in sorted(entries.items()))


def _entry(node: str, seq: int, entry: Entry) -> str:
    number, at, state, seen, decided = columns(entry)
    whole = msgspec.json.format(msgspec.json.encode(entry), indent=2).decode()
    lines = "\n".join(as_html(line) for line in whole.splitlines())
    return (
        f'<details id="{_entry_anchor(node, seq)}"><summary><b>{as_html(node)}#{number}</b> {as_html(at)} '
        f"<i>{as_html(state)}</i> {as_html(seen)}{' ⇒ ' + as_html(decided) if decided else ''}</summary>"
        f"<pre>{lines}</pre></details>"
    )


def _time(common_ms: int) -> str:
    return datetime.fromtimestamp(common_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
