"""What became of a cluster, told from the transition logs of its nodes: one clock, reigns, outages. Pure."""
