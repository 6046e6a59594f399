"""Command line `cpwl`.

Words of a command line go in; files, tables and one line on standard error come out. Imports
whatever a command needs, and only when it runs.
"""

from bridges.cli.group import main

__all__ = ["main"]
