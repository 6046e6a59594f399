"""psi, nu and delta of a stream of latents, as a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from approx.decoder import Bound, Factory, Output, opened
from approx.spectra import draw_seed
from approx.tables.batches import Batches, stream
from approx.tables.chunks import Job, here
from approx.tables.clustered import by_parts, on_workers
from approx.tables.loop import run
from approx.tables.plan import Neighbourhood, Options, check_options, settle
from approx.tables.sources import Images, in_batches, source_of
from approx.tables.stored import describe_to
from approx.tables.table import Descriptors

if TYPE_CHECKING:
    from distributed import Client


def describe(
    decoder: Callable[[Tensor], Any] | Factory | str | os.PathLike[str],
    latents: Tensor | ArrayLike | Iterable[Any] | Images,
    *,
    k: int | None = None,
    neighbourhood: Neighbourhood | None = (4, 1e-5),
    method: str = "auto",
    batch: int | Literal["auto"] = "auto",
    progress: bool = True,
    generator: torch.Generator | int | None = None,
    seed: int | None = None,
    output: Output | None = None,
    dtype: torch.dtype | None = None,
    products: int = 16,
    knots_method: Literal["jvp", "hull"] = "jvp",
    knots_dtype: torch.dtype | None = None,
    max_bytes: float = 1e9,
    straight_through: bool = False,
    on_error: Literal["raise", "nan"] = "raise",
    total: int | None = None,
    store: str | os.PathLike[str] | None = None,
    chunk: int | Literal["auto"] = "auto",
    client: Client | None = None,
) -> Descriptors:
    """Return psi, nu and delta of every latent: a table with one row a latent.

    Parameters
    ----------
    decoder : callable, Factory, str or path
        Takes (B, *latent_shape); a torch module, a bound method of one, a function, or what
        `bind` returns where it has further arguments. Or where to get it: a `Factory`, the name of
        a .pt2 or .onnx file, or the folder or the hub's name of an autoencoder of diffusers.
    latents : Tensor, array_like, iterable or Images
        (N, *latent_shape), or any iterable, which is read as it is needed: of latents
        (*latent_shape) or of batches (B, *latent_shape). An item with one axis is a latent; for
        others the first item decides, by whether the decoder runs on its first entry. Of a tuple
        or list, as a DataLoader gives, the first entry is taken. Tensors are on the decoder's
        device, which is where everything is computed: CPU, CUDA or MPS. NumPy arrays are moved
        there and take the decoder's dtype. Arrays that are not in memory (a memmap, or Zarr's,
        xarray's and Dask's) are read piece by piece.
    k : int, optional
        Singular values behind psi and nu; by default all where the whole Jacobian is taken, and
        min(120, d, D) otherwise.
    neighbourhood : (int or Tensor, float) or None
        P, or the directions themselves (P, d), and r of the cross-polytope in which knots are
        counted, the same directions for all latents. A P above d is taken as d. None leaves delta
        out.
    method : {"auto", "exact", "predict", "paper", "topk"}
        How psi and nu are estimated, see `spectrum`. "auto" takes the whole Jacobian wherever
        min(d, D) <= 120, so that psi is the log-volume change, and "predict" elsewhere, which is
        about psi_W. The table's `definition` says which.
    batch : int or "auto"
        Latents at a time. "auto" runs the first one alone, and then as many as fit half of the free
        memory, up to 4,096, and take 5 s. Batches are halved when memory runs out.
    progress : bool
        Whether to show a bar.
    generator : torch.Generator or int, optional
        A seed, or a CPU generator from which one is drawn; by default one from the operating
        system. Recorded in the result.
    seed : int, optional
        The same as an integer for `generator`.
    output : callable, str or int, optional
        Picks the tensor from what the decoder returns: a function of it, a key, a position or an
        attribute (".sample"); by default itself or its `.sample`.
    dtype : torch.dtype, optional
        By default float32, or float64 for float64 latents and for "exact". torch.float64 runs a
        copy of the decoder; torch.bfloat16 and torch.float16 run it under autocast. See Notes.
    products : int
        Jacobian products with which "predict" begins.
    knots_method : {"jvp", "hull"}
        How knots are counted, see `knots`.
    knots_dtype : torch.dtype, optional
        What they are counted in; by default as `dtype`, but at least float32. `delta_error` says
        whether that decides enough of them: for large decoders and radii torch.float64 may be
        needed, at 1 + P forward passes in it.
    max_bytes : float
        The largest dense Jacobian for "exact".
    straight_through : bool
        Whether to accept a decoder whose autograd derivative is not that of what it computes
        (straight-through estimators, `detach`, `torch.no_grad` inside). It is refused otherwise.
    on_error : {"raise", "nan"}
        What a latent does that cannot be described: it ends the job, with the rows before it in
        the exception, or it gets a row of NaN and an entry in the table's `failures`.
    total : int, optional
        How many latents an iterable has, for the bar.
    store : str or path, optional
        A folder, or a URL that fsspec opens (``s3://...``), where rows are written as they are
        done; extra ``cpwl[table]``. The same call again does what is missing there; with more
        latents behind the same ones, also these. See Notes.
    chunk : int or "auto"
        Rows of the store that are written together, a multiple of the batch. "auto" takes about
        45 s, and at most 16,384 rows: what an interruption may lose.
    client : distributed.Client, optional
        Does the work on a cluster of Dask (extra ``cpwl[cluster]``), with `store`. Each worker gets
        the decoder once, or loads it from its path, on its own GPU, and does chunks with as many
        threads as it has. Latents in memory are sent with each chunk; Zarr's and xarray's are read
        and Dask's computed by the workers, and `Images` encoded. See Notes.

    Returns
    -------
    Descriptors
        Complete, or after Ctrl-C the latents before it, with `complete` False and a warning. With
        a store `StoredDescriptors`, which reads a column where it is asked for.

    Raises
    ------
    ValueError
        Latents, k, the neighbourhood or an option are not as said above; no latents.
    DecoderError
        The decoder is not deterministic, mixes the latents of a batch, returns no finite tensor
        with a gradient, or has a derivative that is not autograd's; `bind` was given rows for
        another number of latents.
    DescribeError
        Any exception after the first batch (with a store: chunk): `.partial` holds the rows before.
    StoreError
        The store is of another run, which differs in what is named: latents, weights, an option,
        the version of cpwl, ...; another run is on it; it is damaged; it cannot be written to.
        What is in it stays as it was.
    ImportError
        A store without zarr, a client without distributed; workers without cpwl, or with another
        version of it or of torch.
    ConnectionError
        A client that is closed or has no workers, or whose scheduler is gone.
    KeyboardInterrupt
        Ctrl-C before any latent was done.

    Notes
    -----
    The same seed gives the same table whatever the batches are, to rounding: probes and directions
    are common to all latents (so the errors of different latents are correlated).

    Cost per latent: psi and nu take one forward pass and the products of `method`; delta takes one
    more that carries P tangents, worth 1 + P forward passes ("hull": 2 P). Memory does not grow
    with the number of latents but for their rows.

    What bfloat16 changed, same probes, on four latents each. TAEF2 at 32 x 16 x 16 (k = 120 of
    8,192): psi by 0.1 to 0.7 of -180 to -300, nu by 0.07 or less of 112 to 118, both within their
    standard errors for "predict"; 2 to 5 times faster on a CPU with bfloat16 units. The SD 1.5
    approximation at 4 x 16 x 16 (k = 120 of 1,024): psi by 0.5, nu by 0.15. DCGAN faces (k = 100 of
    100, so that psi holds the smallest singular values): psi by 0.6 to 8.6, nu by 0.17 or less:
    there use float32. Knots are then counted in float32: in bfloat16 TAEF2's delta was 1,400
    instead of 1, with every unit undecided.

    A store keeps what its rows depend on: options, seed (drawn once), batch and chunk (by a trial
    of a second or two), digests of latents and weights, and a few outputs. Its rows are those of
    one run with the store's batch, bit for bit on the same kind of device with as many threads, and
    to rounding elsewhere. A chunk is done when the file that tells of it is there, which is
    written last: a run that is killed, or whose disk is full, loses the chunk in work. A run holds
    a lock on its store; one whose process is gone is taken over with a warning. Unfinished or
    not, it is a Zarr group, which ``xarray.open_zarr(store, consolidated=False)`` opens.

    On a cluster this process alone writes, so that workers need no common file system. A worker's
    death costs its chunk, which another does. A worker on which a chunk fails that another one does
    is left out with a warning; what fails on three is raised. Chunks are tried for on one worker.

    psi, nu and delta after A. I. Humayun et al., "What secrets do your manifolds hold?", 2024;
    `spectrum` and `knots` say how they are estimated.

    Examples
    --------
    >>> import torch
    >>> from approx import describe
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> table = describe(decoder, torch.rand(5, 2), neighbourhood=(2, 0.1), progress=False)
    >>> table.psi.shape, table.delta.shape, table.k
    ((5,), (5,), 2)
    >>> table.definition
    'psi, nu: singular values of J, all 2, dense'
    """
    options = Options(
        k=k,
        neighbourhood=neighbourhood,
        method=method,
        batch=batch,
        progress=progress,
        seed=seed_of(generator, seed),
        output=output,
        dtype=dtype,
        products=products,
        knots_method=knots_method,
        knots_dtype=knots_dtype,
        max_bytes=max_bytes,
        straight_through=straight_through,
        on_error=on_error,
    )
    check_options(options)
    if store is None and client is not None:
        raise ValueError("Expected store= with client=, got none: give a folder or a URL.")
    if store is None and chunk != "auto":
        raise ValueError(f"Expected store= with chunk={chunk}, got none: give both or neither.")
    found = _sources(decoder, latents, options, client)
    if isinstance(decoder, Bound) and found.length is not None:
        decoder.check(found.length)
    total = total if found.length is None else found.length
    if store is not None:
        drawn = generator is None and seed is None
        return describe_to(
            store, found.opening, found.length, options, chunk=chunk, own_seed=drawn, total=total
        )
    assert found.decoder is not None
    assert found.batches is not None
    return run(settle(found.decoder, found.batches, options), found.batches, total)


class _Found(NamedTuple):
    """A decoder and latents, opened here, and how a store's job is done with them."""

    opening: Callable[[Options], AbstractContextManager[Job]]
    length: int | None
    # None where only workers open them
    decoder: Callable[[Tensor], Any] | None = None
    batches: Batches | None = None


def _sources(decoder: Any, latents: Any, options: Options, client: Client | None) -> _Found:
    """Find out what latents are, and open what is needed here."""
    finite = options.on_error == "raise"
    encode = latents.encode if isinstance(latents, Images) else None
    source = None
    if client is not None or encode is not None:
        source = source_of(latents, finite=finite)
    if client is not None and source is not None:
        opening = partial(on_workers, client, decoder, source, encode)
        return _Found(opening, source.length)
    made = opened(decoder, latents.device if isinstance(latents, Tensor) else None)
    if source is not None and encode is not None:
        encoder = opened(encode)
        opening = partial(by_parts, made, source, encoder)
        return _Found(opening, source.length, made, in_batches(source, encoder))
    batches, count = stream(
        made, latents, output=options.output, dtype=options.dtype, finite=finite
    )
    if client is not None:
        return _Found(partial(on_workers, client, made, batches, None), count, made, batches)
    return _Found(partial(here, made, batches), count, made, batches)


def seed_of(generator: torch.Generator | int | None, seed: int | None) -> int:
    """Return the seed of a job: the one that is given, or one that is drawn."""
    if generator is not None and seed is not None:
        raise ValueError(
            f"Expected seed= or generator=, got seed={seed} and generator={generator}: leave one "
            "of them out."
        )
    return draw_seed(seed if generator is None else generator)
