"""What each rank of test_sharded.py runs: parameters sharded in every way, beside the same training on whole tensors.

    python sharded_program.py FOLDER save|load

All ranks see the same batches, so that the mean gradient over two or four ranks is, bit for bit, that of one process.
`save` leaves checkpoints in FOLDER, `load` resumes them on another number of ranks. What a check raised goes to
FOLDER/MODE-rankK.json, by its name; the test reports it.
"""

import json
import os
import re
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from front_helpers import Alarm, same_bits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

import torch_ssam
from torch_ssam.ops.dtensor import is_sharded

CHECKS: dict[str, Callable[[], None]] = {}


# On a mesh of two by two.
ON_FOUR = ("fsdp_over_tensor_parallel_trains_as_one_process_does", "hybrid_fsdp_trains_as_one_process_does")


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


class Net(nn.Module):
    """Rows that no number of ranks divides; `gain` and the last bias leave ranks with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.norm = nn.LayerNorm(7)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.second(self.norm(torch.tanh(self.first(x))))  # type: ignore[no-any-return]


def whole_net() -> Net:
    torch.manual_seed(3)
    return Net()


def sharded_net() -> Net:
    net = whole_net()
    fully_shard(net.first)
    fully_shard(net)
    return net


def batches(count: int, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    result = []
    for k in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 + k)
        result.append((torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)))
    return result


def ssam(net: nn.Module, **options: Any) -> torch_ssam.SSAM:
    return torch_ssam.SSAM(
        net.parameters(),
        **{"lr": 0.05, "noise_std": 0.3, "momentum": 0.9, "weight_decay": 0.01, "seed": 7, **options},
    )


def with_masters(net: nn.Module, **options: Any) -> torch_ssam.SSAM:
    return ssam(net.bfloat16(), **{"master_dtype": torch.float32, "noise_std": 0.05, **options})


def adamw(net: nn.Module, **options: Any) -> torch_ssam.SSAMAdamW:
    return torch_ssam.SSAMAdamW(
        net.parameters(), **{"lr": 0.05, "noise_std": 0.3, "weight_decay": 0.1, "seed": 7, **options}
    )


def adamw_with_masters(net: nn.Module, **options: Any) -> torch_ssam.SSAMAdamW:
    return adamw(net.bfloat16(), **{"master_dtype": torch.float32, "noise_std": 0.05, **options})


def wrapped(net: nn.Module, **options: Any) -> torch_ssam.WrappedOptimizer:
    base = torch.optim.AdamW(net.parameters(), lr=0.05)
    return torch_ssam.wrap(base, **{"noise_std": 0.3, "seed": 7, **options})


def with_fisher(net: nn.Module, **options: Any) -> torch_ssam.SSAM:
    return ssam(net, scale="fisher", **options)


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x.to(next(net.parameters()).dtype)) - y).square().mean()


def drive(way: str, opt: Any, net: nn.Module, todo: list[tuple[Tensor, Tensor]]) -> None:
    way = LOOPS.get(way, way)
    opt.train()
    for x, y in todo:
        opt.zero_grad()
        if way == "perturbations":
            for _ in opt.perturbations():
                loss_of(net, x, y).backward()
            opt.step()
        elif way == "closure":

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                opt.zero_grad()
                loss = loss_of(net, x, y)
                loss.backward()
                return loss

            opt.step(closure)
        elif way == "kept":
            loss_of(net, x, y).backward()
            opt.step()
        else:
            for _ in range(2 if way == "accumulate" else 1):
                with opt.perturb():
                    loss_of(net, x, y).backward()
            opt.step()


WAYS: dict[str, dict[str, Any]] = {
    "perturb": {"nesterov": True},
    "closure": {"distribution": "rademacher"},
    "perturbations": {"samples": 2, "antithetic": True},
    "accumulate": {"scale": "element"},
    "kept": {"keep_perturbed": True},
    "filter": {"scale": "filter"},
    "tensor": {"scale": "tensor", "keep_perturbed": True},
    "fisher": {"scale": "fisher", "keep_perturbed": True},
    "clip": {"scale": "absmax", "weight_clip": 1.2, "keep_perturbed": True},
    "ball": {"scale": "filter", "weight_clip": 1.2, "radius": 1.5},  # well inside of where the net starts
}
LOOPS = {
    "filter": "perturb",
    "tensor": "kept",
    "fisher": "kept",
    "clip": "kept",
    "ball": "perturb",
}  # the others are loops of their own


def full(tensors: Any) -> list[Tensor]:
    tensors = tensors.parameters() if isinstance(tensors, nn.Module) else tensors
    return [(t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for t in tensors]


def expect(ours: Any, whole: Any, what: str) -> None:
    a, b = full(ours), full(whole)
    wrong = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if not same_bits([x], [y])]
    assert not wrong, f"{what}: parameters {wrong} differ, {a[wrong[0]]} and {b[wrong[0]]}"


def expect_moved(net: nn.Module) -> None:
    for p, q in zip(full(net), full(whole_net()), strict=True):
        assert not torch.equal(p, q), "a parameter never moved: the check would prove nothing"


def refused(message: str, call: Callable[[], Any], kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


# -- the noise -----------------------------------------------------------------------------------------------


def meshes() -> list[DeviceMesh]:
    world = dist.get_world_size()
    flat = init_device_mesh("cpu", (world,))
    return [flat] if world == 2 else [flat, init_device_mesh("cpu", (2, 2))]


LAYOUTS: dict[int, list[Any]] = {
    1: [[Shard(0)], [Shard(1)], [Shard(2)], [Replicate()]],
    2: [
        [Shard(0), Shard(1)],
        [Shard(2), Shard(0)],
        [Replicate(), Shard(1)],
        [Shard(1), Shard(1)],
        [_StridedShard(0, split_factor=2), Shard(0)],
    ],
}


@check
def noise_of_every_layout() -> None:
    """Each rank's part is compared with the same part of the whole tensor's noise."""
    for mesh in meshes():
        whole = [torch.randn(9, 8, 5), torch.randn(1, 3, 33), torch.randn(70, 40, 3), torch.randn(8, 130, 2)]
        for i, w in enumerate(whole):
            dist.broadcast(w, 0)
            whole[i] = w
        for placements in LAYOUTS[mesh.ndim]:
            tensors = whole[-1:] if isinstance(placements[0], _StridedShard) else whole  # it takes even sizes
            parts = [distribute_tensor(w, mesh, placements).requires_grad_() for w in tensors]
            plain = [w.clone().requires_grad_() for w in tensors]
            for distribution in ("gaussian", "rademacher"):
                for scale in ("isotropic", "element", "filter", "tensor", "columns"):
                    how: dict[str, Any] = {"distribution": distribution, "scale": scale, "seed": 5}
                    if scale == "columns":
                        how |= {"scale": "absmax", "channel_dim": 1}
                    ours, theirs = (
                        torch_ssam.WeightNoise(parts, 0.3, **how),
                        torch_ssam.WeightNoise(plain, 0.3, **how),
                    )
                    with ours.applied(sample=1, negate=True), theirs.applied(sample=1, negate=True):
                        for p, q in zip(parts, plain, strict=True):
                            own = distribute_tensor(q.detach(), mesh, placements, src_data_rank=None)
                            assert same_bits([p.to_local()], [own.to_local()]), (placements, p.shape, how)
                            assert p.placements == tuple(placements)
                    for p, w in zip(parts, tensors, strict=True):
                        own = distribute_tensor(w, mesh, placements, src_data_rank=None)
                        assert same_bits([p.to_local()], [own.to_local()]), "the clean bits are not back"
                    if scale != "element":
                        expect([ours.noise(p) for p in parts], [theirs.noise(q) for q in plain], "noise()")


@check
def filters_of_every_layout_are_clipped_as_whole_ones() -> None:
    """Also where ranks hold parts of a filter, whichever dimension counts filters."""
    for mesh in meshes():
        for placements in LAYOUTS[mesh.ndim]:
            sizes = (
                [(8, 130, 2)]
                if isinstance(placements[0], _StridedShard)
                else [(9, 8, 5), (1, 3, 33), (70, 40, 3)]
            )
            for channel_dim in (0, 1):
                whole = [torch.randn(size, generator=torch.Generator().manual_seed(1)) ** 3 for size in sizes]
                plain = [nn.Parameter(w.clone()) for w in whole]
                parts = [nn.Parameter(distribute_tensor(w.clone(), mesh, placements)) for w in whole]
                for p in (*plain, *parts):
                    p.grad = torch.zeros_like(p)
                how: dict[str, Any] = {"noise_std": 0.0, "weight_clip": 1.5, "channel_dim": channel_dim}
                for params in (plain, parts):
                    torch_ssam.SSAM(params, lr=0.1, **how).step()
                expect(parts, plain, f"{placements}, channel_dim={channel_dim}")
                assert not any(torch.equal(p, w) for p, w in zip(plain, whole, strict=True))


def norm_of(tensors: Any) -> float:
    return float(torch.cat([t.double().reshape(-1) for t in full(tensors)]).norm())


def some_weights(placements: list[Any], dtype: torch.dtype) -> list[Tensor]:
    """Some longer than a piece of the norm, none divided evenly but where a layout asks for it."""
    even = isinstance(placements[0], _StridedShard)
    sizes = [(8, 130, 2), (8, 520, 3)] if even else [(9, 8, 5), (1, 3, 33), (70, 40, 3), (5, 0, 3)]
    return [
        torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype)
        for i, size in enumerate(sizes)
    ]


@check
def projections_of_every_layout_have_the_bits_of_one_process() -> None:
    """Split, replicated and plain tensors in one list, in an order of its own; a replicated one counts once."""
    for mesh in meshes():
        for placements in LAYOUTS[mesh.ndim]:
            for dtype in (torch.float32, torch.bfloat16):
                whole = some_weights(placements, dtype)
                beside, again = (
                    torch.randn(4099, generator=torch.Generator().manual_seed(9)).to(dtype),
                    whole[0],
                )
                norm = norm_of([*whole, beside, again])
                for radius in (norm / 3, norm * 1.01):
                    plain = [again.clone(), *(w.clone() for w in whole), beside.clone()]
                    copies = [Replicate()] * mesh.ndim
                    parts = [
                        distribute_tensor(again.clone(), mesh, copies),
                        *(distribute_tensor(w.clone(), mesh, placements) for w in whole),
                        beside.clone(),
                    ]
                    if not isinstance(placements[0], _StridedShard):  # local tensors that are not contiguous
                        parts[-2] = distribute_tensor(whole[-1].mT.contiguous().mT.clone(), mesh, placements)
                        local = parts[1].to_local()
                        parts[1] = DTensor.from_local(
                            local.mT.contiguous().mT,
                            mesh,
                            placements,
                            shape=whole[0].shape,
                            stride=whole[0].stride(),
                        )
                    assert is_sharded(parts[0])  # from here on the operators take it
                    torch.ops.torch_ssam.project_(plain, radius)
                    torch.ops.torch_ssam.project_(parts, radius)
                    expect(parts, plain, f"{placements}, {dtype}, radius {radius}")
                    assert torch.equal(plain[0], again) == (radius > norm), "the check would prove nothing"


@check
def steps_with_a_radius_have_the_bits_of_one_process_in_every_layout() -> None:
    """Two groups, each with a ball of its own, clipping before it and noise by rows after it."""
    for mesh in meshes():
        for layout, placements in enumerate(LAYOUTS[mesh.ndim]):
            whole = some_weights(placements, torch.float32)
            for make in (torch_ssam.SSAM, torch_ssam.SSAMAdamW)[layout % 2 :: 2]:
                plain = [nn.Parameter(w.clone()) for w in whole]
                parts = [nn.Parameter(distribute_tensor(w.clone(), mesh, placements)) for w in whole]
                for params in (plain, parts):
                    groups = [
                        {"params": params[::2], "radius": 20.0},
                        {"params": params[1::2], "radius": 2.0},
                    ]
                    how: dict[str, Any] = {"noise_std": 0.1, "scale": "filter", "weight_clip": 2.0, "seed": 1}
                    opt = make(groups, lr=0.1, keep_perturbed=True, **how)
                    opt.train()
                    for k in range(2):
                        for i, w in enumerate(whole):
                            grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(100 * k + i))
                            split = params is parts
                            params[i].grad = distribute_tensor(grad, mesh, placements) if split else grad
                        opt.step()
                    if params is plain:
                        noisy = full(plain)
                    else:
                        expect(parts, noisy, f"{make.__name__} {placements}, with noise")
                    opt.eval()
                expect(parts, plain, f"{make.__name__} {placements}")
                for i, radius in enumerate((20.0, 2.0)):
                    assert norm_of(plain[i::2]) < radius * (1 + 1e-6), "outside its ball"
                    assert norm_of(whole[i::2]) > 2 * radius, "the check would prove nothing"


@check
def a_norm_gathers_one_tensor_at_a_time() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parts = [distribute_tensor(torch.randn(9, 5), mesh, [Shard(0)]) for _ in range(4)]
    assert is_sharded(parts[0])
    gathered: list[weakref.ref[Tensor]] = []
    gather = DTensor.full_tensor

    def counted(self: DTensor, **options: Any) -> Tensor:
        assert not [one for one in gathered if one() is not None], "one before is still in memory"
        whole = gather(self, **options)
        gathered.append(weakref.ref(whole))
        return whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DTensor, "full_tensor", counted)
        torch.ops.torch_ssam.project_(parts, 1.0)
    assert len(gathered) == 4


@check
def noise_of_fsdp_parameters_and_clean_bits_after_an_exception() -> None:
    net, whole = sharded_net(), whole_net()
    opt, plain = ssam(net), ssam(whole)
    with opt.perturb(), plain.perturb():
        expect(net, whole, "inside perturb()")
        assert not torch.equal(full(net)[0], full(whole_net())[0])
    try:
        with opt.perturb():
            raise Alarm
    except Alarm:
        pass
    expect(net, whole_net(), "after an exception")


@check
def weights_gathered_before_a_pass_are_not_used_in_it() -> None:
    """FSDP2 keeps the root's weights gathered after a forward without a backward."""
    net, whole = sharded_net(), whole_net()
    opt, plain = ssam(net), ssam(whole)
    x = batches(1)[0][0]
    with torch.no_grad():
        clean = net(x)
        for _ in range(2):
            with opt.perturb(), plain.perturb():
                assert same_bits([net(x)], [whole(x)])
            assert same_bits([net(x)], [clean])
    assert same_bits([clean], [whole(x)])


@check
def writes_by_others_inside_are_kept_and_named() -> None:
    for write in (lambda p: p.mul_(2), lambda p: p.to_local().mul_(2)):
        net = sharded_net()
        opt, params = ssam(net), list(net.parameters())

        def inside(opt: Any = opt, p: Any = params[1], write: Any = write) -> None:
            with opt.perturb(), torch.no_grad():
                write(p)

        refused("Parameter 1 of shape (7, 5)", inside, RuntimeError)
        expect([params[0]], [next(whole_net().parameters())], "the others")


@check
def memory_regenerate_takes_the_noise_off_again() -> None:
    net = sharded_net()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1024).round_().div_(1024)
    before = full(net)
    opt = ssam(net, memory="regenerate", distribution="rademacher", noise_std=0.25)
    with opt.perturb():
        assert not torch.equal(full(net)[0], before[0])
    expect(net, before, "without a copy")


@check
def what_cannot_be_right_is_refused() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    w = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)]).requires_grad_()
    part = DTensor.from_local(torch.ones(3), mesh, [Partial()]).requires_grad_()
    refused("expected Shard or Replicate", lambda: torch_ssam.SSAM([part]))
    scattered = distribute_tensor(
        torch.ones(16, 2), mesh, [_StridedShard(0, split_factor=2)]
    ).requires_grad_()
    refused("scattered indices of dimension 0", lambda: torch_ssam.WeightNoise([scattered]))
    refused("noise_per_rank=True and parameter 0", lambda: torch_ssam.SSAM([w], noise_per_rank=True))
    expect([w], [torch.ones(8, 4)], "after a refusal")
    # A norm over a tensor that some ranks are not told of: those ranks say so, before they wait for others.
    first = DeviceMesh("cpu", [0])
    elsewhere = distribute_tensor(torch.ones(8, 4), first, [Shard(0)]).requires_grad_()
    if dist.get_rank() > 0:
        for optimizer in (torch_ssam.SSAM, torch_ssam.SSAMAdamW):
            refused(
                "does not have this rank", lambda make=optimizer: make([w, elsewhere], radius=1.0, seed=1)
            )
        with torch.no_grad():
            refused("does not have this rank", lambda: torch.ops.torch_ssam.project_([elsewhere], 1.0))
    # Replicated parameters are whole on each rank: everything goes.
    r, q = (
        distribute_tensor(torch.ones(8, 4), mesh, [Replicate()]).requires_grad_(),
        torch.ones(8, 4).requires_grad_(),
    )
    for scale in ("filter", "fisher"):
        for p in (r, q):
            one = torch_ssam.SSAM([p], noise_std=0.2, scale=scale, radius=0.5, seed=1)
            for _ in range(2):
                one.zero_grad()
                with one.perturb():
                    p.square().sum().backward()
                one.step()
        expect([r], [q], "replicated")


# -- training ------------------------------------------------------------------------------------------------


@check
def fsdp_trains_as_one_process_does() -> None:
    for make, ways in (
        (ssam, WAYS),
        (
            adamw,
            {
                "perturb": {"amsgrad": True},
                "kept": {"keep_perturbed": True},
                "filter": {"scale": "filter"},
                "ball": {"radius": 1.5},
            },
        ),
        (wrapped, {way: WAYS[way] for way in ("perturbations", "kept", "fisher", "clip")}),
    ):
        for way, options in ways.items():
            net, whole = sharded_net(), whole_net()
            opt, plain = make(net, **options), make(whole, **options)
            drive(way, opt, net, batches(3))
            drive(way, plain, whole, batches(3))
            expect(net, whole, f"{make.__name__} {way}, before eval")
            opt.eval()
            plain.eval()
            expect(net, whole, f"{make.__name__} {way}")
            expect_moved(net)
            if "radius" in options:
                assert norm_of(net) < options["radius"] * (1 + 1e-6) < norm_of(whole_net()) / 1.5
            for p, entry in opt.state.items():
                for key, value in entry.items():
                    assert key in ("fisher", "step") or value.dim() == 0 or value.placements == p.placements


@check
def passes_without_a_reduction_count_with_the_one_that_reduces() -> None:
    """set_requires_gradient_sync(False): what such a pass gathers is in no p.grad until a later one reduces it."""
    net, whole = sharded_net(), whole_net()
    opt, plain = ssam(net), ssam(whole)
    for first in (0, 3):
        for k, (x, y) in enumerate(batches(3, first)):
            net.set_requires_gradient_sync(k == 2)
            for one, model in ((opt, net), (plain, whole)):
                with one.perturb():
                    loss_of(model, x, y).backward()
            if k < 2 and first:  # with the zeros of the step before
                refused("no p.grad changed", opt.step, RuntimeError)
        opt.step()
        plain.step()
        for one in (opt, plain):
            if first == 0:
                one.zero_grad(set_to_none=False)
    expect_close(net, whole)
    expect_moved(net)


@check
def hybrid_fsdp_trains_as_one_process_does() -> None:
    """Two copies of a model that is sharded in two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    net, whole = whole_net(), whole_net()
    fully_shard(net, mesh=mesh)
    assert net.first.weight.placements == (Replicate(), Shard(0))
    for radius in (None, 1.5):
        opt = ssam(net, keep_perturbed=True, radius=radius)
        plain = ssam(whole, keep_perturbed=True, radius=radius)
        drive("kept", opt, net, batches(2))
        drive("kept", plain, whole, batches(2))
        expect(net, whole, f"before eval, radius {radius}")
        expect_moved(net)
        for one in (opt, plain):
            one.eval()
        expect(net, whole, f"radius {radius}")
    refused("noise_per_rank=True and parameter 0", lambda: ssam(net, noise_per_rank=True))


@check
def fsdp_in_bfloat16_gathers_the_noisy_weights() -> None:
    """MixedPrecisionPolicy casts what it gathers: noise is on the float32 weights, before."""
    net, whole = whole_net(), whole_net()
    fully_shard(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    opt, plain = ssam(net), ssam(whole)
    x = batches(1)[0][0]
    with torch.no_grad(), opt.perturb(), plain.perturb():
        expect(net.state_dict().values(), whole.state_dict().values(), "float32")
        noisy = whole_net().bfloat16()
        noisy.load_state_dict(whole.state_dict())
        assert same_bits([net(x)], [noisy(x.bfloat16())])


@check
def masters_of_shards_are_those_of_one_process() -> None:
    for options in (
        {},
        {"keep_perturbed": True},
        {"scale": "element"},
        {"weight_clip": 1.2, "scale": "absmax"},
        {"radius": 1.5, "keep_perturbed": True},
    ):
        net, whole = sharded_net(), whole_net()
        opt, plain = with_masters(net, **options), with_masters(whole, **options)
        way = "kept" if "keep_perturbed" in options else "perturb"
        for k in range(3):
            for one, model in ((opt, net), (plain, whole)):
                drive(way, one, model, batches(1, first=k))
                if k == 1:  # weights written behind its back
                    one.eval()
                    with torch.no_grad():
                        next(model.parameters()).mul_(2)
        for one in (opt, plain):
            one.eval()
        expect(net, whole, f"weights {options}")
        expect_moved(net)
        states = [one.state_dict()["state"] for one in (opt, plain)]
        for name in ("master", "momentum_buffer"):
            expect(*([state[key][name] for key in sorted(state)] for state in states), f"{name} {options}")


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(torch.tanh(self.up(x))))  # type: ignore[no-any-return]


def expect_close(net: nn.Module, whole: nn.Module) -> None:
    """Products summed over ranks round otherwise than in one process: the noise has equal bits, training only so far."""
    for p, q in zip(full(net), full(whole), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@check
def tensor_parallel_trains_as_one_process_does() -> None:
    """Gradients of the replicated biases and of what is not parallel (a plain tensor) come in other placements."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("tp",))
    for make in (ssam, wrapped):
        net, whole = Mlp(), Mlp()
        parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        assert not isinstance(net.norm.weight, DTensor)
        assert isinstance(net.down.bias, DTensor)
        options = {"foreach": False} if make is wrapped else {}
        opt, plain = make(net), make(whole)
        if options:
            opt.base.param_groups[0].update(options)  # torch's foreach does not mix kinds of tensors
        with opt.perturb(), plain.perturb():
            expect(net, whole, "noise")
        drive("perturb", opt, net, batches(3))
        drive("perturb", plain, whole, batches(3))
        expect_close(net, whole)


@check
def fsdp_over_tensor_parallel_trains_as_one_process_does() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    net, whole = Mlp(), Mlp()
    for p in (*net.norm.parameters(),):
        p.requires_grad_(False)  # not parallel: FSDP would shard it over dp alone, on another mesh
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(net.up, mesh=mesh["dp"])
    fully_shard(net.down, mesh=mesh["dp"])
    for p in whole.norm.parameters():
        p.requires_grad_(False)
    assert len(net.up.weight.placements) == 2
    opt, plain = ssam(net), ssam(whole)
    with opt.perturb(), plain.perturb():
        expect(net, whole, "noise")
    drive("perturb", opt, net, batches(3))
    drive("perturb", plain, whole, batches(3))
    expect_close(net, whole)


# -- ZeroRedundancyOptimizer ---------------------------------------------------------------------------------


@check
def zero_redundancy_trains_as_one_process_does() -> None:
    for way in ("perturb", "closure", "kept"):
        net, whole = whole_net(), whole_net()
        ddp = DistributedDataParallel(net)
        base = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=0.05)
        options = {"keep_perturbed": True} if way == "kept" else {}
        opt = torch_ssam.wrap(base, noise_std=0.3, seed=7, **options)
        plain = wrapped(whole, **options)
        drive(way, opt, ddp, batches(3))
        drive(way, plain, whole, batches(3))
        expect(net, whole, f"{way}, before eval")
        opt.eval()
        plain.eval()
        expect(net, whole, way)
        expect_moved(net)
        # Each rank keeps a share of the state; rank 0 collects it to save.
        base.consolidate_state_dict(to=0)
        if dist.get_rank() == 0:
            state = opt.state_dict()
            assert state["param_groups"][0]["draw"] == 3
            other = whole_net()
            resumed = wrapped(other, **options)
            resumed.load_state_dict(state)
            with torch.no_grad():
                for p, q in zip(other.parameters(), full(net), strict=True):
                    p.copy_(q)
            for one, model in ((resumed, other), (plain, whole)):
                drive(way, one, model, batches(2, first=3))
                one.eval()
            expect(other, whole, f"{way}, resumed in one process")
    refused(
        "wrap(ZeroRedundancyOptimizer(",
        lambda: ZeroRedundancyOptimizer(whole_net().parameters(), torch_ssam.SSAM, noise_std=0.1),
        TypeError,
    )


# -- checkpoints ---------------------------------------------------------------------------------------------

SAVED: dict[str, tuple[Callable[..., Any], str]] = {
    "ssam": (ssam, "perturb"),
    "ssam kept": (ssam, "kept"),
    "masters": (with_masters, "perturb"),
    "masters kept": (with_masters, "kept"),
    "fisher": (with_fisher, "perturb"),
    "fisher kept": (with_fisher, "kept"),
    "adamw": (adamw, "perturb"),
    "adamw kept": (adamw, "kept"),
    "adamw masters kept": (adamw_with_masters, "kept"),
    "wrap": (wrapped, "perturb"),
    "wrap kept": (wrapped, "kept"),
}
BEFORE, AFTER = 2, 2  # steps before and after the checkpoint


def save_checkpoints(folder: Path) -> None:
    """In the middle of training: kept weights are noisy, and `attach` makes the model's state dict clean."""
    for name, (make, way) in SAVED.items():
        net = sharded_net()
        opt = make(net, keep_perturbed=way == "kept")
        opt.attach(net)
        drive(way, opt, net, batches(BEFORE))
        model_state, optimizer_state = get_state_dict(net, opt)
        for entry in optimizer_state["state"].values():
            assert isinstance(entry.get("momentum_buffer", entry.get("exp_avg")), DTensor)
            assert way != "kept" or isinstance(entry["clean"], DTensor)
            assert make not in (with_masters, adamw_with_masters) or isinstance(entry["master"], DTensor)
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder / name)


def resume(name: str, net: nn.Module, folder: Path, no_dist: bool = False) -> None:
    """Loads into a model of any sharding and trains on."""
    make, way = SAVED[name]
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(9.0)
    opt = make(net, keep_perturbed=way == "kept", seed=99)
    model_state, optimizer_state = get_state_dict(net, opt)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder / name, no_dist=no_dist)
    set_state_dict(net, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert (opt.seed, opt.draw) == (7, BEFORE)
    drive(way, opt, net, batches(AFTER, first=BEFORE))
    opt.eval()


def expect_resumed(name: str, net: nn.Module) -> None:
    make, way = SAVED[name]
    whole = whole_net()
    plain = make(whole, keep_perturbed=way == "kept")
    drive(way, plain, whole, batches(BEFORE + AFTER))
    plain.eval()
    expect(net, whole, name)


def load_checkpoints(folder: Path) -> None:
    for name in SAVED:
        net = sharded_net()
        resume(name, net, folder)
        expect_resumed(name, net)


def main(folder: Path, mode: str) -> None:
    dist.init_process_group("gloo")
    step = save_checkpoints if mode == "save" else load_checkpoints
    todo: dict[str, Callable[[], None]] = {**CHECKS, "checkpoints": lambda: step(folder)}
    result = {}
    for name, function in todo.items():
        if name in ON_FOUR and dist.get_world_size() < 4:
            continue
        try:
            began = time.perf_counter()
            function()
            result[name] = ""
            if os.environ.get("SHOW_TIMES"):
                print(f"{time.perf_counter() - began:6.1f} s {name}", flush=True)
        except Exception:  # reported by the test, by name
            result[name] = traceback.format_exc()
            break  # the ranks may be out of step from here on
    (folder / f"{mode}-rank{dist.get_rank()}.json").write_text(json.dumps(result))
    if not any(result.values()):
        dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter
