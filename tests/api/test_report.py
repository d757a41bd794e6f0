"""The postmortem as one HTML file: it stands alone, and what a hostile log says stays text."""

from html.parser import HTMLParser
from itertools import count

import pytest

from api.report.page import report_html, wanted_entries
from api.text import TEXT_MAX, as_html, printable
from fsm.entries import Entry, make_entry
from fsm.events import AgentStarted, AnyEvent, EtcdLost, Failed, Identity, ServerExited
from fsm.machine import step
from fsm.story.chronicle import Chronicle, LogReader, chronicle_of
from fsm.view import View

HOSTILE = '"></title><script>alert(1)</script><img src=x onerror=alert(1)>\x07\x1b[2J\u202e'


class Outline(HTMLParser):
    """Tags, attributes, anchors and links of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One tag."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.ids.update(value for name, value in attrs if name == "id" and value)
        self.links.extend(value for name, value in attrs if name == "href" and value)


def chronicle_and_entries(name: str) -> tuple[Chronicle, dict[tuple[str, int], Entry]]:
    """A log of a few entries in which everything that is free text is the name."""
    events: list[AnyEvent] = [
        AgentStarted(
            at_ms=1_000, identity=Identity(name=name, scope="s", api_url="", conn_url=""), boot=name, wall=name
        ),
        ServerExited(at_ms=1_500, pid=7, status=1),
        EtcdLost(at_ms=2_000, detail=name),
        Failed(at_ms=3_000, effect_id=100, duty="clone", kind="program", detail=name),
        AgentStarted(
            at_ms=9_000, identity=Identity(name=name, scope="s", api_url="", conn_url=""), boot=name, wall=name
        ),
    ]
    reader, view, entries, clock = LogReader(), View(), {}, count()
    for event in events:
        decision = step(view, event)
        entry = make_entry(decision, event, boot=name, wall=f"2026-11-25T07:00:0{next(clock)}+00:00")
        reader.take(entry, view, decision.view)
        entries[entry.node, entry.seq] = entry
        view = decision.view
    return chronicle_of([reader]), entries


@pytest.mark.parametrize("name", ["n1", HOSTILE])
def test_report_stands_alone_and_runs_nothing_when_a_log_is_hostile(name: str) -> None:
    """No script, no handler, nothing fetched; the tags are those of a harmless log."""
    chronicle, entries = chronicle_and_entries(name)
    page = report_html(chronicle, entries, version=name)
    outline = Outline(page)
    harmless = Outline(report_html(*chronicle_and_entries("n1"), version="1"))
    assert outline.tags == harmless.tags
    assert "script" not in outline.tags
    assert not {one for one in outline.attributes if one.startswith("on") or one == "src"}
    assert all(link.startswith("#") for link in outline.links)
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_every_link_of_the_report_leads_somewhere() -> None:
    """To an entry, or to a part of the report."""
    chronicle, entries = chronicle_and_entries("n1")
    wanted = wanted_entries(chronicle)
    kept = {place: entry for place, entry in entries.items() if place[1] in wanted.get(place[0], ())}
    outline = Outline(report_html(chronicle, kept, version="1"))
    assert outline.links
    assert {link[1:] for link in outline.links} <= outline.ids


@pytest.mark.parametrize("text", ["", "plain", "a–b ä", "0/3000148"])
def test_text_is_left_alone_when_it_is_harmless(text: str) -> None:
    """Letters of any language stay what they are."""
    assert printable(text) == text


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\r\n", "\u202e", "\u2028", "\ud800"])
def test_text_steers_nothing_when_it_would(text: str) -> None:
    """What was there is still seen to have been there."""
    assert printable(text)
    assert not set(printable(text)) & set("\x00\x1b\r\n\u202e\u2028\ud800")


def test_text_is_cut_when_it_is_huge() -> None:
    """It says how long it was."""
    assert printable("x" * 10_000).endswith("(10,000 characters)")
    assert len(printable("x" * 10_000)) < TEXT_MAX + 30
    assert as_html('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
