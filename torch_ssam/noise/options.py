"""The options of the noise of one parameter group: their defaults, ranges and what goes together.

They serve SSAM, wrap and WeightNoise. Tests: tests/python/test_bad_input.py.
"""

from __future__ import annotations

from typing import Any

from .._checks import count, flag, number, one_of

DISTRIBUTIONS = ("gaussian", "rademacher")
SCALES = ("isotropic", "tensor", "filter", "element", "fisher")
MEMORIES = ("copy", "regenerate")

NOISE_DEFAULTS: dict[str, Any] = {
    "noise_std": 0.0,
    "distribution": "gaussian",
    "scale": "isotropic",
    # The rule is ARWP's (arXiv 2404.00357), the two defaults are ours.
    "fisher_decay": 0.99,
    "fisher_factor": 0.1,
    "samples": 1,
    "antithetic": False,
    "clean_weight": 0.0,
    "keep_perturbed": False,
    "memory": "copy",
}


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


def count_passes(group: dict[str, Any]) -> int:
    """len(passes_of(group)), without a list of that length: what to refuse may be long."""
    return int(group["samples"]) * (2 if group["antithetic"] else 1) + (1 if group["clean_weight"] > 0 else 0)


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options with NumPy's numbers as Python's: checkpoints with others do not load with weights_only."""
    return {
        name: value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
        for name, value in options.items()
    }
