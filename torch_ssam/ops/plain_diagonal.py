"""The diagonal product y = x * w_1 * ... * w_L in plain PyTorch, forward and backward (csrc/math/diagonal.h).

Gradients of layers are products of prefixes and suffixes, without a division, as the kernels'. Sums over the batch and over
features are in the dtype that is computed in, in PyTorch's order. Tests: tests/python/test_plain_operators.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_ssam.ops import plain_checks as checks
from torch_ssam.ops.plain_noise import CHUNK, DISTRIBUTIONS, standard_noise, stream_of
from torch_ssam.ops.plain_numbers import add_noise, opmath


def _check(
    input: Tensor, weight: Tensor, generator: Tensor | None, noise_std: float, distribution: str
) -> None:
    checks.check_strided(input, "input")
    checks.check_parameter(weight, "weight")
    checks.require(
        weight.dim() == 2 and weight.shape[0] >= 1,
        f"weight has shape {tuple(weight.shape)}; expected (depth, features), depth >= 1.",
    )
    features = weight.shape[1]
    checks.require(
        input.dim() >= 1,
        f"input is a single number; expected (..., features) with features = {features}.",
    )
    checks.require(
        input.shape[-1] == features,
        f"input has {input.shape[-1]} features in its last dimension and weight has {features}; expected the same.",
    )
    mixed = weight.dtype == torch.float32 and input.dtype in (torch.bfloat16, torch.float16)
    checks.require(
        input.dtype == weight.dtype or mixed,
        f"input has dtype {checks.name_of(input.dtype)} and weight has {checks.name_of(weight.dtype)}; expected the same. "
        "Convert the input, or the module with module.to(dtype).",
    )
    checks.check_one_device([input], "input", weight, "weight")
    if generator is not None:
        checks.check_generator(generator)
        checks.check_one_device([generator], "generator", weight, "weight")
    checks.check_finite_nonnegative(noise_std, "noise_std")
    checks.check_named(distribution, "distribution", DISTRIBUTIONS)


def _layers(weight: Tensor, generator: Tensor | None, noise_std: float, distribution: str) -> list[Tensor]:
    """The layers as they are computed with; noisy ones rounded as SSAM would have stored them."""
    wide = weight.to(opmath(weight.dtype))
    if generator is None or noise_std == 0.0 or weight.numel() == 0:
        return list(wide.unbind(0))
    seed, draw = generator.tolist()
    stream = stream_of(seed, draw, 0, 0)
    noisy = torch.empty(weight.numel(), dtype=weight.dtype, device=weight.device)
    flat = wide.reshape(-1)
    for begin in range(0, flat.numel(), CHUNK):
        end = min(begin + CHUNK, flat.numel())
        noise = standard_noise(stream, distribution, begin, end, weight.device)
        noisy[begin:end].copy_(add_noise(flat[begin:end], noise_std, noise))
    return list(noisy.view(weight.shape).to(wide.dtype).unbind(0))


def _product(layers: list[Tensor]) -> Tensor:
    product = layers[0]
    for layer in layers[1:]:
        product = product * layer
    return product


def diagonal(
    input: Tensor,
    weight: Tensor,
    generator: Tensor | None = None,
    noise_std: float = 0.0,
    distribution: str = "gaussian",
    readout: bool = False,
) -> Tensor:
    """x * w_1 * ... * w_L, or its sum over the last dimension."""
    _check(input, weight, generator, noise_std, distribution)
    product = _product(_layers(weight, generator, noise_std, distribution))
    output = input.to(product.dtype) * product
    output = (output.sum(-1) if readout else output).to(input.dtype)
    return output.contiguous()


def diagonal_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    generator: Tensor | None,
    noise_std: float,
    distribution: str,
    readout: bool,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight; an empty tensor where one is not needed."""
    _check(input, weight, generator, noise_std, distribution)
    checks.check_strided(grad_output, "grad_output")
    shape = input.shape[:-1] if readout else input.shape
    checks.require(
        grad_output.shape == shape and grad_output.dtype == input.dtype,
        f"grad_output has shape {tuple(grad_output.shape)} and dtype {checks.name_of(grad_output.dtype)}, and input has "
        f"{tuple(input.shape)} and {checks.name_of(input.dtype)}; expected those of the output, which are the input's"
        + (" without the last dimension." if readout else "."),
    )
    checks.check_one_device([grad_output], "grad_output", input, "input")
    layers = _layers(weight, generator, noise_std, distribution)
    g = (grad_output.unsqueeze(-1) if readout else grad_output).to(layers[0].dtype)
    to_input, to_weight = input.new_empty(0), weight.new_empty(0)
    if needs_input:
        to_input = (g * _product(layers)).to(input.dtype).expand(input.shape).contiguous()
    if needs_weight:
        total = (
            (g * input.to(g.dtype)).reshape(-1, weight.shape[1])
            if input.numel()
            else g.new_zeros(1, weight.shape[1])
        )
        total = total.sum(0)
        prefixes, suffixes = [torch.ones_like(total)], [torch.ones_like(total)]
        for layer in layers[:-1]:
            prefixes.append(prefixes[-1] * layer)
        for layer in layers[:0:-1]:
            suffixes.append(suffixes[-1] * layer)
        gradients = [total * (p * s) for p, s in zip(prefixes, reversed(suffixes), strict=True)]
        to_weight = torch.stack(gradients).to(weight.dtype)
    return to_input, to_weight
