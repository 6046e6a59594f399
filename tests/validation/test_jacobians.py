"""The comparison of Jacobians: right where they are known, and failing where they are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import decoders
from support.samples import Skip, mlp
from support.subjects import Sawtooth, exact, perturbed, picked, smooth
from torch import Tensor, nn

import cpwl
from bridges.validation import jacobians
from bridges.validation.autograd import true_jacobians
from bridges.validation.subject import one_in_each, uniform

SQUARE = cpwl.box([-2.0, -2.0], [2.0, 2.0])


def plane(*shape: int, extent: float = 2.0) -> cpwl.Domain:
    """Return a square of a random plane through latents of a shape."""
    through = np.random.default_rng(5).standard_normal((3, *shape))
    return cpwl.Slice.through(*through).box([-extent, -extent], [extent, extent])


def all_agree(result: jacobians.Jacobians) -> bool:
    return all(row.agrees for row in result.rows)


def test_a_linear_map_is_its_own_jacobian():
    module, _ = decoders.linear([3.0, 1e-3], rows=5)
    found = exact(module, SQUARE)
    result = jacobians.measure(found)
    assert all_agree(result)
    assert picked(result.rows, statistic="compared")[0].value == 1
    at = uniform(found, 7, np.random.default_rng(0))
    truth = np.broadcast_to(module.weight.detach().numpy(), (7, 5, 2))
    np.testing.assert_array_equal(true_jacobians(found, at), truth)


def test_jacobians_of_an_arrangement_are_products_of_its_matrices():
    module = mlp(2, 9, 4, seed=3)
    found = exact(module, SQUARE)
    at = one_in_each(found, 1000, np.random.default_rng(1))
    first, second = module[0].double(), module[2].double()
    on = (at.z @ first.weight.T + first.bias > 0).double()
    truth = second.weight * on[:, None] @ first.weight
    got = true_jacobians(found, at)
    np.testing.assert_allclose(got, truth.detach().numpy(), rtol=1e-13, atol=1e-14)
    result = jacobians.measure(found)
    assert len(result.latents.s) == len(at.s) > 10
    assert all_agree(result)


@pytest.mark.parametrize("depth", [1, 5, 8])
def test_a_sawtooth_has_slopes_of_either_sign(depth: int):
    found = exact(Sawtooth(depth), cpwl.box([0.0], [1.0]))
    result = jacobians.measure(found)
    assert picked(result.rows, statistic="compared")[0].value == 2**depth
    slopes = true_jacobians(found, result.latents)[:, 0, 0]
    piece = np.floor(result.latents.s[:, 0] * 2**depth)
    np.testing.assert_array_equal(slopes, np.where(piece % 2 == 0, 2**depth, -(2**depth)))
    assert result.clear.all()
    assert all_agree(result)
    jacobians.draw(result, Figure())


@pytest.mark.parametrize("name", decoders.CPWL)
def test_decoders_of_every_kind_agree(name: str):
    module, shape = decoders.CPWL[name]()
    result = jacobians.measure(exact(module, plane(*shape, extent=4.0)), cells=60)
    assert picked(result.rows, statistic="compared")[0].value == 60
    assert result.clear.all()
    assert all_agree(result), [row for row in result.rows if not row.agrees]


def test_a_skip_connection_with_clamped_units_agrees():
    result = jacobians.measure(exact(Skip(), SQUARE))
    assert all_agree(result)
    assert result.clear.mean() > 0.9


def test_dead_inputs_of_a_pooling_do_not_hide_their_cells():
    """Of two dead inputs neither wins, by exactly 0: that is no doubt about the map."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 16)
            self.last = nn.Linear(8, 3)

        def forward(self, z: Tensor) -> Tensor:
            x = torch.relu(self.first(z))
            return self.last(nn.functional.max_pool1d(x[:, None], 2)[:, 0])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = jacobians.measure(exact(Pooled().eval(), SQUARE))
    assert result.clear.all()
    assert all_agree(result)


@pytest.mark.parametrize("wide", [False, True], ids=["every direction", "random directions"])
def test_one_perturbed_weight_fails_what_concerns_it_and_nothing_else(wide: bool):
    module = mlp(70, 12, 90) if wide else mlp(2, 12, 12, 3)
    domain = plane(70, extent=8.0) if wide else SQUARE
    assert all_agree(jacobians.measure(exact(module, domain)))
    result = jacobians.measure(exact(module, domain, perturbed(module)))
    failed = {(row.quantity, row.case) for row in result.rows if not row.agrees}
    cases = "autograd", "operator J X", "operator J^T Y"
    assert failed == {*(("A_w", case) for case in cases), ("A_w z + b_w", "decoder's values")}
    # the worst case is a cell on which the weight matters, and where it is said to be
    row = picked(result.rows, quantity="A_w", case="autograd", statistic="worst")[0]
    worst = int(np.argmax(result.errors["autograd"]))
    assert row.note.startswith(f"cell {result.latents.cells[worst]}, s = (")
    assert 1e-8 < row.value < 1e-5


def test_latents_within_rounding_of_a_knot_are_not_claimed_and_none_is_a_failure():
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.fill_(-1.0)  # the knot is at 1
    result = jacobians.measure(exact(module, cpwl.box([1 - 4e-16], [1 + 4e-16])))
    assert picked(result.rows, statistic="unclear")[0].value == 2
    for case in ("autograd", "operator J X", "operator J^T Y"):
        row = picked(result.rows, quantity="A_w", case=case, statistic="worst")[0]
        assert np.isnan(row.value)
        assert row.verdict == "DISAGREES"
        assert row.note == "no latent is clear of float64's rounding of a knot"


def test_float32_that_rounds_a_latent_across_a_knot_is_counted():
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.fill_(-1.0)
    # both latents are 1 in float32, where the unit is off
    result = jacobians.measure(exact(module, cpwl.box([1 - 1e-9], [1 + 1e-9])))
    assert picked(result.rows, case="autograd, float32", statistic="share")[0].value == 0.5
    assert all_agree(result)


@pytest.mark.parametrize("name", decoders.SMOOTH)
def test_smooth_decoders_agree_with_difference_quotients(name: str):
    module, shape = decoders.SMOOTH[name]()
    result = jacobians.measure(smooth(module, plane(*shape)), latents=6)
    assert all_agree(result), result.rows
    assert picked(result.rows, statistic="worst error estimate")[0].value < 1e-4
    jacobians.draw(result, Figure())


class _Wrong(torch.autograd.Function):
    """tanh whose derivatives, both ways, are 1e-5 too large."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (1 + 1e-5) * gradient * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return (1 + 1e-5) * tangent * (1 - ctx.saved_tensors[0] ** 2)


def test_difference_quotients_find_a_wrong_derivative():
    class Decoder(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return _Wrong.apply(z) @ torch.ones(2, 3, dtype=z.dtype)  # type: ignore[no-any-return]

    found = smooth(Decoder(), SQUARE)
    result = jacobians.measure(found, latents=8)
    failed = [row for row in result.rows if not row.agrees]
    assert [row.case for row in failed] == ["operator J X against central differences"]
    assert failed[0].value > 10


@pytest.mark.parametrize("name", ["relu_mlp", "silu_conv"])
def test_the_true_jacobians_of_both_modes_are_those_of_torch(name: str):
    """A smooth subject of either shape; the oracle takes one latent and output at a time."""
    module, shape = decoders.DECODERS[name]()
    found = smooth(module, plane(*shape))
    at = uniform(found, 3, np.random.default_rng(0))
    truth = decoders.dense(module, at.z).numpy()
    got = true_jacobians(found, at)
    np.testing.assert_allclose(got, truth, rtol=1e-11, atol=1e-13)


def test_the_true_jacobians_of_few_outputs_are_those_of_torch():
    module = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))
    found = smooth(module, plane(12))
    at = uniform(found, 3, np.random.default_rng(0))
    truth = decoders.dense(module, at.z).numpy()
    np.testing.assert_allclose(true_jacobians(found, at), truth, rtol=1e-12, atol=1e-14)


def test_cells_are_chosen_by_seed_and_results_follow_it():
    found = exact(mlp(2, 12, 12, 3), SQUARE)
    one, same, other = (jacobians.measure(found, cells=9, seed=s) for s in (1, 1, 2))
    assert one.rows == same.rows
    np.testing.assert_array_equal(one.latents.cells, same.latents.cells)
    assert set(one.latents.cells) != set(other.latents.cells)
    assert len(one.latents.cells) == 9
    np.testing.assert_array_equal(cpwl.locate(found.partition, one.latents.s), one.latents.cells)


def test_a_figure_of_a_plane_has_two_panels_and_a_bar():
    figure = Figure()
    jacobians.draw(jacobians.measure(exact(mlp(2, 12, 12, 3), SQUARE), cells=50), figure)
    assert len(figure.axes) == 3


@pytest.mark.parametrize("name", ["cells", "latents"])
def test_counts_below_one_are_refused(name: str):
    found = exact(mlp(2, 3, 2), SQUARE)
    with pytest.raises(ValueError, match=f"Expected {name} >= 1, got 0: give how many"):
        jacobians.measure(found, **{name: 0})
