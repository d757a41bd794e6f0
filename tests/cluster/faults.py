"""What is done to the processes of a node, beyond killing them: they stop running, and nobody is told."""

import signal

from api.cli.demo import processes
from api.cli.demo.cluster import DemoNode


def freeze_server(node: DemoNode) -> None:
    """No process of the server runs; its connections stay."""
    for pid in processes.server_of(node.data_dir):
        processes.send(pid, signal.SIGSTOP)


def thaw_server(node: DemoNode) -> None:
    """The server's processes go on."""
    for pid in processes.server_of(node.data_dir):
        processes.send(pid, signal.SIGCONT)


def freeze_node(node: DemoNode) -> None:
    """Nothing of the node runs, and nobody is told: its connections stay, its lease runs on."""
    node.freeze()
    fence = processes.fence_of(node.state_dir)
    if fence is not None:
        processes.send(fence, signal.SIGSTOP)
    freeze_server(node)


def thaw_node(node: DemoNode) -> None:
    """The node's processes go on."""
    thaw_server(node)
    fence = processes.fence_of(node.state_dir)
    if fence is not None:
        processes.send(fence, signal.SIGCONT)
    node.bring_back()
