"""Which story a demo tells: the live view, lines, or the tour."""

from rich.console import Console

from api.cli.demo.cluster import DemoCluster
from api.cli.demo.session import Story
from api.cli.demo.teller import Teller
from api.cli.demo.watcher import Watcher


def story_for(console: Console, *, tour: bool, is_interactive: bool) -> Story:
    """The story, which returns the exit status.

    Args:
        console: where it is told.
        tour: whether the tour was asked for.
        is_interactive: whether somebody sits at a terminal.
    """

    async def tell(cluster: DemoCluster, watcher: Watcher) -> int:
        teller = Teller(console)
        try:
            if tour:
                return await _tour(cluster, watcher, teller)
            if is_interactive:
                return await _live(cluster, watcher, console)
            return await _plain(cluster, watcher, teller)
        finally:
            teller.say("stopping: agents, servers and fences, then etcd" + kept_text(cluster))

    return tell


def kept_text(cluster: DemoCluster) -> str:
    """Where it can be taken up again; nothing for a temporary directory."""
    root = cluster.workspace.root
    return f"; kept in {root}, go on with --keep {root}" if cluster.workspace.is_kept else ""


# Imported when they are needed: a tour needs no terminal, and a terminal no psycopg.


async def _tour(cluster: DemoCluster, watcher: Watcher, teller: Teller) -> int:
    from api.cli.demo.tour import run_tour

    return await run_tour(cluster, watcher, teller)


async def _live(cluster: DemoCluster, watcher: Watcher, console: Console) -> int:
    from api.cli.demo.live import LiveView

    return await LiveView(cluster, watcher, console).run()


async def _plain(cluster: DemoCluster, watcher: Watcher, teller: Teller) -> int:
    from api.cli.demo.plain import tell_plainly

    return await tell_plainly(cluster, watcher, teller)
