"""AdamW in update_ and update_and_perturb_: against a float64 reference within a stated rounding error over sizes,
dtypes and steps; one pass bit for bit against two, in lists and layouts, for any number of threads; what steps and
numbers may be. torch.optim.AdamW itself: test_adamw.py. The body and its loops: tests/cpp/test_adamw.cpp.
"""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from cases import DTYPES, LAYOUTS, PAIRS, SIZES, adamw, generator_of, random, same_layout
from reference import same_bits

ops = torch.ops.torch_ssam
STD = 2.0**-7

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.01},
    "decay": {"lr": 0.01, "weight_decay": 0.3, "eps": 0.01},
    "ascent": {"lr": 0.01, "beta1": 0.5, "beta2": 0.75, "maximize": True, "weight_decay": 0.3},
    "no_memory": {"lr": 0.01, "beta1": 0.0, "beta2": 0.0},
    "amsgrad": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.3},
}


def buffers_for(weights: list[torch.Tensor], kind: dict[str, Any], seed: int = 3) -> list[torch.Tensor]:
    """The first buffer of every tensor, the second of every tensor, ...; all but the first are >= 0."""
    first = [random(tuple(w.shape), w.dtype, seed=seed + i) for i, w in enumerate(weights)]
    squares = [
        random(tuple(w.shape), w.dtype, seed=seed + 100 * k + i).abs()
        for k in range(1, 3 if kind.get("amsgrad") else 2)
        for i, w in enumerate(weights)
    ]
    return [*first, *squares]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_update_follows_the_float64_reference_for_all_sizes(
    master: torch.dtype, model: torch.dtype, kind: str
) -> None:
    how, arithmetic = KINDS[kind], torch.float64 if master == torch.float64 else torch.float32
    for n in SIZES if kind == "plain" else SIZES[:-1]:
        for step in (1, 2, 1000):
            weight, grad = random(n, master, seed=n), random(n, model, seed=n + 1)
            buffers = buffers_for([weight], how, seed=n)
            after, moved, size = reference.adamw_update(weight, grad, buffers, step=step, **how)
            ops.update_([weight], [grad], buffers, *adamw(**how), steps=[step])
            stored = reference.ulp(master) / 2
            tiny = 1e-7 * (master == torch.float16)
            bound = 3 * reference.ulp(arithmetic) * size + stored * after.abs() + tiny
            assert bool(((weight.double() - after).abs() <= bound * 1.01).all()), (n, step)
            for buffer, expected in zip(buffers, moved, strict=True):
                near = 3 * reference.ulp(arithmetic) * 4 + stored * expected.abs() + tiny  # terms of up to 4
                assert bool(((buffer.double() - expected).abs() <= near * 1.01).all()), (n, step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_one_pass_has_the_bits_of_two(master: torch.dtype, model: torch.dtype, kind: str) -> None:
    how = KINDS[kind]
    for n in SIZES[:-1]:
        for distribution, std in (("gaussian", STD), ("rademacher", STD), ("gaussian", 0.0)):
            clean, grad = random(n, master, seed=n), random(n, model, seed=n + 1)
            buffers = buffers_for([clean], how, seed=n)
            two = [clean.clone(), *(b.clone() for b in buffers), torch.empty(n, dtype=model)]
            ops.update_([two[0]], [grad], two[1:-1], *adamw(**how), steps=[7])
            ops.perturb_from_clean_(
                [two[-1]], [two[0]], generator_of(), [7], std, distribution, draw_offset=1
            )
            params = torch.full((n,), 99.0, dtype=model)
            ops.update_and_perturb_(
                [params],
                [clean],
                [grad],
                buffers,
                *adamw(**how),
                generator_of(),
                [7],
                std,
                distribution,
                1,
                steps=[7],
            )
            assert same_bits([clean, *buffers, params], two), (n, distribution, std)


def test_lists_give_each_tensor_the_bits_it_gets_alone_at_its_own_step_for_any_thread_count() -> None:
    how = KINDS["amsgrad"]
    sizes, steps = (0, 1, 33, 4097, 20011, 70001), [1, 2, 3, 1, 1000, 5]

    def call(chosen: list[int]) -> list[torch.Tensor]:
        clean = [random(sizes[i], torch.float32, seed=i) for i in chosen]
        grads = [random(sizes[i], torch.float32, seed=10 + i) for i in chosen]
        params = [torch.empty(sizes[i]) for i in chosen]
        alone = [buffers_for([c], how, seed=20 + i) for i, c in zip(chosen, clean, strict=True)]
        buffers = [each[k] for k in range(3) for each in alone]
        ops.update_and_perturb_(
            params,
            clean,
            grads,
            buffers,
            *adamw(**how),
            generator_of(),
            chosen,
            STD,
            steps=[steps[i] for i in chosen],
        )
        return [*params, *clean, *buffers]

    alone = [call([i]) for i in range(len(sizes))]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        together = call(list(range(len(sizes))))
        for i, expected in enumerate(alone):
            assert same_bits(together[i :: len(sizes)], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_update_is_the_same_bits_in_every_layout(layout: str, dtype: torch.dtype) -> None:
    tensors = [same_layout(torch.empty(0, dtype=dtype), layout, seed=s) for s in range(5)]
    for squares in tensors[3:]:
        squares.abs_()
    plain = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    for each in (tensors, plain):
        weight, grad, *buffers = each
        ops.update_([weight], [grad], buffers, *adamw(amsgrad=True, weight_decay=0.1), steps=[3])
    assert same_bits([t.contiguous() for t in tensors], plain)


@pytest.mark.parametrize("lr_tensor", [torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)])
def test_lr_tensor_overrides_lr_in_step_size_and_decay(lr_tensor: torch.Tensor) -> None:
    weight, grad = random(100, torch.float32, seed=1), random(100, torch.float32, seed=2)
    expected, zeros = weight.clone(), torch.zeros(100)
    ops.update_([expected], [grad], [zeros.clone(), zeros.clone()], *adamw(0.25, weight_decay=0.5), steps=[2])
    buffers = [zeros.clone(), zeros.clone()]
    ops.update_([weight], [grad], buffers, *adamw(99.0, weight_decay=0.5), lr_tensor=lr_tensor, steps=[2])
    assert same_bits(weight, expected)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"steps": None}, "steps is None; the rule expects which update each tensor is at"),
    ({"steps": [0]}, "a tensor's step is 0; expected 1 at its first update"),
    ({"numbers": adamw(beta1=1.0)[1]}, "beta1 is 1; expected a number >= 0 and < 1"),
    ({"numbers": adamw(beta2=-0.5)[1]}, "beta2 is -0.5; expected a number >= 0 and < 1"),
    ({"numbers": adamw(beta2=float("nan"))[1]}, "beta2 is -?nan; expected a number >= 0 and < 1"),
    ({"numbers": adamw(eps=-1.0)[1]}, "eps is -1; expected a finite number >= 0"),
    ({"numbers": adamw(weight_decay=float("inf"))[1]}, "weight_decay is inf; expected a finite number"),
    ({"numbers": [0.1]}, "numbers has 1 entries; the rule 'adamw' expects 7: lr, beta1, beta2, eps,"),
    (
        {"numbers": adamw(amsgrad=True)[1]},
        "buffers has 2 tensors for 1 weights; the rule 'adamw' with these numbers keeps 3 for each",
    ),
    ({"buffers": [torch.ones(5), torch.ones(4)]}, r"exp_avg_sq\[0\] has shape \(4,\)"),
    ({"buffers": [torch.ones(5), torch.ones(5).double()]}, r"exp_avg_sq\[0\] has dtype float64"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_written(changed: dict[str, Any], message: str) -> None:
    weight, buffers = torch.ones(5), [torch.ones(5), torch.ones(5)]
    rule, numbers = adamw()
    given = {
        "weights": [weight],
        "grads": [torch.ones(5)],
        "buffers": buffers,
        "rule": rule,
        "numbers": numbers,
        "steps": [1],
        **changed,
    }
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.update_(**given)
    assert same_bits([weight, *buffers], [torch.ones(5)] * 3)
