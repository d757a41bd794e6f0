"""Looks at the demo's cluster: each node's GET /patroni, its process, and the tail of its transition log."""

import contextlib
import os
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec

from api.cli.demo.cluster import DemoCluster, DemoNode
from api.cli.demo.picture import ClusterPicture, MemberPicture, from_status
from api.cli.demo.plan import TTL_S
from effects.errors import LogCorrupt, LogUnavailable
from effects.log_reader import read_entries, read_log, segments_of
from fsm.entries import Entry, decode_entry

ANSWER_TIMEOUT_S = 0.5
ENTRIES_KEPT_MAX = 2_000
ENTRIES_READ_MAX = 5_000
TTL_EVERY_LOOKS = 10
SWITCHOVER_TIMEOUT_S = 30.0


class Watcher:
    """Gathers one `ClusterPicture` after another. Use it as an async context manager."""

    def __init__(self, cluster: DemoCluster) -> None:
        self._cluster = cluster
        self._tails = {node.name: LogTail(node.log_dir) for node in cluster.nodes}
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_KEPT_MAX)
        self._http = httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False)
        self._looks = 0
        members = tuple(MemberPicture(name=n.name, api_url=n.plan.api_url) for n in cluster.nodes)
        self.picture = ClusterPicture(members=members, ttl_s=TTL_S)

    async def __aenter__(self) -> "Watcher":
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    async def look(self) -> ClusterPicture:
        """The cluster as it is now; `picture` keeps it."""
        found: dict[str, MemberPicture] = {}

        async def ask(node: DemoNode) -> None:
            found[node.name] = await self._member(node)

        async with anyio.create_task_group() as tasks:
            for node in self._cluster.nodes:
                tasks.start_soon(ask, node)
        await anyio.to_thread.run_sync(self._read_logs)
        self.picture = ClusterPicture(
            members=tuple(found[node.name] for node in self._cluster.nodes),
            news=tuple(self._entries),
            ttl_s=await self._ttl_s(),
        )
        self._looks += 1
        return self.picture

    async def _member(self, node: DemoNode) -> MemberPicture:
        process = "frozen" if node.is_frozen else "up" if node.agent_pid is not None else "down"
        known = msgspec.structs.replace(
            self.picture.member(node.name), process=process, is_answering=False, lease_left_ms=None, copied_bytes=None
        )
        status = await self._get(f"{node.plan.api_url}/patroni") if process == "up" else None
        member = from_status(known, status) if status else known
        if member.server == "creating replica":
            copied = await anyio.to_thread.run_sync(bytes_below, node.data_dir)
            member = msgspec.structs.replace(member, copied_bytes=copied)
        return member

    async def _ttl_s(self) -> int:
        """The ttl in force, as the cluster's dynamic configuration says."""
        if self._looks % TTL_EVERY_LOOKS:
            return self.picture.ttl_s
        for member in self.picture.members:
            config = await self._get(f"{member.api_url}/config") if member.is_answering else None
            if config:
                return int(config.get("ttl", TTL_S))
        return self.picture.ttl_s

    async def _get(self, url: str) -> dict[str, Any] | None:
        try:
            answer = await self._http.get(url)
            found = answer.json() if answer.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    async def switch_over(self, candidate: str | None) -> str:
        """Asks for a planned change of leader and returns what the leader's API answered, in one line.

        candidate: who should lead; None for anybody.
        """
        primary = self.picture.primary
        if primary is None:
            return "there is no primary to switch over from"
        wanted = {"leader": primary.name} | ({"candidate": candidate} if candidate else {})
        try:
            url = f"{primary.api_url}/switchover"
            answer = await self._http.post(url, json=wanted, timeout=SWITCHOVER_TIMEOUT_S)
        except httpx.HTTPError as error:
            return f"the request to {primary.name} failed: {type(error).__name__}"
        return f"{answer.status_code} {answer.text.strip()}"

    def _read_logs(self) -> None:
        new = [entry for tail in self._tails.values() for entry in tail.read()]
        if new:
            self._entries.extend(sorted(new, key=lambda entry: entry.event.at_ms))


class LogTail:
    """Reads what is added to a node's log from now on; what an earlier run left there has been told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seq = last_seq_of(directory)

    def read(self) -> list[Entry]:
        """The new entries; none while the log cannot be read."""
        try:
            found = read_entries(self._directory, self._seq, ENTRIES_READ_MAX)
        except (LogCorrupt, LogUnavailable):
            return []
        if found:
            self._seq = found[-1][0]
        return [decode_entry(body) for _, body in found]


def last_seq_of(directory: Path) -> int:
    """The sequence number of the newest entry of a log; 0 where there is none."""
    segments = segments_of(directory)
    try:
        return max((line.seq for line in read_log(segments[-1:])), default=0)
    except (LogCorrupt, LogUnavailable):
        return 0


def bytes_below(directory: Path) -> int:
    """How many bytes the files in a directory that is being filled have by now."""
    total = 0
    # os.walk passes over directories that go meanwhile; Path.rglob does not.
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total
