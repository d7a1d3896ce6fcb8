"""The plain PyTorch operators, for devices without kernels of ours, beside the CPU's kernels on the CPU.

`on_plain` registers them in the place of the CPU's kernels, as they are registered for MPS and XPU; then calls go through the
dispatcher as they would there. Noise has the kernels' bits where the device has float64; `narrow` takes that away. Tolerances:
noise 2^-20 noise_std, Rademacher noise exact, and an ulp or two where a result is rounded.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import test_ops_errors as errors
import torch
from cases import LAYOUTS, PAIRS, adamw, generator_of, random, random_like, sgd
from torch import Tensor, nn

import torch_ssam
from torch_ssam.noise import generator as noise_generator
from torch_ssam.ops import library, plain, plain_noise, plain_numbers, plain_rules
from torch_ssam.ops.uninterrupted import Uninterrupted

ops = torch.ops.torch_ssam
SIZES = (0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 2049, plain_noise.CHUNK + 5)
EPS = {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
EXTREME = [
    {"seed": 7, "draw": 3, "place": 0, "sample": 0, "draw_offset": 0},
    {"seed": -1, "draw": -1, "place": 2**32 - 1, "sample": 2**32 - 1, "draw_offset": -3},
    {"seed": 2**63 - 1, "draw": 2**63 - 1, "place": 2**31, "sample": 2**31, "draw_offset": 2**63 - 1},
    {"seed": -(2**63), "draw": -(2**63), "place": 1, "sample": 1, "draw_offset": -(2**63)},
]


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return plain.run(name, args, kwargs)


@pytest.fixture
def on_plain() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators|.*Overriding")
        registered = library.register_plain("CPU")
    yield
    registered._destroy()


@pytest.fixture(params=[False, True], ids=["float64", "float32-only"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(plain_numbers, "NARROW", ("cpu",))
    return bool(request.param)


def check_close(result: Tensor, expected: Tensor, bound: Tensor | float) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    difference = (result.double() - expected.double()).abs()
    assert bool((difference <= bound).all()), float((difference - bound).max())


def check_ulp(result: Tensor, expected: Tensor, ulp: float, more: float = 0.0) -> None:
    tiny = torch.finfo(expected.dtype).tiny
    check_close(result, expected, expected.double().abs() * ulp * EPS[expected.dtype] + tiny + more)


# -- which there are ----------------------------------------------------------------------------------------


def test_every_operator_has_a_plain_form() -> None:
    names = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("torch_ssam::")}
    names -= {"cpu_capability", "_set_cpu_capability"}  # of the CPU's kernels alone
    assert set(plain.OPERATORS) == names
    assert set(library.OPERATORS) == names


def test_every_rule_has_a_plain_form() -> None:
    headers = (Path(__file__).parents[2] / "csrc/math/rules").glob("*.h")
    assert set(plain_rules.RULES) == {header.stem for header in headers} - {"rule"}


@pytest.mark.parametrize("key", ["MPS", "XPU", "HPU", "PrivateUse1"])
def test_they_are_registered_for_devices_without_kernels(key: str) -> None:
    assert key in library.PLAIN_KEYS
    for name in library.OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_ssam::{name}", key)


def test_they_are_not_registered_for_the_cpu_or_cuda() -> None:
    assert "CPU" not in library.PLAIN_KEYS
    assert ("CUDA" in library.PLAIN_KEYS) == (torch.version.hip is not None)
    assert library.has_plain(torch.device("mps"))
    assert not library.has_plain(torch.device("cpu"))
    assert library.has_plain(torch.device("privateuseone"))
    if torch.version.hip is None:
        assert not library.has_plain(torch.device("cuda"))
        built = (Path(torch_ssam.__file__).parent / "lib" / "libtorch_ssam_cuda.so").exists()
        has = torch._C._dispatch_has_kernel_for_dispatch_key("torch_ssam::perturb_", "CUDA")
        emulated = os.environ.get("TORCH_SSAM_EMULATED_CUDA")  # test_cuda.py may load it here
        assert not has or built or emulated


def test_a_missing_cuda_library_is_still_named() -> None:
    if torch._C._dispatch_has_kernel_for_dispatch_key("torch_ssam::perturb_", "CUDA"):
        pytest.skip("NOT TESTED here: this build has CUDA kernels")
    with pytest.raises(RuntimeError, match="no CUDA kernels"):
        noise_generator._require_kernels(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="no operators for device type 'meta'; expected cpu, cuda, mps"):
        noise_generator._require_kernels(torch.device("meta"))
    for device in ("mps", "xpu", "privateuseone"):
        noise_generator._require_kernels(torch.device(device))


def test_a_call_is_served_by_the_registered_form(on_plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setitem(plain.OPERATORS, "project_", lambda *args, **_: called.append("project_"))
    ops.project_([torch.ones(3)], 0.5)
    assert called == ["project_"]


# -- noise --------------------------------------------------------------------------------------------------


def test_threefry_gives_the_published_answers() -> None:
    table = Path(__file__).parents[1] / "data" / "threefry4x32_20.txt"
    rows = [line.split() for line in table.read_text().splitlines() if line and not line.startswith("#")]
    for row in rows:
        words = [int(word, 16) for word in row]
        found = plain_noise.threefry(words[4:8], [torch.tensor([word]) for word in words[:4]])
        assert [int(word) for word in found] == words[8:]


def test_words_are_those_of_the_reference_also_of_counters_above_2_to_the_32() -> None:
    stream = plain_noise.stream_of(-(2**63) + 11, -2, 2**32 - 1, 2**31)
    for first in (0, 2**32 - 16, 2**50):
        found = torch.stack(plain_noise.noise_words(stream, first, first + 48, torch.device("cpu"))).view(
            4, -1
        )
        c = np.arange(first, first + 48, dtype=np.uint64)
        halves = (c & np.uint64(2**32 - 1), c >> np.uint64(32))
        draw = [np.full(48, half) for half in (stream.draw_low, stream.draw_high)]
        counter = np.stack([np.asarray(half, np.uint32) for half in (*halves, *draw)])
        assert found.tolist() == reference.threefry4x32(list(stream[:4]), counter).tolist()


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("how", EXTREME, ids=range(4))
@pytest.mark.parametrize("n", SIZES)
def test_noise_is_the_kernels(n: int, how: dict[str, int], distribution: str, narrow: bool) -> None:
    generator = generator_of(how["seed"], how["draw"])
    args = (
        torch.zeros(n),
        generator,
        how["place"],
        1.0,
        distribution,
        how["sample"],
        True,
        how["draw_offset"],
    )
    found, expected = run("perturbed", *args), ops.perturbed(*args)
    if distribution == "rademacher" or not narrow:
        assert found.equal(expected)
    check_close(found, expected, 2.0**-20)


def test_gaussian_noise_is_near_the_kernels_at_the_ends_of_its_range(narrow: bool) -> None:
    few = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 0x5A82799A, 0xB504F333, 0xB504F334]
    radius, angle = (
        w.reshape(-1) for w in torch.meshgrid(torch.tensor(few), torch.tensor(few), indexing="ij")
    )
    words = (radius.numpy().astype(np.uint32), angle.numpy().astype(np.uint32))
    for found, expected in zip(
        plain_noise.gaussian_pair(radius, angle), reference.gaussian_pair(*words), strict=True
    ):
        check_close(found, torch.from_numpy(np.asarray(expected, np.float32)), 2.0**-20)


@pytest.mark.parametrize("n", [0, 17, 64, 2049])
@pytest.mark.parametrize(("master", "model"), PAIRS)
@pytest.mark.parametrize("scale", ["isotropic", "element", "rows"])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_perturbing_is_the_kernels(
    n: int, master: torch.dtype, model: torch.dtype, scale: str, distribution: str, narrow: bool
) -> None:
    if narrow and master == torch.float64:
        return  # such a device has none
    std = 0.3
    for shape in ((n,), (3, n)):
        clean = random(shape, master, seed=1)
        row_scales = [torch.linspace(0.5, 1.5, 3 if len(shape) == 2 else 1)] if scale == "rows" else None
        made = []
        for operator in (run_of("perturb_from_clean_"), ops.perturb_from_clean_):
            param = torch.full(shape, 9.0, dtype=model)
            operator(
                [param], [clean], generator_of(5, 9), [3], std, distribution, 2, True, 1, scale, row_scales
            )
            made.append(param)
        largest = 2.0 * std * float(clean.double().abs().max() + 1.0) if n else 0.0
        check_ulp(made[0], made[1], 1.0, largest * 2.0**-20)
        if not narrow and scale == "isotropic" and master != torch.float64:
            assert made[0].equal(made[1])


def run_of(name: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(name, *args, **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout_is_perturbed_saved_and_restored(layout: str, dtype: torch.dtype) -> None:
    pairs = []
    for perturb, restore in ((run_of("perturb_"), run_of("restore_")), (ops.perturb_, ops.restore_)):
        param = LAYOUTS[layout](dtype)
        param.copy_(random_like(param, seed=2))
        before, clean = param.clone(), torch.empty_like(param)
        perturb([param], [clean], generator_of(), [0], 0.25)
        noisy = param.clone()
        assert clean.equal(before)
        restore([param], [clean])
        assert param.equal(before)
        pairs.append(noisy)
    assert pairs[0].equal(pairs[1])
    assert pairs[0].numel() == 0 or not pairs[0].equal(before)


@pytest.mark.parametrize("scale", ["isotropic", "element"])
def test_noise_alone_is_the_kernels(scale: str) -> None:
    w = random((33, 5), torch.float32, seed=3)
    args = (w, generator_of(), 4, 0.5, "gaussian", 1, False, 2, scale, None, None, 0, True)
    check_close(run("perturbed", *args), ops.perturbed(*args), 2.0**-20 * float(w.abs().max() + 1.0))


def test_draws_advance_and_wrap_as_the_kernels() -> None:
    for draw, by in ((3, 1), (2**63 - 1, 5), (-(2**63), -1)):
        one, other = generator_of(1, draw), generator_of(1, draw)
        run("advance_", one, by)
        ops.advance_(other, by)
        assert one.equal(other)


def test_clean_weights_follow_what_was_written() -> None:
    clean = random((65,), torch.float32, seed=4)
    param = clean.bfloat16()
    param[7] = 3.0
    one, other = clean.clone(), clean.clone()
    run("follow_", [one], [param])
    ops.follow_([other], [param])
    assert one.equal(other)
    assert one[7] == 3.0
    assert one[6] == clean[6]


def test_version_counters_move_as_little_as_by_kernels() -> None:
    param, clean = torch.ones(5, requires_grad=True), torch.zeros(5)
    run("perturb_", [param], [clean], generator_of(), [0], 0.1)
    assert param._version == 0
    assert param.grad_fn is None


# -- updates ------------------------------------------------------------------------------------------------

RULES = [
    (sgd(lr=0.1, weight_decay=0.01), 0),
    (sgd(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01, maximize=True), 1),
    (sgd(lr=0.1, momentum=0.9, nesterov=True), 1),
    (adamw(lr=0.01, weight_decay=0.1), 2),
    (adamw(lr=0.01, beta1=0.2, amsgrad=True, maximize=True), 3),
]


@pytest.mark.parametrize(("rule", "kept"), RULES, ids=range(len(RULES)))
@pytest.mark.parametrize(("master", "model"), PAIRS)
@pytest.mark.parametrize("lr_tensor", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_updates_are_the_kernels(
    rule: tuple[str, list[float]],
    kept: int,
    master: torch.dtype,
    model: torch.dtype,
    lr_tensor: bool,
    noisy: bool,
) -> None:
    shapes = ((0,), (17,), (33, 65))
    name, numbers = rule
    lists: list[list[list[Tensor]]] = []
    for plainly in (True, False):
        weights = [random(s, master, seed=1) for s in shapes]
        weights[2] = weights[2].t().contiguous().t()
        params = [w.to(model) for w in weights]
        buffers = [torch.zeros_like(w) for _ in range(kept) for w in weights]
        for step in (1, 2, 3):
            grads = [random(s, model, seed=10 + step) for s in shapes]
            lr = torch.tensor(0.02 * step, dtype=torch.float64) if lr_tensor else None
            if noisy:
                operator = run_of("update_and_perturb_") if plainly else ops.update_and_perturb_
                how = (generator_of(), [0, 1, 2], 0.05, "gaussian", step, "isotropic", None, lr, [step] * 3)
                operator(params, weights, grads, buffers, name, numbers, *how)
            else:
                targets = weights if model != master else params
                operator = run_of("update_") if plainly else ops.update_
                operator(targets, grads, buffers, name, numbers, lr, [step] * 3)
        lists.append([weights, params, buffers])
    for found, expected in zip(lists[0], lists[1], strict=True):
        for one, other in zip(found, expected, strict=True):
            check_ulp(one, other, 4.0, 8.0 * EPS[other.dtype])


@pytest.mark.parametrize("channel_dim", [0, 1, 2])
def test_rows_along_any_dimension_scale_noise_as_the_kernels(channel_dim: int) -> None:
    w = random((3, 5, 7), torch.float32, seed=1)
    scales = [torch.linspace(0.5, 1.5, w.shape[channel_dim])]
    args = (w, generator_of(), 4, 0.5, "gaussian", 1, False, 2, "rows", scales, None, channel_dim)
    check_close(run("perturbed", *args), ops.perturbed(*args), 2.0**-20)


@pytest.mark.parametrize(
    ("clip", "scale", "kind"), [(1.25, "rows", "absmax"), (1.5, "isotropic", "norm"), (0.0, "rows", "norm")]
)
@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_updates_by_rows_are_the_kernels(
    master: torch.dtype, model: torch.dtype, clip: float, scale: str, kind: str
) -> None:
    name, numbers = sgd(lr=0.1, momentum=0.9)
    made = []
    for operator in (run_of("update_rows_and_perturb_"), ops.update_rows_and_perturb_):
        clean = [random((17,), master, seed=1), random((5, 33), master, seed=2)]
        params, buffers = [c.to(model) for c in clean], [torch.zeros_like(c) for c in clean]
        grads = [random(tuple(c.shape), model, seed=3) for c in clean]
        rows = [torch.zeros(1), torch.zeros(5)] if scale == "rows" else []
        how = (generator_of(), [0, 1], clip, rows, 0.05, "gaussian", 1, scale, kind)
        operator(params, clean, grads, buffers, name, numbers, *how)
        made.append([*params, *clean, *buffers, *rows])
    for one, other in zip(*made, strict=True):
        check_ulp(one, other, 4.0, 8.0 * EPS[other.dtype])


@pytest.mark.parametrize("radius", [0.5, 1e6])
@pytest.mark.parametrize("dtype", list(EPS))
def test_projection_is_the_kernels(radius: float, dtype: torch.dtype, narrow: bool) -> None:
    if narrow and dtype == torch.float64:
        return  # such a device has none
    found, expected = ([random((65,), dtype, seed=1), random((3, 17), dtype, seed=2)] for _ in range(2))
    run("project_", found, radius)
    ops.project_(expected, radius)
    for one, other in zip(found, expected, strict=True):
        check_ulp(one, other, 2.0)


@pytest.mark.parametrize("dtype", list(EPS))
def test_a_norm_added_up_in_parts_is_the_kernels(dtype: torch.dtype, narrow: bool) -> None:
    if narrow and dtype == torch.float64:
        return
    wide = torch.float32 if narrow else torch.float64
    weights = [random((65,), dtype, seed=1), random((3, 17), dtype, seed=2)]
    found, expected = torch.zeros(1, dtype=wide), torch.zeros((), dtype=torch.float64)
    for w in (weights[:1], [], weights[1:]):
        run("add_squares_", found, w)
        ops.add_squares_(expected, w)
    torch.testing.assert_close(found.double()[0], expected, rtol=1e-6 if narrow else 1e-14, atol=0.0)
    parts = [w.clone() for w in weights]
    for w in parts:
        run("project_", [w], 0.5, found)
    ops.project_(weights, 0.5, expected)
    for one, other in zip(parts, weights, strict=True):
        check_ulp(one, other, 2.0)


def test_a_norm_that_is_not_finite_projects_nothing() -> None:
    for bad in (float("nan"), float("inf")):
        w = torch.tensor([1.0, bad])
        run("project_", [w], 0.5)
        assert w[0] == 1.0


# -- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (17,), (3, 65), (3, 0), (0, 4), (5, 3, 9)])
@pytest.mark.parametrize("dtype", list(EPS))
def test_numbers_of_rows_are_the_kernels(shape: tuple[int, ...], dtype: torch.dtype, narrow: bool) -> None:
    if narrow and dtype == torch.float64:
        return  # such a device has none
    w = random(shape, dtype, seed=1)
    rows = shape[0] if len(shape) > 1 else 1
    fisher = torch.linspace(0.1, 1.0, rows)
    for arguments in (([], 0.0, "norm"), ([], 0.0, "absmax"), ([fisher], 0.7, "norm")):
        found, expected = torch.full((rows,), 9.0), torch.full((rows,), 9.0)
        run("row_scales_", [found], [w], *arguments)
        ops.row_scales_([expected], [w], *arguments)
        check_ulp(found, expected, 4.0)
    one, other = fisher.clone(), fisher.clone()
    run("row_fisher_", [one], [w], 0.9)
    ops.row_fisher_([other], [w], 0.9)
    check_ulp(one, other, 4.0)
    clipped, expected = w.clone(), w.clone()
    run("clip_rows_", [clipped], 1.25)
    ops.clip_rows_([expected], 1.25)
    check_ulp(clipped, expected, 2.0)


def test_rows_with_a_nan_are_not_clipped_and_have_a_nan_as_their_largest() -> None:
    w = torch.tensor([[1.0, float("nan"), 50.0], [1.0, 1.0, 50.0]])
    largest = torch.zeros(2)
    run("row_scales_", [largest], [w], [], 0.0, "absmax")
    assert largest[0].isnan()
    assert largest[1] == 50.0
    run("clip_rows_", [w], 1.25)
    assert w[0, 2] == 50.0
    assert w[1, 2] < 50.0


# -- the diagonal product -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("master", "model"), PAIRS)
@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("shape", [(7, 65), (0, 65), (5, 0), (65,), (2, 3, 17)])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_diagonal_product_is_the_kernels(
    master: torch.dtype, model: torch.dtype, readout: bool, shape: tuple[int, ...], depth: int
) -> None:
    x, w = random(shape, model, seed=1), random((depth, shape[-1]), master, seed=2)
    g = random(shape[:-1] if readout else shape, model, seed=3)
    noise = (generator_of(), 0.2, "gaussian", readout)
    check_ulp(run("diagonal", x, w, *noise), ops.diagonal(x, w, *noise), 2.0, 64.0 * EPS[model])
    found = run("diagonal_backward", g, x, w, *noise, True, True)
    expected = ops.diagonal_backward(g, x, w, *noise, True, True)
    for one, other in zip(found, expected, strict=True):
        check_ulp(one, other, 2.0, 64.0 * EPS[other.dtype])
    for needs in ((True, False), (False, True)):
        part = run("diagonal_backward", g, x, w, *noise, *needs)
        assert [t.shape for t in part] == [
            t.shape if n else (0,) for t, n in zip(expected, needs, strict=True)
        ]


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "name", "bad", "message"),
    [case for case in errors.FLAT if case[1] != "shards"],
    ids=[f"{op}-{name}-{i}" for i, (op, name, _, _) in enumerate(errors.FLAT) if name != "shards"],
)
def test_bad_input_is_refused_as_by_the_kernels(
    on_plain: None, operator: str, name: str, bad: Any, message: str
) -> None:
    errors.test_bad_input_is_named_and_nothing_is_written(operator, name, bad, message)


def test_shards_are_refused_and_nothing_is_written() -> None:
    for operator in ("perturb_", "perturb_from_clean_", "perturbed", "update_and_perturb_"):
        given = errors.arguments(operator)
        given["shards"] = [3, 4, 0, 0, 5, 0]
        before = [t.clone() for t in errors.tensors_in(given)]
        with pytest.raises(ValueError, match="no form for device type 'cpu'; expected whole tensors there"):
            run(operator, **given)
        assert all(a.equal(b) for a, b in zip(errors.tensors_in(given), before, strict=True))


# -- nothing lost or half written ---------------------------------------------------------------------------


def test_a_signal_in_the_middle_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    make = plain.standard_noise

    def struck(*args: Any) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return make(*args)

    params, clean = [torch.ones(5), torch.ones(7)], [torch.zeros(5), torch.zeros(7)]
    expected = [ops.perturbed(p, generator_of(), i, 0.5) for i, p in enumerate(params)]
    monkeypatch.setattr(plain, "standard_noise", struck)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run("perturb_", params, clean, generator_of(), [0, 1], 0.5)
    assert all(map(torch.equal, params, expected))
    assert all(c.equal(torch.ones_like(c)) for c in clean)
    assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_are_put_back_where_the_stretch_fails() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Uninterrupted():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is handler


def test_weights_come_back_where_a_later_tensor_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    make = plain.standard_noise

    def failing(stream: plain_noise.Stream, *args: Any) -> Tensor:
        if stream.place == 1:
            raise MemoryError
        return make(stream, *args)

    monkeypatch.setattr(plain, "standard_noise", failing)
    params = [torch.ones(5), torch.ones(7)]
    with pytest.raises(MemoryError):
        run("perturb_", params, [torch.zeros(5), torch.zeros(7)], generator_of(), [0, 1], 0.5)
    assert all(p.equal(torch.ones_like(p)) for p in params)


# -- the fronts ---------------------------------------------------------------------------------------------

FRONTS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "SSAM": lambda p: torch_ssam.SSAM(p, lr=0.05, momentum=0.9, noise_std=0.02),
    "SSAM-kept": lambda p: torch_ssam.SSAM(p, lr=0.05, momentum=0.9, noise_std=0.02, keep_perturbed=True),
    "SSAM-regenerate": lambda p: torch_ssam.SSAM(p, lr=0.05, noise_std=0.02, memory="regenerate"),
    "SSAM-radius": lambda p: torch_ssam.SSAM(p, lr=0.05, noise_std=0.02, radius=2.0),
    "SSAM-filter": lambda p: torch_ssam.SSAM(p, lr=0.05, noise_std=0.02, scale="filter", weight_clip=2.0),
    "SSAM-fisher": lambda p: torch_ssam.SSAM(p, lr=0.05, noise_std=0.02, scale="fisher"),
    "SSAM-element": lambda p: torch_ssam.SSAM(p, lr=0.05, noise_std=0.02, scale="element", samples=2),
    "SSAMAdamW": lambda p: torch_ssam.SSAMAdamW(p, lr=0.01, noise_std=0.02, distribution="rademacher"),
    "wrap": lambda p: torch_ssam.wrap(torch.optim.Adam(p, lr=0.01), noise_std=0.02),
    "wrap-samples": lambda p: torch_ssam.wrap(
        torch.optim.SGD(p, lr=0.05), noise_std=0.02, antithetic=True, samples=2
    ),
}


def trained(front: str) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 33), nn.Tanh(), nn.Linear(33, 3))
    opt = FRONTS[front](list(model.parameters()))
    opt.train()
    x, y = torch.randn(16, 6), torch.randn(16, 3)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(5):
        opt.step(closure)
    opt.eval()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("front", FRONTS)
def test_an_optimizer_trains_as_with_the_kernels(front: str, request: pytest.FixtureRequest) -> None:
    expected = trained(front)
    request.getfixturevalue("on_plain")
    for found, other in zip(trained(front), expected, strict=True):
        check_close(found, other, 1e-5)
    assert not torch.equal(expected[0], torch.zeros_like(expected[0]))


def test_looks_at_the_noise_need_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked() -> dict[str, float]:
        weight = nn.Parameter(random((17, 5), torch.float32, seed=1))
        opt = torch_ssam.SSAM([weight], lr=0.1, noise_std=0.01, seed=3)
        return dict(opt.metrics())

    expected = looked()
    monkeypatch.setattr(plain_numbers, "NARROW", ("cpu",))
    made: list[torch.dtype | None] = []
    total = Tensor.sum
    monkeypatch.setattr(
        Tensor, "sum", lambda self, **how: made.append(how.get("dtype")) or total(self, **how)
    )
    assert looked() == pytest.approx(expected, rel=1e-5)
    assert made
    assert torch.float64 not in made


@pytest.mark.parametrize("readout", [None, "sum"])
def test_diagonal_linear_trains_as_with_the_kernels(readout: Any, request: pytest.FixtureRequest) -> None:
    def train() -> Tensor:
        torch.manual_seed(0)
        model = torch_ssam.DiagonalLinear(33, depth=3, noise_std=0.05, readout=readout)
        opt = torch.optim.SGD(model.parameters(), lr=0.02)
        x = torch.randn(8, 33)
        for _ in range(5):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
        return model.weight.detach().clone()

    expected = train()
    request.getfixturevalue("on_plain")
    check_close(train(), expected, 1e-5)
