"""All scenarios, and which cells they make."""

from tests.chaos import (
    clock_faults,
    disk_faults,
    etcd_faults,
    intruder_faults,
    load_faults,
    network_faults,
    node_faults,
)
from tests.chaos.cells import MODES, TTLS_S, Cell
from tests.chaos.scenario import SCENARIOS

__all__ = [
    "SCENARIOS",
    "clock_faults",
    "disk_faults",
    "etcd_faults",
    "intruder_faults",
    "load_faults",
    "network_faults",
    "node_faults",
    "short_set",
    "whole_matrix",
]


def short_set() -> list[Cell]:
    """Every kind of fault once, at the smallest ttl, spread over the modes; cells of one cluster beside each other."""
    cells = [
        Cell(ttl_s=TTLS_S[0], mode=one.short_mode, wiring=one.wiring, fault=one.name)
        for one in SCENARIOS.values()
        if one.short_mode is not None
    ]
    return sorted(cells, key=lambda cell: (*_group_order(cell), SCENARIOS[cell.fault].is_cluster_used_up))


def whole_matrix() -> list[Cell]:
    """Every fault at every ttl in every mode."""
    cells = [
        Cell(ttl_s=ttl_s, mode=mode, wiring=one.wiring, fault=one.name)
        for ttl_s in TTLS_S
        for mode in MODES
        for one in SCENARIOS.values()
        if mode in one.modes
    ]
    return sorted(cells, key=lambda cell: (*_group_order(cell), SCENARIOS[cell.fault].is_cluster_used_up))


def _group_order(cell: Cell) -> tuple[int, int, str]:
    return (cell.ttl_s, list(MODES).index(cell.mode), cell.wiring)
