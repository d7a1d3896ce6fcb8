"""What bad input gets: an exception whose message says what came and what was expected, and no bit of any
tensor written. One row a precondition, for each operator that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import generator_of, random, sgd
from reference import same_bits

ops = torch.ops.torch_ssam
ERRORS = (ValueError, RuntimeError)
NAN, INF = float("nan"), float("inf")


def f32(*shape: int, seed: int = 1) -> torch.Tensor:
    return random(shape, torch.float32, seed)


def arguments(operator: str) -> dict[str, Any]:
    """Good arguments of each operator: two tensors of shapes (3, 4) and (5,)."""
    lists = {
        name: [f32(3, 4, seed=s), f32(5, seed=s + 1)] for s, name in enumerate(("params", "clean", "grads"))
    }
    buffers = [f32(3, 4, seed=8), f32(5, seed=9)]
    rule, numbers = sgd(lr=0.1, momentum=0.9, weight_decay=0.1)
    update = {"buffers": buffers, "rule": rule, "numbers": numbers}
    noise = {"generator": generator_of(), "places": [0, 1], "noise_std": 0.1}
    x, w = f32(6, 4, seed=5), f32(3, 4, seed=6)
    return {
        "perturb_": {"params": lists["params"], "clean": lists["clean"], **noise},
        "perturb_from_clean_": {"params": lists["params"], "clean": lists["clean"], **noise},
        "perturbed": {"weights": f32(3, 4), "generator": generator_of(), "place": 0, "noise_std": 0.1},
        "restore_": {"params": lists["params"], "clean": lists["clean"]},
        "advance_": {"generator": generator_of(), "draws": 1},
        "update_": {
            "weights": lists["params"],
            "grads": lists["grads"],
            **update,
        },
        "update_and_perturb_": {**lists, **noise, **update},
        "update_rows_and_perturb_": {**lists, **noise, **update, "weight_clip": 1.5, "row_scales": []},
        "add_squares_": {"total": torch.zeros((), dtype=torch.float64), "weights": lists["params"]},
        "project_": {
            "weights": lists["params"],
            "radius": 0.1,
            "squared_norm": torch.ones(1, dtype=torch.float64),
        },
        "row_scales_": {
            "row_scales": [torch.ones(3), torch.ones(1)],
            "weights": lists["params"],
            "fisher": [torch.ones(3), torch.ones(1)],
            "fisher_factor": 0.5,
        },
        "row_fisher_": {"fisher": [torch.ones(3), torch.ones(1)], "grads": lists["grads"], "decay": 0.9},
        "clip_rows_": {"weights": lists["params"], "weight_clip": 1.5},
        "diagonal": {"input": x, "weight": w},
        "diagonal_backward": {
            "grad_output": f32(6, 4),
            "input": x,
            "weight": w,
            "generator": None,
            "noise_std": 0.0,
            "distribution": "gaussian",
            "readout": False,
            "needs_input": True,
            "needs_weight": True,
        },
    }[operator]


def tensors_in(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    items = (
        values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    )
    return [tensor for item in items for tensor in tensors_in(item)]


def second(tensor: torch.Tensor) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """The list with its second tensor replaced: the first is one that a hasty operator would have written."""
    return lambda values: [values[0], tensor]


def with_number(name: str, bad: float) -> list[float]:
    """The numbers of `arguments` with one of them replaced."""
    good = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    return sgd(**{**good, name: bad})[1]  # type: ignore[arg-type]


OVERLAPPING = torch.zeros(20).as_strided((5,), (0,))
PARTLY_OVERLAPPING = torch.zeros(20).as_strided((3, 4), (3, 1))
PERTURB = ("perturb_", "perturb_from_clean_", "update_and_perturb_", "update_rows_and_perturb_")
UPDATE = ("update_", "update_and_perturb_", "update_rows_and_perturb_")

# (operators, argument, its bad value or a function of the good one, what the message must say)
Case = tuple[tuple[str, ...], str, Any, str]
CASES: list[Case] = [
    # scales
    (PERTURB, "scale", "filter", "scale is 'filter'; expected 'isotropic', 'rows' or 'element'"),
    (("perturb_", "perturb_from_clean_"), "scale", "rows", "'rows' and row_scales are missing"),
    (
        ("update_and_perturb_",),
        "scale",
        "rows",
        r"update_and_perturb_ takes 'isotropic' or 'element'.*row_scales_",
    ),
    (("perturb_",), "row_scales", [torch.ones(3), torch.ones(1)], "not 'rows' and row_scales are given"),
    (
        ("row_scales_",),
        "row_scales",
        lambda v: v[:1],
        "row_scales has 1 tensors and weights has 2; expected one",
    ),
    (
        ("row_scales_",),
        "row_scales",
        lambda v: [torch.ones(4), v[1]],
        r"row_scales\[0\] has 4 elements and weights\[0\] has shape \(3, 4\); expected 1 or 3",
    ),
    (
        ("row_scales_",),
        "row_scales",
        lambda v: [v[0].double(), v[1]],
        r"row_scales\[0\] has dtype float64; expected a",
    ),
    (
        ("row_scales_",),
        "row_scales",
        lambda v: [torch.ones(6)[::2], v[1]],
        r"row_scales\[0\].* is not contiguous",
    ),
    (
        ("row_scales_",),
        "fisher",
        lambda v: [torch.ones(1), v[1]],
        r"fisher\[0\] has 1 elements and row_scales\[0\] has 3",
    ),
    (("row_scales_",), "fisher_factor", -1.0, "fisher_factor is -1; expected a finite number >= 0"),
    (("row_scales_",), "fisher_factor", NAN, "fisher_factor is nan"),
    (("row_scales_",), "kind", "range", "kind is 'range'; expected 'norm' or 'absmax'"),
    (
        ("row_scales_",),
        "kind",
        "absmax",
        "kind is 'absmax' and fisher is given; expected it with 'norm' only",
    ),
    (("row_fisher_",), "decay", 1.5, "decay is 1.5; expected 0 to 1"),
    (("row_fisher_",), "decay", NAN, "decay is nan"),
    (
        ("row_fisher_",),
        "fisher",
        lambda v: [v[0], torch.ones(2)],
        r"fisher\[1\] has 2 elements and grads\[1\]",
    ),
    *(
        (("clip_rows_",), "weight_clip", bad, r"weight_clip is .*; expected a finite number > 1")
        for bad in (1.0, 0.5, -2.0, NAN, INF)
    ),
    (("update_rows_and_perturb_",), "weight_clip", 1.0, r"weight_clip is 1; expected a finite number > 1"),
    (("update_rows_and_perturb_",), "kind", "range", "kind is 'range'; expected 'norm' or 'absmax'"),
    (("update_rows_and_perturb_",), "scale", "rows", r"row_scales has 0 tensors and params has 2"),
    (
        ("update_rows_and_perturb_",),
        "row_scales",
        [torch.ones(3), torch.ones(1)],
        "not 'rows' and row_scales are given",
    ),
    # dtypes
    (
        ("perturb_", "restore_"),
        "clean",
        second(torch.zeros(5, dtype=torch.int64)),
        r"clean\[1\] has dtype int64; expected",
    ),
    (
        PERTURB,
        "params",
        second(torch.zeros(5, dtype=torch.complex64)),
        r"params\[1\] has dtype complex64; expected",
    ),
    (
        ("project_", "clip_rows_", "update_"),
        "weights",
        second(torch.zeros(5, dtype=torch.bool)),
        r"weights\[1\] has dtype bool",
    ),
    (("add_squares_",), "weights", second(torch.zeros(5, dtype=torch.bool)), r"weights\[1\] has dtype bool"),
    (
        ("add_squares_",),
        "total",
        torch.zeros(1),
        "total has 1 elements and dtype float32; expected one float64",
    ),
    (("add_squares_",), "total", torch.zeros(2, dtype=torch.float64), "total has 2 elements"),
    (("project_",), "squared_norm", torch.zeros(()), "squared_norm has 1 .* float32; expected one float64"),
    (("project_",), "squared_norm", torch.zeros(0, dtype=torch.float64), "squared_norm has 0 elements"),
    (UPDATE, "grads", second(torch.zeros(5, dtype=torch.int32)), r"grads\[1\] has dtype int32; expected"),
    (
        ("perturbed",),
        "weights",
        torch.zeros(3, dtype=torch.complex64),
        r"has dtype complex64; expected float64",
    ),
    (
        ("diagonal", "diagonal_backward"),
        "weight",
        torch.zeros(3, 4, dtype=torch.int64),
        r"weight.* has dtype int64",
    ),
    (
        ("perturb_",),
        "clean",
        second(f32(5).half()),
        r"clean\[1\] has dtype float16 and params\[1\] has float32",
    ),
    (
        ("restore_",),
        "clean",
        second(f32(5).double()),
        "no kernel for clean weights of dtype float64 with parameters of dtype float32; expected",
    ),
    (
        ("perturb_from_clean_",),
        "clean",
        second(f32(5).half()),
        "no kernel for clean weights of dtype float16 with parameters of dtype float32; expected",
    ),
    (
        ("perturb_from_clean_",),
        "params",
        second(f32(5).double()),
        "clean weights of dtype float32 .* dtype float64",
    ),
    (
        ("update_",),
        "grads",
        second(f32(5).double()),
        "clean weights of dtype float32 with gradients of dtype float64",
    ),
    (
        ("update_and_perturb_",),
        "grads",
        second(f32(5).bfloat16()),
        r"grads\[1\] has dtype bfloat16 and params\[1\] has float32",
    ),
    (
        ("update_and_perturb_",),
        "clean",
        second(f32(5).bfloat16()),
        r"(momentum_buffer\[1\]|clean weights).*bfloat16",
    ),
    (UPDATE, "buffers", second(f32(5).half()), r"momentum_buffer\[1\] has dtype float16"),
    # shapes and counts
    (
        (*PERTURB, "restore_"),
        "params",
        second(f32(6)),
        r"has shape \((5|6),\) and .* has \((5|6),\); expected the same",
    ),
    (UPDATE, "grads", second(f32(5, 1)), r"grads\[1\] has shape \(5, 1\) and weights\[1\] has \(5,\)"),
    (UPDATE, "buffers", second(f32(1, 5)), r"momentum_buffer\[1\] has shape \(1, 5\)"),
    (
        ("perturb_", "restore_"),
        "clean",
        lambda v: v[:1],
        "clean has 1 tensors and params has 2; expected one for each",
    ),
    (UPDATE, "grads", lambda v: [*v, f32(2)], "grads has 3 tensors and weights has 2"),
    (UPDATE, "buffers", lambda v: v[:1], "buffers has 1 tensors for 2 weights; .* keeps 1 for each"),
    (
        UPDATE,
        "buffers",
        [],
        "buffers has 0 tensors for 2 weights; the rule 'sgd' with these numbers keeps 1 for each",
    ),
    (
        UPDATE,
        "numbers",
        sgd()[1],
        "buffers has 2 tensors for 2 weights; .* with these numbers keeps 0 for each",
    ),
    (UPDATE, "steps", [1], "steps has 1 entries for 2 tensors; expected one each"),
    (UPDATE, "steps", [1, 0], "a tensor's step is 0; expected 1 at its first update"),
    # the rule
    (UPDATE, "rule", "lion", r"rule is 'lion'; expected one of: sgd"),
    (
        UPDATE,
        "numbers",
        [0.1],
        "numbers has 1 entries; the rule 'sgd' expects 6: lr, momentum, dampening, weight_decay,",
    ),
    (UPDATE, "numbers", lambda v: [*v, 0.0], "numbers has 7 entries; the rule 'sgd' expects 6"),
    *[
        (UPDATE, "numbers", with_number(name, bad), f"{name} is {bad:g}; expected 0 or 1")
        for name in ("nesterov", "maximize")
        for bad in (0.5, 2.0)
    ],
    (PERTURB, "places", [0], "places has 1 entries for 2 tensors"),
    (PERTURB, "places", [0, -1], r"place -1 is out of range; expected 0 to 2\^32 - 1"),
    (PERTURB, "places", [2**32, 0], "place 4294967296 is out of range"),
    (("perturbed",), "place", -1, "place -1 is out of range"),
    # strides
    (
        ("perturb_",),
        "clean",
        second(OVERLAPPING),
        r"clean\[1\] has overlapping elements: shape \(5,\) strides \(0,\)",
    ),
    (PERTURB, "params", second(OVERLAPPING), r"params\[1\] has overlapping elements.*use tensor.clone\(\)"),
    (
        ("project_", "clip_rows_", "update_"),
        "weights",
        lambda v: [PARTLY_OVERLAPPING, v[1]],
        r"weights\[0\] has overlapping elements: shape \(3, 4\) strides \(3, 1\)",
    ),
    (UPDATE, "buffers", second(OVERLAPPING), r"momentum_buffer\[1\] has overlapping elements"),
    # the generator
    (
        (*PERTURB, "perturbed", "advance_"),
        "generator",
        torch.tensor([1.0, 2.0]),
        r"generator has dtype float32 and 2 elements; expected a contiguous int64 tensor of two",
    ),
    (
        (*PERTURB, "perturbed", "advance_"),
        "generator",
        torch.tensor([1, 2, 3]),
        "generator has dtype int64 and 3 elements",
    ),
    (
        (*PERTURB, "advance_"),
        "generator",
        torch.tensor([1, 0, 2, 0])[::2],
        "expected a contiguous int64 tensor",
    ),
    (
        ("diagonal", "diagonal_backward"),
        "generator",
        torch.tensor([1]),
        "generator has dtype int64 and 1 elements",
    ),
    # numbers
    *[
        (
            (*PERTURB, "perturbed", "diagonal", "diagonal_backward"),
            "noise_std",
            bad,
            f"noise_std is {text}; expected",
        )
        for bad, text in ((-0.5, "-0.5"), (NAN, "-?nan"), (INF, "inf"))
    ],
    *[
        (UPDATE, "numbers", with_number(name, bad), f"{name} is {text}; expected a finite number >= 0")
        for name in ("lr", "momentum", "weight_decay")
        for bad, text in ((-0.5, "-0.5"), (NAN, "-?nan"), (INF, "inf"))
    ],
    *[
        (UPDATE, "numbers", with_number("dampening", bad), "dampening is .*; expected a finite number")
        for bad in (NAN, -INF)
    ],
    *[
        (("project_",), "radius", bad, "radius is .*; expected a finite number > 0")
        for bad in (0.0, -1.0, NAN, INF)
    ],
    *[
        (("perturb_", "perturb_from_clean_", "perturbed"), "sample", bad, f"sample is {bad}; expected 0 to")
        for bad in (-1, 2**32)
    ],
    (
        (*PERTURB, "perturbed", "diagonal", "diagonal_backward"),
        "distribution",
        "uniform",
        "distribution is 'uniform'; expected 'gaussian' or 'rademacher'",
    ),
    *[
        (UPDATE, "lr_tensor", bad, f"lr has {text}; expected one float32 or float64 number")
        for bad, text in (
            (torch.empty(0), "0 elements and dtype float32"),
            (torch.ones(2), "2 elements and dtype float32"),
            (torch.ones(1).half(), "1 elements and dtype float16"),
            (torch.ones(1, dtype=torch.int64), "1 elements and dtype int64"),
        )
    ],
    # the diagonal product
    (
        ("diagonal", "diagonal_backward"),
        "weight",
        f32(4),
        r"weight has shape \(4,\); expected \(depth, features\), depth >= 1",
    ),
    (("diagonal",), "weight", f32(0, 4), r"weight has shape \(0, 4\)"),
    (
        ("diagonal", "diagonal_backward"),
        "input",
        f32(6, 5),
        "input has 5 features .* and weight has 4; expected the same",
    ),
    (("diagonal",), "input", torch.tensor(1.0), "input is a single number; expected .* features = 4"),
    (
        ("diagonal", "diagonal_backward"),
        "input",
        f32(6, 4).double(),
        "input has dtype float64 and weight has float32",
    ),
    (
        ("diagonal",),
        "weight",
        f32(3, 4).half(),
        "input has dtype float32 and weight has float16; expected the same",
    ),
    (
        ("diagonal_backward",),
        "grad_output",
        f32(6, 5),
        r"grad_output has shape \(6, 5\) and dtype float32, and input has \(6, 4\) and float32; expected those",
    ),
    (
        ("diagonal_backward",),
        "grad_output",
        f32(6, 4).half(),
        r"grad_output has shape \(6, 4\) and dtype float16, and input has \(6, 4\) and float32; expected those",
    ),
    (
        ("diagonal_backward",),
        "readout",
        True,
        r"grad_output has shape \(6, 4\).*are the input's without the last dimension",
    ),
    # None, which the dispatcher lets through where one tensor is asked for
    ((*PERTURB, "perturbed"), "generator", None, "generator is None; expected a tensor"),
    (("add_squares_",), "total", None, "total is None; expected a tensor"),
    (("perturbed",), "weights", None, "weights is None; expected a tensor"),
    (("diagonal", "diagonal_backward"), "input", None, "input is None; expected a tensor"),
    (("diagonal", "diagonal_backward"), "weight", None, "weight is None; expected a tensor"),
    (("diagonal_backward",), "grad_output", None, "grad_output is None; expected a tensor"),
    # no parameters beside clean weights
    (
        ("update_and_perturb_",),
        "params",
        lambda v: [],
        "grads has 2 tensors and params has 0; expected one for each|"
        "params has 0 tensors and weights has 2; expected one for each",
    ),
]

FLAT = [(operator, name, bad, message) for names, name, bad, message in CASES for operator in names]


@pytest.mark.parametrize(
    ("operator", "name", "bad", "message"),
    FLAT,
    ids=[f"{op}-{name}-{i}" for i, (op, name, _, _) in enumerate(FLAT)],
)
def test_bad_input_is_named_and_nothing_is_written(operator: str, name: str, bad: Any, message: str) -> None:
    given = arguments(operator)
    given[name] = bad(given[name]) if callable(bad) else bad
    before = [t.clone() for t in tensors_in(given)]
    with pytest.raises(ERRORS, match=message):
        getattr(ops, operator)(**given)
    for after, start in zip(tensors_in(given), before, strict=True):
        assert same_bits(after.contiguous(), start.contiguous())


@pytest.mark.parametrize("operator", sorted({row[0] for row in FLAT}))
def test_the_good_arguments_of_these_tests_are_accepted(operator: str) -> None:
    given = arguments(operator)
    before = [t.clone() for t in tensors_in(given)]
    result = getattr(ops, operator)(**given)
    written = any(not same_bits(a, b) for a, b in zip(tensors_in(given), before, strict=True))
    assert written == (result is None)


def test_nesterov_needs_momentum_and_no_dampening() -> None:
    for momentum, dampening in ((0.0, 0.0), (0.9, 0.1)):
        given = arguments("update_")
        given["numbers"] = sgd(momentum=momentum, dampening=dampening, nesterov=True)[1]
        given["buffers"] = given["buffers"] if momentum else []
        with pytest.raises(
            ERRORS, match=r"nesterov=True with momentum .* expects momentum > 0 and dampening 0"
        ):
            ops.update_(**given)


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
@pytest.mark.parametrize(
    ("operator", "name"),
    [("update_", "grads"), ("perturb_", "clean"), ("project_", "weights"), ("clip_rows_", "weights")],
)
def test_sparse_tensors_are_refused(operator: str, name: str, layout: str) -> None:
    given = arguments(operator)
    sparse = given[name][0].to_sparse() if layout == "sparse_coo" else given[name][0].to_sparse_csr()
    given[name] = [sparse, given[name][1]]
    with pytest.raises(ERRORS, match=r"[Ss]parse"):
        getattr(ops, operator)(**given)


@pytest.mark.parametrize("operator", UPDATE)
def test_a_sparse_lr_is_refused(operator: str) -> None:
    given = arguments(operator)
    before = [t.clone() for t in tensors_in(given)]
    with pytest.raises(ERRORS, match="lr is sparse; expected a dense"):
        getattr(ops, operator)(**given, lr_tensor=torch.ones(1).to_sparse())
    assert all(same_bits(after, start) for after, start in zip(tensors_in(given), before, strict=True))


def test_an_unknown_capability_is_named_and_changes_nothing() -> None:
    before = ops.cpu_capability()
    with pytest.raises(ERRORS, match="no CPU kernels 'sse9' here; expected plain, avx2 or avx512"):
        ops._set_cpu_capability("sse9")
    assert ops.cpu_capability() == before


def test_sparse_gradients_have_no_fisher_sums() -> None:
    fisher = torch.ones(3)
    with pytest.raises(ERRORS, match=r"grads\[0\] is sparse; expected a dense"):
        ops.row_fisher_([fisher], [torch.eye(3).to_sparse()], 0.5)
    assert torch.equal(fisher, torch.ones(3))


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        (operator, name)
        for operator in sorted({row[0] for row in FLAT})
        for name, value in arguments(operator).items()
        if 0 < len(tensors_in(value)) < len(tensors_in(arguments(operator)))
    ],
)
def test_a_meta_tensor_among_others_is_refused(operator: str, name: str) -> None:
    given = arguments(operator)
    given[name] = (
        [t.to("meta") for t in given[name]] if isinstance(given[name], list) else given[name].to("meta")
    )
    before = [t.clone() for t in tensors_in(given) if not t.is_meta]
    with pytest.raises(ERRORS, match="on different devices"):
        getattr(ops, operator)(**given)
    after = [t for t in tensors_in(given) if not t.is_meta]
    assert all(same_bits(a, b) for a, b in zip(after, before, strict=True))


def test_a_meta_tensor_in_a_list_of_others_is_refused() -> None:
    for operator, name in (("update_", "grads"), ("perturb_", "clean"), ("restore_", "params")):
        given = arguments(operator)
        given[name] = [given[name][0], given[name][1].to("meta")]
        with pytest.raises(ERRORS, match="on different devices, cpu and meta"):
            getattr(ops, operator)(**given)
