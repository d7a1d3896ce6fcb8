"""DiagonalLinear: values, derivatives to second order in every mode, transforms, compile, autocast, and its own noise."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from front_helpers import same_bits
from torch import Tensor
from torch.func import functional_call, hessian, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import torch_ssam
from torch_ssam import DiagonalLinear


def filled(features: int, depth: int, readout: str | None = None, **options: object) -> DiagonalLinear:
    """A network whose weights hold zeros, -0 and both signs."""
    layer = DiagonalLinear(features, depth, readout=readout, dtype=torch.float64, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(features * 10 + depth)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(depth, features, generator=generator, dtype=torch.float64))
        if features > 3:
            layer.weight[0, 1] = 0.0
            layer.weight[-1, 2] = -0.0
            layer.weight[:, 3] = 0.0
    return layer


def plain(x: Tensor, weight: Tensor, readout: str | None) -> Tensor:
    y = x
    for row in weight:
        y = y * row
    return y.sum(-1) if readout else y


@pytest.mark.parametrize("readout", [None, "sum"])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(5,), (3, 17), (2, 3, 65), (0, 4), (4, 0)])
def test_forward_and_gradients_are_those_of_the_product(
    shape: tuple[int, ...], depth: int, readout: str | None
) -> None:
    layer = filled(shape[-1], depth, readout)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    expected = plain(x, layer.weight, readout)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, layer.weight), grad)
    theirs = torch.autograd.grad(expected, (x, layer.weight), grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_first_and_second_derivatives_pass_gradcheck(depth: int, readout: bool, noise_std: float) -> None:
    layer = filled(6, depth)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    state = torch.tensor([5, 9]) if noise_std else None

    def f(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.torch_ssam.diagonal(x, weight, state, noise_std, "gaussian", readout)
        return result

    assert torch.autograd.gradcheck(f, (x, layer.weight))
    assert torch.autograd.gradgradcheck(f, (x, layer.weight))


@pytest.mark.parametrize("readout", [None, "sum"])
def test_transforms_agree_with_the_written_out_product(readout: str | None) -> None:
    layer = filled(7, 3, readout)
    x, tangent = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)

    def ours(weight: Tensor, x: Tensor) -> Tensor:
        result: Tensor = functional_call(layer, {"weight": weight}, (x,))
        return result

    def theirs(weight: Tensor, x: Tensor) -> Tensor:
        return plain(x, weight, readout)

    w = layer.weight.detach()
    torch.testing.assert_close(vmap(layer)(x), theirs(w, x))
    torch.testing.assert_close(jvp(layer, (x,), (tangent,)), jvp(lambda v: theirs(w, v), (x,), (tangent,)))
    torch.testing.assert_close(jacrev(ours)(w, x), jacrev(theirs)(w, x))
    for f in (ours, theirs):
        assert f(w, x).shape == theirs(w, x).shape
    torch.testing.assert_close(
        hessian(lambda v: ours(v, x).square().sum())(w), hessian(lambda v: theirs(v, x).square().sum())(w)
    )


def test_compiled_module_serves_changing_batch_sizes() -> None:
    layer = filled(9, 3)
    compiled = torch.compile(layer, dynamic=True, backend="aot_eager")
    for rows in (2, 5, 11):
        x = torch.randn(rows, 9, dtype=torch.float64, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, plain(x, layer.weight, None))
        y.sum().backward()
        torch.testing.assert_close(x.grad, layer.product().detach().expand(rows, 9))


def test_autocast_computes_in_the_autocast_dtype_from_float_weights() -> None:
    layer = DiagonalLinear(5, 2, init_scale=1.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.ones(3, 5))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.float(), torch.full((3, 5), 2.25))
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, 4), "has 4 features.*weight has 5"),
        (torch.ones(3, 5, dtype=torch.float64), "float64.*float32.*Convert"),
        (torch.ones(3, 5, dtype=torch.int64), "int64.*expected the same"),
        (torch.tensor(1.0), "single number"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x: Tensor, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        DiagonalLinear(5, 2)(x)


@pytest.mark.parametrize("readout", [None, "sum"])
def test_own_noise_is_the_optimizers_noise_bit_for_bit(readout: str | None) -> None:
    noisy = DiagonalLinear(37, 3, readout=readout, init_scale=0.9, noise_std=0.2, seed=11)
    plain_layer = DiagonalLinear(37, 3, readout=readout, init_scale=0.9)
    own = torch_ssam.SSAM(noisy.parameters(), lr=0.02, noise_std=0.0, momentum=0.9)
    outside = torch_ssam.SSAM(plain_layer.parameters(), lr=0.02, noise_std=0.2, momentum=0.9, seed=11)
    x = torch.randn(16, 37, generator=torch.Generator().manual_seed(0))
    for _ in range(25):
        own.zero_grad()
        (noisy(x) - 1).square().mean().backward()
        own.step()
        outside.zero_grad()
        with outside.perturb():
            (plain_layer(x) - 1).square().mean().backward()
        outside.step()
    assert same_bits([noisy.weight], [plain_layer.weight])
    assert noisy.generator.tolist() == [11, 25]


def test_eval_mode_has_no_noise_and_uses_no_draw() -> None:
    layer = DiagonalLinear(4, 2, noise_std=0.5, seed=1).eval()
    assert torch.equal(layer(torch.ones(4)), torch.ones(4))
    assert layer.generator.tolist() == [1, 0]


def test_seed_and_draw_travel_in_the_state_dict() -> None:
    layer = DiagonalLinear(4, 2, noise_std=0.5, seed=1)
    x = torch.ones(2, 4)
    layer(x)
    other = DiagonalLinear(4, 2, noise_std=0.5, seed=99)
    other.load_state_dict(layer.state_dict())
    assert same_bits([layer(x)], [other(x)])
    clone = copy.deepcopy(layer)
    assert same_bits([layer(x)], [clone(x)])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_with_the_same_draw(use_reentrant: bool) -> None:
    def run(wrapped: Callable[[DiagonalLinear, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        layer = DiagonalLinear(9, 2, noise_std=0.4, seed=3)
        x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
        # Twice in one graph: recomputation happens in the opposite order.
        (wrapped(layer, x).sin() + wrapped(layer, x).square()).sum().backward()
        assert x.grad is not None
        assert layer.weight.grad is not None
        return x.grad, layer.weight.grad

    direct = run(lambda layer, x: layer(x))
    again = run(lambda layer, x: checkpoint(layer, x, use_reentrant=use_reentrant))
    torch.testing.assert_close(direct, again, rtol=1e-6, atol=1e-6)


def test_product_and_balance_gaps_are_their_formulas() -> None:
    layer = filled(6, 3)
    torch.testing.assert_close(layer.product(), layer.weight.prod(0))
    gaps = layer.balance_gaps()
    assert gaps.shape == (3, 3, 6)
    torch.testing.assert_close(gaps[0, 2], layer.weight[0] ** 2 - layer.weight[2] ** 2)


def test_init_scale_is_one_number_or_one_per_layer() -> None:
    assert DiagonalLinear(2, 3, init_scale=[1, 2, 3]).weight.tolist() == [[1, 1], [2, 2], [3, 3]]
    with pytest.raises(ValueError, match="init_scale has 2 values; expected one number or one per layer"):
        DiagonalLinear(2, 3, init_scale=[1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": -1}, "features is -1"),
        ({"features": 3, "depth": 0}, "depth is 0"),
        ({"features": 3, "readout": "mean"}, "readout is 'mean'"),
        ({"features": 3, "noise_std": -1.0}, "noise_std is -1"),
        ({"features": 3, "init_scale": float("nan")}, "init_scale"),
        ({"features": 3, "dtype": torch.complex64}, "complex64"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DiagonalLinear(**options)  # type: ignore[arg-type]


def test_non_contiguous_input_gives_the_bits_of_a_contiguous_one() -> None:
    layer = DiagonalLinear(6, 2, init_scale=1.1)
    x = torch.randn(6, 8).t()
    assert same_bits([layer(x)], [layer(x.contiguous())])
