"""What small steps and DiagonalLinear spend their time on: the parts beside the whole, for docs/performance.md.

python -m benchmarks.limits [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torch_ssam
from torch_ssam.ops.entries import ops

from . import harness, step, training


def _operator_call(
    params: list[Tensor],
) -> tuple[Callable[[], object], Callable[[list[Any]], Callable[[], object]]]:
    """The step of keep_perturbed on these tensors, and its operator call alone, on lists of other tensors if wanted."""
    whole = step.ours(params, "gaussian", True)
    opt: Any = whole.__self__  # type: ignore[attr-defined]
    noise = opt._noise
    ((group, members),) = noise.placed(frozen=True)
    (part,) = opt._parts(group, members)
    generator, _ = noise.generator.on(torch.device("cpu"))
    numbers, _ = opt._numbers(group, torch.device("cpu"))
    lists = [part.members.params, noise.all_clean_of(part.members), part.grads, *part.state]

    def call(lists: list[Any] = lists) -> Callable[[], object]:
        places = list(range(len(lists[0])))
        return lambda: ops.update_and_perturb_(
            *lists, "sgd", numbers, generator, places, step.STD, draw_offset=1
        )

    return whole, call


def many_tensors(rounds: int) -> harness.Timing:
    whole, call = _operator_call(step.tensors(step.CASES["500x1k"][1]))
    return harness.alternate(
        {
            "step": whole,
            "its operator": call(),
            "the operator, 500 empty tensors": call([[torch.empty(0) for _ in range(500)] for _ in range(4)]),
            "the operator, one tensor of 500k": call([[torch.randn(500_000)] for _ in range(4)]),
        },
        rounds,
    )


def small_network(rounds: int) -> harness.Timing:
    whole, call = _operator_call(step.tensors(step.CASES["300"][1]))
    return harness.alternate({"step": whole, "its operator": call()}, rounds)


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        return saved


def diagonal_layer(features: int, batch: int, rounds: int) -> harness.Timing:
    x, grad = torch.randn(batch, features, requires_grad=True), torch.randn(batch, features)
    layer = torch_ssam.DiagonalLinear(features, 3)
    weight = layer.weight
    detached, outputs = (
        weight.detach(),
        [torch.empty_like(grad), torch.empty_like(grad), weight.detach().clone()],
    )

    def operators() -> None:
        with torch._C._AutoDispatchBelowAutograd():
            torch.ops.torch_ssam.diagonal.default(x, weight, None, 0.0, "gaussian", False)
            torch.ops.torch_ssam.diagonal_backward.default(
                grad, x, weight, None, 0.0, "gaussian", False, True, True
            )

    def copy() -> None:
        for output, source in zip(outputs, (grad, grad, detached), strict=True):
            output.copy_(source)

    return harness.alternate(
        {
            "forward and backward": lambda: torch.autograd.grad(layer(x), [x, weight], grad),
            "its operators": operators,
            "an empty autograd.Function": lambda: torch.autograd.grad(
                _Empty.apply(x, weight), [x, weight], grad
            ),
            "copies into its outputs": copy,
            "copies into new outputs": lambda: [source.clone() for source in (grad, grad, detached)],
        },
        rounds,
    )


def diagonal_training(rounds: int) -> harness.Timing:
    x, y = torch.randn(1, 100), torch.tensor([1.0])
    layer = torch_ssam.DiagonalLinear(100, 3, readout="sum")
    opt = torch_ssam.SSAM(
        layer.parameters(), lr=1e-4, noise_std=step.STD, momentum=0.9, keep_perturbed=True, seed=0
    )
    opt.train()

    def passes() -> None:
        (layer(x) - y).square().sum().backward()

    passes()
    ours = training._diagonal_sides()["ours"]
    return harness.alternate(
        {"training step": ours, "forward, loss, backward": passes, "opt.step": opt.step}, rounds
    )


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="measurements, each of all in turns")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    for title, timing in (
        ("500 tensors of 1k, keep_perturbed", many_tensors(rounds)),
        ("300 parameters in 4 tensors, keep_perturbed", small_network(rounds)),
        ("DiagonalLinear (1000000, 1), depth 3", diagonal_layer(1_000_000, 1, rounds)),
        ("DiagonalLinear (100000, 32), depth 3", diagonal_layer(100_000, 32, rounds)),
        ("DiagonalLinear (100, 64), depth 3", diagonal_layer(100, 64, rounds)),
        ("DiagonalLinear (100, 1), depth 3, trained", diagonal_training(rounds)),
    ):
        names = list(timing.seconds)
        print(f"{title}\n  {names[0]}: 1")
        for name in names[1:]:
            low, high = timing.spread(name, names[0])
            print(f"  {name}: {timing.ratio(name, names[0]):.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
