"""Wrong options and tensors: the type of the exception, a message that says what came, what was expected and
what to do, and that nothing has changed. Calls out of order are in test_ssam_driving.py, foreign checkpoints
in test_checkpoints.py.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam.noise.options import SCALES

NAN, INF = float("nan"), float("inf")


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


# name, value, exception, what the message must say
NOISE_OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("noise_std", -0.1, ValueError, r"noise_std is -0\.1; expected a finite number >= 0"),
    ("noise_std", NAN, ValueError, "noise_std is nan; expected a finite number"),
    ("noise_std", INF, ValueError, "noise_std is inf"),
    ("noise_std", "0.1", TypeError, r"noise_std is '0\.1' \(str\); expected a finite number"),
    ("noise_std", None, TypeError, r"noise_std is None \(NoneType\)"),
    ("noise_std", True, TypeError, r"noise_std is True \(bool\)"),
    ("noise_std", 1j, TypeError, r"noise_std is 1j \(complex\)"),
    ("noise_std", [0.1], TypeError, r"noise_std is \[0\.1\] \(list\)"),
    ("noise_std", torch.ones(2), ValueError, r"noise_std is a tensor of shape \(2,\)"),
    ("noise_std", torch.tensor(-1.0), ValueError, r"noise_std is -1\.0"),
    (
        "distribution",
        "normal",
        ValueError,
        "distribution is 'normal'; expected one of 'gaussian', 'rademacher'",
    ),
    ("distribution", None, ValueError, "distribution is None; expected one of"),
    ("scale", "layer", ValueError, "scale is 'layer'; expected one of 'isotropic'"),
    ("scale", None, ValueError, "scale is None; expected one of"),
]
FISHER_OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("fisher_decay", -0.1, ValueError, r"fisher_decay is -0\.1; expected a finite number >= 0"),
    ("fisher_decay", 1.1, ValueError, r"fisher_decay is 1\.1; expected 0 <= fisher_decay <= 1"),
    ("fisher_decay", NAN, ValueError, "fisher_decay is nan"),
    ("fisher_factor", -1.0, ValueError, r"fisher_factor is -1\.0; expected a finite number >= 0"),
    ("fisher_factor", INF, ValueError, "fisher_factor is inf"),
    ("fisher_factor", "s", TypeError, r"fisher_factor is 's' \(str\)"),
]
PASS_OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("samples", 0, ValueError, "samples is 0; expected 1 to"),
    ("samples", -3, ValueError, "samples is -3"),
    ("samples", 2.0, TypeError, r"samples is 2\.0 \(float\); expected an int"),
    ("samples", True, TypeError, "samples is True"),
    ("samples", 2**32, ValueError, "samples is 4294967296"),
    ("antithetic", 1, TypeError, r"antithetic is 1 \(int\); expected True or False"),
    ("clean_weight", 1.0, ValueError, r"clean_weight is 1\.0; expected 0 <= clean_weight < 1"),
    ("clean_weight", -0.5, ValueError, r"clean_weight is -0\.5"),
    ("clean_weight", NAN, ValueError, "clean_weight is nan"),
    ("keep_perturbed", "yes", TypeError, r"keep_perturbed is 'yes' \(str\); expected True or False"),
    ("seed", 1.5, TypeError, r"seed is 1\.5 \(float\); expected an int or None"),
    ("seed", True, TypeError, "seed is True"),
    ("seed", 2**63, ValueError, "seed is 9223372036854775808; expected a 64-bit integer"),
    ("seed", -(2**63) - 1, ValueError, "expected a 64-bit integer"),
]
SGD_OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("lr", -0.1, ValueError, r"lr is -0\.1; expected a finite number >= 0"),
    ("lr", NAN, ValueError, "lr is nan"),
    ("lr", "0.1", TypeError, r"lr is '0\.1' \(str\)"),
    ("lr", torch.ones(2), ValueError, r"lr is a tensor of shape \(2,\)"),
    ("momentum", -0.9, ValueError, r"momentum is -0\.9"),
    ("momentum", INF, ValueError, "momentum is inf"),
    ("dampening", NAN, ValueError, "dampening is nan; expected a finite number"),
    ("dampening", "x", TypeError, "dampening is 'x'"),
    ("weight_decay", -1.0, ValueError, r"weight_decay is -1\.0"),
    (
        "nesterov",
        True,
        ValueError,
        "nesterov=True with momentum=0 and dampening=0.*momentum > 0 and dampening 0",
    ),
    ("nesterov", 1, TypeError, r"nesterov is 1 \(int\)"),
    ("maximize", "no", TypeError, "maximize is 'no'"),
    ("radius", 0.0, ValueError, r"radius is 0\.0; expected a finite number > 0"),
    ("radius", -2.0, ValueError, r"radius is -2\.0"),
    ("radius", INF, ValueError, "radius is inf"),
    ("radius", "big", TypeError, "radius is 'big'"),
]
ids = [
    f"{name}={value!r}" for name, value, _, _ in NOISE_OPTIONS + FISHER_OPTIONS + PASS_OPTIONS + SGD_OPTIONS
]


@pytest.mark.parametrize(
    ("name", "value", "error", "match"), NOISE_OPTIONS + FISHER_OPTIONS + PASS_OPTIONS + SGD_OPTIONS, ids=ids
)
def test_ssam_refuses_wrong_options(name: str, value: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        torch_ssam.SSAM([parameter()], **{name: value})


@pytest.mark.parametrize(("name", "value", "error", "match"), NOISE_OPTIONS + FISHER_OPTIONS + PASS_OPTIONS)
def test_wrap_refuses_wrong_options_and_leaves_the_base_as_it_was(
    name: str, value: Any, error: type[Exception], match: str
) -> None:
    base = torch.optim.AdamW([parameter()])
    before = (repr(base.param_groups), copy.deepcopy(base.defaults))
    with pytest.raises(error, match=match):
        torch_ssam.wrap(base, **{"noise_std": 0.1, name: value})
    assert (repr(base.param_groups), base.defaults) == before


@pytest.mark.parametrize(
    ("name", "value", "error", "match"), NOISE_OPTIONS + [o for o in PASS_OPTIONS if o[0] == "seed"]
)
def test_weight_noise_refuses_wrong_options(
    name: str, value: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        torch_ssam.WeightNoise([parameter()], **{"noise_std": 0.1, name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        o
        for o in NOISE_OPTIONS + FISHER_OPTIONS + PASS_OPTIONS + SGD_OPTIONS
        if o[0] not in ("seed", "nesterov")
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_a_group_with_wrong_options_is_refused_and_not_added(
    name: str, value: Any, error: type[Exception], match: str, kept: bool
) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=kept)
    opt.train()
    before, groups = front.snapshot(model), repr(opt.param_groups)
    new = parameter()
    with pytest.raises(error, match=match):
        opt.add_param_group({"params": [new], name: value})
    assert repr(opt.param_groups) == groups
    assert front.same_bits([*model.parameters(), new], [*before, torch.ones(3)])
    opt.eval()


@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale != "isotropic"])
def test_regenerate_refuses_scales_that_depend_on_the_clean_weights(scale: str) -> None:
    options: dict[str, Any] = {"scale": scale, "memory": "regenerate"}
    for make in (
        lambda: torch_ssam.SSAM([parameter()], **options),
        lambda: torch_ssam.wrap(torch.optim.AdamW([parameter()]), 0.1, **options),
        lambda: torch_ssam.WeightNoise([parameter()], 0.1, **options),
    ):
        with pytest.raises(ValueError, match=f"memory=\"regenerate\" with scale='{scale}'.*isotropic.*copy"):
            make()


def test_weight_noise_has_no_gradients_for_fisher() -> None:
    with pytest.raises(ValueError, match=r"scale is 'fisher'.*expected 'isotropic'.*Use SSAM or wrap"):
        torch_ssam.WeightNoise([parameter()], 0.1, scale="fisher")


@pytest.mark.parametrize(
    "several", [{"samples": 2}, {"antithetic": True}, {"clean_weight": 0.5}], ids=lambda o: next(iter(o))
)
def test_keep_perturbed_refuses_several_passes(several: dict[str, Any]) -> None:
    for make in (
        lambda **o: torch_ssam.SSAM([parameter()], **o),
        lambda **o: torch_ssam.wrap(torch.optim.AdamW([parameter()]), 0.1, **o),
    ):
        with pytest.raises(ValueError, match=r"keeps one perturbation.*perturbations\(\)"):
            make(keep_perturbed=True, **several)


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 3), ("antithetic", True), ("clean_weight", 0.5), ("keep_perturbed", True)]
)
def test_options_of_a_whole_step_must_agree_between_groups(name: str, value: Any) -> None:
    groups: list[dict[str, Any]] = [{"params": [parameter()]}, {"params": [parameter()], name: value}]
    with pytest.raises(ValueError, match=rf"{name} is .* in one parameter group and .* in another"):
        torch_ssam.SSAM(groups)
    with pytest.raises(ValueError, match=rf"{name} is .* in one parameter group and .* in another"):
        torch_ssam.wrap(torch.optim.SGD(copy.deepcopy(groups), lr=0.1), 0.1)


def test_numpy_numbers_and_tensors_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    opt = torch_ssam.SSAM(
        [parameter()],
        lr=numpy.float32(0.1),
        noise_std=torch.tensor(0.2),
        momentum=numpy.float64(0.5),
        samples=numpy.int64(2),
        seed=numpy.uint8(3),
    )
    for _ in opt.perturbations():
        opt.param_groups[0]["params"][0].sum().backward()
    opt.step()
    assert opt.seed == 3


# -- tensors -------------------------------------------------------------------------------------------------


def sparse() -> torch.Tensor:
    return torch.eye(3).to_sparse()


def inference_tensor() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


PARAMS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("empty", lambda: [], ValueError, "empty"),
    ("a tensor", lambda: parameter(), TypeError, r"params is a Parameter; expected an iterable.*\[tensor\]"),
    ("a module", lambda: nn.Linear(2, 2), TypeError, r"params is a Linear.*module\.parameters\(\)"),
    ("a number", lambda: 3, TypeError, "params is a int"),
    ("a string", lambda: "weights", TypeError, "params is a str"),
    ("numbers", lambda: [1.0, 2.0], TypeError, "parameter 0 of the group is a float; expected a tensor"),
    ("None among them", lambda: [parameter(), None], TypeError, "parameter 1 of the group is a NoneType"),
    ("sparse", lambda: [sparse()], ValueError, "parameter 0 of the group is sparse; expected a dense float64"),
    ("complex", lambda: [parameter(), torch.ones(2, dtype=torch.complex64)], ValueError, "parameter 1 .* complex64"),
    ("integers", lambda: [torch.ones(2, dtype=torch.int32)], ValueError, "is int32; expected a dense float64"),
    ("inference", lambda: [inference_tensor()], ValueError, r"inference_mode.*clone\(\)"),
    ("no params", lambda: [{"lr": 0.1}], TypeError, r"a dict with \['lr'\]; expected a dict with \"params\""),
    ("a set", lambda: [{"params": {parameter()}}], TypeError, "set"),
    ("dict and tensor", lambda: [{"params": [parameter()]}, parameter()], TypeError, "group is a Parameter; expected a dict"),
]  # fmt: skip


@pytest.mark.parametrize("front_class", [torch_ssam.SSAM, torch_ssam.WeightNoise])
@pytest.mark.parametrize(("name", "make", "error", "match"), PARAMS, ids=[p[0] for p in PARAMS])
def test_wrong_parameters_are_refused(
    name: str, make: Callable[[], Any], error: type[Exception], match: str, front_class: Any
) -> None:
    with pytest.raises(error, match=match):
        front_class(make(), noise_std=0.1)


@pytest.mark.parametrize("kind", ["sparse", "complex", "integers", "inference"])
def test_wrap_refuses_parameters_it_cannot_perturb(kind: str) -> None:
    _, make, error, match = next(entry for entry in PARAMS if entry[0] == kind)
    base = torch.optim.SGD(make(), lr=0.1)
    with pytest.raises(error, match=match):
        torch_ssam.wrap(base, 0.1)
    assert "noise_std" not in base.param_groups[0]


@pytest.mark.parametrize("bad", [sparse, lambda: torch.ones(2, dtype=torch.int64), lambda: 1.0])
def test_a_group_with_wrong_tensors_is_refused_and_not_added(bad: Callable[[], Any]) -> None:
    p = parameter()
    for opt in (torch_ssam.SSAM([p]), torch_ssam.wrap(torch.optim.AdamW([p]), 0.1)):
        with pytest.raises((ValueError, TypeError), match="parameter 0 of the group"):
            opt.add_param_group({"params": [bad()]})
        with pytest.raises(ValueError, match="same tensor in two groups"):
            opt.add_param_group({"params": [p]})
        with pytest.raises(TypeError, match="a parameter group is a list"):
            opt.add_param_group([p])  # type: ignore[arg-type]
        assert len(opt.param_groups) == 1


def test_two_tensors_in_the_same_memory_are_refused() -> None:
    flat = torch.ones(10)
    whole, view = nn.Parameter(flat), nn.Parameter(flat[2:5])
    alias = nn.Parameter(flat.view(2, 5))
    for params in ([whole, alias], [whole, view], [view, whole]):
        with pytest.raises(
            ValueError, match=r"two tensors in the same memory.*same Parameter under both names"
        ):
            torch_ssam.SSAM(params)
        with pytest.raises(ValueError, match="two tensors in the same memory"):
            torch_ssam.WeightNoise([{"params": [p]} for p in params], 0.1)
        with pytest.raises(ValueError, match="two tensors in the same memory"):
            torch_ssam.wrap(torch.optim.SGD(params, lr=0.1), 0.1)
    torch_ssam.SSAM([nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(0))])
    rows = torch.ones(4, 6)
    inner = nn.Parameter(torch.ones(2, 2))
    for shared in (
        [rows, rows[:, 1]],  # what has gaps, inside of what has none
        [rows[:, ::2], rows[3, 3:]],  # the last element of the first lies in the second
        [rows[:, ::2], rows[:, 1], rows[3, 3:]],  # and one that shares none begins between them
        [rows[0, 1:2], rows, rows[3]],
    ):
        for order in (shared, shared[::-1]):
            with pytest.raises(ValueError, match="two tensors in the same memory"):
                torch_ssam.SSAM([inner, *map(nn.Parameter, order)])
    torch_ssam.SSAM([nn.Parameter(rows[:, ::2]), nn.Parameter(rows[:, 1::2])])


def test_overlapping_elements_are_refused_before_anything_is_written() -> None:
    good, bad = parameter(), nn.Parameter(torch.ones(3, 1).expand(3, 4))
    opt = torch_ssam.SSAM([good, bad], noise_std=0.1)
    with (
        pytest.raises((ValueError, RuntimeError), match=r"params\[1\] has overlapping elements.*clone"),
        opt.perturb(),
    ):
        pass
    assert front.same_bits([good], [torch.ones(3)])
    assert not opt._noise.active


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_sparse_gradient_is_refused_before_any_parameter_is_updated(kept: bool, groups: int) -> None:
    dense = parameter()
    embedding = nn.Embedding(4, 3, sparse=True)
    params = [[dense, embedding.weight]] if groups == 1 else [[dense], [embedding.weight]]
    opt = torch_ssam.SSAM(
        [{"params": p} for p in params], lr=0.1, noise_std=0.1, momentum=0.9, keep_perturbed=kept
    )
    clean = front.snapshot([dense, embedding.weight])
    opt.train()
    with torch.enable_grad() if kept else opt.perturb():
        (embedding(torch.tensor([1, 2])).sum() + dense.sum()).backward()
    with pytest.raises((ValueError, RuntimeError), match="sparse=False"):
        opt.step()
    opt.eval()
    assert front.same_bits([dense, embedding.weight], clean)
    assert not opt.state


@pytest.mark.parametrize("kept", [False, True])
def test_a_sparse_gradient_that_comes_late_is_refused_before_any_parameter_is_updated(kept: bool) -> None:
    """One tensor has a momentum buffer by then and the other none: two operator calls."""
    dense, embedding = parameter(), nn.Embedding(4, 3, sparse=True)
    opt = torch_ssam.SSAM(
        [dense, embedding.weight], lr=0.1, noise_std=0.1, momentum=0.9, keep_perturbed=kept, seed=1
    )
    opt.train()
    for late in (False, True):
        before = front.optimizer_bits(opt)
        opt.zero_grad()
        clean = [opt._clean_of(p).clone() for p in (dense, embedding.weight)]
        with torch.enable_grad() if kept else opt.perturb():
            loss = dense.square().sum()
            (loss + embedding(torch.tensor([1, 2])).sum() if late else loss).backward()
        if not late:
            opt.step()
    with pytest.raises(ValueError, match="parameter 1 is sparse"):
        opt.step()
    opt.eval()
    assert front.same_bits([dense, embedding.weight], clean)
    assert len(opt.state) == 1
    assert front.same_bits([opt.state[dense]["momentum_buffer"]], before[:1] if not kept else before[1:2])


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("lr", NAN), ("momentum", INF), ("weight_decay", -1.0)]
)
@pytest.mark.parametrize("kept", [False, True])
def test_an_option_spoilt_after_construction_is_refused_before_any_group_is_updated(
    name: str, value: float, kept: bool
) -> None:
    first, second = parameter(), parameter()
    opt = torch_ssam.SSAM(
        [{"params": [first]}, {"params": [second]}], lr=0.1, noise_std=0.1, momentum=0.9, keep_perturbed=kept
    )
    opt.train()
    with torch.enable_grad() if kept else opt.perturb():
        (first.sum() + second.sum()).backward()
    opt.param_groups[1][name] = value
    with pytest.raises((ValueError, RuntimeError), match=name):
        opt.step()
    opt.eval()
    assert front.same_bits([first, second], [torch.ones(3)] * 2)


@pytest.mark.parametrize("value", [-0.5, NAN])
def test_a_noise_std_spoilt_after_construction_is_refused_and_leaves_the_clean_bits(value: float) -> None:
    first, second = parameter(), parameter()
    opt = torch_ssam.SSAM([{"params": [first]}, {"params": [second]}], noise_std=0.1)
    opt.param_groups[1]["noise_std"] = value
    with pytest.raises((ValueError, RuntimeError), match="noise_std is"), opt.perturb():
        pass
    assert front.same_bits([first, second], [torch.ones(3)] * 2)


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (
            (torch.ones(4, 2), torch.ones(3)),
            ValueError,
            r"shapes \[\(4, 2\), \(3,\)\]; expected the same number",
        ),
        ((torch.ones(0, 2),), ValueError, r"shapes \[\(0, 2\)\].*\(> 0\)"),
        ((torch.tensor(1.0),), ValueError, r"shapes \[\(\)\]"),
        (([1, 2],), TypeError, "an input of type int; expected tensors, or dicts, lists or tuples"),
        (("text",), TypeError, "an input of type str"),
        (({},), ValueError, r"shapes \[\]"),
    ],
)
def test_inputs_that_cannot_be_split_are_refused_before_the_first_pass(
    inputs: tuple[Any, ...], error: type[Exception], match: str
) -> None:
    model = front.Net()
    opt = front.ssam(model, samples=2)
    clean = front.snapshot(model)
    with pytest.raises(error, match=match):
        next(iter(opt.perturbations(*inputs)))
    assert front.same_bits(model.parameters(), clean)
    assert opt.draw == 0
    next(iter(opt.perturbations(torch.ones(4))))


@pytest.mark.parametrize("what", [3, None, torch.optim.SGD, nn.Linear(2, 2)], ids=str)
def test_wrap_refuses_what_is_no_optimizer(what: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, for example"):
        torch_ssam.wrap(what, 0.1)


def test_wrap_refuses_lbfgs_and_what_perturbs_already() -> None:
    with pytest.raises(TypeError, match="LBFGS, which runs closures of its own"):
        torch_ssam.wrap(torch.optim.LBFGS([parameter()]), 0.1)
    with pytest.raises(TypeError, match="SSAM, which perturbs already"):
        torch_ssam.wrap(torch_ssam.SSAM([parameter()]), 0.1)
    with pytest.raises(TypeError, match="WrappedOptimizer, which perturbs already"):
        torch_ssam.wrap(torch_ssam.wrap(torch.optim.SGD([parameter()]), 0.1), 0.1)


@pytest.mark.parametrize(
    "options", [{"sample": -1}, {"sample": 1.5}, {"sample": 2**32}, {"negate": 1}, {"advance": None}], ids=str
)
def test_weight_noise_applied_refuses_wrong_arguments(options: dict[str, Any]) -> None:
    p = parameter()
    noise = torch_ssam.WeightNoise([p], 0.1)
    with pytest.raises((ValueError, TypeError), match=rf"{next(iter(options))} is"), noise.applied(**options):
        pass
    assert noise.draw == 0


@pytest.mark.parametrize(
    "state", [{"seed": "x", "draw": 0}, {"seed": 1, "draw": -1}, {"seed": 1, "draw": 1.5}], ids=str
)
def test_weight_noise_refuses_a_wrong_state(state: dict[str, Any]) -> None:
    noise = torch_ssam.WeightNoise([parameter()], 0.1, seed=4)
    with pytest.raises((ValueError, TypeError), match=r"seed is|draw is"):
        noise.load_state_dict(state)
    assert noise.state_dict() == {"seed": 4, "draw": 0}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("option", "value"), [("radius", INF), ("radius", -1.0), ("noise_std", NAN)])
def test_an_option_edited_to_nonsense_is_refused_before_the_update(
    keep: bool, option: str, value: float
) -> None:
    p = parameter()
    opt = torch_ssam.SSAM(
        [p], lr=0.1, noise_std=0.1, scale="filter", radius=10.0, keep_perturbed=keep, seed=1
    )
    clean = p.detach().clone()
    opt.train()
    with contextlib.nullcontext() if keep else opt.perturb():
        p.square().sum().backward()
    opt.param_groups[0][option] = value
    with pytest.raises(ValueError, match=f"{option} is"):
        opt.step()
    opt.param_groups[0][option] = 0.1
    opt.eval()
    assert torch.equal(p, clean)


def test_frozen_parameters_of_any_dtype_only_count_for_the_places() -> None:
    frozen = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    p, alone = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    for memory in ("copy", "regenerate"):
        opt = torch_ssam.SSAM([frozen, p], noise_std=0.1, memory=memory, seed=0)
        wrapped = torch_ssam.wrap(torch.optim.SGD([frozen, p], lr=0.1), noise_std=0.1, memory=memory, seed=0)
        for one in (opt, wrapped):
            with one.perturb():
                seen = p.detach().clone()
                p.sum().backward()
            one.step()
            p.data.zero_()
            with torch_ssam.WeightNoise([frozen, p], 0.1, seed=0, memory=memory).applied():
                assert front.same_bits([p], [seen])
            with torch_ssam.WeightNoise([alone], 0.1, seed=0).applied():
                assert not torch.equal(alone, seen)
    assert frozen.tolist() == [0, 0, 0]


@pytest.mark.parametrize("given", [{}, None, {"seed": 1}, [1, 2]])
def test_weight_noise_names_a_wrong_state(given: Any) -> None:
    noise = torch_ssam.WeightNoise([parameter()], 0.1, seed=5)
    with pytest.raises(
        ValueError, match=r'expected what state_dict\(\) returned, a dict with "seed" and "draw"'
    ):
        noise.load_state_dict(given)
    assert (noise.seed, noise.draw) == (5, 0)


@pytest.mark.parametrize("rest", [(0.9,), (0.9, 0.0, 1e-4, True)])
def test_what_follows_lr_without_a_name_is_refused_and_named_as_torch_has_it(rest: tuple[Any, ...]) -> None:
    torch.optim.SGD([parameter()], 0.1, *rest)  # momentum, dampening, weight_decay, nesterov
    with pytest.raises(TypeError, match=r"SSAM\(\) got 0\.9.* by name\. Was momentum=0\.9.* meant"):
        torch_ssam.SSAM([parameter()], 0.1, *rest)

    class Own(torch_ssam.SSAM):
        pass

    with pytest.raises(TypeError, match=r"Own\(\) got 0\.9"):
        Own([parameter()], 0.1, *rest)
    assert Own([parameter()], 0.2).param_groups[0]["lr"] == 0.2
