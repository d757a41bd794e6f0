"""Guards about what this node promised a leader that cannot reach etcd."""

from fsm.guards.keys import has_promised_nothing
from fsm.view import View


def is_bound_by_a_promise(view: View) -> bool:
    """This node has promised a leader without etcd to let it go on, or is about to."""
    return not has_promised_nothing(view)


def is_promise_unkept(view: View) -> bool:
    """A promise to a leader without etcd is not on disk yet, and its span has not passed."""
    return view.promising is not None and view.now_ms < view.promising.until_ms


def is_promise_over(view: View) -> bool:
    """The promise that is on disk has ended, and none is about to follow it."""
    return view.promise is not None and has_promised_nothing(view)
