"""What one node's events say about its lease, the leader key and its fence: accounts kept apart from the view."""

from fsm import events as ev
from fsm.effects import AskFailsafe
from fsm.facts import Key, KeyChange
from fsm.machine import Issued
from fsm.timing import writable_until_ms
from fsm.view import View


def changes_of(event: ev.AnyEvent) -> tuple[KeyChange, ...]:
    """What an event says of keys in etcd."""
    match event:
        case ev.KeysChanged():
            return event.changes
        case ev.ClusterRead():
            return event.keys
        case ev.Succeeded(result=ev.KeyWritten(now=KeyChange() as now)):
            return (now,)
        case _:
            return ()


class Account:
    """Kept entry by entry. It never knows of less time than there is: what it forbids was surely wrong."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.now_ms = 0
        self.revision = 0
        self.lease_until_ms: dict[int, int] = {}
        self.failsafe_until_ms = 0
        self.leader: Key | None = None
        self.pid: int | None = None
        self.armed_until_ms: int | None = None

    @classmethod
    def of(cls, view: View) -> "Account":
        """The account of a node that knows so much."""
        account = cls(view.name)
        account.now_ms, account.revision = view.now_ms, view.etcd.revision
        for lease in (view.former_lease, view.lease):
            if lease is not None:
                account.lease_until_ms[lease.lease_id] = lease.writable_until_ms
        account.failsafe_until_ms, account.leader = view.failsafe_until_ms, view.keys.get("leader")
        account.pid, account.armed_until_ms = view.server.pid, view.fence.armed_until_ms
        return account

    @property
    def is_key_ours(self) -> bool:
        """True when the leader key names this node and hangs on a lease that it was granted."""
        key = self.leader
        return key is not None and key.value == self.name and key.lease_id in self.lease_until_ms

    @property
    def deadline_ms(self) -> int:
        """Until when this node may lead at the most."""
        key = self.leader
        by_key = self.lease_until_ms[key.lease_id] if key is not None and self.is_key_ours else 0
        return max(by_key, self.failsafe_until_ms)

    def take(self, event: ev.AnyEvent, cause: Issued | None) -> None:
        """Note what an event says. `cause`: the effect whose outcome it is."""
        self.now_ms = max(self.now_ms, event.at_ms)
        if isinstance(event, ev.ClusterRead):
            self._read(event)
        for change in changes_of(event):
            self._changed(change)
        if isinstance(event, ev.KeysChanged):
            self.revision = max(self.revision, event.revision)
        self._server(event)
        if isinstance(event, ev.Succeeded):
            self._succeeded(event, cause)
        elif isinstance(event, ev.Failed) and event.duty == "disarm-fence":
            self.armed_until_ms = None

    def _read(self, event: ev.ClusterRead) -> None:
        is_wiped = event.revision < self.revision
        if is_wiped or all(change.key != "leader" for change in event.keys):
            self.leader = None
        self.revision = event.revision

    def _changed(self, change: KeyChange) -> None:
        if change.key == "leader" and (self.leader is None or change.mod_revision >= self.leader.mod_revision):
            self.leader = Key(value=change.value, mod_revision=change.mod_revision,
                              create_revision=change.create_revision, lease_id=change.lease_id)  # fmt: skip

    def _server(self, event: ev.AnyEvent) -> None:
        match event:
            case ev.FenceConnected():
                self.pid, self.armed_until_ms = event.pid, event.armed_until_ms
            case ev.FenceLost():
                self.pid = self.armed_until_ms = None
            case ev.ServerSpawned():
                self.pid = event.pid
            case ev.ServerExited() if self.pid in (None, event.pid):
                self.pid = self.armed_until_ms = None

    def _succeeded(self, event: ev.Succeeded, cause: Issued | None) -> None:
        match event.result:
            case ev.LeaseHeld() as held:
                until_ms = writable_until_ms(held.sent_at_ms, held.ttl_s)
                self.lease_until_ms[held.lease_id] = max(until_ms, self.lease_until_ms.get(held.lease_id, 0))
            case ev.FailsafeHeard() as heard:
                asked = cause.effect.api_urls if cause and isinstance(cause.effect, AskFailsafe) else {}
                if {*asked} <= {*heard.accepted}:
                    until_ms = writable_until_ms(heard.sent_at_ms, heard.ttl_s)
                    self.failsafe_until_ms = max(self.failsafe_until_ms, until_ms)
            case ev.FenceArmed(until_ms=until_ms):
                self.armed_until_ms = until_ms
            case ev.ServerStarted(pid=pid):
                self.pid = pid
            case ev.Done() if event.duty == "disarm-fence":
                self.armed_until_ms = None
            case _:
                pass
