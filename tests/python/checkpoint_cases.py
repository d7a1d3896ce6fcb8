"""The runs of which checkpoints are written: every option of SSAM, wrap, WeightNoise and DiagonalLinear, saved in train and
in eval where that differs. An option that is new gets its runs here, and the version that has it a folder of fixtures, by
write_checkpoints.py; what was written before stays as it is.
"""

from __future__ import annotations

from typing import Any

from checkpoint_runs import Description

STEPS, MORE = 3, 3
Runs = dict[str, Description]
# What of the keywords below says how a run is made; the rest are options.
DESCRIBED = (
    *("model", "dtype", "in_float32", "groups", "named", "layer"),
    *("drive", "steps", "saved", "schedules", "lrs"),
)


def run_of(**changed: Any) -> Description:
    return {"model": "tensors", "front": "SSAM", "drive": "perturb", "steps": STEPS, "more": MORE, **changed}


def ssam(**changed: Any) -> Description:
    described = {k: changed.pop(k) for k in list(changed) if k in DESCRIBED}
    return run_of(**described, options={"lr": 0.0625, "noise_std": 0.25, "seed": 7, **changed})


def kept(**changed: Any) -> Description:
    return ssam(**{"drive": "kept", "keep_perturbed": True, "saved": "in train", **changed})


MOMENTUM = {"momentum": 0.9}
SCALES: Runs = {
    "tensor": {"scale": "tensor", "noise_std": 0.03},
    "filter": {"scale": "filter", "noise_std": 0.05},
    "element": {"scale": "element", "noise_std": 0.2},
    "fisher": {"scale": "fisher", "noise_std": 0.1},
}
ABSMAX: Runs = {
    "absmax": {"scale": "absmax", "noise_std": 0.1},
    "tensor_absmax": {"scale": "tensor_absmax", "noise_std": 0.1},
}
GROUPS = [
    {"noise_std": 0.2, "momentum": 0.9, "nesterov": True, "scale": "filter"},
    {"noise_std": 0.0, "lr": {"tensor": 0.03125}},
    {"memory": "regenerate", "distribution": "rademacher", "maximize": True},
    {
        "scale": "fisher",
        "noise_std": 0.1,
        "momentum": 0.5,
        "dampening": 0.25,
        "weight_decay": 0.01,
        "radius": 3.0,
    },
]
REGENERATE = {"memory": "regenerate"}
MASTERS = {"dtype": "bfloat16", "master_dtype": "float32", "lr": 0.002, "noise_std": 0.004}


def ssam_runs() -> Runs:
    found = {
        "plain": ssam(),
        "before_the_first_step": ssam(**MOMENTUM, steps=0),
        "momentum": ssam(**MOMENTUM),
        "dampening": ssam(**MOMENTUM, dampening=0.5),
        "nesterov_and_decay": ssam(**MOMENTUM, nesterov=True, weight_decay=0.02),
        "maximize": ssam(**MOMENTUM, maximize=True),
        "no_noise": ssam(**MOMENTUM, noise_std=0.0),
        "rademacher": ssam(**MOMENTUM, distribution="rademacher"),
        "negative_seed": ssam(seed=-(2**62) - 3),
        "tensor_lr": ssam(**MOMENTUM, lr={"tensor": 0.0625}),
        "radius": ssam(**MOMENTUM, radius=2.5),
        "closure": ssam(**MOMENTUM, drive="closure"),
        "samples": ssam(**MOMENTUM, samples=3, drive="perturbations"),
        "antithetic": ssam(**MOMENTUM, antithetic=True, drive="perturbations"),
        "clean_weight": ssam(**MOMENTUM, clean_weight=0.25, drive="perturbations"),
        "all_passes": ssam(samples=2, antithetic=True, clean_weight=0.375, drive="perturbations"),
        "all_passes_by_closure": ssam(samples=2, antithetic=True, clean_weight=0.5, drive="closure"),
        "samples_of_bfloat16": ssam(samples=4, drive="perturbations", dtype="bfloat16"),
        "regenerate": ssam(**MOMENTUM, **REGENERATE),
        "regenerate_float64": ssam(**REGENERATE, dtype="float64"),
        "regenerate_kept": kept(**MOMENTUM, **REGENERATE),
        "regenerate_kept_in_eval": kept(**MOMENTUM, **REGENERATE, saved="in eval"),
        "inside_a_pass": ssam(**MOMENTUM, saved="inside a pass"),
        "kept": kept(),
        "kept_in_eval": kept(**MOMENTUM, saved="in eval"),
        "kept_momentum": kept(**MOMENTUM),
        "kept_nesterov": kept(**MOMENTUM, nesterov=True, weight_decay=0.02),
        "kept_rademacher": kept(distribution="rademacher", maximize=True),
        "kept_radius": kept(**MOMENTUM, radius=2.5),
        "kept_tensor_lr": kept(lr={"tensor": 0.0625}),
        "kept_before_the_first_step": kept(**MOMENTUM, steps=0),
        "groups": ssam(groups=GROUPS),
        "groups_kept": kept(groups=GROUPS),
        "groups_kept_in_eval": kept(groups=GROUPS, saved="in eval"),
        "named_parameters": ssam(**MOMENTUM, named=True),
        "schedules": ssam(
            **MOMENTUM,
            steps=1,
            schedules=[["harmonic_lr", {}], ["CosineNoiseStd", {"steps": 2, "factor": 3.0}]],
        ),
        "layerwise_noise": ssam(
            groups=[{}, {}, {"noise_std": 0.5}],
            schedules=[["LayerwiseNoise", {"order": "random", "seed": 4}]],
        ),
        "float64": ssam(**MOMENTUM, dtype="float64"),
        "float64_kept": kept(**MOMENTUM, dtype="float64"),
        "float16": ssam(**MOMENTUM, dtype="float16"),
        "bfloat16": ssam(**MOMENTUM, dtype="bfloat16"),
        "bfloat16_kept": kept(**MOMENTUM, dtype="bfloat16"),
        "masters": ssam(**MOMENTUM, **MASTERS),
        "masters_without_momentum": ssam(**MASTERS),
        "masters_float16": ssam(**MOMENTUM, **{**MASTERS, "dtype": "float16"}),
        "masters_beside_float32": kept(**MOMENTUM, **MASTERS, in_float32=["bias", "scalar"]),
        "masters_of_one_group": kept(
            **{**MASTERS, "master_dtype": None}, groups=[{"master_dtype": "float32", "momentum": 0.9}, {}]
        ),
        "masters_radius": ssam(**MOMENTUM, **MASTERS, radius=2.5),
        "masters_kept": kept(**MOMENTUM, **MASTERS),
        "masters_kept_in_eval": kept(**MOMENTUM, **MASTERS, saved="in eval"),
        "masters_kept_fisher": kept(**{**MASTERS, **SCALES["fisher"]}),
        "fisher_options": ssam(**SCALES["fisher"], fisher_decay=0.5, fisher_factor=2.0),
        "fisher_samples": ssam(**SCALES["fisher"], samples=2, drive="perturbations"),
        "clip": ssam(**MOMENTUM, weight_clip=1.25),
        "clip_columns": ssam(
            **MOMENTUM, weight_clip=1.5, channel_dim=1, scale="filter", noise_std=0.05, radius=2.5
        ),
        "clip_kept": kept(**MOMENTUM, weight_clip=1.25, scale="absmax", noise_std=0.1),
        "clip_masters_kept": kept(**MOMENTUM, **MASTERS, weight_clip=1.25),
        "clip_groups": kept(
            groups=[{"weight_clip": 1.5}, {"channel_dim": 1, "scale": "filter", "noise_std": 0.05}, {}]
        ),
    }
    for name, options in (SCALES | ABSMAX).items():
        found[name] = ssam(**MOMENTUM, **options)
        found[f"{name}_kept"] = kept(**MOMENTUM, **options)
        found[f"{name}_kept_in_eval"] = kept(**options, saved="in eval")
    return found


def adamw(**changed: Any) -> Description:
    return {**ssam(**{"lr": 0.0625, "weight_decay": 0.125, **changed}), "front": "SSAMAdamW"}


def adamw_kept(**changed: Any) -> Description:
    return adamw(**{"drive": "kept", "keep_perturbed": True, "saved": "in train", **changed})


def adamw_runs() -> Runs:
    """SSAMAdamW's update has a fixed order, so that options need be no powers of two."""
    amsgrad = {"amsgrad": True, "betas": [0.7, 0.8]}
    groups = [
        {"noise_std": 0.2, "betas": [0.5, 0.9], "amsgrad": True},
        {"noise_std": 0.0, "lr": {"tensor": 0.03125}, "weight_decay": 0.0},
        {"distribution": "rademacher", "maximize": True, "eps": 0.125, "memory": "regenerate"},
        {"scale": "fisher", "noise_std": 0.1, "radius": 3.0},
    ]
    found = {
        "plain": adamw(),
        "before_the_first_step": adamw(steps=0),
        "amsgrad": adamw(**amsgrad),
        "maximize": adamw(maximize=True, eps=0.01),
        "no_noise": adamw(noise_std=0.0),
        "no_memory": adamw(betas=[0.0, 0.0], eps=0.5),
        "tensor_lr": adamw(lr={"tensor": 0.03125}),
        "rademacher": adamw(distribution="rademacher"),
        "radius": adamw(radius=2.5),
        "closure": adamw(drive="closure"),
        "all_passes": adamw(samples=2, antithetic=True, clean_weight=0.375, drive="perturbations"),
        "regenerate": adamw(**REGENERATE),
        "regenerate_kept": adamw_kept(**REGENERATE),
        "inside_a_pass": adamw(saved="inside a pass"),
        "kept": adamw_kept(),
        "kept_amsgrad": adamw_kept(**amsgrad),
        "kept_in_eval": adamw_kept(saved="in eval"),
        "kept_radius": adamw_kept(radius=2.5),
        "kept_before_the_first_step": adamw_kept(steps=0),
        "groups": adamw(groups=groups),
        "groups_kept": adamw_kept(groups=groups),
        "named_parameters": adamw(named=True),
        "float64": adamw(dtype="float64"),
        "bfloat16_kept": adamw_kept(dtype="bfloat16"),
        "masters": adamw(**MASTERS),
        "masters_kept": adamw_kept(**MASTERS, **amsgrad),
        "masters_float16": adamw(**{**MASTERS, "dtype": "float16"}),
        "clip": adamw(weight_clip=1.25),
        "clip_columns": adamw(weight_clip=1.5, channel_dim=1, scale="filter", noise_std=0.05),
        "clip_kept": adamw_kept(weight_clip=1.25, scale="absmax", noise_std=0.1),
    }
    for name, options in (SCALES | ABSMAX).items():
        found[name] = adamw(**options)
        found[f"{name}_kept"] = adamw_kept(**options)
    return found


def wrap(base: str, options: dict[str, Any], **changed: Any) -> Description:
    described = {k: changed.pop(k) for k in list(changed) if k in DESCRIBED}
    noise = {"noise_std": 0.25, "seed": 7, **changed}
    return run_of(front="wrap", base=base, base_options=options, options=noise, **described)


def wrap_runs() -> Runs:
    # Powers of two: see checkpoint_runs.py.
    sgd = "torch.optim.SGD", {"lr": 0.0625, "momentum": 0.5, "nesterov": True, "weight_decay": 0.015625}
    betas = [0.5, 0.75]
    adam = "torch.optim.Adam", {"lr": 0.03125, "betas": betas}
    adamw = "torch.optim.AdamW", {"lr": 0.03125, "betas": betas, "weight_decay": 0.125, "amsgrad": True}
    schedule_free = {"lr": 0.00390625, "weight_lr_power": 1.0, "foreach": False}
    # The average's weight is the step's lr over the sum of all so far: 1, then 1/2 in every step.
    lrs = [2.0 ** (max(k, 1) - 9) for k in range(STEPS + MORE)]
    free = "schedulefree.SGDScheduleFree", {**schedule_free, "momentum": 0.5}
    in_train = {"drive": "kept", "keep_perturbed": True, "saved": "in train"}
    in_eval = {**in_train, "saved": "in eval"}
    passes = {"samples": 2, "antithetic": True, "clean_weight": 0.25}
    groups = [
        {"noise_std": 0.125, "distribution": "rademacher"},
        {"lr": 0.015625, "scale": "fisher"},
        {"noise_std": 0.0},
    ]
    found = {
        "sgd": wrap(*sgd),
        "sgd_kept": wrap(*sgd, **in_train),
        "sgd_bfloat16": wrap(*sgd, dtype="bfloat16"),
        "sgd_without_state": wrap("torch.optim.SGD", {"lr": 0.0625}),
        "sgd_tensor_lr": wrap("torch.optim.SGD", {"lr": {"tensor": 0.0625}, "momentum": 0.5}),
        "adam": wrap(*adam),
        "adam_float64": wrap(*adam, dtype="float64"),
        "adam_before_the_first_step": wrap(*adam, steps=0),
        "adam_kept_before_the_first_step": wrap(*adam, steps=0, **in_train),
        "adam_passes": wrap(*adam, drive="perturbations", **passes),
        "adam_passes_by_closure": wrap(*adam, drive="closure", **passes),
        "adamw": wrap(*adamw),
        "adamw_closure": wrap(*adamw, drive="closure"),
        "adamw_rademacher": wrap(*adamw, distribution="rademacher"),
        "adamw_regenerate": wrap(*adamw, **REGENERATE),
        "adamw_regenerate_kept": wrap(*adamw, **REGENERATE, **in_train),
        "adamw_inside_a_pass": wrap(*adamw, saved="inside a pass"),
        "adamw_kept": wrap(*adamw, **in_train),
        "adamw_kept_in_eval": wrap(*adamw, **in_eval),
        "adamw_groups": wrap(*adamw, groups=groups),
        "adamw_groups_kept": wrap(*adamw, groups=groups, **in_train),
        "rmsprop": wrap(
            "torch.optim.RMSprop", {"lr": 0.03125, "alpha": 0.5, "momentum": 0.5, "centered": False}
        ),
        "adagrad": wrap("torch.optim.Adagrad", {"lr": 0.0625}),
        "schedule_free": wrap(*free, lrs=lrs),
        "schedule_free_kept": wrap(*free, lrs=lrs, **in_train),
        "schedule_free_kept_in_eval": wrap(*free, lrs=lrs, **in_eval),
    }
    found |= {
        "adamw_clip": wrap(*adamw, weight_clip=1.25),
        "adamw_clip_kept": wrap(*adamw, weight_clip=1.5, channel_dim=1, **in_train),
    }
    for name, options in (SCALES | ABSMAX).items():
        found[f"adamw_{name}"] = wrap(*adamw, **options)
        found[f"adamw_{name}_kept"] = wrap(*adamw, **options, **in_train)
    return found


def module_runs() -> Runs:
    """DiagonalLinear, with noise of its own and with the optimizer's."""
    own = {"noise_std": 0.25, "seed": -5}
    found = {
        "own_noise": ssam(model="layer", layer=own, noise_std=0.0, **MOMENTUM),
        "one_layer_deep": ssam(model="layer", layer={**own, "depth": 1}, noise_std=0.0),
        "own_noise_sum": ssam(model="layer", layer={**own, "depth": 3, "readout": "sum"}, noise_std=0.0),
        "own_noise_float64": ssam(model="layer", layer=own, dtype="float64", noise_std=0.0),
        "own_noise_bfloat16": ssam(model="layer", layer=own, dtype="bfloat16", noise_std=0.0),
        "in_a_model": ssam(model="sequential", layer={**own, "depth": 3}, **MOMENTUM),
        "in_a_model_kept": kept(model="sequential", layer={"depth": 3, "seed": 1}, **MOMENTUM),
        "in_a_model_wrapped": wrap("torch.optim.SGD", {"lr": 0.0625, "momentum": 0.5}),
    }
    found["in_a_model_wrapped"] |= {"model": "sequential", "layer": own}
    return found


def noise_runs() -> Runs:
    def noise(**options: Any) -> Description:
        named = {k: options.pop(k) for k in ("dtype", "groups") if k in options}
        return run_of(more=2, front="WeightNoise", options={"noise_std": 0.25, **options}, **named)

    found = {
        "isotropic": noise(),
        "rademacher": noise(distribution="rademacher"),
        "regenerate": noise(memory="regenerate"),
        "bfloat16": noise(dtype="bfloat16"),
        "float64": noise(dtype="float64"),
        "groups": noise(groups=[{"scale": "filter"}, {"noise_std": 0.0}, {"memory": "regenerate"}]),
    }
    return found | {name: noise(**SCALES[name]) for name in ("tensor", "filter", "element")}


def object_runs() -> Runs:
    """Runs of which the optimizer is saved whole, alone or with its model, by torch.save or pickle."""
    families = {"ssam": ssam_runs(), "adamw": adamw_runs(), "wrap": wrap_runs(), "diagonal": module_runs()}
    chosen = {
        "ssam": "momentum kept_momentum kept_in_eval groups_kept fisher fisher_kept masters masters_kept regenerate_kept "
        "tensor_lr all_passes clip_kept schedules layerwise_noise named_parameters bfloat16_kept",
        "adamw": "plain kept kept_in_eval masters_kept fisher_kept clip_kept groups_kept tensor_lr",
        "wrap": "sgd adamw_kept adamw_fisher schedule_free_kept",
        "diagonal": "own_noise one_layer_deep own_noise_sum in_a_model in_a_model_kept in_a_model_wrapped",
    }
    found = {
        f"{family}_{name}": families[family][name] for family in chosen for name in chosen[family].split()
    }
    found["ssam_loaded_and_not_yet_written"] = {**families["ssam"]["kept_momentum"], "saved": "loaded"}
    return {name: {**run, "what": "model, optimizer, schedules"} for name, run in found.items()}
