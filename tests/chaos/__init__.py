"""Faults on real processes: every node and every etcd member in a network namespace of its own, watched from inside."""
