"""update_, update_and_perturb_ and project_: against a float64 reference within a stated rounding error,
against torch.optim.SGD within 2 ulp a step, and one pass (update_and_perturb_) bit for bit against two
(update_, then perturb_from_clean_), over sizes, dtypes, layouts, mixed lists and thread counts.
"""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext
from typing import Any

import pytest
import reference
import torch
from cases import DTYPES, LAYOUTS, PAIRS, SIZES, generator_of, random, random_like, same_layout, sgd
from reference import same_bits

ops = torch.ops.torch_ssam
STD = 2.0**-7

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.1, "weight_decay": 0.3},
    "ascent": {"lr": 0.1, "maximize": True, "weight_decay": 0.3},
    "first": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "first_step": True},
    "momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.3},
    "negative_dampening": {"lr": 0.1, "momentum": 0.9, "dampening": -0.5},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    "nesterov_first_ascent": {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "first_step": True,
        "maximize": True,
    },
}


def run_update(
    weights: list[torch.Tensor],
    grads: list[torch.Tensor],
    buffers: list[torch.Tensor],
    kind: dict[str, Any],
    **more: Any,
) -> None:
    rule, steps = rule_of(kind, len(weights))
    ops.update_(weights, grads, buffers if kind.get("momentum") else [], *rule, **steps, **more)


def rule_of(kind: dict[str, Any], tensors: int) -> tuple[tuple[str, list[float]], dict[str, Any]]:
    """Rule and numbers, and the steps of a call, which only a first one needs to say."""
    numbers = {name: value for name, value in kind.items() if name != "first_step"}
    return sgd(**numbers), {"steps": [1] * tensors} if kind.get("first_step") else {}


def assert_follows_reference(
    after: torch.Tensor,
    buffer: torch.Tensor,
    before: torch.Tensor,
    grad: torch.Tensor,
    buffer_before: torch.Tensor,
    kind: dict[str, Any],
    **more: Any,
) -> None:
    """Within 2 roundings of the arithmetic and 1/2 of the stored type, relative to the terms."""
    weight, moved, size = reference.sgd_update(before, grad, buffer_before, **kind, **more)
    arithmetic = torch.float64 if before.dtype == torch.float64 else torch.float32
    bound = 2 * reference.ulp(arithmetic) * size + reference.ulp(before.dtype) / 2 * weight.abs()
    assert bool(
        ((after.double() - weight).abs() <= bound * 1.01 + 1e-7 * (before.dtype == torch.float16)).all()
    )
    if moved is not None:
        bound = (
            2 * reference.ulp(arithmetic) * size / kind["lr"] + reference.ulp(before.dtype) / 2 * moved.abs()
        )
        assert bool(
            ((buffer.double() - moved).abs() <= bound * 1.01 + 1e-7 * (before.dtype == torch.float16)).all()
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_update_follows_the_float64_reference_for_all_sizes(
    master: torch.dtype, model: torch.dtype, kind: str
) -> None:
    for n in SIZES if kind == "momentum" else SIZES[:-1]:
        weight, grad, buffer = (
            random(n, dtype, seed=n + s) for s, dtype in enumerate((master, model, master))
        )
        before, grad_before, buffer_before = weight.clone(), grad.clone(), buffer.clone()
        run_update([weight], [grad], [buffer], KINDS[kind])
        assert_follows_reference(weight, buffer, before, grad, buffer_before, KINDS[kind])
        assert same_bits(grad, grad_before)
        if master in (torch.float64, torch.float32):
            assert bool((weight != before).all())


@pytest.mark.parametrize("lr_tensor", [torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)])
def test_lr_tensor_overrides_lr(lr_tensor: torch.Tensor) -> None:
    weight, grad = random(100, torch.float32, seed=1), random(100, torch.float32, seed=2)
    expected = weight.clone()
    ops.update_([expected], [grad], [], *sgd(0.25))
    ops.update_([weight], [grad], [], *sgd(99.0), lr_tensor=lr_tensor)
    assert same_bits(weight, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "kind", [name for name in KINDS if "first" not in name and name != "negative_dampening"]
)
def test_each_step_is_within_2_ulp_of_torch_sgd(kind: str, dtype: torch.dtype) -> None:
    options = dict(KINDS[kind])
    param = torch.nn.Parameter(random(997, dtype, seed=1))
    sgd = torch.optim.SGD([param], foreach=False, **options)
    weight, buffer = param.detach().clone(), torch.zeros(997, dtype=dtype)
    for step in range(5):
        param.grad = random(997, dtype, seed=10 + step)
        sgd.step()
        run_update([weight], [param.grad], [buffer], {**options, "first_step": step == 0})
        # The ulp of the largest term, weights and gradients being at most 2 and the buffer 20 in size.
        terms = torch.maximum(
            weight.abs(), torch.tensor(0.1 * 20 if "momentum" in options else 0.2, dtype=dtype)
        )
        assert bool(((weight - param).abs() <= 2 * reference.ulp(dtype) * terms).all())
        with torch.no_grad():  # compare one step at a time
            weight.copy_(param)
            if "momentum" in options:
                buffer.copy_(sgd.state[param]["momentum_buffer"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_update_is_the_same_bits_in_every_layout(layout: str, dtype: torch.dtype) -> None:
    tensors = [same_layout(torch.empty(0, dtype=dtype), layout, seed=s) for s in range(3)]
    plain = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    run_update(*([t] for t in plain), KINDS["nesterov"])
    strided, mixed = [t.clone() for t in tensors], [t.clone() for t in tensors]
    for copy, layouts in ((strided, (True, True, True)), (mixed, (False, True, False))):
        for i, use_layout in enumerate(layouts):
            copy[i] = (
                same_layout(tensors[i], layout, seed=i) if use_layout else tensors[i].contiguous().clone()
            )
        run_update(*([t] for t in copy), KINDS["nesterov"])
        assert same_bits(copy, plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_one_pass_has_the_bits_of_two(master: torch.dtype, model: torch.dtype, kind: str) -> None:
    for n in SIZES if kind == "momentum" else SIZES[:-1]:
        for distribution, offset in (("gaussian", 1), ("rademacher", -(2**40))):
            clean, grad, buffer = (random(n, t, seed=n + s) for s, t in enumerate((master, model, master)))
            two = [clean.clone(), grad, buffer.clone(), torch.empty(n, dtype=model)]
            run_update([two[0]], [grad], [two[2]], KINDS[kind])
            ops.perturb_from_clean_(
                [two[3]], [two[0]], generator_of(), [7], STD, distribution, draw_offset=offset
            )
            one = [clean, grad, buffer, torch.full((n,), 99.0, dtype=model)]
            run_fused([one[3]], [clean], [grad], [buffer], [7], KINDS[kind], distribution, offset)
            assert same_bits(one, two)


def run_fused(
    params: list[torch.Tensor],
    clean: list[torch.Tensor],
    grads: list[torch.Tensor],
    buffers: list[torch.Tensor],
    places: list[int],
    kind: dict[str, Any],
    *noise: Any,
    noise_std: float = STD,
    **more: Any,
) -> None:
    rule, steps = rule_of(kind, len(clean))
    ops.update_and_perturb_(
        params,
        clean,
        grads,
        buffers if kind.get("momentum") else [],
        *rule,
        generator_of(),
        places,
        noise_std,
        *noise,
        **steps,
        **more,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_without_noise_one_pass_updates_and_rounds(
    master: torch.dtype, model: torch.dtype, kind: str
) -> None:
    for n in SIZES if kind == "momentum" else SIZES[:-1]:
        clean, grad, buffer = (random(n, t, seed=n + s) for s, t in enumerate((master, model, master)))
        clean[::3], grad[::3] = -0.0, 0.0
        expected = [clean.clone(), buffer.clone()]
        run_update([expected[0]], [grad], [expected[1]], KINDS[kind])
        params = torch.full((n,), 99.0, dtype=model)
        run_fused([params], [clean], [grad], [buffer], [7], KINDS[kind], noise_std=0.0)
        assert same_bits([clean, buffer, params], [*expected, expected[0].to(model)])


Lists = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


def mixed_lists() -> Lists:
    """(params, clean, grads, buffers): all pairs of dtypes, many sizes and layouts, above the grain."""
    params, clean, grads, buffers = [], [], [], []
    for i, (master, model) in enumerate(PAIRS):
        for n in (0, 1, 33, 4097, 20011):
            params.append(random(n, model, seed=i + n))
            clean.append(random(n, master, seed=i + n + 1))
            grads.append(random(n, model, seed=i + n + 2))
            buffers.append(random(n, master, seed=i + n + 3))
        for layout in ("transposed_large", "slice", "scalar"):
            params.append(same_layout(torch.empty(0, dtype=model), layout, seed=i))
            clean.append(same_layout(torch.empty(0, dtype=master), layout, seed=i + 1))
            grads.append(same_layout(torch.empty(0, dtype=model), layout, seed=i + 2))
            buffers.append(same_layout(torch.empty(0, dtype=master), layout, seed=i + 3).contiguous())
    return params, clean, grads, buffers


def test_mixed_lists_give_each_tensor_the_bits_it_gets_alone_for_any_thread_count() -> None:
    alone = mixed_lists()
    places = list(range(len(alone[0])))
    for i in places:
        run_fused(*([part[i]] for part in alone), [i], KINDS["momentum"])  # type: ignore[arg-type]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        together = mixed_lists()
        run_fused(*together, places, KINDS["momentum"])
        assert all(same_bits(a, b) for a, b in zip(together, alone, strict=True))
        _, clean, grads, buffers = mixed_lists()
        run_update(clean, grads, buffers, KINDS["momentum"])
        assert same_bits(clean, alone[1])
        assert same_bits(buffers, alone[3])


def test_beyond_the_caches_each_tensor_has_the_bits_it_gets_alone() -> None:
    # A pass over more than 128 MiB stores past the caches (csrc/ops/cpu/kernels/stream.h); one tensor alone is below that.
    n = 3_000_001
    lists = tuple([random(n, torch.float32, seed=10 * k + i) for i in range(3)] for k in range(4))
    alone = tuple([t.clone() for t in part] for part in lists)
    for i in range(3):
        run_fused(*([part[i]] for part in alone), [i], KINDS["momentum"])  # type: ignore[arg-type]
    run_fused(*lists, [0, 1, 2], KINDS["momentum"])
    assert all(same_bits(a, b) for a, b in zip(lists, alone, strict=True))


def test_a_first_step_forgets_the_buffer() -> None:
    weight, grad = random(100, torch.float32, seed=1), random(100, torch.float32, seed=2)
    buffer = random(100, torch.float32, seed=3)
    run_update([weight], [grad], [buffer], KINDS["first"])
    assert same_bits(buffer, grad)


@pytest.mark.parametrize("fused", [False, True])
def test_each_tensor_of_a_call_is_at_a_step_of_its_own(fused: bool) -> None:
    def call(chosen: list[int], steps: list[int] | None) -> list[list[torch.Tensor]]:
        lists = [[random(1000 + i, torch.float32, seed=10 * k + i) for i in chosen] for k in range(4)]
        params, clean, grads, buffers = lists
        how = sgd(momentum=0.9, dampening=0.25)
        if fused:
            ops.update_and_perturb_(
                params, clean, grads, buffers, *how, generator_of(), chosen, STD, steps=steps
            )
        else:
            ops.update_(clean, grads, buffers, *how, steps=steps)
        return lists

    together = call([0, 1, 2, 3], [1, 2, 1, 7])
    for i, step in enumerate((1, 2, 1, 7)):
        alone = call([i], [1] if step == 1 else None)
        assert same_bits([part[i] for part in together], [part[0] for part in alone])


# --- projection


@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_scales_the_stacked_weights_onto_the_ball(dtype: torch.dtype) -> None:
    weights = [random(n, dtype, seed=n) for n in (0, 1, 33, 4097, 5000)]
    weights += [
        same_layout(torch.empty(0, dtype=dtype), layout, seed=2) for layout in ("slice", "transposed")
    ]
    before = [w.clone() for w in weights]
    norm = float(torch.cat([w.double().reshape(-1) for w in weights]).square().sum().sqrt())
    ops.project_(weights, norm / 3)
    for after, start in zip(weights, before, strict=True):
        torch.testing.assert_close(
            after.double(),
            start.double() / 3,
            rtol=2 * reference.ulp(dtype),
            atol=1e-7 * (dtype == torch.float16),
        )


def test_projection_inside_the_ball_changes_no_bit() -> None:
    weights = [random(5000, torch.float32, seed=1), same_layout(torch.empty(0), "slice", seed=2)]
    before = [w.clone() for w in weights]
    norm = float(torch.cat([w.double().reshape(-1) for w in weights]).square().sum().sqrt())
    ops.project_(weights, norm * (1 + 1e-9))
    assert same_bits(weights, before)


def test_projection_is_the_same_for_any_thread_count_and_layout() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for base in (torch.empty(301, 233).t(), torch.empty(233, 301)):
            weights = [random(n, torch.float32, seed=n) for n in (100003, 7)] + [random_like(base, 5)]
            ops.project_(weights, 1.0)
            results.append(weights)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_added_up_in_parts_projects_as_the_whole_does(dtype: torch.dtype) -> None:
    """What each rank does with its part of the weights; the parts of a list are added in its order."""
    weights = [random(n, dtype, seed=n) for n in (4097, 0, 33, 12289, 1)]
    weights.append(same_layout(torch.empty(0, dtype=dtype), "transposed", seed=2))
    parts = [w.clone() for w in weights]
    total = torch.zeros(1, dtype=torch.float64)
    for part in (parts[:2], [], parts[2:3], parts[3:]):
        ops.add_squares_(total, part)
    wanted = torch.cat([w.double().reshape(-1) for w in weights]).square().sum()
    torch.testing.assert_close(total[0], wanted, rtol=1e-13, atol=0.0)
    assert same_bits(parts, weights), "adding up changed weights"
    radius = float(wanted.sqrt()) / 3
    ops.project_(weights, radius)
    for part in (parts[:1], parts[1:]):
        ops.project_(part, radius, total)
    assert same_bits(parts, weights)
    inside = [w.clone() for w in parts]
    ops.project_(inside, radius, torch.tensor(radius**2 * 0.99, dtype=torch.float64))  # what is told counts
    assert same_bits(inside, parts)


def test_projection_of_weights_that_are_not_finite_zeroes_nothing() -> None:
    # The squares of the first overflow; a factor of radius / inf would wipe out every weight.
    for value in (1e200, float("inf"), float("nan")):
        weights = [torch.full((4,), value, dtype=torch.float64), torch.ones(3)]
        ops.project_(weights, 1.0)
        assert bool((weights[0] != 0).all()), value


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
def test_an_operator_holds_no_tensor_after_its_call(refused: bool, in_thread: bool) -> None:
    lists = [[torch.ones(3) for _ in range(4)] for _ in range(4)]
    numbers = [0.1, 0.9, 0.0, 0.0, 0.0, 0.0]
    generator = torch.zeros(2, dtype=torch.int64)
    places = list(range(3 if refused else 4))
    before = [[sys.getrefcount(tensor) for tensor in tensors] for tensors in lists]

    def call() -> None:
        refusal = pytest.raises(ValueError, match="places has 3 entries for 4") if refused else nullcontext()
        with refusal:
            ops.update_and_perturb_(*lists, "sgd", numbers, generator, places, 0.1)

    if in_thread:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    else:
        call()
    assert torch.equal(lists[0][0], torch.ones(3)) == refused
    assert [[sys.getrefcount(tensor) for tensor in tensors] for tensors in lists] == before
