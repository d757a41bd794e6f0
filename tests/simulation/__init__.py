"""A whole cluster in one thread and virtual time: the real `step` on every node, models of everything around it."""
