"""Scores of images: variety of a set, and one number an image."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from approx.populations.columns import Floats, as_array


def vendi(features: ArrayLike, q: float = 1) -> float:
    """Return the Vendi score of features: an effective number of different ones, from 1 to n.

    Parameters
    ----------
    features : (n, F) array_like
        Rows may have any length but 0.
    q : float
        Order, at least 0. Small orders count rare features, and large ones the common ones alone.

    Returns
    -------
    float
        NaN for no features, or a row of zeros, which has no cosine.

    Raises
    ------
    ValueError
        Features that are not finite, not (n, F), or an order below 0.

    Notes
    -----
    exp of the Renyi entropy of order q of the eigenvalues of K / n, where K holds the cosines
    (D. Friedman, A. B. Dieng, "The Vendi score", 2023; orders: A. P. Pasarkar, A. B. Dieng,
    "Cousins of the Vendi score", 2024). Order 0 is the rank, 1 the entropy, inf one over the
    largest eigenvalue. Cost: a singular value decomposition, O(n F min(n, F)).

    Examples
    --------
    >>> from approx.populations import vendi
    >>> round(vendi([[1, 0], [0, 2]]), 6)
    2.0
    >>> round(vendi([[1, 0], [1, 0], [0, 2]], q=float("inf")), 6)
    1.5
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not q >= 0:
        raise ValueError(
            f"Expected features (n, F) and an order q >= 0, got {x.shape} and {q}: give one row of "
            "features for each image."
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(
            f"Expected finite features, got NaN or infinite ones in {len(bad)} of {len(x)} rows, "
            f"the first in row {bad[0]}: remove or replace them."
        )
    sizes = np.linalg.norm(x, axis=1, keepdims=True)
    if not len(x) or not (sizes > 0).all():
        return float("nan")
    values = np.linalg.svd(x / sizes, compute_uv=False)
    # order 0 would count rounding: the threshold of numpy's matrix_rank
    values = values[values > values[0] * max(x.shape) * np.finfo(np.float64).eps]
    shares = values**2 / len(x)
    if abs(q - 1) < 1e-6:  # nearer, the other formula is rounding
        return float(np.exp(-np.sum(shares * np.log(shares))))
    if np.isinf(q):
        return float(1 / shares[0])
    return float(np.sum(shares**q) ** (1 / (1 - q)))


def classifier_margin(classifier: Callable[[Any], Tensor]) -> Callable[[Any], Floats]:
    """Return a scorer of images: by how much a classifier's largest output leads the second.

    Parameters
    ----------
    classifier : callable
        Takes images (B, ...) and returns logits (B, C).

    Examples
    --------
    >>> import torch
    >>> from approx.populations import classifier_margin
    >>> classifier_margin(torch.nn.Identity())(torch.tensor([[1.0, 4.0, 2.5]])).tolist()
    [1.5]
    """

    def margin(images: Any) -> Floats:
        with torch.no_grad():
            largest = classifier(images).double().topk(2, dim=1).values
        return (largest[:, 0] - largest[:, 1]).cpu().numpy()

    return margin


def reconstruction_error(
    encoder: Callable[[Any], Any], decoder: Callable[[Any], Tensor]
) -> Callable[[Any], Floats]:
    """Return a scorer of images: mean squared difference from what they are decoded to.

    Parameters
    ----------
    encoder, decoder : callable
        From images (B, ...) to latents and back, each tensor to tensor.

    Examples
    --------
    >>> import torch
    >>> from approx.populations import reconstruction_error
    >>> halved = reconstruction_error(torch.nn.Identity(), lambda z: z / 2)
    >>> halved(torch.tensor([[2.0, 0.0], [4.0, 4.0]])).tolist()
    [0.5, 4.0]
    """

    def error(images: Any) -> Floats:
        with torch.no_grad():
            decoded = decoder(encoder(images))
            if decoded.shape != images.shape:
                raise ValueError(
                    f"Expected images of shape {tuple(images.shape)} from the decoder, got "
                    f"{tuple(decoded.shape)}: reshape the one or the other."
                )
            apart = (decoded - images).flatten(1).double()
        return apart.square().mean(dim=1).cpu().numpy()

    return error


def compressed_size(images: Any) -> Floats:
    """Return the bytes of each image (N, ...) in [0, 1], compressed: a measure of its complexity.

    Pixels are clamped to [0, 1] and rounded to 8 bits; zlib of level 9 compresses them.

    Raises
    ------
    ValueError
        NaN among the pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from approx.populations import compressed_size
    >>> flat, noise = np.ones((8, 8)), np.random.default_rng(0).random((8, 8))
    >>> bool(np.greater(*compressed_size(np.stack([noise, flat]))))
    True
    """
    pixels = as_array(images)
    if np.isnan(pixels).any():
        raise ValueError("Expected pixels in [0, 1], got NaN among them: remove those images.")
    whole = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return np.array([float(len(zlib.compress(p.tobytes(), 9))) for p in whole])


def confounds(images: Any, latents: Any = None) -> dict[str, Floats]:
    """Return what psi, nu and delta may merely stand for, a number for each image.

    Parameters
    ----------
    images : (N, ...) Tensor or array_like
        In [0, 1].
    latents : (N, ...) Tensor or array_like, optional

    Returns
    -------
    dict
        "ink", the mean pixel, "compressed_size", and with latents their "norm", each (N,).

    Examples
    --------
    >>> import torch
    >>> from approx.populations import confounds
    >>> found = confounds(torch.full((2, 4, 4), 0.5), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> found["ink"].tolist(), found["norm"].tolist()
    ([0.5, 0.5], [5.0, 1.0])
    """
    pixels = as_array(images).astype(np.float64)
    found = {
        "ink": pixels.reshape(len(pixels), -1).mean(axis=1),
        "compressed_size": compressed_size(images),
    }
    if latents is not None:
        z = as_array(latents).astype(np.float64)
        found["norm"] = np.linalg.norm(z.reshape(len(z), -1), axis=1)
    return found
