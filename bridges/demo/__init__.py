"""Demos of the command `cpwl demo`: one toy generator in the plane, one in space.

The path of a picture goes in; the picture is written, and a report of what was found comes out.
Imports `bridges.networks` and `cpwl`.
"""

from bridges.demo.plane import DemoReport, run_demo
from bridges.demo.solid import SolidReport, run_solid_demo

__all__ = ["DemoReport", "SolidReport", "run_demo", "run_solid_demo"]
