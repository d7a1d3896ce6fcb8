"""DiagonalLinear: the ladder of the module, from values to torch.compile, and its own noise, which must be
the noise that SSAM would have put on a noise-free module, bit for bit, over a training run and through every
kind of recomputation. The reference is the written-out product in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torch_ssam

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


# -- values and first derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("readout", [None, "sum"])
def test_forward_and_gradients_follow_the_written_out_product(
    depth: int, dtype: torch.dtype, readout: str | None
) -> None:
    layer = front.diagonal(33, depth, dtype, readout=readout)
    x = front.values(5, 33, dtype=dtype).requires_grad_()
    y = layer(x)
    g = front.values(*y.shape, dtype=dtype, seed=2)
    y.backward(g)
    exact_x = x.detach().double().requires_grad_()
    exact_w = layer.weight.detach().double().requires_grad_()
    exact = front.written_out(exact_x, exact_w, readout)
    exact.backward(g.double())
    size = 8.0 if readout else 1.0
    for ours, theirs in ((y, exact), (x.grad, exact_x.grad), (layer.weight.grad, exact_w.grad)):
        assert ours.dtype == dtype
        tolerance = TOLERANCE[dtype] * depth * size
        torch.testing.assert_close(
            ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())
        )


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_zeros_and_negative_zeros_come_out_right(depth: int) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -2.0], dtype=torch.float64)
    columns = torch.cartesian_prod(*[special] * depth).reshape(-1, depth).T.contiguous()
    layer = torch_ssam.DiagonalLinear(columns.shape[1], depth, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(columns)
    x = torch.full((3, columns.shape[1]), -1.5, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert front.same_bits([y], [front.written_out(x, layer.weight)])
    expected = torch.zeros_like(columns)
    for i in range(depth):
        others = torch.ones(columns.shape[1], dtype=torch.float64)
        for k in range(depth):
            if k != i:
                others = others * columns[k]
        expected[i] = -4.5 * others
    assert torch.equal(layer.weight.grad, expected)
    assert not bool(layer.weight.grad.isnan().any())


@pytest.mark.parametrize("shape", [(9,), (1, 9), (0, 9), (2, 0, 9), (2, 3, 4, 9)])
@pytest.mark.parametrize("readout", [None, "sum"])
def test_any_batch_shape_empty_ones_too(shape: tuple[int, ...], readout: str | None) -> None:
    layer = front.diagonal(9, 3, readout=readout)
    x = front.values(*shape).requires_grad_()
    y = layer(x)
    assert y.shape == (shape if readout is None else shape[:-1])
    y.sum().backward()
    exact = layer.weight.detach().clone().requires_grad_()
    front.written_out(x.detach(), exact).sum().backward()
    torch.testing.assert_close(layer.weight.grad, exact.grad, rtol=1e-12, atol=1e-12)
    assert x.grad is not None
    assert x.grad.shape == shape


def test_zero_features_and_non_contiguous_inputs() -> None:
    empty = torch_ssam.DiagonalLinear(0, 2, readout="sum")
    assert torch.equal(empty(torch.ones(3, 0)), torch.zeros(3))
    layer = front.diagonal(8, 3)
    for x in (
        front.values(8, 5).t(),
        front.values(5, 16)[:, ::2],
        front.values(1, 8).expand(5, 8),
        front.values(2, 8, 3).transpose(1, 2),
    ):
        assert not x.is_contiguous()
        x = x.requires_grad_()
        g = front.values(*x.shape, seed=5).transpose(0, -1).contiguous().transpose(0, -1)
        (ours,) = torch.autograd.grad(layer(x), x, g)
        torch.testing.assert_close(ours, g * front.product_of(layer.weight).detach())
        torch.testing.assert_close(layer(x), front.written_out(x, layer.weight))


@pytest.mark.parametrize(
    "init_scale",
    [0.5, [1.0, -2.0, 3.0], torch.tensor([1.0, 0.0, 2.0]), torch.tensor(0.5), (2, 2, 2)],
    ids=str,
)
def test_init_scale_product_and_balance_gaps(init_scale: Any) -> None:
    layer = torch_ssam.DiagonalLinear(4, 3, init_scale=init_scale)
    scale = torch.as_tensor(init_scale, dtype=torch.float32).expand(3)
    assert torch.equal(layer.weight, scale[:, None].expand(3, 4))
    torch.testing.assert_close(layer.product(), scale.prod().expand(4))
    gaps = layer.balance_gaps()
    torch.testing.assert_close(gaps, (scale[:, None] ** 2 - scale**2)[..., None].expand(3, 3, 4))
    layer.product().sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer.weight.fill_(9.0)
    layer.reset_parameters()
    assert torch.equal(layer.weight, scale[:, None].expand(3, 4))


# -- higher derivatives and transforms -----------------------------------------------------------------------


def operator_of(readout: str | None, noise_std: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    generator = torch.tensor([3, 1]) if noise_std else None

    def call(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.torch_ssam.diagonal(
            x, weight, generator, noise_std, "gaussian", readout is not None
        )
        return result

    return call


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("readout", [None, "sum"])
@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_gradcheck_and_gradgradcheck(depth: int, readout: str | None, noise_std: float) -> None:
    weight = front.values(depth, 3, seed=3)
    weight[0, 0] = 0.0
    inputs = (front.values(2, 3).requires_grad_(), weight.requires_grad_())
    call = operator_of(readout, noise_std)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_third_derivatives_follow_the_written_out_product() -> None:
    def third(f: Callable[..., Tensor]) -> Tensor:
        w = front.values(3, 4, seed=3).requires_grad_()
        total = f(front.values(2, 4), w).square().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(total, w, create_graph=True)
            total = (g * front.values(3, 4, seed=9)).sum()
        return total.detach()

    torch.testing.assert_close(third(operator_of(None)), third(front.written_out), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("readout", [None, "sum"])
def test_torch_func_transforms_follow_the_written_out_product(readout: str | None) -> None:
    layer = front.diagonal(4, 3, readout=readout)
    x, weight, tangent = front.values(5, 4), layer.weight.detach(), front.values(3, 4, seed=8)

    def ours(w: Tensor, x: Tensor = x) -> Tensor:
        result: Tensor = functional_call(layer, {"weight": w}, (x,))
        return result

    def exact(w: Tensor, x: Tensor = x) -> Tensor:
        return front.written_out(x, w, readout)

    def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda w, x=x: f(w, x).square().sum()

    def close(a: Any, b: Any) -> None:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    close(jacrev(ours)(weight), jacrev(exact)(weight))
    close(jacfwd(ours)(weight), jacfwd(exact)(weight))
    close(hessian(loss(ours))(weight), hessian(loss(exact))(weight))
    close(jvp(ours, (weight,), (tangent,)), jvp(exact, (weight,), (tangent,)))
    close(vmap(ours, in_dims=(None, 0))(weight, x), exact(weight))
    close(
        vmap(ours, in_dims=(0, None))(torch.stack([weight, tangent]), x),
        torch.stack([exact(weight), exact(tangent)]),
    )
    per_example = vmap(grad(loss(ours)), in_dims=(None, 0))(weight, x)
    close(per_example, vmap(grad(loss(exact)), in_dims=(None, 0))(weight, x))
    output, pull = vjp(ours, weight)
    close(pull(torch.ones_like(output)), vjp(exact, weight)[1](torch.ones_like(output)))


def test_forward_mode_and_hessian_vector_products_of_autograd() -> None:
    layer = front.diagonal(4, 3)
    x, tangent = front.values(5, 4), front.values(3, 4, seed=8)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(layer.weight.detach(), tangent)
        y = torch.autograd.forward_ad.unpack_dual(functional_call(layer, {"weight": dual}, (x,)))
    _, expected = jvp(lambda w: front.written_out(x, w), (layer.weight.detach(),), (tangent,))
    torch.testing.assert_close(y.tangent, expected)
    (g,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    (hvp,) = torch.autograd.grad(g, layer.weight, tangent)
    (h,) = torch.autograd.grad(
        front.written_out(x, layer.weight).square().sum(), layer.weight, create_graph=True
    )
    torch.testing.assert_close(hvp, torch.autograd.grad(h, layer.weight, tangent)[0])


def test_transforms_see_the_same_noise_as_the_kernels() -> None:
    layer = front.diagonal(6, 3, noise_std=0.5)
    x = front.values(5, 6)
    twin = copy.deepcopy(layer)
    y = layer(x)
    (g,) = torch.autograd.grad(y.square().sum(), layer.weight)

    def loss(w: Tensor) -> Tensor:
        result: Tensor = functional_call(twin, {"weight": w}, (x,)).square().sum()
        return result

    torch.testing.assert_close(grad(loss)(twin.weight.detach()), g, rtol=1e-12, atol=1e-12)
    assert int(twin.generator[1]) == int(layer.generator[1]) == 1
    seen = vmap(twin, randomness="same")(x)
    torch.testing.assert_close(seen, layer(x), rtol=1e-12, atol=1e-12)
    h = hessian(loss)(twin.weight.detach())
    assert bool(torch.isfinite(h).all())
    with torch.no_grad():
        vmap(twin)(x)


# -- dtypes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("own_noise", [False, True])
def test_under_autocast_dtypes_are_those_of_nn_linear(
    weight_dtype: torch.dtype, input_dtype: torch.dtype, own_noise: bool
) -> None:
    linear = nn.Linear(8, 8, dtype=weight_dtype)
    layer = front.diagonal(8, 2, weight_dtype, noise_std=0.1 if own_noise else 0.0)
    x = front.values(4, 8, dtype=input_dtype).requires_grad_()
    z = front.values(4, 8, dtype=input_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), linear(z)
        assert y.dtype == expected.dtype == torch.bfloat16
    y.float().square().sum().backward()
    expected.float().square().sum().backward()
    assert x.grad is not None
    assert z.grad is not None
    assert x.grad.dtype == z.grad.dtype
    assert layer.weight.grad.dtype == linear.weight.grad.dtype == weight_dtype  # type: ignore[union-attr]


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("input_dtype", [*DTYPES, torch.int64, torch.complex64], ids=str)
def test_outside_of_autocast_dtypes_mix_as_in_nn_linear(
    weight_dtype: torch.dtype, input_dtype: torch.dtype
) -> None:
    layer, linear = front.diagonal(8, 2, weight_dtype), nn.Linear(8, 8, dtype=weight_dtype)
    x = torch.ones(4, 8, dtype=input_dtype)
    if weight_dtype == input_dtype:
        assert layer(x).dtype == linear(x).dtype
        return
    with pytest.raises(RuntimeError):
        linear(x)
    with pytest.raises(ValueError, match=rf"input has dtype {input_dtype}.*{weight_dtype}.*Convert"):
        layer(x)


def test_moving_the_module_to_another_dtype_keeps_seed_and_draw() -> None:
    layer = torch_ssam.DiagonalLinear(4, 2, noise_std=0.1, seed=2**62 + 3)
    layer(torch.ones(1, 4))
    layer.half().double()
    assert layer.generator.tolist() == [2**62 + 3, 1]
    assert layer.weight.dtype == torch.float64


# -- wrong arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"features": -1}, ValueError, "features is -1"),
        ({"features": 2.5}, TypeError, "features is 2.5"),
        ({"features": True}, TypeError, "features is True"),
        ({"depth": 0}, ValueError, "depth is 0"),
        ({"depth": "2"}, TypeError, "depth is '2'"),
        ({"readout": "mean"}, ValueError, "readout is 'mean'; expected one of 'sum'"),
        ({"noise_std": -0.1}, ValueError, "noise_std is -0.1"),
        ({"noise_std": float("nan")}, ValueError, "noise_std is nan"),
        ({"init_scale": [1.0, 2.0, 3.0]}, ValueError, r"init_scale has 3 values.*\(2\)"),
        ({"init_scale": float("inf")}, ValueError, "init_scale is inf"),
        ({"init_scale": "x"}, TypeError, "init_scale is 'x'"),
        ({"seed": 1.5}, TypeError, "seed is 1.5"),
        ({"seed": 2**63}, ValueError, "seed is"),
        ({"dtype": torch.int64}, (ValueError, RuntimeError), "int64|floating"),
        ({"dtype": torch.complex64}, ValueError, "complex64"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        torch_ssam.DiagonalLinear(**{"features": 3, **options})


@pytest.mark.parametrize(
    "x", [torch.ones(2, 4), torch.ones(3, 1), torch.ones(0)], ids=lambda x: str(tuple(x.shape))
)
def test_inputs_of_another_width_are_refused(x: Tensor) -> None:
    layer = torch_ssam.DiagonalLinear(3)
    with pytest.raises((ValueError, RuntimeError), match=r"features in its last dimension and weight has 3"):
        layer(x)


def test_a_single_number_is_refused_as_input() -> None:
    with pytest.raises((ValueError, RuntimeError), match="input"):
        torch_ssam.DiagonalLinear(3)(torch.tensor(1.0))


def test_numpy_integers_are_integers() -> None:
    numpy = pytest.importorskip("numpy")
    layer = torch_ssam.DiagonalLinear(numpy.int64(3), numpy.int32(2), seed=numpy.int64(5))
    assert layer.weight.shape == (2, 3)
    assert layer.generator.tolist() == [5, 0]
    assert repr(layer) == "DiagonalLinear(features=3, depth=2)"


def test_a_weight_that_is_parametrized_or_lent_is_the_one_used() -> None:
    layer = torch_ssam.DiagonalLinear(3, depth=2)
    x = torch.tensor([1.0, 2.0, 3.0])
    lent = {"weight": torch.full((2, 3), 3.0)}
    assert torch.equal(torch.func.functional_call(layer, lent, (x,)), 9 * x)

    class Double(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    assert torch.equal(layer(x), 4 * x)


def test_a_tensor_that_outlived_its_transform_is_an_input_as_any_other() -> None:
    outlived: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        outlived.append(t)
        return t.sum()

    x = torch.randn(4, 3)
    torch.func.grad(keep)(x)
    layer = torch_ssam.DiagonalLinear(3, depth=2, init_scale=2.0)
    y = layer(outlived[0])
    assert torch.equal(y, layer(x))
    y.sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, 2.0 * x.sum(0).expand(2, 3))


@pytest.mark.parametrize("readout", [None, "sum"])
def test_outputs_under_inference_mode_are_inference_tensors(readout: str | None) -> None:
    layer = torch_ssam.DiagonalLinear(3, depth=2, readout=readout, init_scale=2.0)
    x = torch.randn(4, 3)
    with torch.inference_mode():
        y = layer(x)
    assert y.is_inference()
    assert torch.equal(y, layer(x))
