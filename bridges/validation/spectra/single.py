"""psi of whole Jacobians from a decoder in float32, as `approx` gives it by default."""

from __future__ import annotations

import math

import numpy as np
import torch

from approx import JacobianOperator, spectrum
from approx.decoder import modules_of
from bridges.validation.autograd import SWITCHED, dense
from bridges.validation.spectra.haar import psi_nu, tolerance
from bridges.validation.spectra.result import Single
from bridges.validation.subject import Latents, Subject


def in_single(subject: Subject, at: Latents) -> Single | None:
    """Return psi from products in float32 beside the truth for the weights as they are stored.

    None for a decoder whose weights float32 would round: the truth is then that of others.
    """
    held = {p.dtype for module in modules_of(subject.decoder) for p in module.parameters()}
    if held != {torch.float32}:
        return None
    z = at.z.float()
    with JacobianOperator(subject.decoder, z, dtype=torch.float32) as op:
        found = spectrum(op, method="exact", max_bytes=math.inf)
        products = op.dense(math.inf).double().numpy()
    true = dense(subject.decoder, z.double(), subject.outputs).numpy()
    size = np.linalg.norm(true, axis=(1, 2))
    same = np.linalg.norm(products - true, axis=(1, 2)) <= SWITCHED * size
    values = np.linalg.svd(true, compute_uv=False)
    return Single(
        psi=found.psi.numpy(),
        error=found.psi_stderr.numpy(),
        exact=psi_nu(values, tolerance(*true.shape[1:]))[0],
        same=same,
        doubtful=found.doubtful.numpy(),
    )
