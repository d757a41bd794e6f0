"""The demo without a terminal: a line for every change, until it is told to end."""

import anyio

from api.cli.demo.cluster import DemoCluster
from api.cli.demo.live import how_to_connect
from api.cli.demo.picture import ClusterPicture, is_news
from api.cli.demo.teller import Teller
from api.cli.demo.view import changed_lines, entry_line, headline
from api.cli.demo.watcher import Watcher

LOOK_EVERY_S = 0.3


async def tell_plainly(cluster: DemoCluster, watcher: Watcher, teller: Teller) -> int:
    """Prints what changes, for ever. Raises: MatriarchError when an agent gives up."""
    teller.say(f"no terminal: one line a change; SIGTERM or SIGINT ends it. Everything is in {cluster.workspace.root}")
    await cluster.start()
    for node in cluster.nodes:
        teller.say(f"{node.name}: {node.plan.api_url}/patroni, PostgreSQL on 127.0.0.1:{node.plan.postgres_port}")
    teller.say(how_to_connect(cluster))
    before, told = watcher.picture, 0
    while True:
        after = await watcher.look()
        for node in cluster.nodes:
            node.check()
        told = _tell_news(after, told, teller)
        for line in changed_lines(before, after):
            teller.say(line)
        if after.is_settled and not before.is_settled:
            teller.say(headline(after))
        before = after
        await anyio.sleep(LOOK_EVERY_S)


def _tell_news(picture: ClusterPicture, told_until_ms: int, teller: Teller) -> int:
    """Prints the entries that are new; the instant of the newest one told."""
    new = [entry for entry in picture.news if entry.event.at_ms > told_until_ms]
    for entry in filter(is_news, new):
        teller.say(entry_line(entry))
    return max((entry.event.at_ms for entry in new), default=told_until_ms)
