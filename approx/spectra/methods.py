"""The table of methods for psi and nu, and `spectrum`, which looks them up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from approx.sketches import Operator, Probes, check_count
from approx.spectra.asked import Asked, DenseOperator
from approx.spectra.dense import exact
from approx.spectra.drawn import paper
from approx.spectra.largest import topk
from approx.spectra.predicted import predict
from approx.spectra.result import Spectrum, draw_seed, named
from approx.spectra.rounding import settled

DEFAULT_K = 120
WHOLE = 120
"""Smaller sides up to which "auto" takes the whole Jacobian."""
_WIDE = 8  # bytes of a float64, in which singular values are computed


@dataclass(frozen=True)
class Method:
    """One way to psi and nu: what it measures, how, and what it claims.

    Attributes
    ----------
    definition : str
        What psi and nu are of, with {k} for the number of singular values.
    subscript : {"W", "k"}
        Of psi and nu: "W" for a random projection, "k" for the k largest singular values, which is
        left out where these are all.
    estimate : callable
        From an operator and an `Asked` to a `Spectrum`.
    held : callable
        From an operator and a number of products to the bytes that one latent takes at the most
        beside its graph: blocks of products, and their factors.
    claim : {"interval", "bound", "exact"}
        What `Spectrum.psi_interval` is: a 95 % interval for another draw of W, a bound on the
        error for the k largest singular values, or nothing but rounding.
    dense : bool
        Whether the Jacobian is written out: without probes and so without a seed, and by default
        for all min(D, d) singular values.
    """

    definition: str
    subscript: Literal["W", "k"]
    estimate: Callable[[DenseOperator, Asked], Spectrum]
    held: Callable[[Operator, int], float]
    claim: Literal["interval", "bound", "exact"]
    dense: bool = False


def running(name: str, op: Operator) -> str:
    """Return the name of the method that runs: what "auto" chooses for an operator."""
    if name != "auto":
        return name
    return "exact" if min(op.rows, op.columns) <= WHOLE else "predict"


def _rows(op: Operator, products: int) -> float:
    """Bytes of J^T y for all products, twice copied."""
    return 3 * _WIDE * products * op.columns


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "auto": Method(
            definition="as exact where min(D, d) <= 120, else as predict",
            subscript="W",
            estimate=lambda op, asked: METHODS[running("auto", op)].estimate(op, asked),
            held=lambda op, products: METHODS[running("auto", op)].held(op, products),
            claim="interval",
        ),
        "predict": Method(
            definition="singular values of W J, W ({k}, D) Haar, unscaled",
            subscript="W",
            estimate=predict,
            held=_rows,
            claim="interval",
        ),
        "paper": Method(
            definition="singular values of W J, W ({k}, D) Haar, unscaled",
            subscript="W",
            estimate=paper,
            held=_rows,
            claim="interval",
        ),
        "topk": Method(
            definition="singular values of J, the {k} largest, by block Krylov",
            subscript="k",
            estimate=topk,
            # half of the products are on each side
            held=lambda op, products: 3 * op.dtype.itemsize * products * (op.rows + op.columns) / 2,
            claim="bound",
        ),
        "exact": Method(
            definition="singular values of J, the {k} largest, dense",
            subscript="k",
            estimate=exact,
            held=lambda op, products: 3 * op.dtype.itemsize * op.rows * op.columns,
            claim="exact",
            dense=True,
        ),
    }
)
"""Every method by name. A new estimator is one entry here."""


def check_method(name: str) -> Method:
    """Return the method of a name, or refuse it."""
    if name not in METHODS:
        raise ValueError(f"Expected method in {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def defined(method: Method, k: int, subscript: str) -> str:
    """Return what psi and nu are of, beginning with their names."""
    text = method.definition.format(k=k)
    if not subscript:
        text = text.replace(f"the {k} largest", f"all {k}")
    return f"{named('psi', subscript)}, {named('nu', subscript)}: {text}"


def spectrum(
    op: DenseOperator,
    *,
    method: str = "auto",
    k: int | None = None,
    generator: torch.Generator | Probes | int | None = None,
    products: int = 16,
    block: int = 4,
    depth: int = 51,
    tolerance: float | None = None,
    max_bytes: float = 1e9,
) -> Spectrum:
    """Return psi and nu of every latent of an operator.

    Parameters
    ----------
    op : JacobianOperator
        Or anything with its products.
    method : {"auto", "predict", "paper", "topk", "exact"}
        "auto": the whole Jacobian, as "exact", where min(D, d) <= 120, and "predict" elsewhere;
        `used` says which. "paper": the k singular values of W J for a Haar W (k, D), from
        products J^T y, k and for the interval four more, at least 16 in all. "predict": the same
        quantity from fewer products, with an interval. Latents with 0.5 < k / r_eff <= 0.8 take
        k / 3 rows of W and a step of Lanczos more, 50 products for k = 120. Those with
        k / r_eff > 0.8, where the expectation is no longer safe to compute, take the products of
        "paper", and so do all latents where k <= products or k > 0.8 min(D, d); `used` says which.
        "topk": the k largest singular values of J by block Krylov, from 440 products. "exact": the
        k largest of the dense Jacobian.
    k : int, optional
        Number of singular values, at most min(D, d). By default 120, or min(D, d) where that is
        less; for the whole Jacobian all min(D, d).
    generator : torch.Generator, Probes or int, optional
        A seed, or a CPU generator from which one is drawn (`draw_seed`: calls with the same
        generator one after the other are independent). By default one from the operating system.
        Probes depend on the seed, D and k alone and are common to the latents of the call: values
        do not depend on batches, and errors of different latents are correlated. `Probes(seed)`,
        given to several calls, draws and factors them once.
    products : int
        For "predict": Jacobian products per latent to begin with, at least 8.
    block, depth : int
        For "topk": columns of the Krylov start, and blocks of the space.
    tolerance : float, optional
        Singular values at most this times the largest are zero: not part of psi. By default what
        float64 leaves of a zero, 32 eps = 7e-15. Products in lower precision decide about no zero
        of theirs, see Notes.
    max_bytes : float
        For "exact" by name: the largest dense Jacobian.

    Returns
    -------
    Spectrum
        psi and nu (B,) with errors, the definition and the products made.

    Raises
    ------
    ValueError
        If k is larger than the output or the latent, products < 8, the Jacobian is too large for
        "exact", or the method is unknown.

    Notes
    -----
    Rounding: products leave an error e of about 32 eps sigma_1 at the most, and log sigma_i one of
    e / sigma_i; together that is part of the stated errors. Singular values up to 10 e, 4e-5
    sigma_1 in float32, are in doubt: latents that have any are done again in float64, on a copy of
    the decoder with the weights as stored (`JacobianOperator.refined`), at about twice the cost of
    products in float32. In float64, or where there is no copy, psi is NaN if a value that may not
    be zero is at most 2 e, and `note` says why; nu hardly depends on such values. Half precision
    was asked for and is kept, but for the whole Jacobian: the error of its products is measured
    against two products in float32, and psi is NaN where a singular value is smaller.

    Cost: products as said, about one forward pass each; the rest is O(D k^2) once per call and
    O(d k^2) per latent. The error of a prediction falls as 1 / sqrt(products): at 16 it is about
    k / sqrt(20 r_eff) in psi. The leading order is psi_W ~ k log(||J||_F / sqrt D) -
    k^2 / (4 r_eff) and nu_W ~ k exp(-k / (8 r_eff)); the prediction replaces it by a deterministic
    equivalent (Hachem, Loubaton and Najim 2007) and a free compression (Nica and Speicher 2006),
    which are unbiased up to k / r_eff = 0.5. Beyond, psi and nu of the k / 3 rows themselves are
    control variates for those of k. Where k / r_eff is so near 0.5 or 0.8 that its own error
    decides, that choice selects, and means over seeds are then off by up to a few tenths of a
    standard error. "topk" is Golub-Kahan block bidiagonalisation (Musco and Musco
    2015); psi and nu of W J after A. I. Humayun et al., "What secrets do your manifolds hold?",
    2024.

    Examples
    --------
    >>> import torch
    >>> from approx import JacobianOperator, spectrum
    >>> z = torch.zeros(1, 2, dtype=torch.float64)
    >>> with JacobianOperator(lambda z: z * torch.tensor([3.0, 2.0]), z) as J:
    ...     found = spectrum(J)
    >>> round(float(found.psi), 4)  # log 3 + log 2
    1.7918
    """
    check_method(method)
    chosen, smaller = METHODS[running(method, op)], min(op.rows, op.columns)
    if k is None:
        k = smaller if chosen.dense else min(DEFAULT_K, smaller)
    check_count(k, smaller, "min(outputs, latent size)")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"Expected a relative tolerance in [0, 1), got {tolerance}.")
    subscript = "" if chosen.subscript == "k" and k == smaller else chosen.subscript
    asked = Asked(
        method=method,
        definition=defined(chosen, k, subscript),
        subscript=subscript,
        k=k,
        probes=None if chosen.dense else _probes(generator),
        tolerance=tolerance,
        products=products,
        block=block,
        depth=depth,
        max_bytes=math.inf if method == "auto" else max_bytes,
    )
    return settled(op, asked, chosen.estimate)


def _probes(generator: torch.Generator | Probes | int | None) -> Probes:
    return generator if isinstance(generator, Probes) else Probes(draw_seed(generator))
