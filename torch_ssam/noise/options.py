"""The options of the noise of one parameter group: their defaults, ranges and what goes together.

They serve SSAM, SSAMAdamW and wrap, and some of them WeightNoise; with them stands weight_clip, which goes with any
optimizer's update. Tests: tests/python/test_options.py, test_bad_input.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from torch_ssam._checks import Option, check_each, count, defaults_of, flag, number, one_of

Distribution = Literal["gaussian", "rademacher"]
Scale = Literal["isotropic", "tensor", "filter", "element", "fisher", "absmax", "tensor_absmax"]
Memory = Literal["copy", "regenerate"]

DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)
SCALES: tuple[str, ...] = get_args(Scale)
MEMORIES: tuple[str, ...] = get_args(Memory)
#: Scales with one number for each row: which (`kind` of the operator row_scales_), and whether the tensor is one row.
ROW_SCALES = {
    "tensor": ("norm", True),
    "filter": ("norm", False),
    "fisher": ("norm", False),
    "absmax": ("absmax", False),
    "tensor_absmax": ("absmax", True),
}


def _up_to_one(name: str, value: Any) -> None:
    if number(name, value) > 1.0:
        raise ValueError(f"{name} is {value}; expected 0 <= {name} <= 1.")


def _below_one(name: str, value: Any) -> None:
    if number(name, value) >= 1.0:
        raise ValueError(
            f"{name} is {value}; expected 0 <= {name} < 1 (the share of the gradient at the clean weights)."
        )


def _weight_clip(name: str, value: Any) -> None:
    if value is not None and number(name, value) <= 1.0:
        raise ValueError(
            f"{name} is {value}; expected a number > 1, times the root mean square of each filter's weights, or None. "
            "Clipped to 1 or less a filter would shrink at every step."
        )


#: Each option of the noise, here and nowhere else; SSAM, wrap and WeightNoise take them as arguments of these names.
NOISE_OPTIONS: dict[str, Option] = {
    "noise_std": Option(0.01, number, "standard deviation of the noise on each weight"),
    "distribution": Option("gaussian", partial(one_of, choices=DISTRIBUTIONS), "of the noise"),
    "memory": Option("copy", partial(one_of, choices=MEMORIES), "how the clean weights come back"),
    "scale": Option("isotropic", partial(one_of, choices=SCALES), "what noise_std is multiplied by"),
    # ARWP (arXiv 2404.00357), with the two values of its authors' scripts.
    "fisher_decay": Option(0.99, _up_to_one, 'beta of scale="fisher"'),
    "fisher_factor": Option(0.1, number, 's of scale="fisher"'),
    "channel_dim": Option(0, partial(count, low=0), "which dimension of a tensor counts its filters"),
    "weight_clip": Option(
        None, _weight_clip, "after a step weights are at most this many times their filter's RMS"
    ),
    "samples": Option(1, count, "draws whose gradients are averaged in a step"),
    "antithetic": Option(False, flag, "each draw twice, as +noise and -noise"),
    "clean_weight": Option(0.0, _below_one, "weight of the gradient at the clean weights"),
    "keep_perturbed": Option(False, flag, "step() leaves the weights perturbed with the next draw"),
}
#: What a group has that knows nothing of noise: one of a plain optimizer's, say, or of an old checkpoint.
NOISE_DEFAULTS: dict[str, Any] = {**defaults_of(NOISE_OPTIONS), "noise_std": 0.0}


#: Those that checkpoints of older versions may lack.
NEWER_OPTIONS = frozenset({"channel_dim", "weight_clip"})


def check_noise(group: dict[str, Any]) -> None:
    """The noise options of one parameter group, wherever they came from."""
    check_each(NOISE_OPTIONS, group)
    scale = group["scale"]
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
    if group["keep_perturbed"] and count_passes(group) > 1:
        raise ValueError(
            "keep_perturbed=True keeps one perturbation in the parameters, so it goes with samples=1, "
            f"antithetic=False, clean_weight=0; got samples={group['samples']}, "
            f"antithetic={group['antithetic']}, clean_weight={group['clean_weight']}. "
            "Use perturbations() with keep_perturbed=False for several passes a step."
        )


def count_passes(group: dict[str, Any]) -> int:
    """len(passes_of(group)), without a list of that length: what to refuse may be long."""
    return int(group["samples"]) * (2 if group["antithetic"] else 1) + (1 if group["clean_weight"] > 0 else 0)


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options with NumPy's numbers as Python's: checkpoints with others do not load with weights_only."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_plain, value))
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def chosen(given: dict[str, Any], *tables: dict[str, Option]) -> dict[str, Any]:
    """Of a constructor's arguments (`locals()`), those that the tables name, NumPy's numbers as Python's."""
    return plain({name: given[name] for table in tables for name in table})


def trains(group: dict[str, Any]) -> bool:
    """Whether a step of the group counts; an lr that lies on a GPU is not looked at, which would wait for it."""
    lr = group.get("lr")
    return (isinstance(lr, Tensor) and lr.device.type != "cpu") or not lr_is_zero(group)


def lr_is_zero(group: dict[str, Any]) -> bool:
    """Whether a step of the group trains nothing: checkpoint tools make one with lr = 0, to create state.

    A base of wrap may have no lr, or None for one that it works out itself (Adafactor).
    """
    try:
        return float(group["lr"]) == 0.0
    except (KeyError, TypeError, ValueError, RuntimeError):
        return False
