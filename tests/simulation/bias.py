"""What a run is told besides its seed: which faults may happen, with which settings, and what else is looked at."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.simulation.cluster import Cluster, Node

Happen = Callable[[Cluster, Node], Callable[[], object]]


class Bias(NamedTuple):
    """A run that is to find one thing soon. Everything else is the seed's, as ever."""

    kinds: Mapping[str, Happen] | None = None
    """The faults to draw from; None for all that there are."""
    config: Mapping[str, object] | None = None
    """What is otherwise in the cluster's configuration; None takes a setting out."""
    sizes: tuple[int, ...] = ()
    """How many nodes, one of these; none for the seed's number."""
    tags: Mapping[str, Mapping[str, Any]] | None = None
    """Tags of nodes."""
    prepare: tuple[Callable[[Cluster], object], ...] = ()
    """Called with the cluster before anything happens."""

    def settings(self, seed: int, drawn: tuple[str, int]) -> tuple[str, int]:
        """The cluster's settings, and how many nodes it has."""
        text, size = drawn
        found = {**json.loads(text), **(self.config or {})}
        text = json.dumps({key: value for key, value in found.items() if value is not None}, separators=(",", ":"))
        return text, self.sizes[seed % len(self.sizes)] if self.sizes else size


NO_BIAS = Bias()
