"""A restart of the agent itself, in place: when it may begin, and how it ends. Pure; folds decide nothing.

The new code is tried first, in a process of its own; only then does the agent become it. What an agent knows is lost
with it, except for what etcd, the fence and the server tell its successor, so it waits for a moment at which that is
all there is to know.
"""

from msgspec.structs import replace

from fsm.asked import ANSWERS_KEPT, AgentRestart, Answer, Ending
from fsm.events import AgentRestartAsked, AnyEvent, Failed, NewAgentChecked, Succeeded, Unknown
from fsm.states import State
from fsm.timing import AGENT_LEAVES_WITHIN_MS, AGENT_RESTART_WITHIN_MS, NEW_AGENT_ROOM
from fsm.view import View
from fsm.vote import is_voting

CHECK = "check-new-agent"
_LEFT_ALONE = frozenset({"lease", "peers", "sql", "successor", "agent"})
"""Resources whose effects may be cut off at any moment: a renewal or a question is simply put again."""
_PASSING_STATES = frozenset({State.CANDIDATE, State.REWINDING, State.REINIT})


def agent_restart_asked(view: View, event: AgentRestartAsked) -> View:
    """The agent is to become its own successor, unless it is about to already."""
    if is_agent_restart_open(view):
        return _answered(view, event.request_id, "conflict", "the agent is being restarted already")
    restart = AgentRestart(
        request_id=event.request_id, asked_at_ms=event.at_ms, until_ms=event.at_ms + AGENT_RESTART_WITHIN_MS
    )
    return replace(view, agent_restart=restart)


def is_agent_restart_open(view: View) -> bool:
    """True while a restart of the agent is asked for and was neither refused nor performed."""
    return view.agent_restart is not None and not view.agent_restart.refused


def new_agent_checked(view: View, event: Succeeded, result: NewAgentChecked) -> View:
    """Nothing by itself: `with_agent_restart` takes it, with the failures of the same duty."""
    return view


def with_agent_restart(view: View, event: AnyEvent) -> View:
    """What an event means for the restart that is asked for: the new code was tried, or the time for it is over."""
    restart = view.agent_restart
    if restart is None or restart.refused:
        return view
    match event:
        case Succeeded(duty="check-new-agent", result=NewAgentChecked(took_ms=took_ms)):
            return replace(view, agent_restart=replace(restart, took_ms=max(1, took_ms)))
        case Failed(duty="check-new-agent") | Unknown(duty="check-new-agent"):
            return _refused(view, restart, f"the new agent would not start: {event.detail}")
        case Failed(duty="become-new-agent"):
            return _refused(view, restart, event.detail)
    if view.now_ms >= restart.until_ms and CHECK not in view.underway:
        return _refused(view, restart, restart_obstacle_of_agent(view) or "its moment did not come in time")
    return view


def _refused(view: View, restart: AgentRestart, why: str) -> View:
    view = replace(view, agent_restart=replace(restart, refused=why))
    return _answered(view, restart.request_id, "refused", f"{why}; this agent goes on")


def _answered(view: View, request_id: str, ending: Ending, detail: str) -> View:
    answer = Answer(request_id=request_id, ending=ending, detail=detail)
    return replace(view, answers=(*view.answers, answer)[-ANSWERS_KEPT:])


def restart_obstacle_of_agent(view: View) -> str | None:
    """What a successor would not know, or not have the time for, in one line; None when it can take over now."""
    if view.state in _PASSING_STATES:
        return f"this node is in the state {view.state.value}, which is to be over first"
    cut_off = [u.kind for u in view.underway.values() if u.resource not in _LEFT_ALONE or u.kind == "PrepareCluster"]
    if cut_off:
        return f"{', '.join(sorted(cut_off))} is under way"
    if view.restart or view.switchover or view.asked or view.is_reinit_asked:
        return "what an operator asked of this node is not done yet"
    if view.promising is not None:
        return f"the promise to {view.promising.leader} not to stand for election is not on disk yet"
    return _obstacle_of_leader(view) if view.state is State.LEADER else _obstacle_of_voter(view)


def _obstacle_of_voter(view: View) -> str | None:
    if is_voting(view) or (view.state is State.REPLICA and view.etcd.is_watched and view.leader is None):
        return "nobody leads, and a successor would not know how this node has voted"
    return None


def _obstacle_of_leader(view: View) -> str | None:
    probe, restart = view.server.probe, view.agent_restart
    if probe is None or probe.in_recovery:
        return "the leader's server does not accept writes yet"
    if not view.etcd.is_watched:
        return "etcd is not heard, and without it a successor could not take up the leader key"
    needed_ms = AGENT_LEAVES_WITHIN_MS + NEW_AGENT_ROOM * (restart.took_ms if restart else 0)
    left_ms = min(view.leadership_until_ms, view.fence.armed_until_ms or 0) - view.now_ms
    if left_ms < needed_ms:
        return f"the new agent needs up to {needed_ms} ms, and the leader's lease leaves {max(0, left_ms)} ms"
    return None
