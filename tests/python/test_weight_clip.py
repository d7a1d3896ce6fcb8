"""weight_clip: clip_rows_ against plain PyTorch for sizes, dtypes, layouts and threads; and what the optimizers clip, when,
and what they say of it. Beside the updates: test_ssam_reference.py; sharded: test_sharded.py.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import front_helpers as front
import pytest
import torch
from cases import DTYPES, LAYOUTS, random, random_like
from reference import same_bits
from reference_ssam import clipped
from torch import Tensor, nn

import torch_ssam

ops = torch.ops.torch_ssam
MUCH = pytest.warns(UserWarning, match=r"weight_clip=.* clipped .*% of the weights in its first step")


def spread(w: Tensor) -> Tensor:
    """Cubes of values of size 1/4 to 2: some are far above their row's root mean square."""
    return w.copy_(w.double() ** 3)


def in_documented_order(w: Tensor, weight_clip: float) -> Tensor:
    """The operator once more: sums of squares in 16 lanes and pieces of 4096, one row after another."""
    result = w.clone()
    for out, row in zip(result if w.dim() > 1 else [result], w if w.dim() > 1 else [w], strict=True):
        flat, total = row.double().reshape(-1), torch.zeros((), dtype=torch.float64)
        for piece in flat.split(4096):
            lanes = torch.zeros(16, dtype=torch.float64)
            for part in piece.split(16):
                lanes[: len(part)] += part * part  # exact products of float32 and narrower
            for width in (8, 4, 2, 1):
                lanes = lanes[:width] + lanes[width : 2 * width]
            total = total + lanes[0]
        limit = weight_clip * (total / flat.numel()).sqrt()
        opmath = torch.float64 if w.dtype == torch.float64 else torch.float32
        limit = limit.to(opmath)
        out.copy_(torch.maximum(torch.minimum(row.to(opmath), limit), -limit))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1, 4097), (3, 4096), (5, 17), (2, 3, 31), (33, 1), (1, 1), (2, 8193), (7, 15)], ids=str
)
def test_clipping_has_the_documented_order_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = spread(random(shape, dtype, seed=3))
    expected = in_documented_order(w, 1.25)
    assert shape[-1] == 1 or not torch.equal(expected, w)
    ops.clip_rows_([w], 1.25)
    assert same_bits(w, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filter_is_clipped_to_a_multiple_of_its_root_mean_square(layout: str, dtype: torch.dtype) -> None:
    w = spread(random_like(LAYOUTS[layout](dtype), seed=4))
    expected = clipped(w.double() if w.dim() > 1 else w.double().reshape(1, -1), 1.5).reshape(w.shape)
    plain = w.contiguous().clone()
    outside = w.abs() > expected.abs() * (1 + 1e-2)
    before = w.clone()
    ops.clip_rows_([w], 1.5)
    ops.clip_rows_([plain], 1.5)
    assert same_bits(w.contiguous(), plain)
    torch.testing.assert_close(w.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    inside = before.double().abs() < expected.abs() * (1 - 1e-2)
    assert not bool(inside.any())
    assert w.numel() <= 1 or before.shape[0] == w.numel() or bool(outside.any())
    assert torch.equal(w[~outside], torch.where(w == before, before, w)[~outside])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_clipped_bits_do_not_depend_on_threads(threads: int) -> None:
    w = spread(random((37, 5003), torch.float32, seed=5))
    expected = w.clone()
    ops.clip_rows_([expected], 1.1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops.clip_rows_([w], 1.1)
    finally:
        torch.set_num_threads(before)
    assert same_bits(w, expected)


def test_rows_of_zeros_stay_zero_and_rows_that_overflowed_stay_as_they_are() -> None:
    inf, nan = float("inf"), float("nan")
    w = torch.tensor([[0.0, -0.0, 0.0], [1.0, inf, -1.0], [nan, 5.0, 0.1], [9.0, 0.1, 0.1]])
    before = w.clone()
    ops.clip_rows_([w, torch.empty(3, 0), torch.empty(0, 4)], 1.5)
    assert same_bits(w[:3], before[:3])
    assert w[3, 0] < 9.0
    huge = torch.full((1, 4), 1e200, dtype=torch.float64)
    ops.clip_rows_([huge], 1.5)
    assert bool((huge == 1e200).all())


# -- the optimizers ----------------------------------------------------------------------------------------


class Weights(nn.Module):
    """A matrix with outliers, a vector with one, and a kernel of four dimensions."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.matrix = nn.Parameter(spread(random((6, 40), dtype, seed=6)))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.1, 9.0], dtype=dtype))
        self.kernel = nn.Parameter(spread(random((4, 3, 3, 3), dtype, seed=7)))

    def forward(self) -> Tensor:
        return sum((p.float().square().sum() for p in self.parameters()), torch.zeros(()))


def make(i: int, params: Any, **options: Any) -> Any:
    """The same step by each front: SGD's, AdamW's, and a wrapped base."""
    if i == 0:
        return torch_ssam.SSAM(params, lr=0.01, momentum=0.9, **options)
    if i == 1:
        return torch_ssam.SSAMAdamW(params, lr=0.01, **options)
    return torch_ssam.wrap(torch.optim.Adam(params, lr=0.01), **options)


def quietly(opt: Any, model: nn.Module, steps: int = 1) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            opt.zero_grad()
            if opt.param_groups[0]["keep_perturbed"]:
                model().backward()
            else:
                with opt.perturb():
                    model().backward()
            opt.step()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("i", range(3))
def test_each_front_clips_what_its_step_left_and_nothing_else(i: int, kept: bool) -> None:
    plain, model = Weights(), Weights()
    options = {"noise_std": 0.02, "seed": 1, "keep_perturbed": kept, "scale": "absmax"}
    first = make(i, plain.parameters(), **options)
    second = make(i, model.parameters(), **options, weight_clip=1.5)
    for opt, net in ((first, plain), (second, model)):
        opt.train()
        quietly(opt, net)
        opt.eval()
    expected = [w.detach().clone() for w in plain.parameters()]
    for w in expected:
        if w.dim() > 1:
            ops.clip_rows_([w], 1.5)
    assert front.same_bits(expected, [p.detach() for p in model.parameters()])
    assert front.same_bits(front.optimizer_bits(first), front.optimizer_bits(second))  # momentum stays
    assert not torch.equal(plain.matrix, model.matrix)


@pytest.mark.parametrize("i", range(3))
def test_all_ways_of_driving_end_in_the_same_bits(i: int) -> None:
    results = []
    for kept in (False, True):
        model = Weights()
        opt = make(
            i,
            model.parameters(),
            noise_std=0.05,
            seed=3,
            weight_clip=1.3,
            scale="absmax",
            keep_perturbed=kept,
        )
        opt.train()
        quietly(opt, model, steps=4)
        opt.eval()
        results.append(front.snapshot(model))
    assert front.same_bits(*results)


@pytest.mark.parametrize("channel_dim", [0, 1, 2])
def test_channel_dim_says_which_dimension_counts_filters(channel_dim: int) -> None:
    w = nn.Parameter(spread(random((5, 4, 7), torch.float64, seed=8)))
    before = w.detach().clone()
    opt = torch_ssam.SSAM([w], lr=0.1, noise_std=0.0, weight_clip=1.2, channel_dim=channel_dim)
    w.grad = torch.zeros_like(w)
    with MUCH:
        opt.step()
    torch.testing.assert_close(w.detach(), clipped(before, 1.2, channel_dim), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("kept", [False, True])
def test_masters_are_clipped_and_their_parameters_hold_the_rounding(kept: bool) -> None:
    masters = []
    for weight_clip in (None, 1.2):
        model = Weights(torch.bfloat16)
        opt = torch_ssam.SSAM(
            model.parameters(), lr=1e-4, noise_std=0.01, weight_clip=weight_clip, seed=2, scale="absmax",
            master_dtype=torch.float32, keep_perturbed=kept,
        )  # fmt: skip
        opt.train()
        quietly(opt, model)
        masters.append([opt._noise.masters.all()[p].clone() for p in (model.matrix, model.kernel)])
    opt.eval()
    assert all(master.dtype == torch.float32 for master in masters[0])
    ops.clip_rows_(masters[0], 1.2)
    assert front.same_bits(*masters)
    assert torch.equal(model.matrix.detach(), masters[1][0].to(torch.bfloat16))


def test_tied_weights_are_clipped_once() -> None:
    model = Weights()
    before = model.matrix.detach().clone()
    model.register_parameter("again", model.matrix)
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.0, weight_clip=1.2)
    model.matrix.grad = torch.zeros_like(model.matrix)
    with MUCH:
        opt.step()
    torch.testing.assert_close(model.matrix.detach(), clipped(before, 1.2), rtol=1e-6, atol=0.0)


def test_what_a_step_does_not_update_stays_as_it_is() -> None:
    model = Weights()
    before = front.snapshot(model)
    for options in ({"lr": 0.1}, {"lr": 0.0}, {"lr": torch.tensor(0.0)}):
        opt = torch_ssam.SSAM(model.parameters(), noise_std=0.0, weight_clip=1.2, **options)
        if options["lr"] == 0.0:  # as checkpoint tools step, to create state
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
        opt.step()
        assert front.same_bits(before, front.snapshot(model))
        assert opt.clipped_share is None


# -- the share of the first step ---------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(3))
def test_the_first_step_says_what_share_it_clips(i: int) -> None:
    w = nn.Parameter(torch.ones(4, 100))
    w.data[0, 0], w.data[1, 5] = 50.0, -50.0
    opt = make(i, [w], noise_std=0.0, weight_clip=3.0)
    assert opt.clipped_share is None
    w.grad = torch.zeros_like(w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 2 of 400 is not much
        opt.step()
        assert opt.clipped_share == 2 / 400
        w.data[2, :3] = 100.0
        opt.step()
    assert opt.clipped_share == 2 / 400


@pytest.mark.parametrize("kept", [False, True])
def test_more_than_a_hundredth_warns_once(kept: bool) -> None:
    a, b = nn.Parameter(torch.ones(1, 100)), nn.Parameter(torch.ones(1, 100))
    b.data[0, :3] = -40.0
    opt = torch_ssam.SSAM(
        [{"params": [a]}, {"params": [b], "weight_clip": 2.0}],
        lr=0.1,
        noise_std=0.0,
        weight_clip=4.0,
        keep_perturbed=kept,
    )
    opt.train()
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    with pytest.warns(
        UserWarning,
        match=r"weight_clip=2 clipped 1.50% .*parameter 1 of shape \(1, 100\) \(3 of 100\).*larger",
    ):
        opt.step()
    assert opt.clipped_share == 3 / 200
    opt.step()


def test_a_schedule_can_lower_the_limit() -> None:
    w = nn.Parameter(spread(random((3, 50), torch.float64, seed=9)))
    opt = torch_ssam.SSAM([w], lr=0.1, noise_std=0.0, weight_clip=100.0)
    for weight_clip in (100.0, 2.0, 1.5):
        opt.param_groups[0]["weight_clip"] = weight_clip
        expected = clipped(w.detach().clone(), weight_clip)
        w.grad = torch.zeros_like(w)
        opt.step()
        torch.testing.assert_close(w.detach(), expected, rtol=1e-14, atol=0.0)


# -- bad input and checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [1.0, 0.5, 0.0, -2.0, float("inf"), float("nan"), "2", True, torch.ones(2)])
def test_a_clip_of_one_or_less_is_refused(bad: Any) -> None:
    params = [nn.Parameter(torch.ones(2, 2))]
    for front_of in (torch_ssam.SSAM, torch_ssam.SSAMAdamW):
        with pytest.raises((ValueError, TypeError), match=r"weight_clip is .*; expected a"):
            front_of(params, weight_clip=bad)
    with pytest.raises((ValueError, TypeError), match=r"weight_clip is .*; expected a"):
        torch_ssam.wrap(torch.optim.SGD(params, lr=0.1), weight_clip=bad)


@pytest.mark.parametrize("bad", [2, -1, 1.0, True, "0"])
def test_a_dimension_that_a_tensor_lacks_is_refused(bad: Any) -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    with pytest.raises((ValueError, TypeError), match=r"channel_dim is .*; expected"):
        torch_ssam.SSAM(params, channel_dim=bad)
    base = torch.optim.SGD(params, lr=0.1)
    with pytest.raises((ValueError, TypeError), match=r"channel_dim is .*; expected"):
        torch_ssam.wrap(base, channel_dim=bad)
    assert "noise_std" not in base.param_groups[0]
    opt = torch_ssam.SSAM(params[:1])
    with pytest.raises((ValueError, TypeError), match=r"channel_dim is .*; expected"):
        opt.add_param_group({"params": params[1:], "channel_dim": bad})
    assert len(opt.param_groups) == 1


def test_options_changed_to_nonsense_are_refused_before_anything_is_written() -> None:
    for name, bad in (("weight_clip", 0.5), ("channel_dim", 7)):
        model = Weights()
        opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.0, weight_clip=2.0)
        before = front.snapshot(model)
        opt.param_groups[0][name] = bad
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(ValueError, match=f"{name} is {bad}"):
            opt.step()
        assert front.same_bits(before, front.snapshot(model))


@pytest.mark.parametrize("i", range(3))
def test_a_checkpoint_without_the_options_loads_and_one_with_them_resumes(i: int) -> None:
    model = Weights()
    opt = make(i, model.parameters(), noise_std=0.02, seed=1, weight_clip=1.5)
    quietly(opt, model)
    saved, weights = copy.deepcopy(opt.state_dict()), front.snapshot(model)
    quietly(opt, model)
    ended = front.snapshot(model)

    other = Weights()
    for p, w in zip(other.parameters(), weights, strict=True):
        p.data.copy_(w)
    resumed = make(i, other.parameters(), noise_std=0.3, seed=4)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["weight_clip"] == 1.5
    quietly(resumed, other)
    assert front.same_bits(ended, front.snapshot(other))

    for group in saved["param_groups"]:
        del group["weight_clip"], group["channel_dim"]
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["weight_clip"] == 1.5  # as constructed or as it was
    assert resumed.param_groups[0]["channel_dim"] == 0
