"""Benchmarks: off by default, each run by naming its file to pytest (see README, "Measured")."""
