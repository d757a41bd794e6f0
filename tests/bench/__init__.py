"""Benchmarks on real servers: `make bench`. They print medians and ratios and assert nothing about time."""
