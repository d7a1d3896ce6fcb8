"""y = x * w_1 * ... * w_L with its derivatives: autograd of the operators, and the ways to call them.

Autograd is registered here; the backward of the backward is written in plain torch operations, so it differentiates to any
order. Under torch.func transforms and forward-mode AD, which operators do not see, the same product is written out. Formulas:
docs/theory.md, P_i = prod_{k != i} w_k. Tests: tests/python/test_diagonal_linear.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import torch_ssam.ops.library  # noqa: F401  (loads the operators)

DISTRIBUTION = "gaussian"
_innermost_transform: Any = torch._C._functorch.peek_interpreter_stack


def _layers(weight: Tensor, generator: Tensor | None, noise_std: float) -> list[Tensor]:
    """The layers' vectors, perturbed where there is a generator. The noise is a constant to autograd."""
    if generator is not None and noise_std > 0:
        with torch.no_grad():
            perturbed = torch.ops.torch_ssam.perturbed(weight.detach(), generator, 0, noise_std, DISTRIBUTION)
            shift = perturbed - weight.detach()
        # weight + shift rounds back to `perturbed`; the values come from the operator, the gradient from
        # weight.
        weight = weight + shift if transforms_active() else _substitute(weight, perturbed)
    return list(weight.unbind(0))


class _Substitute(torch.autograd.Function):
    """Takes the second argument's value and the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _substitute(weight: Tensor, value: Tensor) -> Tensor:
    result: Tensor = _Substitute.apply(weight, value)  # type: ignore[no-untyped-call]
    return result


def transforms_active() -> bool:
    """Of torch.func, or forward-mode AD; not while torch.compile traces."""
    return not torch.compiler.is_compiling() and in_transform()


def in_transform() -> bool:
    """The same where torch.compile is known not to trace."""
    return _innermost_transform() is not None or forward_ad._current_level >= 0


def written_out(
    input: Tensor, weight: Tensor, generator: Tensor | None, noise_std: float, readout: bool
) -> Tensor:
    """The product in torch operations."""
    layers = _layers(weight, generator, noise_std)
    product = layers[0]
    for layer in layers[1:]:
        product = product * layer
    output = (input * product).to(input.dtype)
    return output.sum(-1) if readout else output


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, generator, ctx.noise_std, ctx.distribution, ctx.readout = inputs
    ctx.save_for_backward(input, weight, generator)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, generator = ctx.saved_tensors
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    grad_input, grad_weight = torch.ops.torch_ssam.diagonal_backward(
        grad,
        input,
        weight,
        generator,
        ctx.noise_std,
        ctx.distribution,
        ctx.readout,
        needs_input,
        needs_weight,
    )
    return (
        grad_input if needs_input else None,
        grad_weight if needs_weight else None,
        None,
        None,
        None,
        None,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, input, weight, generator, ctx.noise_std, _, ctx.readout, ctx.needs_input, ctx.needs_weight = inputs
    ctx.save_for_backward(grad, input, weight, generator)


def _double_backward(ctx: Any, to_input: Tensor | None, to_weight: Tensor | None) -> tuple[Any, ...]:
    """Backward of (g, x, w) -> (g P, (sum_b g x) P_i) for cotangents a, c of the two.

    With Q = sum_i c_i P_i and s = sum_b g x:
      to g: a P + x Q;   to x: g Q;   to w_j: (sum_b a g) P_j + s dQ/dw_j,
    P_j and dQ/dw_j from prefixes and suffixes of the pairs (P, Q): no division.
    """
    grad, input, weight, generator = ctx.saved_tensors
    a = to_input if ctx.needs_input else None
    c = to_weight if ctx.needs_weight else None
    dtype = torch.promote_types(input.dtype, weight.dtype)
    g = (grad.unsqueeze(-1) if ctx.readout else grad).to(dtype)
    x = input.to(dtype)
    layers = [layer.to(dtype) for layer in _layers(weight, generator, ctx.noise_std)]
    one, zero = torch.ones_like(layers[0]), torch.zeros_like(layers[0])
    directions = list(c.to(dtype).unbind(0)) if c is not None else [zero] * len(layers)

    def extend(pair: tuple[Tensor, Tensor], layer: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        return pair[0] * layer, pair[1] * layer + pair[0] * direction

    prefixes = [(one, zero)]
    for layer, direction in zip(layers, directions, strict=True):
        prefixes.append(extend(prefixes[-1], layer, direction))
    suffix = (one, zero)
    suffixes = [suffix]
    for layer, direction in zip(layers[:0:-1], directions[:0:-1], strict=True):
        suffix = extend(suffix, layer, direction)
        suffixes.append(suffix)
    suffixes.reverse()
    product, tangent = prefixes[-1]

    rows = tuple(range(x.dim() - 1))
    to_g = x * tangent if a is None else a.to(dtype) * product + x * tangent
    to_x = g * tangent

    def over_rows(value: Tensor) -> Tensor:
        value = value.expand(x.shape)
        return value.sum(rows) if rows else value

    s = over_rows(g * x)
    ag = over_rows(g * a.to(dtype)) if a is not None else zero
    to_w = torch.stack(
        [
            ag * (p * sp) + s * (q * sp + p * sq)
            for (p, q), (sp, sq) in zip(prefixes[:-1], suffixes, strict=True)
        ]
    )
    to_g = to_g.sum(-1) if ctx.readout else to_g
    return (
        to_g.to(grad.dtype),
        to_x.expand(x.shape).to(input.dtype),
        to_w.to(weight.dtype),
        None,
        None,
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd("torch_ssam::diagonal", _backward, setup_context=_setup_forward)
torch.library.register_autograd(
    "torch_ssam::diagonal_backward", _double_backward, setup_context=_setup_backward
)


def mixed(input: Tensor, weight: Tensor) -> ValueError:
    """Dtypes that do not go together."""
    return ValueError(
        f"input has dtype {input.dtype} and weight has {weight.dtype}; expected the same outside of "
        "autocast. Convert the input, or the module with module.to(dtype)."
    )


def autocast(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Input and weight as autocast on the input's device wants them."""
    device = input.device.type
    if torch.is_autocast_enabled(device) and input.is_floating_point() and input.dtype != torch.float64:
        input = input.to(torch.get_autocast_dtype(device))
        if weight.dtype in (torch.float16, torch.bfloat16):  # the kernels take float32 weights as they are
            weight = weight.to(input.dtype)
    elif input.dtype != weight.dtype:
        raise mixed(input, weight)
    return input, weight


_forward_entry: Any = torch.ops.torch_ssam.diagonal.default
_backward_entry: Any = torch.ops.torch_ssam.diagonal_backward.default
_forward_entry = getattr(_forward_entry, "_op", _forward_entry)
_backward_entry = getattr(_backward_entry, "_op", _backward_entry)
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


class _Diagonal(torch.autograd.Function):
    """The same derivatives at a third of the cost a call: at 100 features that cost is all there is."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, generator: Tensor | None, noise_std: float, readout: bool
    ) -> Tensor:
        ctx.save_for_backward(input, weight, generator)
        ctx.noise_std, ctx.distribution, ctx.readout = noise_std, DISTRIBUTION, readout
        with _BelowAutograd():
            output: Tensor = _forward_entry(input, weight, generator, noise_std, DISTRIBUTION, readout)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph: the operator, whose derivative is registered above
            return _backward(ctx, grads[0])[:5]
        input, weight, generator = ctx.saved_tensors
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        with _BelowAutograd():
            to_input, to_weight = _backward_entry(
                grads[0],
                input,
                weight,
                generator,
                ctx.noise_std,
                DISTRIBUTION,
                ctx.readout,
                needs_input,
                needs_weight,
            )
        return to_input if needs_input else None, to_weight if needs_weight else None, None, None, None


# Function.apply without its Python, a tenth of the call: of what that is for, transforms are looked for before, and
# tensors that outlived one are unwrapped here.
_apply: Any = super(torch.autograd.Function, _Diagonal).apply
_unwrap_if_dead: Any = torch._C._functorch.unwrap_if_dead


def apply_plain(
    input: Tensor, weight: Tensor, generator: Tensor | None, noise_std: float, readout: bool
) -> Tensor:
    """The product where nothing watches operators: no transform, no mode, no tracing, no tensor subclass."""
    result: Tensor = _apply(_unwrap_if_dead(input), _unwrap_if_dead(weight), generator, noise_std, readout)
    return result


def is_plain(input: Tensor, weight: Tensor) -> bool:
    """Whether neither tensor is of a subclass and no torch function mode is on."""
    kind = type(weight)
    return (
        type(input) is Tensor
        and (kind is nn.Parameter or kind is Tensor)
        and torch._C._len_torch_function_stack() == 0
    )
