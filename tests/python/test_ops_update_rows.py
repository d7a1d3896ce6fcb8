"""update_rows_and_perturb_ has, bit for bit, the results of the four operators that it joins: update_, clip_rows_, row_scales_,
perturb_from_clean_; for rows that stay in a cache and longer ones, every pair of dtypes, rule, scale and layout.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import PAIRS, adamw, generator_of, random, sgd
from reference import same_bits

ops = torch.ops.torch_ssam
STD = 0.3
RULES: dict[str, tuple[Any, int]] = {
    "momentum": (sgd(0.01, 0.9, 0.0, 0.01, True), 1),
    "plain": (sgd(0.01), 0),
    "adamw": (adamw(0.01, amsgrad=True), 3),
}
# Some rows fit the cache (2^15 elements) and some do not; some tensors are one row whatever is asked for.
SHAPES = [
    (7,),
    (3, 5),
    (70, 9, 3, 3),
    (2, 4096),
    (3, 4097),
    (2, 33000),
    (40000,),
    (9000, 4),
    (1, 1),
    (0, 3),
    (4, 0),
    (),
]
HOW: dict[str, tuple[str, str, bool]] = {  # scale, kind, whether by filters
    "isotropic": ("isotropic", "norm", False),
    "element": ("element", "norm", False),
    "filter": ("rows", "norm", True),
    "tensor": ("rows", "norm", False),
    "absmax": ("rows", "absmax", True),
    "tensor_absmax": ("rows", "absmax", False),
}


def tensors(dtype: torch.dtype, seed: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [random(shape, torch.float64, seed + i).pow(3).to(dtype) for i, shape in enumerate(shapes)]


def filters(w: torch.Tensor) -> int:
    return w.shape[0] if w.dim() > 1 else 1


def compare(
    pair: tuple[torch.dtype, torch.dtype],
    rule: str,
    how: str,
    weight_clip: float,
    shapes: list[tuple[int, ...]] = SHAPES,
    layout: Any = lambda t: t,
    distribution: str = "gaussian",
) -> None:
    master, model = pair
    update, buffers = RULES[rule]
    scale, kind, by_filters = HOW[how]
    places, steps = list(range(len(shapes))), [3] * len(shapes)
    results = []
    for joined in (False, True):
        clean = [layout(w) for w in tensors(master, 1, shapes)]
        state = [layout(w.abs()) for b in range(buffers) for w in tensors(master, 50 + b, shapes)]
        grads = [layout(w) for w in tensors(model, 100, shapes)]
        params = [layout(torch.zeros_like(w, dtype=model)) for w in clean]
        rows = [torch.zeros(filters(w) if by_filters else 1) for w in clean] if scale == "rows" else []
        numbers = {"draw_offset": 2, "steps": steps} if rule == "adamw" else {"draw_offset": 2}
        if joined:
            ops.update_rows_and_perturb_(
                params, clean, grads, state, *update, generator_of(), places, weight_clip, rows, STD, distribution,
                scale=scale, kind=kind, **numbers,
            )  # fmt: skip
        else:
            given = {"steps": steps} if rule == "adamw" else {}
            ops.update_(clean, grads, state, *update, **given)
            before = [w.clone() for w in clean]
            if weight_clip:
                ops.clip_rows_([w for w in clean if w.dim() > 1], weight_clip)
                assert any(not torch.equal(a, b) for a, b in zip(before, clean, strict=True))
            if rows:
                ops.row_scales_(rows, clean, [], kind=kind)
            ops.perturb_from_clean_(
                params, clean, generator_of(), places, STD, distribution, 0, False, 2, scale, rows or None
            )
        results.append([*clean, *state, *params, *rows])
    for i, (apart, together) in enumerate(zip(*results, strict=True)):
        assert same_bits(together, apart), f"tensor {i} of shape {tuple(apart.shape)}"


@pytest.mark.parametrize("weight_clip", [0.0, 1.2])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rule", RULES)
def test_joined_in_one_call_the_operators_have_the_same_bits(rule: str, how: str, weight_clip: float) -> None:
    compare((torch.float32, torch.float32), rule, how, weight_clip)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_pair_of_dtypes_has_them(pair: tuple[torch.dtype, torch.dtype], how: str) -> None:
    compare(pair, "momentum", how, 1.2, distribution="rademacher")


@pytest.mark.parametrize("how", HOW)
def test_tensors_of_any_strides_have_them(how: str) -> None:
    shapes = [(5, 7), (3, 4, 5), (2, 33001)]
    compare(
        (torch.float32, torch.float32), "momentum", how, 1.2, shapes,
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_has_them(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(
            (torch.float32, torch.float32), "momentum", "absmax", 1.2, [(300, 700), (3, 70001), (5000, 9)]
        )
    finally:
        torch.set_num_threads(before)


def test_rows_that_overflowed_and_rows_of_zeros_have_them() -> None:
    inf, nan = float("inf"), float("nan")
    for length in (40, 40000):
        w = torch.ones(4, length)
        w[0], w[1, 3], w[2, 5] = 0.0, inf, nan
        clean, rows, params = w.clone(), torch.zeros(4), torch.zeros(4, length)
        rule, numbers = sgd(0.0)
        ops.update_rows_and_perturb_(
            [params], [clean], [torch.ones_like(w)], [], rule, numbers, generator_of(), [0], 1.5, [rows], STD,
            scale="rows", kind="absmax",
        )  # fmt: skip
        assert torch.equal(rows.isnan(), torch.tensor([False, False, True, False]))
        assert rows[0] == 0
        assert rows[1] == inf
        assert rows[3] == 1
        assert bool((params[0] == 0).all())
        assert torch.equal(clean.nan_to_num(7.0), w.nan_to_num(7.0))
