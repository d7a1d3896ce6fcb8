"""diagonal and diagonal_backward against float64 references with every product of the other layers
written out: sizes, depths, dtypes, layouts, zeros and negative zeros, the noise of its own against the
noise contract, and one result for any number of threads. Error bounds are in rounding units of the
arithmetic, relative to the sum of the terms' sizes.
"""

from __future__ import annotations

import pytest
import reference
import torch
from cases import DTYPES, PAIRS, SIXTEEN, generator_of, random, random_like
from reference import same_bits

ops = torch.ops.torch_ssam
FEATURES = (0, 1, 7, 8, 15, 16, 17, 31, 33, 65, 1025, 4097)
STD = 2.0**-5


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    readout: bool,
    generator: torch.Tensor | None = None,
    std: float = 0.0,
    distribution: str = "gaussian",
) -> tuple[torch.Tensor, torch.Tensor]:
    result: tuple[torch.Tensor, torch.Tensor] = ops.diagonal_backward(
        grad, x, w, generator, std, distribution, readout, True, True
    )
    return result


def assert_close(actual: torch.Tensor, expected: torch.Tensor, size: torch.Tensor, units: float) -> None:
    """|actual - expected| <= `units` roundings in the arithmetic at `size`, and one to the stored type."""
    assert actual.shape == expected.shape
    arithmetic = torch.float64 if actual.dtype == torch.float64 else torch.float32
    bound = units * reference.ulp(arithmetic) * size + 0.51 * reference.ulp(actual.dtype) * expected.abs()
    if actual.dtype == torch.float16:
        bound = bound + 2.0**-25  # half a subnormal step
    assert bool(((actual.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize(("weight_dtype", "input_dtype"), PAIRS)
@pytest.mark.parametrize("features", FEATURES)
def test_forward_and_backward_follow_the_float64_reference(
    features: int, weight_dtype: torch.dtype, input_dtype: torch.dtype, readout: bool
) -> None:
    for depth, batch in ((1, (3,)), (2, (5, 2)), (4, (131,)), (3, ())):
        x = random((*batch, features), input_dtype, seed=features)
        w = random((depth, features), weight_dtype, seed=depth + 1)
        before = (x.clone(), w.clone())
        y = ops.diagonal(x, w, readout=readout)
        expected = reference.diagonal(x, w, readout)
        size = reference.diagonal(x.abs(), w.abs(), readout)
        assert y.dtype == input_dtype
        assert_close(y, expected, size, depth + (4 + features / 16 if readout else 0))

        grad = random(tuple(y.shape), input_dtype, seed=3)
        grad_input, grad_weight = backward(grad, x, w, readout)
        assert (grad_input.dtype, grad_weight.dtype) == (input_dtype, weight_dtype)
        expected_grads = reference.diagonal_gradients(grad, x, w, readout)
        sizes = reference.diagonal_gradients(grad.abs(), x.abs(), w.abs(), readout)
        assert_close(grad_input, expected_grads[0], sizes[0], depth + 1)
        assert_close(
            grad_weight, expected_grads[1], sizes[1], depth + 1 + max(1, x.numel() / max(features, 1))
        )
        assert same_bits((x, w), before)


def test_reference_gradients_are_those_of_autograd() -> None:
    x, w = (
        random((5, 7), torch.float64, 1).requires_grad_(),
        random((3, 7), torch.float64, 2).requires_grad_(),
    )
    for readout in (False, True):
        y = reference.diagonal(x, w, readout)
        grad = random(tuple(y.shape), torch.float64, 3)
        expected = torch.autograd.grad(y, (x, w), grad)
        torch.testing.assert_close(reference.diagonal_gradients(grad, x, w, readout), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_integers_are_exact_with_zeros_in_any_layer(dtype: torch.dtype) -> None:
    # All 3^4 combinations of {-2, 0, 3} in four layers, one a coordinate.
    w = torch.cartesian_prod(*[torch.tensor([-2.0, 0.0, 3.0])] * 4).T.contiguous().to(dtype)
    x = torch.arange(-3, 3, dtype=dtype).reshape(6, 1).expand(6, 81)
    grad = torch.ones(6, 81, dtype=dtype)
    grad[2:] = 2
    assert torch.equal(ops.diagonal(x, w).double(), reference.diagonal(x, w))
    for actual, expected in zip(
        backward(grad, x, w, False), reference.diagonal_gradients(grad, x, w), strict=True
    ):
        assert torch.equal(actual.double(), expected)


def test_the_sign_of_zero_is_that_of_the_product() -> None:
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0, 1.0]])
    w = torch.tensor([[-1.0, 1.0, -0.0, 0.0, -0.0], [1.0, 1.0, 2.0, 3.0, -4.0]])
    assert same_bits(ops.diagonal(x, w), torch.tensor([[-0.0, -0.0, -0.0, -0.0, 0.0]]))
    assert same_bits(ops.diagonal(x, w), x * w.prod(0))


def test_infinities_and_nan_pass_through_like_multiplication() -> None:
    values = torch.tensor([0.0, 1.0, -2.0, float("inf"), float("-inf"), float("nan")])
    w = torch.cartesian_prod(values, values).T.contiguous()
    x = torch.ones(1, 36)
    assert torch.equal(
        ops.diagonal(x, w).nan_to_num(7.0, 8.0, 9.0), (x * w.prod(0)).nan_to_num(7.0, 8.0, 9.0)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_does_not_change_a_bit(dtype: torch.dtype) -> None:
    x, w = random((6, 10, 33), dtype, 1), random((3, 33), dtype, 2)
    grad = random((6, 10, 33), dtype, 3)
    expected = (ops.diagonal(x, w), *backward(grad, x, w, False))
    strided = [
        random_like(torch.empty(33, 6, 10, dtype=dtype).permute(1, 2, 0), 1),
        random_like(torch.empty(12, 20, 66, dtype=dtype)[::2, 1::2, ::2], 1),
    ]
    transposed_weight = random_like(torch.empty(33, 3, dtype=dtype).t(), 2)
    for view in strided:
        assert same_bits((ops.diagonal(view, w), *backward(grad, view, w, False)), expected)
        assert same_bits((ops.diagonal(x, transposed_weight),), expected[:1])
        assert same_bits(backward(random_like(view, 3), x, transposed_weight, False), expected[1:])
    # Rows that repeat in memory, as expand() makes them, are read only.
    one = x[:1].expand(6, 10, 33)
    assert same_bits(ops.diagonal(one, w), ops.diagonal(one.contiguous(), w))
    total = torch.ones((), dtype=dtype).expand(6, 10, 33)
    assert same_bits(backward(total, x, w, False), backward(total.contiguous(), x, w, False))


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("shape", [(2000, 40), (3, 50000), (129, 2100), (100000, 3)])
def test_every_thread_count_gives_the_same_bits(shape: tuple[int, int], readout: bool) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        x, w = random(shape, torch.float32, 1), random((3, shape[1]), torch.float32, 2)
        y = ops.diagonal(x, w, generator_of(), STD, readout=readout)
        grad = random(tuple(y.shape), torch.float32, 3)
        results.append((y, *backward(grad, x, w, readout, generator_of(), STD)))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 33, 65, 4097])
def test_its_own_noise_is_the_optimizers_at_place_zero(
    features: int, weight_dtype: torch.dtype, distribution: str
) -> None:
    w, x = random((3, features), weight_dtype, 1), random((70, features), weight_dtype, 2)
    noisy = ops.perturbed(w, generator_of(-3, 2**33), 0, STD, distribution)
    z = reference.noise(w.numel(), seed=-3, draw=2**33, distribution=distribution)
    assert same_bits(noisy, reference.perturbed(w, STD, z))
    for readout in (False, True):
        y = ops.diagonal(x, w, generator_of(-3, 2**33), STD, distribution, readout)
        assert same_bits(y, ops.diagonal(x, noisy, readout=readout))
        assert not same_bits(y, ops.diagonal(x, w, readout=readout))
        grad = random(tuple(y.shape), weight_dtype, 3)
        actual = backward(grad, x, w, readout, generator_of(-3, 2**33), STD, distribution)
        assert same_bits(actual, backward(grad, x, noisy, readout))


def test_a_generator_with_noise_std_zero_or_no_generator_means_no_noise() -> None:
    w, x = random((3, 65), torch.float32, 1), random((7, 65), torch.float32, 2)
    assert same_bits(ops.diagonal(x, w, generator_of(), 0.0), ops.diagonal(x, w))
    assert same_bits(ops.diagonal(x, w, None, 0.5), ops.diagonal(x, w))


@pytest.mark.parametrize("readout", [False, True])
def test_gradients_that_are_not_needed_are_empty_and_the_others_keep_their_bits(readout: bool) -> None:
    w, x = random((3, 2100), torch.float32, 1), random((70, 2100), torch.float32, 2)
    grad = random((70,) if readout else (70, 2100), torch.float32, 3)
    both = backward(grad, x, w, readout)
    for needs in ((True, False), (False, True), (False, False)):
        result = ops.diagonal_backward(grad, x, w, None, 0.0, "gaussian", readout, *needs)
        for actual, expected, needed in zip(result, both, needs, strict=True):
            assert same_bits(actual, expected) if needed else actual.numel() == 0


def test_an_empty_batch_gives_zero_weight_gradients() -> None:
    w = random((3, 5), torch.float32, 1)
    for shape, readout in (((0, 5), False), ((4, 0, 5), True)):
        x = torch.empty(shape)
        y = ops.diagonal(x, w, readout=readout)
        assert y.shape == (shape[:-1] if readout else shape)
        grad_input, grad_weight = backward(torch.empty_like(y), x, w, readout)
        assert grad_input.shape == shape
        assert same_bits(grad_weight, torch.zeros(3, 5))


def test_no_features_gives_an_empty_product_and_a_zero_sum() -> None:
    x, w = torch.empty(4, 0), torch.empty(2, 0)
    assert ops.diagonal(x, w).shape == (4, 0)
    assert same_bits(ops.diagonal(x, w, readout=True), torch.zeros(4))
    assert [g.shape for g in backward(torch.ones(4), x, w, True)] == [(4, 0), (2, 0)]


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_float32_weights_with_sixteen_bit_inputs_round_once(dtype: torch.dtype) -> None:
    x, w = random((5, 65), dtype, 1), random((2, 65), torch.float32, 2)
    assert same_bits(ops.diagonal(x, w), (x.float() * (w[0] * w[1])).to(dtype))
