"""Safeguards, each removed alone: whether the simulation notices. `make sim-mutants`."""
