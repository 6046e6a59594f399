"""Claims of the literature, studied on models that anyone can run.

Seeds go in; a `Study` comes out: each claim with its direction, ours with an interval over seeds, a
verdict, controls, and what the figures show. `python -m bridges.studies NAME --full` writes one as
JSON. Only invariants of our own can fail a study, never a claim. Imports networks and both sides.
"""

from bridges.studies.claims import Claim, Invariant, Study, interval, load_study, save_study

__all__ = ["Claim", "Invariant", "Study", "interval", "load_study", "save_study"]
