"""Claims with their verdicts, and the file in which a study is kept."""

from __future__ import annotations

import json
import math
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from approx.populations import corrected
from cpwl.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

Found = TypeVar("Found")

Direction = Literal["rises", "falls", "none", "not said"]
"""What a claim says of its effect; "none" is that of a control."""


ROUNDING = 1e-12


class Interval(NamedTuple):
    """A mean over seeds and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values and its 95 % interval by Student's t.

    The interval of a single value is unbounded, and that of values with a NaN is NaN. Values below
    1e-12 are a slope's rounding, and count as 0.

    Examples
    --------
    >>> from bridges.studies import interval
    >>> mean, low, high = interval([1.0, 2.0, 3.0])
    >>> print(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
    2.00 [-0.48, 4.48]
    """
    array = _effects(values)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


def p_value(values: Sequence[float]) -> float:
    """Return the p-value of Student's t that the mean of independent values is 0, two-sided.

    It is below 0.05 where the `interval` leaves 0 out, and NaN where that is not finite.

    Examples
    --------
    >>> from bridges.studies.claims import p_value
    >>> round(p_value([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    array = _effects(values)
    if len(array) < 2 or not np.isfinite(array).all():
        return math.nan
    if np.ptp(array) == 0:
        return float(array[0] == 0)
    found: Any = stats.ttest_1samp(array, 0)
    return float(found.pvalue)


def _effects(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"Expected one effect for each seed, got an array of shape {array.shape}: give a list "
            "of at least one number."
        )
    return np.where(np.abs(array) < ROUNDING, 0.0, array)


@dataclass(frozen=True)
class Claim:
    """One claim, and our effect for each seed.

    Attributes
    ----------
    claim : str
        In words, with where it is from.
    paper : {"rises", "falls", "none", "not said"}
        The direction that is claimed; "none" for a control, which should show no effect.
    effect : str
        What the values are: of which quantity, and in which unit.
    values : tuple of float
        One for each seed; above 0 where the quantity rises.
    """

    claim: str
    paper: Direction
    effect: str
    values: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """What the 95 % interval says of the claim."""
        _, low, high = interval(self.values)
        ours = "rises" if low > 0 else "falls" if high < 0 else ""
        if not math.isfinite(high - low):  # one seed, or an effect that is not known
            return "undecided"
        if self.paper == "none":
            return "an effect" if ours else "no effect, as it should be"
        if not ours:
            return "undecided"
        if self.paper == "not said":
            return ours
        return "replicates" if ours == self.paper else "opposite"


@dataclass(frozen=True)
class Invariant:
    """Something that holds whatever a claim says; a study fails where it does not.

    Attributes
    ----------
    name : str
        What must hold.
    holds : bool
        Whether it does.
    measured : str
        The figures that say so.
    """

    name: str
    holds: bool
    measured: str


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes
    ----------
    name : str
        Of the module in `bridges.studies`.
    full : bool
        Whether at full size.
    seeds : tuple of int
        Of the values, in their order.
    claims : tuple of Claim
        With the controls.
    invariants : tuple of Invariant
        Of our own.
    data : mapping
        Numbers, strings, lists and dictionaries of them: what the figures show.
    made_by : mapping of str
        As `provenance` has it before the run.
    """

    name: str
    full: bool
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...]
    invariants: tuple[Invariant, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return one row a claim: the paper's direction, ours with its interval, the verdict.

        The verdict is that of the interval alone. `p_holm` is corrected for the number of claims by
        Holm's method: an effect with one above 0.05 may be chance among so many.
        """
        import pandas as pd

        p = np.array([p_value(claim.values) for claim in self.claims])
        known = np.isfinite(p)
        p[known] = corrected(p[known])
        rows = []
        for claim, p_holm in zip(self.claims, p.tolist(), strict=True):
            mean, low, high = interval(claim.values)
            rows.append(
                {
                    "claim": claim.claim,
                    "paper": claim.paper,
                    "effect": claim.effect,
                    "ours": f"{mean:.3g} [{low:.3g}, {high:.3g}]",
                    "seeds": len(claim.values),
                    "p_holm": float(f"{p_holm:.2g}"),
                    "verdict": claim.verdict,
                }
            )
        return pd.DataFrame(rows)

    def text(self) -> str:
        """Return the table as text, the claims of each effect together."""
        parts = []
        for effect, rows in self.table().groupby("effect", sort=False) if self.claims else ():
            parts.append(f"{effect}:\n{rows.drop(columns='effect').to_string(index=False)}\n")
        return "\n".join(parts)

    def failed(self) -> list[Invariant]:
        """Return the invariants that do not hold."""
        return [invariant for invariant in self.invariants if not invariant.holds]


def whole_seeds(seeds: Sequence[int], of: Callable[[int], Found]) -> list[Found]:
    """Return what a function finds of each seed; after Ctrl-C, of the seeds that are whole.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C before the first seed was whole.

    Examples
    --------
    >>> from bridges.studies.claims import whole_seeds
    >>> whole_seeds(range(3), lambda seed: seed**2)
    [0, 1, 4]
    """
    found: list[Found] = []
    try:
        with warnings.catch_warnings():
            # what describe, score_sets or a training keeps of Ctrl-C makes no whole seed
            warnings.filterwarnings("error", "Interrupted|Training was stopped", RuntimeWarning)
            for seed in tqdm(seeds, desc="seeds"):
                found.append(of(seed))
    except BaseException as error:
        if not _interrupted(error):
            raise
        if not found:
            raise KeyboardInterrupt from error
    return found


def _interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C is behind an error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def stacked(found: Sequence[Any]) -> Any:
    """Return the numbers of all seeds, by name, those of a seed on the last axis.

    Examples
    --------
    >>> from bridges.studies.claims import stacked
    >>> stacked([{"psi": [1.0, 2.0]}, {"psi": [3.0, 4.0]}])["psi"].tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    if isinstance(found[0], Mapping):
        return {name: stacked([one[name] for one in found]) for name in found[0]}
    return np.stack([np.asarray(one, dtype=np.float64) for one in found], axis=-1)


def provenance(command: str) -> dict[str, str]:
    """Return what makes a study: the command, the commit as it is now, and torch's version."""
    import torch

    return {"command": command, "commit": _commit(), "torch": torch.__version__}


def save_study(study: Study, path: str | PathLike[str]) -> None:
    """Write a study as JSON, whole or not at all."""
    text = json.dumps(asdict(study), indent=1, default=_plain, allow_nan=True)
    with atomic_path(Path(path)) as part:
        part.write_text(_narrow(text) + "\n")


def load_study(path: str | PathLike[str]) -> Study:
    """Read a study that `save_study` wrote.

    Raises
    ------
    ValueError
        Another kind of file.
    """
    content = json.loads(Path(path).read_text())
    try:
        claims = tuple(Claim(**c | {"values": tuple(c["values"])}) for c in content.pop("claims"))
        invariants = tuple(Invariant(**i) for i in content.pop("invariants"))
        seeds = tuple(content.pop("seeds"))
        return Study(claims=claims, invariants=invariants, seeds=seeds, **content)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Expected a study that save_study wrote in '{path}', got {error}: run "
            "python -m bridges.studies again."
        ) from error


def _plain(value: Any) -> Any:
    """Return arrays and their scalars as JSON has them, in six digits."""
    if hasattr(value, "tolist"):
        return _rounded(value.tolist())
    raise TypeError(f"{type(value).__name__} is not JSON")


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _narrow(text: str) -> str:
    """Return JSON with the innermost lists on one line each."""
    import re

    return re.sub(
        r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s*\n\s*", " ", m.group()).replace("[ ", "["), text
    )


def _commit() -> str:
    """Return the commit of the checkout that this module lies in, and whether it was changed."""
    here = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no checkout"
    return f"{commit} with changes" if changed else commit
