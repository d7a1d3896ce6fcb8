"""DiagonalLinear: the ladder of the module, from values to torch.compile, and its own noise, which must be
the noise that SSAM would have put on a noise-free module, bit for bit, over a training run and through every
kind of recomputation. The reference is the written-out product in float64.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import torch_ssam

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def product_of(weight: Tensor) -> Tensor:
    product = torch.ones_like(weight[0])
    for layer in weight:
        product = product * layer
    return product


def written_out(x: Tensor, weight: Tensor, readout: str | None = None) -> Tensor:
    y = x * product_of(weight)
    return y if readout is None else y.sum(-1)


def make(features: int, depth: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    layer = torch_ssam.DiagonalLinear(features, depth, dtype=dtype, **{"seed": 0, **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(depth, features, generator=generator, dtype=torch.float64))
    return layer


def values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


# -- values and first derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("readout", [None, "sum"])
def test_forward_and_gradients_follow_the_written_out_product(
    depth: int, dtype: torch.dtype, readout: str | None
) -> None:
    layer = make(33, depth, dtype, readout=readout)
    x = values(5, 33, dtype=dtype).requires_grad_()
    y = layer(x)
    g = values(*y.shape, dtype=dtype, seed=2)
    y.backward(g)
    exact_x = x.detach().double().requires_grad_()
    exact_w = layer.weight.detach().double().requires_grad_()
    exact = written_out(exact_x, exact_w, readout)
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
    assert front.same_bits([y], [written_out(x, layer.weight)])
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
    layer = make(9, 3, readout=readout)
    x = values(*shape).requires_grad_()
    y = layer(x)
    assert y.shape == (shape if readout is None else shape[:-1])
    y.sum().backward()
    exact = layer.weight.detach().clone().requires_grad_()
    written_out(x.detach(), exact).sum().backward()
    torch.testing.assert_close(layer.weight.grad, exact.grad, rtol=1e-12, atol=1e-12)
    assert x.grad is not None
    assert x.grad.shape == shape


def test_zero_features_and_non_contiguous_inputs() -> None:
    empty = torch_ssam.DiagonalLinear(0, 2, readout="sum")
    assert torch.equal(empty(torch.ones(3, 0)), torch.zeros(3))
    layer = make(8, 3)
    for x in (
        values(8, 5).t(),
        values(5, 16)[:, ::2],
        values(1, 8).expand(5, 8),
        values(2, 8, 3).transpose(1, 2),
    ):
        assert not x.is_contiguous()
        x = x.requires_grad_()
        g = values(*x.shape, seed=5).transpose(0, -1).contiguous().transpose(0, -1)
        (ours,) = torch.autograd.grad(layer(x), x, g)
        torch.testing.assert_close(ours, g * product_of(layer.weight).detach())
        torch.testing.assert_close(layer(x), written_out(x, layer.weight))


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
    weight = values(depth, 3, seed=3)
    weight[0, 0] = 0.0
    inputs = (values(2, 3).requires_grad_(), weight.requires_grad_())
    call = operator_of(readout, noise_std)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_third_derivatives_follow_the_written_out_product() -> None:
    def third(f: Callable[..., Tensor]) -> Tensor:
        w = values(3, 4, seed=3).requires_grad_()
        total = f(values(2, 4), w).square().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(total, w, create_graph=True)
            total = (g * values(3, 4, seed=9)).sum()
        return total.detach()

    torch.testing.assert_close(third(operator_of(None)), third(written_out), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("readout", [None, "sum"])
def test_torch_func_transforms_follow_the_written_out_product(readout: str | None) -> None:
    layer = make(4, 3, readout=readout)
    x, weight, tangent = values(5, 4), layer.weight.detach(), values(3, 4, seed=8)

    def ours(w: Tensor, x: Tensor = x) -> Tensor:
        result: Tensor = functional_call(layer, {"weight": w}, (x,))
        return result

    def exact(w: Tensor, x: Tensor = x) -> Tensor:
        return written_out(x, w, readout)

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
    layer = make(4, 3)
    x, tangent = values(5, 4), values(3, 4, seed=8)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(layer.weight.detach(), tangent)
        y = torch.autograd.forward_ad.unpack_dual(functional_call(layer, {"weight": dual}, (x,)))
    _, expected = jvp(lambda w: written_out(x, w), (layer.weight.detach(),), (tangent,))
    torch.testing.assert_close(y.tangent, expected)
    (g,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    (hvp,) = torch.autograd.grad(g, layer.weight, tangent)
    (h,) = torch.autograd.grad(written_out(x, layer.weight).square().sum(), layer.weight, create_graph=True)
    torch.testing.assert_close(hvp, torch.autograd.grad(h, layer.weight, tangent)[0])


def test_transforms_see_the_same_noise_as_the_kernels() -> None:
    layer = make(6, 3, noise_std=0.5)
    x = values(5, 6)
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
    layer = make(8, 2, weight_dtype, noise_std=0.1 if own_noise else 0.0)
    x = values(4, 8, dtype=input_dtype).requires_grad_()
    z = values(4, 8, dtype=input_dtype).requires_grad_()
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
    layer, linear = make(8, 2, weight_dtype), nn.Linear(8, 8, dtype=weight_dtype)
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


# -- its own noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("readout", [None, "sum"])
def test_own_noise_is_ssam_s_noise_bit_for_bit_over_a_training_run(
    dtype: torch.dtype, readout: str | None
) -> None:
    own = make(65, 3, dtype, readout=readout, noise_std=0.2, seed=11)
    plain = make(65, 3, dtype, readout=readout)
    options: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}
    of_own = torch_ssam.SSAM(own.parameters(), noise_std=0.0, **options)
    of_plain = torch_ssam.SSAM(plain.parameters(), noise_std=0.2, seed=11, **options)
    start = front.snapshot(plain)
    for k in range(5):
        x = values(7, 65, dtype=dtype, seed=50 + k).requires_grad_()
        z = x.detach().clone().requires_grad_()
        of_own.zero_grad()
        y = own(x)
        y.float().square().mean().backward()
        of_own.step()
        of_plain.zero_grad()
        with of_plain.perturb():
            expected = plain(z)
            expected.float().square().mean().backward()
        of_plain.step()
        assert front.same_bits([y, x.grad], [expected, z.grad])  # type: ignore[list-item]
        assert front.same_bits([own.weight.grad, own.weight], [plain.weight.grad, plain.weight])
        assert own.generator.tolist() == [11, k + 1]
    moved = start[0] != own.weight
    assert (
        bool(moved.all()) if dtype.itemsize > 2 else bool(moved.any())
    )  # 16-bit weights round small updates away


def test_in_eval_and_with_noise_std_0_there_is_no_noise_and_no_draw() -> None:
    layer = make(5, 2, noise_std=0.5)
    x = values(3, 5)
    layer.eval()
    assert torch.equal(layer(x), written_out(x, layer.weight))
    layer.train()
    layer.noise_std = 0.0
    assert torch.equal(layer(x), written_out(x, layer.weight))
    assert int(layer.generator[1]) == 0
    layer.noise_std = 0.5
    assert not torch.equal(layer(x), layer(x))
    assert int(layer.generator[1]) == 2


def test_state_dict_copies_and_pickles_carry_seed_and_draw() -> None:
    layer = make(5, 2, noise_std=0.5, seed=None)
    x = values(3, 5)
    layer(x)
    other = torch_ssam.DiagonalLinear(5, 2, noise_std=0.5, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    twins = [other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    y = layer(x)
    for twin in twins:
        assert front.same_bits([twin(x)], [y])
    torch.manual_seed(3)
    first = torch_ssam.DiagonalLinear(5).generator.tolist()
    torch.manual_seed(3)
    assert first == torch_ssam.DiagonalLinear(5).generator.tolist()


def test_backward_draws_the_noise_of_its_own_forward_whatever_came_between() -> None:
    layer, twin = make(5, 2, noise_std=0.5), make(5, 2, noise_std=0.5)
    twin.load_state_dict(layer.state_dict())
    x = values(3, 5)
    first, second = layer(x).sum(), layer(x).square().sum()
    layer(x)
    second.backward()
    late = layer.weight.grad.clone()
    layer.weight.grad = None
    first.backward()
    twin(x).sum().backward()
    assert front.same_bits([layer.weight.grad], [twin.weight.grad])
    twin.weight.grad = None
    twin(x).square().sum().backward()
    assert front.same_bits([late], [twin.weight.grad])


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_activation_checkpointing_recomputes_with_the_same_draw(
    use_reentrant: bool, calls: int, nested: bool
) -> None:
    def forward(model: nn.Sequential, x: Tensor) -> Tensor:
        first = checkpoint(model[0], x, use_reentrant=use_reentrant) if nested else model[0](x)
        result: Tensor = model[2](model[1](first))
        return result

    ends = []
    for checkpointed in (True, False):
        model = nn.Sequential(make(5, 2, noise_std=0.5), nn.Tanh(), make(5, 3, noise_std=0.5))
        layers: list[Any] = [model[0], model[2]]
        for k, layer in enumerate(layers):
            layer.generator[0] = 8 + k
        total = torch.zeros((), dtype=torch.float64)
        for k in range(calls):
            x = values(4, 5, seed=20 + k).requires_grad_()
            run: Any = (
                checkpoint(forward, model, x, use_reentrant=use_reentrant) if checkpointed else model(x)
            )
            total = total + run.square().sum()
        draws = [int(layer.generator[1]) for layer in layers]
        total.backward()
        assert draws == [int(layer.generator[1]) for layer in layers] == [calls, calls]
        ends.append([total, *(layer.weight.grad for layer in layers)])
    assert front.same_bits(*ends)


def test_checkpointing_without_the_random_state_is_refused_with_the_remedy() -> None:
    layer = make(5, 2, noise_std=0.5)
    y = checkpoint(layer, values(3, 5).requires_grad_(), use_reentrant=False, preserve_rng_state=False)
    torch.rand(3)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        y.sum().backward()  # type: ignore[union-attr]


# -- torch.compile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@pytest.mark.parametrize("readout", [None, "sum"])
def test_torch_compile_traces_it_whole_and_agrees_bit_for_bit(noise_std: float, readout: str | None) -> None:
    torch._dynamo.reset()
    layer = make(33, 3, noise_std=noise_std, readout=readout)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for k in range(3):
        x, z = (values(6, 33, seed=30 + k).requires_grad_() for _ in range(2))
        layer.zero_grad()
        twin.zero_grad()
        y, expected = compiled(x), twin(z)
        y.square().sum().backward()
        expected.square().sum().backward()
        assert front.same_bits([y, x.grad, layer.weight.grad], [expected, z.grad, twin.weight.grad])  # type: ignore[list-item]
        assert front.same_bits([layer.generator], [twin.generator])


def test_compiled_with_dynamic_shapes_one_graph_serves_all_batch_sizes() -> None:
    torch._dynamo.reset()
    counter, compiled_once = CompileCounterWithBackend("aot_eager"), 0
    layer = make(9, 2, readout="sum")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for rows in (3, 4, 7, 12):
        x = values(rows, 9).requires_grad_()
        layer.zero_grad()
        y = compiled(x)
        y.sum().backward()
        torch.testing.assert_close(y, written_out(x, layer.weight, "sum"))
        compiled_once = counter.frame_count if rows == 3 else compiled_once
    assert counter.frame_count == compiled_once > 0


@pytest.mark.slow
def test_the_default_compiler_runs_it() -> None:
    torch._dynamo.reset()
    layer = make(9, 2, torch.float32, noise_std=0.5)
    twin = copy.deepcopy(layer)

    def f(module: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(module(x + 1)).sum()

    try:
        y = torch.compile(f, fullgraph=True)(layer, values(3, 9, dtype=torch.float32))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"NOT TESTED here: no compiler for inductor ({error})")
    torch.testing.assert_close(y, f(twin, values(3, 9, dtype=torch.float32)))


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
