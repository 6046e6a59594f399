"""Scores of images: variety of a set, and one number an image."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from approx.decoder import (
    as_array,
    check_deterministic,
    first_line,
    modules_of,
    out_of_memory,
    pick,
)
from approx.populations.columns import Floats, as_numbers


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
        Features that are not finite numbers, not (n, F), or an order below 0.

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
    x, q = as_numbers(features, "features"), as_numbers(q, "the order q").item()
    if x.shape[:1] == (0,):
        return float("nan")
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
    if not (sizes > 0).all():
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
        Takes images (B, ...) and returns logits (B, C), in evaluation mode.

    Examples
    --------
    >>> import torch
    >>> from approx.populations import classifier_margin
    >>> classifier_margin(torch.nn.Identity())(torch.tensor([[1.0, 4.0, 2.5]])).tolist()
    [1.5]
    """

    def margin(images: Any) -> Floats:
        check_deterministic(modules_of(classifier), "classifier", "image")
        with torch.no_grad():
            logits = classifier(images)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
            raise ValueError(
                f"Expected logits ({len(images)}, C) of two classes or more from the classifier, "
                f"got {shape}: give a function that returns them."
            )
        largest = logits.double().topk(2, dim=1).values
        return (largest[:, 0] - largest[:, 1]).cpu().numpy()

    return margin


def reconstruction_error(
    encoder: Callable[[Any], Any], decoder: Callable[[Any], Any]
) -> Callable[[Any], Floats]:
    """Return a scorer of images: mean squared difference from what they are decoded to.

    Parameters
    ----------
    encoder, decoder : callable
        From images (B, ...) to latents and back, in evaluation mode: each to a tensor, or to what
        a VAE of diffusers returns.

    Examples
    --------
    >>> import torch
    >>> from approx.populations import reconstruction_error
    >>> halved = reconstruction_error(torch.nn.Identity(), lambda z: z / 2)
    >>> halved(torch.tensor([[2.0, 0.0], [4.0, 4.0]])).tolist()
    [0.5, 4.0]
    """

    def error(images: Any) -> Floats:
        z = encoded(encoder, images)
        check_deterministic(modules_of(decoder))
        with torch.no_grad():
            decoded = pick(decoder(z), None)
            if decoded.shape != images.shape:
                raise ValueError(
                    f"Expected images of shape {tuple(images.shape)} from the decoder, got "
                    f"{tuple(decoded.shape)}: reshape the one or the other."
                )
            apart = (decoded - images).flatten(1).double()
        return apart.square().mean(dim=1).cpu().numpy()

    return error


def encoded(encoder: Callable[[Any], Any], images: Tensor) -> Tensor:
    """Return one latent for each image, of an encoder in evaluation mode."""
    check_deterministic(modules_of(encoder), "encoder", "image")
    count = len(images)
    try:
        with torch.no_grad():
            found = encoder(images)
    except (RuntimeError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"Expected an encoder that runs on {count} images {tuple(images.shape[1:])} of "
            f"{images.dtype}, got {type(error).__name__}: {first_line(error)}: check their shape, "
            "dtype and device."
        ) from error
    with torch.no_grad():
        if hasattr(found, "latent_dist"):
            found = found.latent_dist.mode()
        elif hasattr(found, "latents"):
            found = found.latents
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != count:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"Expected latents ({count}, *latent_shape) of the encoder, got {got}: give a function "
            "that returns them, such as lambda x: encoder(x)[0]."
        )
    return found.detach()


def compressed_size(images: Any) -> Floats:
    """Return the bytes of each image (N, ...), compressed: a measure of its complexity.

    Pixels are bytes, or numbers in [0, 1], which are rounded to 8 bits; zlib of level 9 compresses
    them.

    Raises
    ------
    ValueError
        Pixels that are neither.

    Examples
    --------
    >>> import numpy as np
    >>> from approx.populations import compressed_size
    >>> flat, noise = np.ones((8, 8)), np.random.default_rng(0).random((8, 8))
    >>> bool(np.greater(*compressed_size(np.stack([noise, flat]))))
    True
    """
    pixels = as_array(images)
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * as_numbers(pixels, "images"))
    if pixels.ndim < 2 or not ((pixels >= 0) & (pixels <= 255)).all():
        ends = f" with entries from {pixels.min() / 255:.3g} to {pixels.max() / 255:.3g}"
        raise ValueError(
            f"Expected images (N, ...) of bytes, or of numbers in [0, 1], got shape {pixels.shape}"
            f"{ends if pixels.size else ''}: scale or clamp them, and leave out those with NaN."
        )
    whole = pixels.astype(np.uint8)
    return np.array([float(len(zlib.compress(p.tobytes(), 9))) for p in whole])


def confounds(images: Any, latents: Any = None) -> dict[str, Floats]:
    """Return what psi, nu and delta may merely stand for, a number for each image.

    Parameters
    ----------
    images : (N, ...) Tensor or array_like
        As for `compressed_size`.
    latents : (N, ...) Tensor or array_like, optional

    Returns
    -------
    dict
        "ink", the mean pixel in [0, 1], "compressed_size", and with latents their "norm", each
        (N,).

    Raises
    ------
    ValueError
        As `compressed_size`; not one latent for each image.

    Examples
    --------
    >>> import torch
    >>> from approx.populations import confounds
    >>> found = confounds(torch.full((2, 4, 4), 0.5), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> found["ink"].tolist(), found["norm"].tolist()
    ([0.5, 0.5], [5.0, 1.0])
    """
    sizes, pixels = compressed_size(images), as_array(images)
    white = 255 if pixels.dtype == np.uint8 else 1
    ink = as_numbers(pixels, "images").mean(axis=tuple(range(1, pixels.ndim))) / white
    found = {"ink": ink, "compressed_size": sizes}
    if latents is not None:
        z = as_numbers(latents, "latents")
        if z.shape[:1] != sizes.shape:
            raise ValueError(
                f"Expected one latent for each of {len(sizes)} images, got shape {z.shape}: give "
                "those of these images."
            )
        found["norm"] = np.sqrt(np.square(z).sum(axis=tuple(range(1, z.ndim))))
    return found
