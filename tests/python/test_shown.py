"""repr of the optimizers: what differs from the defaults, seed and draw; names with few values as Literals; dir()."""

from __future__ import annotations

import inspect
import pydoc
import typing
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam import pac_bayes, robustness, schedules, sharpness, theory
from torch_ssam.noise.options import DISTRIBUTIONS, MEMORIES, SCALES


def net() -> nn.Module:
    return nn.Linear(3, 2)


def test_of_the_defaults_lr_and_noise_std_are_shown_with_seed_and_draw() -> None:
    assert repr(torch_ssam.SSAM(net().parameters(), seed=7)) == (
        "SSAM (\nseed 7, draw 0\nParameter Group 0: 2 tensors, 8 weights\n    lr: 0.1\n    noise_std: 0.01\n)"
    )


def test_what_differs_is_shown_for_each_group() -> None:
    a, b = net(), nn.Parameter(torch.ones(1))
    groups: list[dict[str, Any]] = [
        {"params": a.parameters()},
        {"params": [b], "scale": "absmax", "noise_std": 0.0},
    ]
    opt = torch_ssam.SSAMAdamW(groups, lr=torch.tensor(0.5), betas=(0.8, 0.9), weight_decay=0, seed=1)
    schedules.LambdaNoiseStd(opt, lambda k: 1.0)
    assert repr(opt).splitlines() == [
        "SSAMAdamW (",
        "seed 1, draw 0",
        "Parameter Group 0: 2 tensors, 8 weights",
        "    lr: tensor(0.5)",
        "    noise_std: 0.01",
        "    betas: (0.8, 0.9)",
        "    weight_decay: 0",
        "Parameter Group 1: 1 tensor, 1 weights",
        "    lr: tensor(0.5)",
        "    noise_std: 0.0",
        "    betas: (0.8, 0.9)",
        "    weight_decay: 0",
        "    scale: absmax",
        ")",
    ]


def test_the_draw_and_what_a_scheduler_or_a_checkpoint_changed_is_shown() -> None:
    w = nn.Parameter(torch.ones(2))
    opt = torch_ssam.SSAM([w], momentum=0.9, master_dtype=torch.float32, seed=3)
    for _ in range(2):
        with opt.perturb():
            w.sum().backward()
        opt.step()
    opt.param_groups[0]["noise_std"] = 0.25
    text = repr(opt)
    for line in ("seed 3, draw 2", "    noise_std: 0.25", "    momentum: 0.9", "    master_dtype: float32"):
        assert line in text.splitlines()
    assert "distribution" not in text


def test_of_a_wrapped_optimizer_the_base_s_options_are_shown_where_they_differ() -> None:
    base = torch.optim.AdamW(net().parameters(), lr=0.001, amsgrad=True)
    text = repr(torch_ssam.wrap(base, 0.3, samples=2, seed=5))
    assert text.startswith("wrap(AdamW (")
    assert text.splitlines()[1:-1] == [
        "seed 5, draw 0",
        "Parameter Group 0: 2 tensors, 8 weights",
        "    lr: 0.001",
        "    noise_std: 0.3",
        "    amsgrad: True",
        "    samples: 2",
    ]


# -- Literals ------------------------------------------------------------------------------------------------

CHOICES: list[tuple[Any, str, tuple[str, ...]]] = [
    *(
        (front, "distribution", DISTRIBUTIONS)
        for front in (torch_ssam.SSAM, torch_ssam.SSAMAdamW, torch_ssam.wrap)
    ),
    *((front, "scale", SCALES) for front in (torch_ssam.SSAM, torch_ssam.SSAMAdamW, torch_ssam.WeightNoise)),
    *((front, "memory", MEMORIES) for front in (torch_ssam.SSAM, torch_ssam.wrap, torch_ssam.WeightNoise)),
    *((front, "mode", ("eval", "train")) for front in (sharpness.average, sharpness.top_eigenvalues)),
    (torch_ssam.suggest_noise_std, "scale", SCALES),
    (torch_ssam.simulate, "distribution", DISTRIBUTIONS),
    (theory.gradient_variance, "distribution", DISTRIBUTIONS),
    (theory.pac_bayes_bound, "kind", pac_bayes.KINDS),
    (pac_bayes.certify, "kind", pac_bayes.KINDS),
    *((front, "grid", ("narrow", "full", "affine")) for front in (robustness.quantized, robustness.measure)),
    *((front, "step", ("absmax", "mse")) for front in (robustness.bit_flips, robustness.measure)),
    (robustness.noisy, "kind", ("programming", "read")),
    (robustness.measure, "statistics", ("as_trained", "anew", "both")),
    (robustness.measure, "first_and_last", ("in", "out", "both")),
    (schedules.LayerwiseNoise, "order", ("cyclic", "random")),
]


@pytest.mark.parametrize(
    ("front", "name", "choices"), CHOICES, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_name_with_few_values_is_a_literal(front: Any, name: str, choices: tuple[str, ...]) -> None:
    call = front.__init__ if inspect.isclass(front) else front
    found = typing.get_type_hints(inspect.unwrap(call))[name]
    assert get_origin(found) is Literal
    assert get_args(found) == choices


# -- dir() and help() ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["torch_ssam", "schedules", "theory", "pac_bayes", "robustness", "sharpness", "presets"]
)
def test_dir_holds_what_is_public_and_nothing_else(name: str) -> None:
    module: Any = torch_ssam if name == "torch_ssam" else getattr(torch_ssam, name)
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, one) for one in module.__all__)


def test_help_opens_with_what_there_is() -> None:
    text = pydoc.plain(pydoc.render_doc(torch_ssam))
    opening = text[: text.index("PACKAGE CONTENTS")]
    for name in (
        "SSAM",
        "SSAMAdamW",
        "wrap",
        "WeightNoise",
        "schedules",
        "suggest_noise_std",
        "robustness",
        "theory",
    ):
        assert name in opening
