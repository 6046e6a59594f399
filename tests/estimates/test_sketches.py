"""Probes, sketches from both sides, the range finder and block Krylov, on prescribed spectra."""

from __future__ import annotations

import math

import pytest
import torch
from support.decoders import DECODERS, latents
from support.matrices import Matrices, jacobians, with_values

from approx import JacobianOperator
from approx.sketches import probes
from approx.sketches.krylov import block_krylov, overlooked
from approx.sketches.probes import Probes, gaussian, haar, orthonormal, triangle
from approx.sketches.projections import input_sketch, output_sketch, range_finder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DECAY = torch.arange(1, 301, dtype=torch.float64) ** -0.5


@pytest.fixture(scope="module")
def tall() -> Matrices:
    return Matrices(with_values(DECAY, 500, 300)[None])


def test_haar_columns_are_orthonormal_and_the_first_do_not_depend_on_how_many():
    q = haar(200, 30, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(q.T @ q, torch.eye(30).double(), rtol=0, atol=1e-13)
    few = haar(200, 7, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(few, q[:, :7], rtol=0, atol=1e-13)


def test_haar_is_haar_and_not_what_lapack_makes_of_signs():
    corner = torch.stack(
        [haar(3, 3, generator=seeded(s), dtype=torch.float64) for s in range(2000)]
    )
    # E q_ij = 0, E q_ij^2 = 1 / 3, E det = 0: five standard errors
    assert corner.mean(dim=0).abs().max() < 5 / math.sqrt(3 * 2000)
    assert (corner.square().mean(dim=0) - 1 / 3).abs().max() < 5 * math.sqrt(4 / 45 / 2000)
    assert torch.linalg.det(corner).mean().abs() < 5 / math.sqrt(2000)


def test_haar_does_not_depend_on_dtype():
    wide = haar(60, 5, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(haar(60, 5, generator=seeded()).double(), wide, rtol=0, atol=1e-7)


@pytest.mark.parametrize("k", [0, 6])
def test_haar_refuses_more_columns_than_rows(k: int):
    with pytest.raises(ValueError, match=f"Expected k between 1 and rows = 5, got {k}: ask for"):
        haar(5, k, generator=seeded())


@pytest.mark.parametrize("rows", [40, 100, 5000])
def test_triangle_is_the_factor_of_qr(rows: int):
    g = gaussian(rows, 40, generator=seeded(), dtype=torch.float64)
    q = torch.linalg.solve_triangular(triangle(g), g, upper=True, left=False)
    # the square case is nearly singular: an orthonormal factor all the same
    torch.testing.assert_close(q.T @ q, torch.eye(40).double(), rtol=0, atol=1e-9)
    expected = haar(rows, 40, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DECODERS)
def test_output_sketch_has_the_singular_values_of_w_times_the_dense_jacobian(name: str):
    module, shape = DECODERS[name]()
    z = latents(shape)
    J = jacobians(module, z)
    with JacobianOperator(module, z, dtype=torch.float64) as op:
        for k in (1, 5, min(op.rows, op.columns)):
            W = haar(op.rows, k, generator=seeded(3), dtype=torch.float64).T
            expected = torch.linalg.svdvals(W @ J)
            found = output_sketch(op, k, seeded(3))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            V = haar(op.columns, k, generator=seeded(3), dtype=torch.float64)
            expected = torch.linalg.svdvals(J @ V)
            found = input_sketch(op, k, seeded(3))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_sketch_in_half_precision_is_orthogonalised_in_double(tall: Matrices):
    W = haar(500, 40, generator=seeded(), dtype=torch.float64).T
    expected = torch.linalg.svdvals(W @ tall.J)
    found = output_sketch(Matrices(tall.J.bfloat16()), 40, seeded())
    assert found.dtype == torch.float64
    # 8 bits in every entry: relative 4e-3 at random signs
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("sketch", [output_sketch, input_sketch])
def test_sketches_refuse_more_values_than_there_are(sketch, tall: Matrices):
    message = r"Expected k between 1 and min\(outputs, latent size\) = 300, got 301"
    with pytest.raises(ValueError, match=message):
        sketch(tall, 301, seeded())


def test_orthonormal_fills_up_what_has_no_direction():
    basis = orthonormal(torch.randn(2, 20, 6, generator=seeded(), dtype=torch.float64))
    y = torch.zeros(2, 20, 5, dtype=torch.float64)
    y[1, :, :3] = basis[1, :, :3]
    q = torch.cat([basis, orthonormal(y, basis)], dim=2)
    torch.testing.assert_close(
        q.mT @ q, torch.eye(11).double().expand(2, -1, -1), rtol=0, atol=1e-12
    )


def test_range_finder_bounds_from_below_and_estimates_what_it_missed(tall: Matrices):
    errors = []
    for seed in range(40):
        found = range_finder(tall, 60, generator=seeded(seed), power=2, held_out=8)
        assert (found.singular_values <= DECAY[:60] + 1e-12).all()
        assert found.products == 2 * 70 * 3 + 8
        errors.append(found.error)
    assert (found.singular_values[0] / DECAY[:60] > 0.9).all()
    # no rank-70 projection misses less, and two power iterations miss little more
    best = DECAY[70:].square().sum().sqrt()
    mean = torch.cat(errors).square().mean().sqrt()
    assert best < mean * 1.03
    assert mean < 1.05 * best


def test_range_finder_error_is_that_of_its_range():
    """Against the range itself, which the values of a low-rank matrix reveal."""
    J = with_values(torch.tensor([3.0, 2, 1]), 50, 40)[None]
    found = range_finder(Matrices(J), 3, generator=seeded())
    torch.testing.assert_close(found.singular_values[0], torch.tensor([3.0, 2, 1]).double())
    assert found.error < 1e-10


def test_range_finder_does_not_depend_on_its_held_out_probes(tall: Matrices):
    few = range_finder(tall, 20, generator=seeded(), held_out=2)
    many = range_finder(tall, 20, generator=seeded(), held_out=50)
    assert torch.equal(few.singular_values, many.singular_values)
    assert many.error_stderr < few.error


@pytest.mark.parametrize(
    ("argument", "value", "least"), [("power", -1, 0), ("oversample", -1, 0), ("held_out", 1, 2)]
)
def test_range_finder_refuses(argument: str, value: int, least: int, tall: Matrices):
    with pytest.raises(ValueError, match=f"Expected {argument} >= {least}, got {value}"):
        range_finder(tall, 3, generator=seeded(), **{argument: value})


def test_block_krylov_bounds_the_values_from_both_sides(tall: Matrices):
    found = block_krylov(tall, 120, generator=seeded())
    assert found.products == 440
    values, upper = found.singular_values[0], found.upper
    assert upper is not None
    assert (values <= DECAY[:120] + 1e-12).all()
    assert (upper[0] >= DECAY[:120] - 1e-12).all()
    torch.testing.assert_close(values[:60], DECAY[:60], rtol=1e-9, atol=0)
    torch.testing.assert_close(upper[0, :60], DECAY[:60], rtol=1e-9, atol=0)
    # the space of 204 directions misses no less than the best, and at most a fifth more
    best = DECAY[204:].square().sum().sqrt()
    assert best - 3 * found.error_stderr < found.error < 1.2 * best + 3 * found.error_stderr


@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (30, 30), (3, 50), (50, 3)])
def test_block_krylov_is_exact_once_its_space_is_the_whole(shape: tuple[int, int]):
    J = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64)
    k = min(shape)
    found = block_krylov(Matrices(J), k, block=7, depth=12, generator=seeded(1))
    torch.testing.assert_close(
        found.singular_values, torch.linalg.svdvals(J), rtol=1e-10, atol=1e-12
    )
    assert found.upper is not None
    torch.testing.assert_close(found.upper, found.singular_values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_block_krylov_survives_exhausted_directions(rank: int):
    values = torch.linspace(2, 1, rank, dtype=torch.float64)
    J = torch.zeros(2, 80, 70, dtype=torch.float64)
    if rank:
        J[1] = with_values(values, 80, 70)
    found = block_krylov(Matrices(J), 12, block=10, depth=4, generator=seeded())
    expected = torch.zeros(2, 12, dtype=torch.float64)
    expected[1, :rank] = values
    torch.testing.assert_close(found.singular_values, expected, rtol=0, atol=1e-12)
    assert found.upper is not None
    torch.testing.assert_close(found.upper, found.singular_values, rtol=0, atol=1e-10)


def test_block_krylov_goes_on_at_random_where_a_start_is_exhausted():
    """Every direction takes two: its start, and the part of that which J does not take to 0."""
    J = torch.zeros(2, 60, 50, dtype=torch.float64)
    J[:, :40, 30:] = with_values(torch.ones(20), 40, 20)
    J[1, :, :] *= 1e-3
    found = block_krylov(Matrices(J), 20, block=1, depth=41, generator=seeded())
    expected = torch.tensor([1.0, 1e-3]).double()[:, None].expand(-1, 20)
    torch.testing.assert_close(found.singular_values, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("size", "width", "half_steps"), [(40, 1, 2), (200, 1, 4), (200, 4, 3)])
def test_what_a_krylov_space_overlooks_is_bounded_with_the_probability_that_is_said(
    size: int, width: int, half_steps: int
):
    """On spectra that hide one value as well as can be: all others at the Chebyshev nodes."""
    level, runs = 0.9, 2000
    angles = (2 * torch.arange(size - 1, dtype=torch.float64) + 1) * math.pi / half_steps
    others = (angles / 2).cos().abs()
    x = torch.randn(runs, size, width, generator=seeded(), dtype=torch.float64)
    error = math.sqrt(level * (1 - level) / runs)
    growth = overlooked(size, width, half_steps, level)
    assert _held(growth, others, x, half_steps) > level - 3 * error
    # a bound that is a third less would not do
    assert _held(1 + (growth - 1) * 2 / 3, others, x, half_steps) < level - 3 * error


def _held(growth: float, others: torch.Tensor, x: torch.Tensor, half_steps: int) -> float:
    """Share of the starts that see enough of the largest value, which is `growth`."""
    s = torch.cat([torch.tensor([growth], dtype=torch.float64), others])
    return float((_largest_ritz(s, x, half_steps) >= 1).double().mean())


def _largest_ritz(s: torch.Tensor, x: torch.Tensor, half_steps: int) -> torch.Tensor:
    """Oracle: of diag(s) and starts x (n, size, width), in explicitly powered bases."""
    powers = [s[:, None] ** (2 * j) * x for j in range((half_steps + 1) // 2)]
    v = torch.linalg.qr(torch.cat(powers, dim=2)).Q
    left = torch.linalg.qr(s[:, None] * v).Q if half_steps % 2 == 0 else None
    return torch.linalg.matrix_norm(s[:, None] * (v if left is None else left), ord=2)


def test_block_krylov_refuses_too_few_held_out_probes(tall: Matrices):
    with pytest.raises(ValueError, match="Expected held_out >= 2, got 1"):
        block_krylov(tall, 50, held_out=1, generator=seeded())


def test_block_krylov_refuses_a_space_too_small(tall: Matrices):
    with pytest.raises(ValueError, match=r"Expected block \* depth >= k = 50, got 10 \* 4"):
        block_krylov(tall, 50, block=10, depth=4, generator=seeded())


def test_probes_do_not_depend_on_the_default_dtype():
    before = gaussian(50, 3, generator=seeded())
    torch.set_default_dtype(torch.float64)
    try:
        after = gaussian(50, 3, generator=seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, after)


@pytest.mark.parametrize("rows", [500, 60])
def test_probes_are_drawn_and_factored_once(rows: int, monkeypatch):
    """Whether in one block or in two; with the columns that a generator of the seed gives."""
    op = Matrices(torch.ones(1, rows, 40).double())
    kept = Probes(5)
    first, factor = kept.block(op, 12)
    monkeypatch.setattr(probes, "gaussian", None)
    assert kept.block(op, 12)[0] is first
    assert kept.block(op, 12)[1] is factor
    monkeypatch.undo()
    more, factor = kept.block(op, 12, 30)
    expected = haar(rows, 30, generator=seeded(5), dtype=torch.float64)
    together = torch.cat([first, more], dim=1)
    q = torch.linalg.solve_triangular(factor, together, upper=True, left=False)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-9)
    last, factor = kept.block(op, 12, 30, 36)  # a third after the two
    expected = haar(rows, 36, generator=seeded(5), dtype=torch.float64)
    together = torch.cat([together, last], dim=1)
    q = torch.linalg.solve_triangular(factor, together, upper=True, left=False)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-9)
