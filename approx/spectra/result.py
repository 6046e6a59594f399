"""`Spectrum`: psi and nu of a batch of latents, with their errors and definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from approx.decoder import whole


@dataclass(frozen=True, eq=False)
class Spectrum:
    """psi and nu of a batch of B latents, with their errors and the way they were estimated.

    All tensors are on the CPU, the real ones in float64. `spectrum` makes it.

    Attributes
    ----------
    psi, nu : (B,) tensor
        Local scaling, sum of log sigma_i, and local rank, exp(-sum alpha_i log alpha_i) with
        alpha_i = sigma_i / sum sigma + 1e-30, over the k singular values of `definition` that are
        not zero. Both are 0 for a zero Jacobian.
    psi_stderr, nu_stderr : (B,) tensor
        For "predict" and "paper": standard deviation of the difference between the value and psi_W
        of another, independent draw of W, so that the spread over W is in it (for "paper", twice).
        For the whole Jacobian what rounding may have done, which is part of the others too; NaN
        for "topk", whose error is a bound and not random.
    psi_interval, nu_interval : (B, 2) tensor
        95 % interval for psi_W of another draw, wider than needed for the mean over W. For "topk":
        it holds psi of the k largest singular values with 95 % confidence over the probes, whatever
        the spectrum; the value is its lower end up to rounding, as every value found is.
    effective_rank : (B,) tensor
        (sum sigma^2)^2 / sum sigma^4 over all of J, estimated from the products made; 0 for a zero
        Jacobian, NaN where k = 1 cannot tell.
    rank : (B,) int64 tensor
        How many of the k singular values are not zero, without doubt. k where "predict" did not
        fall back.
    fell_back : (B,) bool tensor
        Whether "predict" made all k products: the latent's numbers are then those of "paper".
    continued : (B,) bool tensor
        Whether "predict" took more products than it began with, and not all k.
    products : int
        Jacobian products per latent, J x and J^T y together; the batch's most. Those in float64
        count, and the two that measure the error of half precision do not.
    method, used : str
        The method asked for, and what ran: they differ for "auto", where "predict" took more
        products for some latents or fell back, and where latents were done again in float64.
    k : int
        Number of singular values.
    seed : int or None
        Gives the same result again as `generator=seed`; None where nothing is random.
    definition : str
        What psi and nu are of, beginning with their names.
    subscript : {"", "k", "W"}
        Of psi and nu: none for the whole Jacobian, "k" for its k largest singular values, "W" for
        those of W J.
    doubtful : (B,) int64 tensor
        How many of the singular values the precision of the products leaves in doubt.
    note : str
        Why psi is NaN, where it is; empty otherwise.
    tolerance : float
        Singular values at most this times the latent's largest count as zero, once they are known
        in float64.
    singular_values : (B, k) tensor or None
        Descending; NaN for latents that were predicted, None if all were.

    Examples
    --------
    >>> import torch
    >>> from approx import JacobianOperator, spectrum
    >>> with JacobianOperator(torch.nn.Linear(3, 5), torch.zeros(2, 3)) as J:
    ...     found = spectrum(J, method="paper", k=2, generator=0)
    >>> found.psi.shape, found.psi_interval.shape, found.products
    (torch.Size([2]), torch.Size([2, 2]), 5)
    >>> found.definition
    'psi_W, nu_W: singular values of W J, W (2, D) Haar, unscaled'
    """

    psi: Tensor
    nu: Tensor
    psi_stderr: Tensor
    nu_stderr: Tensor
    psi_interval: Tensor
    nu_interval: Tensor
    effective_rank: Tensor
    rank: Tensor
    fell_back: Tensor
    continued: Tensor
    products: int
    method: str
    used: str
    k: int
    seed: int | None
    definition: str
    subscript: str
    doubtful: Tensor
    note: str
    tolerance: float
    singular_values: Tensor | None


def draw_seed(generator: torch.Generator | int | None) -> int:
    """Return a seed: the integer itself, one drawn from the generator, or a fresh one.

    Call it once and pass the integer on where several operators must see the same probes.

    Parameters
    ----------
    generator : torch.Generator, int or None
        A CPU generator advances by one draw; None asks the operating system.

    Returns
    -------
    int
        Between 0 and 2^63 - 1, or the integer given.

    Raises
    ------
    ValueError
        A generator that is not on the CPU, or something else than these.

    Examples
    --------
    >>> import torch
    >>> from approx import draw_seed
    >>> draw_seed(7)
    7
    >>> draw_seed(torch.Generator().manual_seed(0)) == draw_seed(torch.Generator().manual_seed(0))
    True
    """
    if generator is None:
        return torch.Generator().seed() & (2**63 - 1)
    if isinstance(generator, torch.Generator):
        if generator.device.type != "cpu":
            raise ValueError(
                f"Expected a generator on the CPU, got one on {generator.device}: probes are drawn "
                "there so that a seed means the same on every device; use torch.Generator()."
            )
        return int(torch.randint(2**63 - 1, (), generator=generator))
    return whole(generator, "a seed", "give one, or a torch.Generator.", None)


def psi_nu(values: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return psi and nu, each (B,), of singular values (B, k) in descending order.

    psi = sum of log sigma_i over sigma_i > tolerance * sigma_1; nu over all of them. 0 and 0 where
    all are zero.
    """
    kept = values > tolerance * values[:, :1]
    _, surprisal = entropy(values)
    nu = torch.where(values.sum(dim=1) > 0, surprisal[:, 0].exp(), 0)
    return torch.where(kept, values, 1).log().sum(dim=1), nu


def entropy(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return log alpha (B, k) and -sum alpha log alpha (B, 1), alpha the shares in the sum."""
    total = values.sum(dim=1, keepdim=True)
    alpha = values / torch.where(total > 0, total, 1) + 1e-30
    return alpha.log(), -(alpha * alpha.log()).sum(dim=1, keepdim=True)


def named(name: str, subscript: str) -> str:
    """Return psi, psi_k or psi_W, and nu likewise."""
    return f"{name}_{subscript}" if subscript else name


def in_words(latents: int, continued: int, fell_back: int) -> str:
    """Say how many latents "predict" did in which way.

    Examples
    --------
    >>> from approx.spectra.result import in_words
    >>> in_words(8, 0, 8), in_words(8, 3, 5)
    ('paper', 'predict from more products for 3, paper for 5 of 8 latents')
    """
    every = {
        "predict": latents - continued - fell_back,
        "predict from more products": continued,
        "paper": fell_back,
    }
    found = [(how, count) for how, count in every.items() if count]
    if len(found) == 1:
        return found[0][0]
    return f"{', '.join(f'{how} for {count:,}' for how, count in found)} of {latents:,} latents"


def rows(found: Spectrum, where: Tensor) -> Spectrum:
    """Return a spectrum of the latents `where` (n,) alone."""
    every = {field.name: getattr(found, field.name) for field in fields(Spectrum)}
    return replace(found, **{k: v[where] for k, v in every.items() if isinstance(v, Tensor)})


def merged(found: Spectrum, where: Tensor, other: Spectrum) -> Spectrum:
    """Return `found` with the latents `where` (n,) from `other`, which has these alone."""
    taken = {}
    for field in fields(Spectrum):
        one, new = getattr(found, field.name), getattr(other, field.name)
        if isinstance(one, Tensor):
            missing = torch.full_like(one[where], math.nan) if new is None else new
            taken[field.name] = one.index_copy(0, where, missing)
    return replace(found, **taken)


def pair(low: Tensor, high: Tensor) -> Tensor:
    """Return intervals (B, 2) from their ends."""
    return torch.stack([low, high], dim=1)


def around(value: Tensor, half: Tensor) -> Tensor:
    """Return intervals (B, 2) from their centres and half widths."""
    return pair(value - half, value + half)


def student(freedom: Tensor) -> Tensor:
    """Return half the width of a 95 % interval in standard errors, Student's t, (B,).

    To 0.2 % from three degrees of freedom on, which is what fewer are taken for (Abramowitz and
    Stegun 1964, 26.7.5): scipy has it exactly, and takes a second to import.
    """
    n = freedom.clamp_min(3)
    t = torch.full_like(n, NORMAL)
    for power, term in enumerate(_STUDENT, start=1):
        t = t + term / n**power
    return t


NORMAL = z = 1.959963984540054
"""Half the width of a 95 % interval in standard errors."""
_STUDENT = (
    (z**3 + z) / 4,
    (5 * z**5 + 16 * z**3 + 3 * z) / 96,
    (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
)
