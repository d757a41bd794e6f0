"""Guards about what lies in the data directory, and what was done to it."""

from fsm.guards.server import is_server_running
from fsm.states import State
from fsm.timelines import was_primary
from fsm.view import View


def is_directory_unread(view: View) -> bool:
    """Nobody has looked at the data directory since the server ended or the directory was changed."""
    return view.server.process == "absent" and view.directory is None


def is_directory_vacant(view: View) -> bool:
    """The data directory is empty or absent."""
    return view.directory is not None and view.directory.condition in ("absent", "empty")


def is_directory_a_cluster(view: View) -> bool:
    """The data directory holds a complete cluster."""
    return view.directory is not None and view.directory.condition == "cluster"


def is_directory_in_the_way(view: View) -> bool:
    """The data directory holds something that this stay in reinit has not put there."""
    occupied = view.directory is not None and view.directory.condition not in ("absent", "empty")
    return occupied and not has_cloned(view)


def is_init_unfinished(view: View) -> bool:
    """This agent's own marker says that its initdb was not finished."""
    return view.directory is not None and view.directory.condition == "unfinished_init"


def is_clone_unfinished(view: View) -> bool:
    """This agent's own marker says that its base backup was not finished."""
    return view.directory is not None and view.directory.condition == "unfinished_clone"


def is_rewind_unfinished(view: View) -> bool:
    """This agent's own marker says that its pg_rewind was not finished: the directory must not be started."""
    return view.directory is not None and view.directory.condition == "unfinished_rewind"


def is_directory_rewindable(view: View) -> bool:
    """The data directory holds a complete cluster, or one that an earlier pg_rewind left unfinished."""
    return is_directory_a_cluster(view) or is_rewind_unfinished(view)


def has_no_cluster_here(view: View) -> bool:
    """No server runs and the data directory does not hold a complete cluster."""
    conditions = ("absent", "empty", "unfinished_init", "unfinished_clone")
    return view.server.process == "absent" and view.directory is not None and view.directory.condition in conditions


def has_cloned(view: View) -> bool:
    """The base backup was taken in this stay in the state."""
    return view.has_achieved("clone", view.state_since_ms)


def has_rewound(view: View) -> bool:
    """pg_rewind ended well in this stay in the state."""
    return view.has_achieved("rewind", view.state_since_ms)


def has_begun_rewind(view: View) -> bool:
    """pg_rewind is running, or left the directory unfinished."""
    return "rewind" in view.underway or is_rewind_unfinished(view)


def is_fit_to_restart_as_primary(view: View) -> bool:
    """The data directory was last run as a primary (or is new), so recovery keeps its timeline."""
    return is_directory_a_cluster(view) and was_primary(view.directory)


def is_directory_of_a_standby(view: View) -> bool:
    """The data directory was last run as a standby: it is started as one and promoted."""
    return is_directory_a_cluster(view) and not was_primary(view.directory)


def is_rewind_not_begun(view: View) -> bool:
    """pg_rewind neither runs nor left the directory unfinished."""
    return not has_begun_rewind(view)


def is_data_untouched(view: View) -> bool:
    """The data directory still holds what it held before: a complete cluster, running or stopped."""
    if has_cloned(view) or "clear-directory" in view.underway:
        return False
    return is_server_running(view) or is_directory_a_cluster(view)


def is_directory_ready_to_run(view: View) -> bool:
    """The data directory holds a complete cluster, in reinit the new one."""
    return is_directory_a_cluster(view) and (view.state is not State.REINIT or has_cloned(view))
