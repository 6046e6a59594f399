"""Level sets scored at equal n, with intervals, and against permuted sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, from_numpy
from tqdm import tqdm

from approx.decoder import as_array, check_deterministic, first_line, modules_of, whole
from approx.populations.columns import Floats, Integers, as_numbers
from approx.populations.levels import LevelSets
from approx.populations.scores import ScoreError, SetScores

Scorer = Callable[[Any], Any]
_WIDE = 1.959963984540054  # of a 95 % interval, in standard errors
_BATCH = 256  # images at a time, of scorers with a number an image


def score_sets(
    sets: LevelSets,
    data: Any,
    scorers: Mapping[str, Scorer],
    n: int = 150,
    repeats: int = 200,
    within: Literal["label"] | None = "label",
    null: Literal["permute"] | None = "permute",
    *,
    seed: int = 0,
    progress: bool = True,
) -> SetScores:
    """Score level sets at equal n, with intervals, and against permuted sets.

    Parameters
    ----------
    sets : LevelSets
        From `level_sets`.
    data : (N, ...) Tensor or array_like, or mapping from scorers' names to these
        What is scored: images, or features that are the same for all draws, in the table's order.
    scorers : mapping from names to callables
        From a batch of `data` to one number for each row, of which the mean is taken, or from a set
        of n to one number, such as `vendi`.
    n : int
        Members in every draw, fewer than the smallest set has.
    repeats : int
        Draws of every set, and permutations.
    within : {"label", None}
        "label" scores n members of one class at a time, and takes the mean over the classes that
        have more than n members in every set. None scores n members of a whole set.
    null : {"permute", None}
        "permute" scores permuted sets as well: members trade places with those of other sets with
        the same label, so that every set keeps its size and its mixture of classes. Without labels
        members of all sets trade places.
    seed : int
        Of the draws, which are the same for all scorers.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    SetScores
        Complete, or after Ctrl-C what was measured before it, with `complete` False and a warning.

    Raises
    ------
    ValueError
        Data of another length, no labels for "label", n that is not below the sets' sizes, or a
        scorer in training mode.
    ScoreError
        A scorer that raised, or whose number is not finite. The other scores are measured first,
        and are in its `partial`.
    KeyboardInterrupt
        Ctrl-C before anything was measured.

    Notes
    -----
    Draws are without replacement: repeated images would lower a diversity. The interval is that of
    the delete-d jackknife (J. Shao, C. Wu, 1989): n / (m - n) times the variance over the draws of
    n of m members estimates the variance of the score over other members; of classes the sum.

    For p each set, and each permuted one, is cut at random into blocks of n, and scores their mean.
    The largest deviation over the sets, in standard deviations over the permutations, corrects for
    their number (P. Westfall, S. Young, 1993). The least p is 1 / (1 + repeats).

    Cost: `repeats` times sets times classes calls of a scorer of sets, and m / n times as many for
    the null; of other scorers one call for every image.

    Examples
    --------
    >>> import numpy as np
    >>> from approx import level_sets, score_sets
    >>> from approx.populations import vendi
    >>> rng = np.random.default_rng(0)
    >>> psi = rng.random(120)
    >>> features = rng.normal(size=(120, 3)) + 4 * psi[:, None]  # ever more alike
    >>> sets = level_sets({"psi": psi, "label": np.arange(120) % 2}, bins=2)
    >>> found = score_sets(sets, features, {"vendi": vendi}, n=20, repeats=40, progress=False)
    >>> bool(found.score[0] > found.score[1]), bool(found.p.max() < 0.05)
    (True, True)
    """
    if within not in ("label", None) or null not in ("permute", None):
        raise ValueError(
            f"Expected within 'label' or None and null 'permute' or None, got {within!r} and "
            f"{null!r}: choose one of these."
        )
    n = whole(n, "n", "say how many members each draw has.", 2)
    repeats = whole(repeats, "repeats", "say how many draws.", 2)
    seed = whole(seed, "seed", "give another.", 0)
    if not isinstance(sets, LevelSets):
        raise ValueError(
            f"Expected level sets, got {type(sets).__name__}: make them by level_sets."
        )
    tables = _tables(data, scorers, len(sets.values))
    classes, parts = _parts(sets, within, n)
    plan = _Plan(parts, within == "label", n, repeats, null == "permute", seed)
    found: dict[str, _Found] = {}
    complete = True
    bar = tqdm(total=repeats * len(scorers), disable=not progress, unit="draw", dynamic_ncols=True)
    with bar:
        for name, scorer in scorers.items():
            found[name] = _Found.empty(plan)
            try:
                _measure(plan, found[name], tables[name], scorer, bar)
            except KeyboardInterrupt:
                complete = False
                if not any(np.isfinite(f.draws).any() for f in found.values()):
                    raise
                warnings.warn(
                    f"Interrupted while {name!r} was measured: the scores hold the draws before "
                    "it, and their `complete` is False.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
    result = _result(plan, found, sets, classes, complete)
    if result.failures:
        raise ScoreError(result) from next(f.cause for f in found.values() if f.cause is not None)
    return result


# -- what is drawn ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is drawn from: rows by set and by label."""

    parts: list[list[Integers]]
    within: bool
    n: int
    repeats: int
    permute: bool
    seed: int

    def cells(self, parts: list[list[Integers]]) -> list[list[Integers]]:
        """Return the rows of each set that are scored together."""
        return parts if self.within else [[np.concatenate(part)] for part in parts]

    def permuted(self, rng: np.random.Generator) -> list[list[Integers]]:
        """Return the parts after members of a label have traded places."""
        by_label = []
        for own in zip(*self.parts, strict=True):
            ends = np.cumsum([len(rows) for rows in own])[:-1]
            by_label.append(np.split(rng.permutation(np.concatenate(own)), ends))
        return [list(part) for part in zip(*by_label, strict=True)]


@dataclass(eq=False)
class _Found:
    """Scores of one scorer, NaN where there are none yet."""

    draws: Floats  # (sets, repeats, classes)
    observed: Floats  # (sets,), of blocks
    null: Floats  # (repeats, sets), of blocks
    failures: dict[str, str]
    cause: Exception | None = None

    @classmethod
    def empty(cls, plan: _Plan) -> _Found:
        cells = plan.cells(plan.parts)
        sets = len(cells)
        shapes = (sets, plan.repeats, len(cells[0])), (sets,), (plan.repeats, sets)
        return cls(*(np.full(shape, np.nan) for shape in shapes), failures={})

    def attempt(self, where: str, score: Callable[[], Any]) -> float:
        """Return a score, or NaN once it has failed there."""
        if where in self.failures:
            return np.nan
        try:
            value = float(score())
            if not np.isfinite(value):
                raise ValueError(f"a score of {value}")
        except Exception as error:
            return self.fail(where, error)
        return value

    def fail(self, where: str, error: Exception) -> float:
        """Note where and why the scorer failed first, and return NaN."""
        self.failures[where] = f"{type(error).__name__}: {first_line(error)}"
        self.cause = self.cause or error
        return np.nan


def _tables(data: Any, scorers: Mapping[str, Scorer], count: int) -> dict[str, Any]:
    """Return the data of each scorer, as many rows as the table has."""
    if not isinstance(scorers, Mapping) or not all(map(callable, scorers.values())) or not scorers:
        raise ValueError(
            f"Expected at least one scorer by name, got {scorers!r}: give a dictionary of "
            "functions."
        )
    found = {}
    for name, scorer in scorers.items():
        check_deterministic(modules_of(scorer), f"scorer {name!r}", "image")
        rows = data.get(name, ()) if isinstance(data, Mapping) else data
        found[name] = rows if isinstance(rows, Tensor) else as_array(rows)
        if found[name].shape[:1] != (count,):
            raise ValueError(
                f"Expected one row of data for each of {count} latents, got shape "
                f"{tuple(found[name].shape)} for {name!r}: give them in the order of the table."
            )
    return found


def _parts(
    sets: LevelSets, within: str | None, n: int
) -> tuple[tuple[Any, ...], list[list[Integers]]]:
    """Return the classes within which is scored, and rows by set and by label."""
    if within == "label" and sets.labels is None:
        raise ValueError(
            "Expected labels to score within them, got none: give level_sets labels=, or "
            "within=None."
        )
    of = np.zeros(len(sets.values)) if sets.labels is None else sets.labels
    classes = np.unique(of[np.concatenate(sets.members)])
    parts = [[rows[of[rows] == c] for c in classes] for rows in sets]
    smallest = np.array([min(len(part[i]) for part in parts) for i in range(len(classes))])
    most = int(smallest.max() if within == "label" else min(map(len, sets))) - 1
    if not 2 <= n <= most:
        where = "of some class in every set" if within == "label" else "in every set"
        raise ValueError(
            f"Expected n of 2 or more, and more than n members {where}, got n={n}: n can be up to "
            f"{most}; or ask for fewer bins."
        )
    if within is None:
        return (), parts
    kept = np.flatnonzero(smallest > n)
    return tuple(classes[kept].tolist()), [[part[i] for i in kept] for part in parts]


# -- measuring -------------------------------------------------------------------------------------


def _measure(plan: _Plan, found: _Found, data: Any, scorer: Scorer, bar: Any) -> None:
    """Fill in the scores of one scorer, a round of all sets at a time."""
    score = _prepared(plan, found, data, scorer)
    rng = np.random.default_rng(plan.seed)
    cells = plan.cells(plan.parts)

    def blocks(cell: Integers) -> float:
        rows = rng.permutation(cell)
        starts = range(0, len(rows) - plan.n + 1, plan.n)
        return float(np.mean([score(rows[i : i + plan.n]) for i in starts]))

    for r in range(plan.repeats):
        for s, row in enumerate(cells):
            drawn = [rng.choice(cell, plan.n, replace=False) for cell in row]
            for c, rows in enumerate(drawn):
                found.draws[s, r, c] = found.attempt(f"set {s}", lambda rows=rows: score(rows))
        if plan.permute and not found.failures:
            if r == 0:
                found.observed[:] = [_mean(found, f"set {s}", blocks, row)
                                     for s, row in enumerate(cells)]  # fmt: skip
            permuted = plan.cells(plan.permuted(rng))
            found.null[r] = [_mean(found, "a permuted set", blocks, row) for row in permuted]
        bar.update()


def _mean(
    found: _Found, where: str, blocks: Callable[[Integers], float], row: list[Integers]
) -> float:
    return float(np.mean([found.attempt(where, lambda cell=cell: blocks(cell)) for cell in row]))


def _prepared(plan: _Plan, found: _Found, data: Any, scorer: Scorer) -> Callable[[Integers], Any]:
    """Return a function from rows to a score; numbers of single images are taken once."""

    def scored(rows: Integers) -> Floats:
        some = data[from_numpy(rows).to(data.device)] if isinstance(data, Tensor) else data[rows]
        values = as_numbers(scorer(some), "a score")
        if values.shape not in ((), (len(rows),)):
            raise ValueError(
                f"Expected one number, or one for each of {len(rows)} images, got an array of "
                f"shape {values.shape}"
            )
        return values

    each: Floats | None = None
    for s, part in enumerate(plan.parts):
        rows = np.concatenate(part)
        try:
            first = scored(rows[: plan.n])
            if first.ndim == 0:
                return scored
            each = np.full(len(data), np.nan) if each is None else each
            for start in range(0, len(rows), _BATCH):
                some = rows[start : start + _BATCH]
                each[some] = scored(some)
        except Exception as error:
            found.fail(f"set {s}", error)
    if each is None:
        return scored
    numbers = each
    return lambda rows: numbers[rows].mean()


# -- what is made of it ----------------------------------------------------------------------------


def _result(
    plan: _Plan,
    found: Mapping[str, _Found],
    sets: LevelSets,
    classes: tuple[Any, ...],
    complete: bool,
) -> SetScores:
    cells = plan.cells(plan.parts)
    sizes = np.array([[len(cell) for cell in row] for row in cells])
    count = len(cells)
    columns: dict[str, list[Any]] = {}
    for name, f in found.items():
        score, error = _estimates(f.draws, sizes, plan.n)
        nulls, p = _against(f)
        rows = {
            "scorer": [name] * count, "set": range(count), "from_value": sets.edges[:-1],
            "to_value": sets.edges[1:], "members": sizes.sum(axis=1), "score": score,
            "score_low": score - _WIDE * error, "score_high": score + _WIDE * error,
            "null": nulls[0], "null_low": nulls[1], "null_high": nulls[2], "p": p,
        }  # fmt: skip
        for key, values in rows.items():
            columns.setdefault(key, []).extend(values)
    return SetScores(
        **{key: np.array(values) for key, values in columns.items()},
        by=sets.by,
        n=plan.n, repeats=plan.repeats, classes=classes, complete=complete,
        failures=tuple((name, *one) for name, f in found.items() for one in f.failures.items()),
    )  # fmt: skip


def _estimates(draws: Floats, sizes: Integers, n: int) -> tuple[Floats, Floats]:
    """Return the score of each set, and its standard error by the delete-d jackknife."""
    score, error = np.full((2, len(draws)), np.nan)
    for s, values in enumerate(draws):
        whole = values[np.isfinite(values).all(axis=1)]  # (draws, classes)
        if len(whole):
            score[s] = whole.mean()
        if len(whole) > 1:
            # the second term is that of a mean over few draws
            factors = n / (sizes[s] - n) + 1 / len(whole)
            error[s] = np.sqrt((factors * whole.var(axis=0, ddof=1)).sum()) / len(sizes[s])
    return score, error


def _against(found: _Found) -> tuple[Floats, Floats]:
    """Return mean and middle 95 % of the null (3, sets), and corrected p-values (sets,)."""
    null = found.null[np.isfinite(found.null).all(axis=1)]
    sets = len(found.observed)
    if not len(null) or not np.isfinite(found.observed).all():
        return np.full((3, sets), np.nan), np.full(sets, np.nan)
    nulls = np.stack([null.mean(axis=0), *np.quantile(null, [0.025, 0.975], axis=0)])
    # the observed sets are one more permutation, and are treated as the others
    every = np.vstack([found.observed, null])
    spread = every.std(axis=0)
    away = np.abs(every - every.mean(axis=0)) / np.where(spread > 0, spread, 1)
    # not below by rounding alone
    return nulls, (away.max(axis=1)[:, None] >= away[0] * (1 - 1e-9)).mean(axis=0)
