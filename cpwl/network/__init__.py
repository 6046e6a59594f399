"""Networks: what a torch module or a model file computes, as steps.

A module or file goes in; a `Network` comes out, which evaluates itself, its pre-activations and
its pieces on batches of latents. Imports only arrays and errors.
"""

from cpwl.network.network import Knots, Network, inspect, require_captured

__all__ = ["Knots", "Network", "inspect", "require_captured"]
