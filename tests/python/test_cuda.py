"""The CUDA kernels on a GPU: the same bits as the CPU over sizes, dtypes, layouts and lists; CUDA graphs
whose replays draw new noise; streams; AMP; several devices; tensors beyond 2^31 elements.

`python -m pytest tests/python/test_cuda.py` is the one command. Without a GPU each test is skipped with a
line that says so; with FAIL_WITHOUT_CUDA=1 it fails. Where TORCH_SSAM_EMULATED_CUDA names a library of the kernels'
PTX translated to C++ (tests/ptx, `make ptx-run`), it is the GPU of all tests but those marked `real_gpu`. What has run
on a GPU is written in docs/cuda.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import emulated_cuda
import numpy as np
import pytest
import reference
import torch
from cases import DTYPES, LAYOUTS, PAIRS, SIZES, adamw, random, same_layout, sgd
from shard_boxes import BOXES, part_of, shards_of, whole

import torch_ssam

ops = torch.ops.torch_ssam
pytestmark = pytest.mark.cuda
real_gpu = pytest.mark.real_gpu  # of streams, graphs, other devices, or more than a CPU gets done
STD = 2.0**-5


def why_not() -> str | None:
    """Why these tests cannot run here."""
    if not torch.cuda.is_available():
        return "NOT TESTED here: no CUDA GPU"
    from torch_ssam.ops import library

    if not torch._C._dispatch_has_kernel_for_dispatch_key("torch_ssam::perturb_", "CUDA"):
        return f"NOT TESTED here: torch_ssam has no CUDA kernels ({library.cuda_load_error or 'not built'})"
    return None


@pytest.fixture(autouse=True)
def _needs_cuda(request: pytest.FixtureRequest) -> Iterator[None]:
    if emulated_cuda.LIBRARY:
        if request.node.get_closest_marker("real_gpu"):
            pytest.skip("NOT TESTED here: what only a GPU has, on an emulated one")
        with emulated_cuda.EmulatedCuda():
            before = emulated_cuda.launches()
            yield
        if not request.node.get_closest_marker("no_launch"):
            assert emulated_cuda.launches() > before, "no kernel was launched"
        return
    reason = why_not()
    if reason is not None and os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail(f"FAIL_WITHOUT_CUDA=1. {reason}")
    if reason is not None:
        pytest.skip(reason)
    yield
    torch.cuda.synchronize()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    view = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return tensor.detach().cpu().contiguous().view(view)


def assert_same_bits(gpu: torch.Tensor, cpu: torch.Tensor) -> None:
    different = (bits(gpu) != bits(cpu)).flatten().nonzero()
    assert different.numel() == 0, f"{len(different)} of {cpu.numel()} elements differ: {different[:4]}"


def generator(device: str = "cuda", draw: int = 42) -> torch.Tensor:
    return torch.tensor([1234567890123, draw], dtype=torch.int64, device=device)


def on_gpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies with the strides of the originals."""
    out = []
    for t in tensors:
        copy = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
        out.append(copy.copy_(t))
    return out


def misaligned(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """On the GPU, one element after an aligned address."""
    out = []
    for t in tensors:
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")
        out.append(memory[1:].view(t.shape).copy_(t))
    return out


def mixed_list(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    flat = [random(n, dtype, seed + n) for n in SIZES]
    shaped = [same_layout(make(dtype), name, seed) for name, make in LAYOUTS.items()]
    return flat + shaped


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_perturb_gives_the_cpus_bits(pair: Any, distribution: str, placed: Any) -> None:
    master, model = pair
    clean, params = mixed_list(master, 1), mixed_list(model, 2)
    places = list(range(len(clean)))
    gpu = placed(params)
    ops.perturb_from_clean_(params, clean, generator("cpu"), places, STD, distribution, 3, True, 5)
    ops.perturb_from_clean_(gpu, placed(clean), generator(), places, STD, distribution, 3, True, 5)
    for a, b in zip(gpu, params, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perturb_saves_and_restore_puts_back_every_bit(dtype: torch.dtype) -> None:
    params = mixed_list(dtype, 1)
    gpu, saved = on_gpu(params), on_gpu(params)
    perturbed = [p.clone() for p in params]
    clean = [torch.empty_like(p) for p in params]
    places = list(range(len(params)))
    ops.perturb_(perturbed, clean, generator("cpu"), places, STD)
    ops.perturb_(gpu, saved, generator(), places, STD)
    for a, b, kept, before in zip(gpu, perturbed, saved, params, strict=True):
        assert_same_bits(a, b)
        assert_same_bits(kept, before)
    ops.restore_(gpu, saved)
    for a, before in zip(gpu, params, strict=True):
        assert_same_bits(a, before)


@pytest.mark.parametrize("kind", ["none", "momentum", "nesterov"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_update_and_perturb_gives_the_cpus_bits(pair: Any, kind: str, first: bool, placed: Any) -> None:
    master, model = pair
    clean, grads, params = mixed_list(master, 1), mixed_list(model, 2), mixed_list(model, 3)
    buffers = mixed_list(master, 4) if kind != "none" else []
    rule = sgd(0.0, 0.0 if kind == "none" else 0.9, 0.0, 1e-2, kind == "nesterov", maximize=True)
    places = list(range(len(clean)))
    gpu = [placed(t) for t in (params, clean, grads, buffers)]
    lr, steps = torch.tensor(0.1), [1 + (not first) * (i % 3) for i in places]
    ops.update_and_perturb_(
        params, clean, grads, buffers, *rule, generator("cpu"), places, STD, lr_tensor=lr, steps=steps
    )
    ops.update_and_perturb_(*gpu, *rule, generator(), places, STD, lr_tensor=lr.cuda(), steps=steps)
    for ours, theirs in zip(gpu, (params, clean, grads, buffers), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("noise", ["none", "isotropic", "element"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_adamw_gives_the_cpus_bits(pair: Any, noise: str, amsgrad: bool, placed: Any) -> None:
    master, model = pair
    clean, grads, params = mixed_list(master, 1), mixed_list(model, 2), mixed_list(model, 3)
    buffers = mixed_list(master, 4) + [t.abs() for t in mixed_list(master, 5)]
    buffers += [t.abs() for t in mixed_list(master, 6)] if amsgrad else []
    rule = adamw(0.0, weight_decay=0.1, amsgrad=amsgrad, maximize=True)
    places = list(range(len(clean)))
    gpu = [placed(t) for t in (params, clean, grads, buffers)]
    lr, steps = torch.tensor(0.01, dtype=torch.float64), [1 + i % 3 for i in places]
    if noise == "none":
        ops.update_(clean, grads, buffers, *rule, lr_tensor=lr, steps=steps)
        ops.update_(*gpu[1:], *rule, lr_tensor=lr.cuda(), steps=steps)
    else:
        how: dict[str, Any] = {"scale": noise, "steps": steps}
        ops.update_and_perturb_(
            params, clean, grads, buffers, *rule, generator("cpu"), places, STD, lr_tensor=lr, **how
        )
        ops.update_and_perturb_(*gpu, *rule, generator(), places, STD, lr_tensor=lr.cuda(), **how)
    for ours, theirs in zip(gpu, (params, clean, grads, buffers), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["none", "momentum", "nesterov"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_update_alone_gives_the_cpus_bits(pair: Any, kind: str, placed: Any) -> None:
    master, model = pair
    clean, grads = mixed_list(master, 1), mixed_list(model, 2)
    buffers = mixed_list(master, 4) if kind != "none" else []
    rule = sgd(0.1, 0.0 if kind == "none" else 0.9, 0.0, 1e-2, kind == "nesterov")
    gpu = [placed(t) for t in (clean, grads, buffers)]
    ops.update_(clean, grads, buffers, *rule)
    ops.update_(*gpu, *rule)
    for ours, theirs in zip(gpu, (clean, grads, buffers), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_clean_weights_are_restored_to_and_follow_parameters_with_the_cpus_bits(
    pair: Any, placed: Any
) -> None:
    master, model = pair
    clean, params, written = mixed_list(master, 1), mixed_list(model, 2), mixed_list(model, 3)
    gpu, gpu_clean = placed(params), placed(clean)
    for to, source in ((params, clean), (gpu, gpu_clean)):
        ops.restore_(to, source)
    for a, b in zip(gpu, params, strict=True):
        assert_same_bits(a, b)
    for to in (params, gpu):
        for t, new in zip(to[::2], written[::2], strict=True):
            t.copy_(new)
    ops.follow_(clean, params)
    ops.follow_(gpu_clean, gpu)
    for a, b in zip(gpu_clean, clean, strict=True):
        assert_same_bits(a, b)


def rows_of(tensors: list[torch.Tensor], by_filter: bool) -> list[int]:
    return [t.shape[0] if by_filter and t.dim() > 0 else 1 for t in tensors]


def row_scales_of(tensors: list[torch.Tensor], by_filter: bool, kind: str = "norm") -> list[torch.Tensor]:
    scales = [torch.full((n,), -1.0, device=tensors[0].device) for n in rows_of(tensors, by_filter)]
    ops.row_scales_(scales, tensors, [], kind=kind)
    return scales


@pytest.mark.parametrize("by_filter", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_norms_ranges_and_fisher_sums_of_rows_have_the_cpus_bits(
    dtype: Any, by_filter: bool, placed: Any
) -> None:
    shapes = [(64, 27), (33, 64), (300, 1), (3, 12289), (2, 4096), (1, 300001), (4, 0), (1000, 8)]
    weights = mixed_list(dtype, 1) + [random(shape, dtype, 7) for shape in shapes]
    gpu = placed(weights)
    scales, gpu_scales = row_scales_of(weights, by_filter), row_scales_of(gpu, by_filter)
    ranges, gpu_ranges = row_scales_of(weights, by_filter, "absmax"), row_scales_of(gpu, by_filter, "absmax")
    fisher = [torch.rand(n) for n in rows_of(weights, by_filter)]
    gpu_fisher = on_gpu(fisher)
    ops.row_fisher_(fisher, weights, 0.75)
    ops.row_fisher_(gpu_fisher, gpu, 0.75)
    divided, gpu_divided = [torch.empty_like(s) for s in scales], [torch.empty_like(s) for s in gpu_scales]
    ops.row_scales_(divided, weights, fisher, 0.3)
    ops.row_scales_(gpu_divided, gpu, gpu_fisher, 0.3)
    pairs = (gpu_scales, scales), (gpu_ranges, ranges), (gpu_fisher, fisher), (gpu_divided, divided)
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("channel_dim", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_clipped_rows_and_noise_along_another_dimension_have_the_cpus_bits(
    dtype: Any, channel_dim: int, placed: Any
) -> None:
    shapes = [(64, 27), (33, 64), (3, 12289), (2, 4096), (4, 0), (70, 8, 9)]
    weights = [random(shape, dtype, i) for i, shape in enumerate(shapes)]
    gpu = placed(weights)
    ops.clip_rows_([w.movedim(channel_dim, 0) for w in weights], 1.1)
    ops.clip_rows_([w.movedim(channel_dim, 0) for w in gpu], 1.1)
    for a, b in zip(gpu, weights, strict=True):
        assert_same_bits(a, b)
    rows = [torch.rand(w.shape[channel_dim]) for w in weights]
    params, gpu_params = [torch.empty_like(w) for w in weights], [torch.empty_like(w) for w in gpu]
    how = (list(range(len(weights))), STD, "gaussian", 0, False, 0, "rows")
    ops.perturb_from_clean_(params, weights, generator("cpu"), *how, rows, None, channel_dim)
    ops.perturb_from_clean_(gpu_params, gpu, generator(), *how, on_gpu(rows), None, channel_dim)
    for a, b in zip(gpu_params, params, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("scale", ["tensor", "filter", "element"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_scaled_noise_has_the_cpus_bits(pair: Any, scale: str, placed: Any) -> None:
    master, model = pair
    clean, params = mixed_list(master, 1), mixed_list(model, 2)
    places = list(range(len(clean)))
    gpu, gpu_clean = placed(params), placed(clean)
    name = "element" if scale == "element" else "rows"
    rows = None if scale == "element" else row_scales_of(clean, scale == "filter")
    gpu_rows = None if rows is None else on_gpu(rows)
    how = (places, STD, "gaussian", 3, True, 5)
    ops.perturb_from_clean_(params, clean, generator("cpu"), *how, name, rows)
    ops.perturb_from_clean_(gpu, gpu_clean, generator(), *how, name, gpu_rows)
    for a, b in zip(gpu, params, strict=True):
        assert_same_bits(a, b)
    for i, (one, gpu_one) in enumerate(zip(clean, gpu_clean, strict=True)):
        own, gpu_own = (None, None) if rows is None or gpu_rows is None else ([rows[i]], [gpu_rows[i]])
        for noise_only in (False, True):
            single = (i, STD, "rademacher", 0, False, 0, name)
            assert_same_bits(
                ops.perturbed(gpu_one, generator(), *single, gpu_own, noise_only=noise_only),
                ops.perturbed(one, generator("cpu"), *single, own, noise_only=noise_only),
            )
    if master == model:
        saved, gpu_saved = [torch.empty_like(p) for p in params], placed(params)
        ops.perturb_(params, saved, generator("cpu"), *how, name, rows)
        ops.perturb_(gpu, gpu_saved, generator(), *how, name, gpu_rows)
        for a, b in zip([*gpu, *gpu_saved], [*params, *saved], strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["none", "momentum", "nesterov"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned])
def test_update_and_perturb_by_element_gives_the_cpus_bits(pair: Any, kind: str, placed: Any) -> None:
    master, model = pair
    clean, grads, params = mixed_list(master, 1), mixed_list(model, 2), mixed_list(model, 3)
    buffers = mixed_list(master, 4) if kind != "none" else []
    rule = sgd(0.1, 0.0 if kind == "none" else 0.9, 0.0, 1e-2, kind == "nesterov")
    places = list(range(len(clean)))
    gpu = [placed(t) for t in (params, clean, grads, buffers)]
    ops.update_and_perturb_(
        params, clean, grads, buffers, *rule, generator("cpu"), places, STD, scale="element"
    )
    ops.update_and_perturb_(*gpu, *rule, generator(), places, STD, scale="element")
    for ours, theirs in zip(gpu, (params, clean, grads, buffers), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("scale", ["tensor", "filter", "element", "fisher"])
def test_steps_with_scaled_noise_have_the_cpus_bits(scale: str, kept: bool) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        shapes = [(33, 65), (16, 3, 3, 3), (4097,), (7, 5)]
        params = [torch.nn.Parameter(random(s, torch.float32, 1).to(device)) for s in shapes]
        options: dict[str, Any] = {"scale": scale, "fisher_factor": 2.0, "keep_perturbed": kept}
        opt = torch_ssam.SSAM(params, lr=0.1, noise_std=0.02, momentum=0.9, seed=5, **options)
        opt.train()
        for _ in range(4):
            if kept:
                grads = [p.detach() * 0.5 for p in params]
            else:
                with opt.perturb():
                    grads = [p.detach() * 0.5 for p in params]
                    torch.stack([p.sum() for p in params]).sum().backward()
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            opt.step()
        opt.eval()
        ends.append(params)
    for a, b in zip(ends[1], ends[0], strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("radius", [0.5, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projection_gives_the_cpus_bits(dtype: torch.dtype, radius: float) -> None:
    weights = mixed_list(dtype, 1)
    gpu = on_gpu(weights)
    parts = on_gpu(weights)
    ops.project_(weights, radius)
    ops.project_(gpu, radius)
    # In parts, by a norm that is added up from them, as ranks do.
    total = torch.zeros(1, dtype=torch.float64, device="cuda")
    for part in (parts[:1], [], parts[1:2], parts[2:]):
        ops.add_squares_(total, part)
    for part in (parts[:2], parts[2:]):
        ops.project_(part, radius, total)
    for a, also, b in zip(gpu, parts, weights, strict=True):
        assert_same_bits(a, b)
        assert_same_bits(also, b)


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("noise_std", [0.0, STD])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (65, 100), (300, 1032), (1000, 8), (7, 4099)], ids=str)
def test_diagonal_gives_the_cpus_bits(pair: Any, noise_std: float, readout: bool, shape: Any) -> None:
    master, model = pair
    rows, features = shape
    x, w = random((rows, features), model, 1), random((3, features), master, 2)
    g = random((rows,) if readout else (rows, features), model, 3)
    options = (noise_std, "gaussian", readout)
    expected = ops.diagonal(x, w, generator("cpu"), *options)
    assert_same_bits(ops.diagonal(x.cuda(), w.cuda(), generator(), *options), expected)
    wanted = ops.diagonal_backward(g, x, w, generator("cpu"), *options, True, True)
    got = ops.diagonal_backward(g.cuda(), x.cuda(), w.cuda(), generator(), *options, True, True)
    again = ops.diagonal_backward(g.cuda(), x.cuda(), w.cuda(), generator(), *options, True, True)
    for a, b, c in zip(got, wanted, again, strict=True):
        assert_same_bits(a, b)
        assert_same_bits(c, b)


# One call of each operator, on tensors that `at` makes: what it wrote or returned.
def _noise(at: Any) -> tuple[Any, ...]:
    return at([torch.tensor([5, 6])])[0], [0], STD


def _calls(at: Any) -> dict[str, Any]:
    def tensors(*shape: int, number: int = 1) -> Any:
        return at([random(shape or (33, 64), torch.float32, number)])

    rows = [torch.linspace(0.1, 1, 33)]
    w, c, g = (tensors(number=n) for n in (1, 2, 3))
    x, y, generator_here = tensors(9, 64)[0], tensors(3, 64)[0], at([torch.tensor([5, 6])])[0]
    scales = at(rows)
    how = (generator_here, STD, "gaussian", False)
    update = (w, c, g, [], *sgd(), *_noise(at))
    total = at([torch.zeros(1, dtype=torch.float64)])[0]
    return {
        "add_squares_": lambda: (ops.add_squares_(total, w), total),
        "advance_": lambda: (ops.advance_(generator_here, 3), generator_here),
        "clip_rows_": lambda: (ops.clip_rows_(w, 1.1), w),
        "diagonal": lambda: ops.diagonal(x, y, *how),
        "diagonal_backward": lambda: ops.diagonal_backward(x, x, y, *how, True, True),
        "follow_": lambda: (ops.follow_(c, w), c),
        "perturb_": lambda: (ops.perturb_(w, c, *_noise(at)), w, c),
        "perturb_from_clean_": lambda: (ops.perturb_from_clean_(w, c, *_noise(at)), w),
        "perturbed": lambda: ops.perturbed(x, generator_here, 0, STD),
        "project_": lambda: (ops.project_(w, 0.5), w),
        "restore_": lambda: (ops.restore_(w, c), w),
        "row_fisher_": lambda: (ops.row_fisher_(scales, g, 0.75), scales),
        "row_scales_": lambda: (ops.row_scales_(scales, w, []), scales),
        "update_": lambda: (ops.update_(w, g, [], *sgd()), w),
        "update_and_perturb_": lambda: (ops.update_and_perturb_(*update), w, c),
        "update_rows_and_perturb_": lambda: (
            ops.update_rows_and_perturb_(
                *update[:-1], noise_std=STD, weight_clip=1.1, row_scales=scales, scale="rows"
            ),
            w,
            c,
            scales,
        ),
    }


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in value or () for t in _flat(each)]


def _operators() -> list[str]:
    """All that are registered, but those that only say or choose which CPU loops are in use."""
    names = (n.split("::") for n in torch._C._dispatch_get_all_op_names())
    return sorted(
        {name.split(".")[0] for room, name in names if room == "torch_ssam"}
        - {"cpu_capability", "_set_cpu_capability"}
    )


@pytest.mark.parametrize("name", _operators())
def test_every_operator_has_a_cuda_kernel_that_is_launched(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_ssam::{name}", "CUDA")
    expected = _flat(_calls(lambda tensors: tensors)[name]())
    got = _flat(_calls(on_gpu)[name]())  # on the emulated device the fixture counts launches
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)


@real_gpu
def test_a_replayed_graph_draws_new_noise_each_time() -> None:
    clean, gpu_clean = [random(10001, torch.float32, 1)], [random(10001, torch.float32, 1).cuda()]
    params, gpu = [torch.empty_like(clean[0])], [torch.empty_like(gpu_clean[0])]
    state, gpu_state = generator("cpu"), generator()

    def step(p: list[torch.Tensor], c: list[torch.Tensor], s: torch.Tensor) -> None:
        ops.perturb_from_clean_(p, c, s, [0], STD)
        ops.advance_(s, 1)

    # Once before, as PyTorch asks: a kernel is loaded at its first launch, which capture may refuse.
    step([torch.empty_like(gpu[0])], gpu_clean, generator())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(gpu, gpu_clean, gpu_state)
    seen = []
    for _ in range(3):
        graph.replay()
        step(params, clean, state)
        assert_same_bits(gpu[0], params[0])
        assert gpu_state.tolist() == state.tolist()
        seen.append(gpu[0].clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def two_groups(device: str) -> tuple[torch_ssam.SSAM, list[torch.nn.Parameter]]:
    """An optimizer with keep_perturbed and lr as a tensor, of tensors that have gradients."""
    params = [torch.nn.Parameter(random(n, torch.float32, n).to(device)) for n in (4097, 33, 1000)]
    for p in params:
        p.grad = random(p.numel(), torch.float32, p.numel() + 1).to(device)
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 1e-3}]
    lr = torch.tensor(0.1, device=device)
    opt = torch_ssam.SSAM(groups, lr=lr, noise_std=0.02, momentum=0.9, keep_perturbed=True, seed=5)
    opt.train()
    return opt, params


@real_gpu
def test_a_replayed_step_of_the_optimizer_gives_the_cpus_bits() -> None:
    (opt, params), (gpu_opt, gpu_params) = two_groups("cpu"), two_groups("cuda")
    opt.step()
    gpu_opt.step()  # makes the momentum buffers
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu_opt.step()
    for _ in range(3):
        opt.step()
        graph.replay()
    for a, b in zip(gpu_params, params, strict=True):
        assert_same_bits(a, b)
    opt.eval()
    gpu_opt.eval()
    for a, b in zip(gpu_params, params, strict=True):
        assert_same_bits(a, b)
    assert gpu_opt.draw == opt.draw == 4


@real_gpu
def test_a_step_of_the_optimizer_waits_for_nothing() -> None:
    opt, _ = two_groups("cuda")
    opt.step()
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        opt.step()
    finally:
        torch.cuda.set_sync_debug_mode(previous)


@real_gpu
def test_kernels_run_on_the_current_stream_in_order() -> None:
    n = 1 << 24
    source = torch.randn(n, device="cuda")
    weights = torch.zeros(n, device="cuda")
    state = generator()  # here, because a copy from the CPU waits for the stream
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        # The copy below is still waiting when the kernel is asked for.
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
        weights.copy_(source)
        out = ops.perturbed(weights, state, 0, STD)
        assert not stream.query()
    stream.synchronize()
    assert_same_bits(out, ops.perturbed(source.cpu(), generator("cpu"), 0, STD))


@real_gpu
def test_nothing_waits_for_the_gpu() -> None:
    weights, grads = [torch.randn(1000, device="cuda")], [torch.randn(1000, device="cuda")]
    params = [torch.empty_like(weights[0])]
    state, lr = generator(), torch.tensor(0.1, device="cuda")
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.update_and_perturb_(params, weights, grads, [], *sgd(), state, [0], STD, lr_tensor=lr)
        ops.project_(weights, 1.0)
        ops.advance_(state, 1)
    finally:
        torch.cuda.set_sync_debug_mode(previous)


@real_gpu
def test_numbers_on_another_device_are_refused() -> None:
    weights, grads = [torch.ones(8, device="cuda")], [torch.ones(8, device="cuda")]
    with pytest.raises(Exception, match="different devices"):
        ops.update_(weights, grads, [], *sgd(), lr_tensor=torch.ones(1))


@pytest.mark.no_launch
def test_sparse_gradients_are_refused() -> None:
    weights = [torch.ones(8, device="cuda")]
    with pytest.raises(Exception, match=r"grads\[0\] is sparse; expected a dense"):
        ops.update_(weights, [torch.ones(8, device="cuda").to_sparse()], [], *sgd())


def reversed_dims(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """On the GPU, the first dimension innermost."""
    backwards = [tuple(reversed(range(t.dim()))) for t in tensors]
    return on_gpu(
        [t.permute(order).contiguous().permute(order) for t, order in zip(tensors, backwards, strict=True)]
    )


def assert_parts_of(gpu: list[torch.Tensor], wholes: list[torch.Tensor]) -> None:
    for box, ours, expected in zip(BOXES, gpu, wholes, strict=True):
        assert_same_bits(ours, part_of(expected, box))


def wholes(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    return [whole(box, dtype, seed) for box in BOXES]


def parts(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [part_of(tensor, box) for tensor, box in zip(tensors, BOXES, strict=True)]


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("scale", ["isotropic", "rows", "element"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned, reversed_dims])
def test_the_noise_of_a_shard_is_that_of_the_whole_tensor_on_the_cpu(
    pair: Any, scale: str, distribution: str, placed: Any
) -> None:
    master, model = pair
    clean, params = wholes(master, 1), wholes(model, 2)
    rows = [torch.rand(w.shape[0] if w.dim() > 1 else 1) for w in clean] if scale == "rows" else None
    own = rows and [
        r.narrow(0, BOXES[box][1][0], BOXES[box][2][0]) if r.numel() > 1 else r
        for r, box in zip(rows, BOXES, strict=True)
    ]
    gpu, gpu_clean, gpu_rows = placed(parts(params)), placed(parts(clean)), own and on_gpu(own)
    how = (list(range(len(BOXES))), STD, distribution, 3, True, 5, scale)
    ops.perturb_from_clean_(params, clean, generator("cpu"), *how, rows)
    ops.perturb_from_clean_(gpu, gpu_clean, generator(), *how, gpu_rows, shards_of(*BOXES))
    assert_parts_of(gpu, params)
    if master == model:
        whole_saved, saved = [torch.empty_like(p) for p in params], placed(parts(params))
        ops.perturb_(params, whole_saved, generator("cpu"), *how, rows)
        ops.perturb_(gpu, saved, generator(), *how, gpu_rows, shards_of(*BOXES))
        assert_parts_of(gpu, params)
        assert_parts_of(saved, whole_saved)
        ops.restore_(gpu, saved)
        assert_parts_of(gpu, whole_saved)


@pytest.mark.parametrize("scale", ["isotropic", "element"])
@pytest.mark.parametrize(
    "rule", [sgd(0.1, 0.9, weight_decay=0.01), adamw(weight_decay=0.1, amsgrad=True)], ids=["sgd", "adamw"]
)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("placed", [on_gpu, misaligned, reversed_dims])
def test_a_fused_step_of_a_shard_is_that_of_the_whole_tensor_on_the_cpu(
    pair: Any, rule: Any, scale: str, placed: Any
) -> None:
    master, model = pair
    clean, grads, params = wholes(master, 1), wholes(model, 2), wholes(model, 3)
    kept = (
        [wholes(master, 4)]
        if rule[0] == "sgd"
        else [[t.abs() for t in wholes(master, seed)] for seed in (4, 5, 6)]
    )
    gpu = [placed(parts(t)) for t in (params, clean, grads)]
    gpu_kept = [placed(parts(t)) for t in kept]
    how: dict[str, Any] = {"scale": scale, "steps": [1 + i % 3 for i in range(len(BOXES))]}
    places = list(range(len(BOXES)))
    ops.update_and_perturb_(
        params,
        clean,
        grads,
        [b for buffers in kept for b in buffers],
        *rule,
        generator("cpu"),
        places,
        STD,
        **how,
    )
    ops.update_and_perturb_(
        *gpu,
        [b for buffers in gpu_kept for b in buffers],
        *rule,
        generator(),
        places,
        STD,
        shards=shards_of(*BOXES),
        **how,
    )
    for ours, expected in zip([*gpu, *gpu_kept], [params, clean, grads, *kept], strict=True):
        assert_parts_of(ours, expected)


@real_gpu
@pytest.mark.parametrize("kept", [False, True])
def test_a_step_that_amp_skips_moves_nothing_and_one_it_takes_unscales(kept: bool) -> None:
    model = torch.nn.Linear(64, 64, device="cuda")
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01, keep_perturbed=kept, seed=0)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    opt.train()
    before = [p.detach().clone() for p in model.parameters()]

    def backward() -> None:
        loss = model(torch.ones(8, 64, device="cuda")).square().mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    for poison in (True, False):
        opt.zero_grad()
        if kept:
            backward()
        else:
            with opt.perturb():
                backward()
        if poison:
            next(model.parameters()).grad[0, 0] = float("inf")  # type: ignore[index]
        scaler.step(opt)
        scaler.update()
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert moved == [not poison] * 2
    assert opt.draw == (1 if kept else 2)


def test_training_on_the_gpu_ends_in_the_cpus_bits_for_equal_gradients() -> None:
    shapes = [(300, 70), (300,), (10, 300), (10,)]
    ends = []
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(random(s, torch.float32, i).to(device)) for i, s in enumerate(shapes)]
        opt = torch_ssam.SSAM(params, lr=0.1, noise_std=0.02, momentum=0.9, seed=5)
        for step in range(4):
            with opt.perturb():
                for i, p in enumerate(params):
                    p.grad = random(tuple(p.shape), torch.float32, 10 * step + i).to(device)
            opt.step()
        ends.append(params)
    for a, b in zip(ends[1], ends[0], strict=True):
        assert_same_bits(a, b)


@real_gpu
def test_another_device_than_the_current_one_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED here: one GPU only")
    weights = random(5000, torch.float32, 1)
    with torch.cuda.device(0):
        out = ops.perturbed(weights.to("cuda:1"), generator("cuda:1"), 0, STD)
        assert torch.cuda.current_device() == 0
    assert out.device.index == 1
    assert_same_bits(out, ops.perturbed(weights, generator("cpu"), 0, STD))
    with pytest.raises(Exception, match="different devices"):
        ops.perturb_from_clean_([out], [weights.to("cuda:0")], generator("cuda:1"), [0], STD)


BEYOND = (1 << 31) + 4097  # elements


def need_memory(gigabytes: int) -> None:
    if torch.cuda.mem_get_info()[0] < gigabytes << 30:
        pytest.skip(f"NOT TESTED here: less than {gigabytes} GiB of free GPU memory")


@real_gpu
def test_elements_beyond_two_to_the_thirty_one_are_perturbed() -> None:
    need_memory(10)
    weights = torch.zeros(BEYOND, dtype=torch.bfloat16, device="cuda")
    out = ops.perturbed(weights, generator(), 0, STD)
    tail = slice(BEYOND - 8192, BEYOND)
    assert (out[tail] != 0).all()
    assert_same_bits(out[tail], _noise_from(BEYOND - 8192, 8192).mul_(STD).bfloat16())


@real_gpu
@pytest.mark.parametrize("shift", [0, 1])
def test_elements_beyond_two_to_the_thirty_one_are_updated(shift: int) -> None:
    need_memory(15)
    weights, grads, params = (
        torch.full((BEYOND + 1,), value, dtype=torch.bfloat16, device="cuda")[shift : BEYOND + shift]
        for value in (0.0, -1.0, 0.0)
    )
    ops.update_and_perturb_([params], [weights], [grads], [], *sgd(1.0), generator(), [0], STD)
    tail = slice(BEYOND - 8192, BEYOND)
    assert (weights[tail] == 1.0).all()
    assert_same_bits(params[tail], _noise_from(BEYOND - 8192, 8192).mul_(STD).add_(1.0).bfloat16())


@real_gpu
@pytest.mark.parametrize("features", [4096, 4099])
def test_rows_beyond_two_to_the_thirty_one_are_multiplied(features: int) -> None:
    need_memory(20)
    rows = (BEYOND + features - 1) // features
    w = random((2, features), torch.bfloat16, 1)
    x = torch.ones((rows, features), dtype=torch.bfloat16, device="cuda")
    last = random((64, features), torch.bfloat16, 2)
    x[-64:] = last
    options = (STD, "gaussian", False)
    out = ops.diagonal(x, w.cuda(), generator(), *options)
    assert_same_bits(out[-64:], ops.diagonal(last, w, generator("cpu"), *options))
    del out
    grad, _ = ops.diagonal_backward(x, x, w.cuda(), generator(), *options, True, True)
    wanted, _ = ops.diagonal_backward(last, last, w, generator("cpu"), *options, True, False)
    assert_same_bits(grad[-64:], wanted)


def _noise_from(begin: int, count: int) -> torch.Tensor:
    """Gaussian noise of elements begin, begin + 1, ... of place 0, from the reference."""
    first_block = begin // 64
    blocks = (begin + count + 63) // 64 - first_block
    counters = (np.uint64(16 * first_block) + np.arange(16 * blocks, dtype=np.uint64)).astype(np.uint64)
    words = reference.noise_words(1234567890123, 42, 0, 0, counters)
    a, b = reference.gaussian_pair(words[0], words[1]), reference.gaussian_pair(words[2], words[3])
    values = np.stack([a[0], a[1], b[0], b[1]]).reshape(4, blocks, 16).transpose(1, 0, 2).reshape(-1)
    offset = begin - 64 * first_block
    return torch.from_numpy(values[offset : offset + count].copy())
