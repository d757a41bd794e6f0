"""The house rules that a machine can check: who imports whom, who reads a clock, how long things are."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("fsm", "effects", "api")
"""From the lowest up: each may import itself and what is below."""

FSM_MAY_IMPORT = {
    "__future__", "ast", "bisect", "collections", "collections.abc", "dataclasses", "enum", "fsm", "functools",
    "hashlib", "inspect", "itertools", "json", "math", "msgspec", "operator", "re", "statistics", "transitions",
    "types", "typing",
    "urllib.parse", "xml.sax.saxutils",
}  # fmt: skip
"""Nothing of this touches a file, a socket, a clock, a process or chance (`datetime`: for arithmetic only)."""
FSM_MAY_IMPORT_FOR_ARITHMETIC = {"datetime"}
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "__import__", "getsource", "getsourcelines"}

CLOCK = ROOT / "effects" / "clock.py"
FENCE = {"fence", "fence_device", "fence_kernel"}
"""The files of the fence: a program of its own, of the standard library only."""
MAY_READ_A_CLOCK = {CLOCK, ROOT / "effects" / "fence.py", ROOT / "effects" / "fence_kernel.py"}
CLOCK_CALLS = {
    ("time", name)
    for name in (
        "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "clock_gettime",
        "clock_gettime_ns", "localtime", "gmtime",
    )
} | {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}  # fmt: skip

ETCD_PACKAGES = {"grpc", "etcd3", "google"}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 650
LONG_FILES: dict[str, str] = {
    "effects/fence.py": "it is run by its path, alone and isolated (-I), so that it shares nothing with the agent",
    "fsm/table.py": "the table is one table: a reader takes it in as a whole",
}
"""Files that may be longer, each with its reason; LONG_FILE_LINES_MAX holds even then."""
LONG_FILE_LINES_MAX = 850

SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
by_name = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def tree_of(path: Path) -> ast.Module:
    """The parsed source."""
    return ast.parse(path.read_text(), filename=str(path))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that a source imports anywhere, `from x import y` as "x"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: a reader sees the floor"
            yield node.module or ""


def floor_of(path: Path) -> str:
    """The floor that a file is on."""
    return path.relative_to(ROOT).parts[0]


@by_name
def test_imports_never_go_up_when_a_file_is_read(path: Path) -> None:
    """api stands on effects, effects on fsm, and nothing shipped stands on tests."""
    above = {*FLOORS[FLOORS.index(floor_of(path)) + 1 :], "tests"}
    found = {name for name in imports_of(tree_of(path)) if name.partition(".")[0] in above}
    assert not found


@pytest.mark.parametrize("path", sorted((ROOT / "fsm").rglob("*.py")), ids=lambda path: path.name)
def test_fsm_imports_nothing_that_does_io_when_a_file_is_read(path: Path) -> None:
    """What decides cannot reach the world, not even by mistake."""
    allowed = FSM_MAY_IMPORT | FSM_MAY_IMPORT_FOR_ARITHMETIC
    for name in imports_of(tree_of(path)):
        assert name in allowed or name.partition(".")[0] in ("fsm", "msgspec", "transitions"), name


@pytest.mark.parametrize("path", sorted((ROOT / "fsm").rglob("*.py")), ids=lambda path: path.name)
def test_fsm_calls_nothing_impure_when_a_file_is_read(path: Path) -> None:
    """No file is opened, nothing is printed and no source is read back."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            assert name not in IMPURE_CALLS, f"line {node.lineno}: {name}()"


def test_fence_is_standard_library_only_when_read() -> None:
    """The fence must start and run without anything that could be broken by an upgrade."""
    own = {f"effects.{name}" for name in FENCE}
    for name in sorted(FENCE):
        found = set(imports_of(tree_of(ROOT / "effects" / f"{name}.py"))) - own
        assert {module.partition(".")[0] for module in found} <= sys.stdlib_module_names


@by_name
def test_only_the_clock_reads_a_clock_when_a_file_is_read(path: Path) -> None:
    """Time comes in through one door, so that it can be virtual everywhere else."""
    if path in MAY_READ_A_CLOCK:
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert {alias.name for alias in node.names} <= {"sleep"}, "use effects.clock"
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            assert (owner, node.attr) not in CLOCK_CALLS, f"line {node.lineno}: {owner}.{node.attr}"


@by_name
def test_only_the_wire_knows_etcds_packages_when_a_file_is_read(path: Path) -> None:
    """gRPC and the generated stubs stay behind effects/etcd*.py."""
    if floor_of(path) == "effects" and path.name.startswith("etcd"):
        return
    assert not {name.partition(".")[0] for name in imports_of(tree_of(path))} & ETCD_PACKAGES


@by_name
def test_functions_are_short_when_measured(path: Path) -> None:
    """What does not fit on a screen is more than one thing."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@by_name
def test_files_are_short_when_measured(path: Path) -> None:
    """A file is about one thing."""
    name = str(path.relative_to(ROOT))
    limit = LONG_FILE_LINES_MAX if name in LONG_FILES else FILE_LINES_MAX
    assert len(path.read_text().splitlines()) <= limit


def module_of(path: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_at_once(tree: ast.Module, modules: set[str]) -> set[str]:
    """The modules of this house that a source imports while it is itself being imported."""
    found = set()
    for node in _outside_functions(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= submodules or {node.module}
    return found & modules


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs at import: everything but function bodies and blocks for type checkers only."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def test_no_import_goes_round_in_a_circle_when_all_are_followed() -> None:
    """Modules can be read, and imported, from the bottom up."""
    modules = {module_of(path) for path in SOURCES}
    graph = {module_of(path): imported_at_once(tree_of(path), modules) - {module_of(path)} for path in SOURCES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"imports go round: {' -> '.join(error.args[1])}") from None
    assert set(order) == modules


def test_no_file_has_a_name_that_says_nothing_when_listed() -> None:
    """No data, info, manager, helper, utils: a name tells what is inside."""
    vague = {"data", "info", "manager", "helper", "helpers", "util", "utils", "common", "misc"}
    assert not {path.stem for path in SOURCES} & vague
