"""Benchmarks: what is timed, each rival in a process of its own, and what is made of the times."""
