"""Checks of the hyperparameters that fronts own; shapes, dtypes and devices are the operators' to check.

Each check stands here once and serves SSAM, wrap, WeightNoise, DiagonalLinear and the schedules.
Tests: tests/python/test_bad_input.py.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from ._passes import count_passes

DISTRIBUTIONS = ("gaussian", "rademacher")
SCALES = ("isotropic", "tensor", "filter", "element", "fisher")
MEMORIES = ("copy", "regenerate")


def number(name: str, value: Any, *, low: float = 0.0, open_low: bool = False) -> float:
    """A finite float >= low (> low where `open_low`)."""
    bound = "a finite number" if low == -math.inf else f"a finite number {'>' if open_low else '>='} {low:g}"
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}; expected {bound}.")
    try:
        if isinstance(value, bool | str | bytes | bytearray):  # float() would take them
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {bound}.") from None
    if not math.isfinite(result) or result < low or (open_low and result == low):
        raise ValueError(f"{name} is {result}; expected {bound}.")
    return result


def integer(name: str, value: Any, expected: str = "an int") -> int:
    """An int, from anything that is one (NumPy's, a tensor's), but not a bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}.") from None


def count(name: str, value: Any, *, low: int = 1, high: int = 2**32 - 1) -> int:
    """An int from low to high."""
    result = integer(name, value)
    if not low <= result <= high:
        raise ValueError(f"{name} is {result}; expected {low} to {high}.")
    return result


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected True or False.")
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the names."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    return str(value)


def check_noise(group: dict[str, Any]) -> None:
    """The noise options of one parameter group, wherever they came from."""
    number("noise_std", group["noise_std"])
    one_of("distribution", group["distribution"], DISTRIBUTIONS)
    one_of("memory", group["memory"], MEMORIES)
    scale = one_of("scale", group["scale"], SCALES)
    if number("fisher_decay", group["fisher_decay"]) > 1.0:
        raise ValueError(f"fisher_decay is {group['fisher_decay']}; expected 0 <= fisher_decay <= 1.")
    number("fisher_factor", group["fisher_factor"])
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True: noise, restoring and the update write the weights in place, outside autograd; "
            "expected False. To differentiate through training steps use torch.func on a function of the weights, with "
            "torch_ssam.WeightNoise.noise for the noise."
        )
    if scale != "isotropic" and group["memory"] == "regenerate":
        raise ValueError(
            f'memory="regenerate" with scale={scale!r}: the clean weights that the scale depends on are gone '
            'when the noise is to be taken off; expected scale="isotropic". Use memory="copy".'
        )
    count("samples", group["samples"])
    flag("antithetic", group["antithetic"])
    if number("clean_weight", group["clean_weight"]) >= 1.0:
        raise ValueError(
            f"clean_weight is {group['clean_weight']}; expected 0 <= clean_weight < 1 "
            "(the share of the gradient at the clean weights)."
        )
    if flag("keep_perturbed", group["keep_perturbed"]) and count_passes(group) > 1:
        raise ValueError(
            "keep_perturbed=True keeps one perturbation in the parameters, so it goes with samples=1, "
            f"antithetic=False, clean_weight=0; got samples={group['samples']}, "
            f"antithetic={group['antithetic']}, clean_weight={group['clean_weight']}. "
            "Use perturbations() with keep_perturbed=False for several passes a step."
        )


def check_regenerated(params: list[Any]) -> None:
    """What memory="regenerate" takes: dtypes in which two roundings a step are no more than SGD's own."""
    for p in map(tensor_of, params):
        if p.requires_grad and p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f'memory="regenerate" with parameters of dtype {p.dtype}: taking noise off again rounds twice '
                "a step, which 16-bit weights do not survive; expected float32 or float64. Use "
                'memory="copy".'
            )


def check_sgd(group: dict[str, Any]) -> None:
    """The options of the update of one group of SSAM."""
    number("lr", group["lr"])
    momentum = number("momentum", group["momentum"])
    number("weight_decay", group["weight_decay"])
    dampening = number("dampening", group["dampening"], low=-math.inf)
    flag("maximize", group["maximize"])
    if flag("nesterov", group["nesterov"]) and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"nesterov=True with momentum={momentum:g} and dampening={dampening:g}; Nesterov momentum "
            f"expects "
            "momentum > 0 and dampening 0."
        )
    if group["radius"] is not None:
        number("radius", group["radius"], open_low=True)


def parameter_list(params: Any) -> list[Any]:
    """What an optimizer, a group or WeightNoise is given as params, as a list."""
    if isinstance(params, torch.Tensor | torch.nn.Module | str) or not isinstance(params, Iterable):
        hint = "module.parameters()" if isinstance(params, torch.nn.Module) else "[tensor]"
        raise TypeError(
            f"params is a {type(params).__name__}; expected an iterable of tensors or dicts, for example "
            f"{hint}."
        )
    return list(params)


def group_params(group: Any) -> list[Any]:
    """The tensors, or (name, tensor) pairs, of a parameter group, each once."""
    if not isinstance(group, dict) or "params" not in group:
        came = (
            f"a dict with {sorted(map(str, group))}"
            if isinstance(group, dict)
            else f"a {type(group).__name__}"
        )
        raise TypeError(f'a parameter group is {came}; expected a dict with "params" and options.')
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("params is a set, whose order changes from run to run; expected a list.")
    members = [params] if isinstance(params, torch.Tensor) else parameter_list(params)
    unique: dict[int, Any] = {}
    for member in members:
        unique.setdefault(id(tensor_of(member)), member)
    return list(unique.values())


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options with NumPy's numbers as Python's: checkpoints with others do not load with weights_only."""
    return {
        name: value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
        for name, value in options.items()
    }


def tensor_of(member: Any) -> Any:
    """The tensor of a (name, tensor) pair, or the tensor itself."""
    return member[1] if isinstance(member, tuple) and len(member) == 2 else member


def check_parameters(params: list[Any], others: list[torch.Tensor]) -> None:
    """What can be perturbed; said at construction rather than at the first step.

    `others` are the tensors that are perturbed already: memory that two tensors share would be perturbed
    twice.
    """
    for i, member in enumerate(params):
        p = tensor_of(member)
        if not isinstance(p, torch.Tensor):
            raise TypeError(f"parameter {i} of the group is a {type(p).__name__}; expected a tensor.")
        # A frozen Parameter (of a quantised layer, say) only counts for the places.
        frozen = isinstance(p, torch.nn.Parameter) and not p.requires_grad and p.layout == torch.strided
        if not frozen and (p.layout != torch.strided or p.is_complex() or not p.is_floating_point()):
            kind = "sparse" if p.layout != torch.strided else str(p.dtype).removeprefix("torch.")
            raise ValueError(
                f"parameter {i} of the group is {kind}; expected a dense float64, float32, bfloat16 or "
                f"float16 "
                "tensor. Leave it out of the parameters, or convert it."
            )
        if p.is_inference():
            raise ValueError(
                f"parameter {i} of the group was made under torch.inference_mode; expected a normal tensor. "
                "Create the model outside of it, or clone() the tensor there."
            )
    _check_memory([*others, *map(tensor_of, params)], len(others))


def _check_memory(tensors: list[torch.Tensor], known: int) -> None:
    """Raises where two tensors certainly share memory; two with gaps may pass each other by and are let through."""
    spans = []
    for i, t in enumerate(tensors):
        # Fake tensors and sharded ones have no memory of their own to ask for.
        if type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type in ("cpu", "cuda") and t.numel():
            begin = t.data_ptr()
            if begin:
                reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
                whole = reach == t.numel()  # without gaps, in which another tensor might lie
                spans.append((str(t.device), begin, begin + reach * t.element_size(), whole, i))
    spans.sort(key=lambda span: span[:3])
    reaching: list[tuple[str, int, int, bool, int]] = []  # that end beyond the present one's beginning
    for span in spans:
        device2, begin2, end2, whole2, k = span
        reaching = [earlier for earlier in reaching if earlier[0] == device2 and earlier[2] > begin2]
        for _, begin, end, whole, i in reaching:
            # The later one's first element, or the earlier one's last, lies in the other.
            if begin != begin2 and not whole and not (whole2 and end <= end2):
                continue
            a, b = (f"parameter {j - known} of the group" if j >= known else f"parameter {j}" for j in (i, k))
            if tensors[i] is tensors[k]:
                raise ValueError(f"{a} and {b} are the same tensor in two groups; expected it in one.")
            raise ValueError(
                f"{a} and {b} are two tensors in the same memory, which would be perturbed twice; expected "
                f"one. "
                "Tie weights by using the same Parameter under both names."
            )
        reaching.append(span)


# How a step is driven is one thing for the whole optimizer.
COMMON = ("samples", "antithetic", "clean_weight", "keep_perturbed")


def check_common(group: dict[str, Any], first: dict[str, Any]) -> None:
    """All groups share the options that decide how many passes a step makes."""
    for name in COMMON:
        if group[name] != first[name]:
            raise ValueError(
                f"{name} is {group[name]!r} in one parameter group and {first[name]!r} in another; "
                "expected the same in all groups, since a pass runs the whole model."
            )


def resolve_seed(seed: int | None) -> int:
    """The seed of the noise: as given, or from torch's default generator (rank 0's in a process group)."""
    if seed is None:
        seed = int(torch.randint(0, 2**62, (1,), dtype=torch.int64, device="cpu").item())
        if dist.is_available() and dist.is_initialized():
            shared = [seed]
            dist.broadcast_object_list(shared, src=0)
            seed = shared[0]
        return seed
    result = integer("seed", seed, "an int or None")
    if not -(2**63) <= result < 2**63:
        raise ValueError(f"seed is {result}; expected a 64-bit integer.")
    return result


def saved_generator(seed: Any, draw: Any) -> tuple[int, int]:
    """Seed and draw of a checkpoint."""
    if seed is None:  # which would ask for a new one
        raise ValueError("seed is None; expected the int that state_dict() saved.")
    return resolve_seed(seed), count("draw", draw, low=0, high=2**63 - 1)


def check_caller() -> None:
    """Refuses to be the optimizer_class of ZeroRedundancyOptimizer, which gives it this rank's parameters only."""
    frame: Any = sys._getframe(1)
    for _ in range(6):
        frame = frame.f_back
        if frame is None:
            return
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            raise TypeError(
                "ZeroRedundancyOptimizer got an optimizer of torch_ssam as its optimizer_class, which would perturb "
                "only the parameters that this rank updates. Wrap it from outside: "
                "torch_ssam.wrap(ZeroRedundancyOptimizer(params, torch.optim.SGD, lr=0.1), noise_std=0.01)."
            )


def stream_of(noise_per_rank: bool) -> int:
    """What is added to the seed on this rank: 0, or the rank where every rank has noise of its own."""
    if not flag("noise_per_rank", noise_per_rank):
        return 0
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError(
            "noise_per_rank=True before torch.distributed is initialised: every rank would draw the same noise. "
            "Call torch.distributed.init_process_group() before constructing the optimizer."
        )
    return 0


def measuring_seed(seed: int | None) -> int:
    """The seed of noise that measures weights: not that of the noise which trained them with the same seed.

    A Monte Carlo estimate is right for weights that do not depend on its draws.
    """
    value = (resolve_seed(seed) ^ 0x6D656173757265) % 2**64  # "measure"
    return value - 2**64 if value >= 2**63 else value
