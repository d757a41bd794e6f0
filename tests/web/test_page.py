"""The web page as people use it: a real browser on the agents of a real cluster."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
import httpx
import pytest

from effects.log_reader import GENESIS, encode_line
from tests.cluster.harness import RealCluster, running_cluster
from tests.web.browser import Browser, program

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    pytest.mark.skipif(program() is None, reason="no browser: apt-get install chromium"),
]
ROWS = "document.querySelectorAll('#entries li time').length"
OPENED = "!document.getElementById('details').hidden"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e"
PICTURES = Path(__file__).resolve().parents[2] / "build" / "web"


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[RealCluster]:
    """Three nodes, after the leader's node was killed and came back."""
    async with running_cluster() as (cluster, _):
        old = cluster.leader
        await anyio.to_thread.run_sync(old.crash)
        await cluster.settled(but=[old.name])
        old.bring_back()
        await cluster.settled()
        yield cluster


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with Browser() as found:
        yield found


@pytest.fixture
def page(real: RealCluster, browser: Browser) -> Iterator[Browser]:
    """The page of a replica's agent, with every node's entries; it said nothing bad and asked nobody but the agents."""
    browser.requests.clear()
    browser.console.clear()
    agents = {node.plan.api_url for node in real.cluster.nodes}
    browser.open(f"{real.replicas[0].plan.api_url}/ui")
    browser.until("document.querySelectorAll('.machine').length === 3")
    browser.until(f"{ROWS} > 20 && !document.querySelector('.node.unknown')")
    yield browser
    assert browser.console == []
    asked = {urlsplit(url)._replace(path="", query="", fragment="").geturl() for url in browser.requests}
    assert asked <= agents | {"data:,"}


async def test_page_shows_who_leads_and_goes_on_when_something_happens(real: RealCluster, page: Browser) -> None:
    """States, roles and lag of each node; new entries come by themselves."""
    assert f"{real.primary} is the primary" in page.text("#summary")
    assert "leader\nprimary" in page.text("#topology .node.leader")
    assert page.text("#topology").count("lag ") == 2
    assert page.run("document.querySelectorAll('.machine .lit').length") == 3
    newest = page.run("document.querySelector('#entries time').innerText")
    page.until(f"document.querySelector('#entries time').innerText > {json.dumps(newest)}")


async def test_entry_opens_when_only_keys_are_used(page: Browser) -> None:
    """The move before, opened: its rule with the reason, its guards, what it ordered and what came of it."""
    page.press("ArrowLeft", shift=True)
    page.until("document.querySelector('#entries li.move[aria-selected=true]') !== null")
    page.press("Enter")
    page.until(OPENED)
    told = page.text("#details")
    assert "is_" in page.run("document.querySelector('#details code').innerText")
    for part in ("Seen", "Rule", "Effects", "Succeeded after", '"seq"'):
        assert part in told
    assert "null" not in page.run("[...document.querySelectorAll('#details > p')].map((one) => one.innerText)")
    page.press("Escape")
    page.until(f"!({OPENED})")
    page.press("2")
    assert page.until("document.querySelector('.node.chosen b')?.innerText") == "n2"
    page.until("[...document.querySelectorAll('#entries li b')].every((one) => one.innerText === 'n2')")
    page.press("/")
    assert page.run("document.activeElement.id") == "filter"
    page.press("Escape")
    page.press("?")
    assert page.run("document.getElementById('keys').hidden") is False


async def test_history_is_shown_when_the_scrubber_is_moved_back(real: RealCluster, page: Browser) -> None:
    """At an instant before the failover the node that was killed leads, and the present leader follows."""
    old = next(node.name for node in real.cluster.nodes if node.name != real.primary and _led(real, node.name))
    is_old = f"document.getElementById('summary').innerText.startsWith({json.dumps(f'{old} is the primary')})"
    for _ in range(40):  # move by move, as far back as the logs reach
        before = json.dumps(page.text("#instant"))
        page.press("ArrowLeft", shift=True)
        page.until(f"document.getElementById('instant').innerText !== {before}")
        if page.run(is_old):
            break
    page.until(is_old)
    page.run(
        "(() => { const one = document.getElementById('scrubber'); one.value = 0;"
        "one.dispatchEvent(new Event('input')); })()"
    )
    page.until("document.getElementById('summary').innerText.startsWith('no primary')")
    assert page.run("document.getElementById('live').getAttribute('aria-pressed')") == "false"
    page.press("End")
    page.until(f"document.getElementById('summary').innerText.startsWith({json.dumps(f'{real.primary} is')})")


def _led(real: RealCluster, name: str) -> bool:
    return any(entry.rule == "C1" for entry in real.entries(name))


async def test_logs_open_the_same_way_when_they_come_from_a_tar(
    real: RealCluster, page: Browser, tmp_path: Path
) -> None:
    """As each agent gives it; nothing more is asked of anybody."""
    tars = []
    for node in real.cluster.nodes:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{node.plan.api_url}/log/archive")
        tars.append(tmp_path / f"{node.name}.tar")
        tars[-1].write_bytes(answer.content)
    page.choose_files("#import", *tars)
    page.until("document.getElementById('summary').innerText.includes('opened logs')")
    assert "3 nodes" in page.text("#summary")
    page.until("document.querySelectorAll('.machine .lit').length === 3")
    page.press("ArrowLeft", shift=True)
    page.press("Enter")
    page.until(OPENED)


async def test_nothing_runs_when_an_opened_log_is_hostile(page: Browser, tmp_path: Path) -> None:
    """What is no entry is counted, what looks like markup is text."""
    entry = {
        "v": 1, "seq": 1, "node": HOSTILE, "boot": "b", "wall": "2026-11-25T07:00:00+00:00", "revision": 1,
        "event": {"event": "Failed", "at_ms": 1, "effect_id": 1, "duty": HOSTILE, "kind": HOSTILE, "detail": HOSTILE},
        "rule": HOSTILE, "before": "replica", "after": HOSTILE,
    }  # fmt: skip
    segment = tmp_path / "000000000001.jsonl"
    body = json.dumps(entry).encode()
    segment.write_bytes(
        encode_line("entry", GENESIS, body) + b"{broken\n\xff\xfe\n" + b'{"entry":7}\n' + b"x" * 100_000
    )
    page.run("window.alerted = 0; window.alert = () => { window.alerted += 1; }")
    page.choose_files("#import", segment)
    page.until("document.getElementById('summary').innerText.includes('left out')")
    page.until(f"{ROWS} === 1")
    page.press("Enter")
    page.until(OPENED)
    assert "<img src=x" in page.text("#details")
    assert "\u202e" not in page.run("document.body.innerText")
    assert page.run("window.alerted + document.querySelectorAll('img, main script').length") == 0


async def test_pictures_of_the_page_are_taken_when_it_is_wide_narrow_and_dark(page: Browser) -> None:
    """For people to look at, in build/web; nothing is wider than a narrow screen."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, width, dark in (("wide", 1400, False), ("wide-dark", 1400, True), ("narrow", 390, False)):
        page.resize(width, 900, dark=dark)
        page.until(f"window.innerWidth === {width}")
        page.picture(PICTURES / f"{name}.png")
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.resize(1400, 1000)
