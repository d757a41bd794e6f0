"""Guards about a restart of the agent itself, in place."""

from fsm.agent_restart import is_agent_restart_open, restart_obstacle_of_agent
from fsm.view import View


def is_agent_restart_asked(view: View) -> bool:
    """Somebody asked this agent to become its own successor, and it has not yet."""
    return is_agent_restart_open(view)


def is_new_agent_untried(view: View) -> bool:
    """Whether the code that is on the disk now would start was not tried since the restart was asked for."""
    return view.agent_restart is not None and view.agent_restart.took_ms == 0


def is_new_agent_tried(view: View) -> bool:
    """The code that is on the disk now was tried, with the settings that are there now, and starts."""
    return view.agent_restart is not None and view.agent_restart.took_ms > 0


def has_nothing_to_lose(view: View) -> bool:
    """Whatever this agent knows, its successor learns from etcd, the fence and the server before the lease ends."""
    return restart_obstacle_of_agent(view) is None
