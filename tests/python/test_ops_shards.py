"""`shards`: what the operators do to a part of a tensor is, bit for bit, that part of what they do to the whole, for
boxes in every dimension, dtypes, distributions, scales, layouts and thread counts.
"""

from __future__ import annotations

import pytest
import torch
from cases import PAIRS, generator_of, random, sgd
from reference import same_bits
from shard_boxes import BOXES, part_of, shards_of, whole
from torch import Tensor

ops = torch.ops.torch_ssam
STD = 0.3


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize(("master", "model"), PAIRS, ids=str)
@pytest.mark.parametrize("box", BOXES)
def test_the_noise_of_a_shard_is_that_of_the_whole_tensor(
    box: str, master: torch.dtype, model: torch.dtype, distribution: str
) -> None:
    clean = whole(box, master, 1)
    how = (generator_of(), [3], STD, distribution, 2, True, 1)
    expected = torch.empty_like(clean, dtype=model)
    ops.perturb_from_clean_([expected], [clean], *how)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        params, saved = part_of(clean, box).to(model), part_of(clean, box)
        ops.perturb_from_clean_([params], [saved], *how, shards=shards_of(box))
        assert same_bits(params, part_of(expected, box))
        if master == model:
            params, saved = part_of(clean, box), torch.full_like(saved, 7.0)
            ops.perturb_([params], [saved], *how, shards=shards_of(box))
            assert same_bits(params, part_of(expected, box))
            assert same_bits(saved, part_of(clean, box))


@pytest.mark.parametrize("scale", ["isotropic", "element"])
@pytest.mark.parametrize(("master", "model"), PAIRS, ids=str)
@pytest.mark.parametrize("box", BOXES)
def test_a_fused_step_of_a_shard_is_that_of_the_whole_tensor(
    box: str, master: torch.dtype, model: torch.dtype, scale: str
) -> None:
    def step(cut: bool) -> list[Tensor]:
        tensors = [whole(box, dtype, s) for s, dtype in enumerate((model, master, model, master), start=1)]
        if cut:
            tensors = [part_of(tensor, box) for tensor in tensors]
        params, clean, grads, momenta = tensors
        ops.update_and_perturb_(
            [params], [clean], [grads], [momenta], *sgd(0.1, 0.9, 0.0, 0.01, nesterov=True), generator_of(), [5], STD,
            scale=scale, shards=shards_of(box) if cut else None,
        )  # fmt: skip
        return [params, clean, momenta]

    for ours, expected in zip(step(True), step(False), strict=True):
        assert same_bits(ours, part_of(expected, box))


@pytest.mark.parametrize("box", BOXES)
def test_scales_by_element_and_by_rows_of_the_shard(box: str) -> None:
    clean, how = whole(box, torch.float32, 1), (generator_of(), 3, STD)
    by_element = ops.perturbed(clean, *how, scale="element")
    ours = ops.perturbed(part_of(clean, box), *how, scale="element", shards=shards_of(box))
    assert same_bits(ours, part_of(by_element, box))
    if len(BOXES[box][0]) < 2:
        return
    first, n = BOXES[box][1][0], BOXES[box][2][0]
    rows = random((clean.shape[0],), torch.float32, 2).abs()
    by_rows = ops.perturbed(clean, *how, scale="rows", row_scales=[rows])
    own = [rows[first : first + n].clone()]
    ours = ops.perturbed(part_of(clean, box), *how, scale="rows", row_scales=own, shards=shards_of(box))
    assert same_bits(ours, part_of(by_rows, box))


def test_a_list_may_mix_shards_and_whole_tensors_of_any_stride() -> None:
    boxes = ["rows", "columns", "empty", "all_of_it", "three_splits", "a_number", "vector"]
    clean = [whole(box, torch.float32, s) for s, box in enumerate(boxes)]
    places = [4, 0, 1, 2, 9, 3, 7]
    expected = [ops.perturbed(w, generator_of(), i, STD) for w, i in zip(clean, places, strict=True)]
    params = []
    for w, box in zip(clean, boxes, strict=True):
        part = part_of(w, box)
        strided = torch.empty([2 * n for n in part.shape])[tuple(slice(None, None, 2) for _ in part.shape)]
        params.append(strided.copy_(part))
    saved = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in params]
    ops.perturb_(params, saved, generator_of(), places, STD, shards=shards_of(*boxes))
    for ours, e, box in zip(params, expected, boxes, strict=True):
        assert same_bits(ours, part_of(e, box))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([5, 3, 0], "shards has 3 integers; expected 4"),
        ([5, 3, 4, 0], r"shard 0 starts at 4 of 5 in dimension 0 and has 2; expected it to lie inside"),
        ([5, 3, -1, 0], "starts at -1 of 5"),
        ([1, 3, 0, 0], "starts at 0 of 1 in dimension 0 and has 2"),
        ([2**40, 2**40, 0, 0], "more elements than int64"),
        ([5, 3, -(2**63), 0], "starts at -9223372036854775808"),
        ([5, 3, 2**63 - 1, 0], "starts at 9223372036854775807"),
    ],
)
def test_shards_that_lie_outside_are_refused_and_nothing_is_written(shards: list[int], message: str) -> None:
    params, clean = random((2, 3), torch.float32, 1), random((2, 3), torch.float32, 2)
    before = params.clone()
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.perturb_from_clean_([params], [clean], generator_of(), [0], STD, shards=shards)
    assert same_bits(params, before)


def test_more_splits_than_the_operators_follow_are_refused() -> None:
    with pytest.raises((ValueError, RuntimeError), match="more than 4 runs of dimensions"):
        ops.perturbed(torch.ones(2, 2, 2, 2, 2), generator_of(), 0, STD, shards=[4] * 5 + [1] * 5)
