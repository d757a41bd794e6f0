"""All scenarios, and which cells they make."""

from tests.chaos import network_faults, node_faults
from tests.chaos.cells import MODES, TTLS_S, Cell
from tests.chaos.scenario import SCENARIOS

__all__ = ["SCENARIOS", "network_faults", "node_faults", "short_set", "whole_matrix"]


def short_set() -> list[Cell]:
    """Every kind of fault once, at the smallest ttl, spread over the modes; cells of one cluster beside each other."""
    cells = [
        Cell(ttl_s=TTLS_S[0], mode=one.short_mode, wiring=one.wiring, fault=one.name)
        for one in SCENARIOS.values()
        if one.short_mode is not None
    ]
    order = list(MODES)
    return sorted(cells, key=lambda cell: (cell.wiring, order.index(cell.mode)))


def whole_matrix() -> list[Cell]:
    """Every fault at every ttl in every mode."""
    cells = [
        Cell(ttl_s=ttl_s, mode=mode, wiring=one.wiring, fault=one.name)
        for ttl_s in TTLS_S
        for mode in MODES
        for one in SCENARIOS.values()
        if mode in one.modes
    ]
    order = list(MODES)
    return sorted(cells, key=lambda cell: (cell.ttl_s, order.index(cell.mode), cell.wiring))
