"""One function of the agent, or of the models, made to answer otherwise, wherever it is known already.

Rows of the table, compiled machines and importing modules hold functions themselves, so nothing is won by putting
another into a module. The function stays the same object here and is given other code, until the end of the block.
A name that leads to no function of Python's fails at once: a safeguard that was renamed is not to go untested.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

Replacement = Callable[..., Any]
"""Called with the original function, and what that would have been called with."""

_PLACE = 7_340_127_001
"""Stands for the replacement in the code below. No other constant has this value."""


class NoSuchFunction(LookupError):
    """A mutant's target is not there any more."""


class Difference:
    """Whether, and when, a mutant first answered otherwise than the code that it takes the place of."""

    def __init__(self) -> None:
        self.at_us: int | None = None
        self.calls = 0
        self.now_us: Callable[[], int] = lambda: 0

    def note(self) -> None:
        """It answered otherwise."""
        if self.at_us is None:
            self.at_us = self.now_us()


def function_of(target: str) -> FunctionType:
    """The function, method or property by its name: `package.module:Class.method`. Raises: NoSuchFunction."""
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise NoSuchFunction(
            f"a mutant's target is gone: {target} ({error}); tests/simulation/mutants names it"
        ) from error
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__wrapped__", found)
    if not isinstance(found, FunctionType):
        raise NoSuchFunction(f"a mutant's target is no function of Python's: {target} is a {type(found).__name__}")
    return found


@contextlib.contextmanager
def mutated(target: str, replacement: Replacement, difference: Difference) -> Iterator[None]:
    """Let a function answer what `replacement(original, *args)` answers, inside the block."""
    function = function_of(target)
    original = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    is_pure = target.startswith("fsm.")

    def answer(*args: Any, **kwargs: Any) -> Any:
        difference.calls += 1
        found = replacement(original, *args, **kwargs)
        # What acts cannot be asked twice; that it was called at all is all that can be said.
        if difference.at_us is None and (not is_pure or found != original(*args, **kwargs)):
            difference.note()
        return found

    before = function.__code__
    function.__code__ = _leading_to(answer)
    try:
        yield
    finally:
        function.__code__ = before


def _call_through(*args: Any, **kwargs: Any) -> Any:
    replacement: Any = 7_340_127_001
    return replacement(*args, **kwargs)


def _leading_to(answer: Callable[..., Any]) -> CodeType:
    code = _call_through.__code__
    constants: tuple[Any, ...] = tuple(answer if constant == _PLACE else constant for constant in code.co_consts)
    assert answer in constants
    return code.replace(co_consts=constants)
