"""Where the exact engine and the estimates meet: toy generators, the demo and the `cpwl` command.

The only package that may import both `cpwl` and `approx`.
"""
