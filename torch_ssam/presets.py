"""Options of published methods, by name: each a dict for `SSAM`, `SSAMAdamW` or `wrap`, with its authors' values::

    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, momentum=0.9, **torch_ssam.presets.nso())

They hold what makes the noise; learning rate, momentum and weight decay are said beside them, since they belong to the
network. Values were read in the code that the papers' authors published. Tests: test_presets.py.
"""

from __future__ import annotations

from typing import Any

__all__ = ["arwp", "deploy", "lpf_sgd", "mrwp", "nso"]


def __dir__() -> list[str]:
    return __all__


def lpf_sgd() -> dict[str, Any]:
    """LPF-SGD: 8 draws a step, in proportion to the filters' norms (Bisla, Wang, Choromanska, arXiv 2201.08025).

    The authors' values for wide residual networks on CIFAR. Their batch is split over the draws: `for x_k, y_k in
    opt.perturbations(x, y)`. Their noise grows to 16 times its start: `schedules.CosineNoiseStd(opt, steps, factor=16)`,
    steps those of the training. Beside it: lr 0.1, momentum 0.9, weight decay 0.0005, batches of 128.

    Example:
        >>> from torch_ssam import presets
        >>> presets.lpf_sgd()
        {'noise_std': 0.0005, 'scale': 'filter', 'samples': 8}
    """
    return {"noise_std": 0.0005, "scale": "filter", "samples": 8}


def mrwp() -> dict[str, Any]:
    """m-RWP: half of the gradient at the clean weights, half at noisy ones (Li and others, arXiv 2211.11489).

    The authors' values for CIFAR-100; on ImageNet noise_std was 0.005. Two gradients a step, of the same batch here, of
    the two halves of a batch on two GPUs there. Beside it: lr 0.1, momentum 0.9, weight decay 0.001, batches of 256.

    Example:
        >>> from torch_ssam import presets
        >>> presets.mrwp()
        {'noise_std': 0.01, 'scale': 'filter', 'clean_weight': 0.5}
    """
    return {"noise_std": 0.01, "scale": "filter", "clean_weight": 0.5}


def arwp() -> dict[str, Any]:
    """ARWP: less noise on filters whose gradients have been large (Li and others, arXiv 2404.00357).

    The authors' values for CIFAR-100. Their noise grows to 11 times its start: `schedules.CosineNoiseStd(opt, steps,
    factor=11)`, steps those of the training. Beside it: lr 0.1, weight decay 0.001, batches of 256. Their mixed form,
    m-ARWP, is clean_weight=0.5 with noise_std=0.015 throughout.

    Example:
        >>> from torch_ssam import presets
        >>> presets.arwp()
        {'noise_std': 0.001, 'scale': 'fisher', 'fisher_decay': 0.99, 'fisher_factor': 0.1}
    """
    return {"noise_std": 0.001, "scale": "fisher", "fisher_decay": 0.99, "fisher_factor": 0.1}


def nso() -> dict[str, Any]:
    """NSO: each draw as +noise and as -noise (Zhang, Li, Ju, arXiv 2306.08553).

    The authors' default for fine-tuning ResNets, vision transformers and BERT; their scripts go from 0.005 to 0.05. Two
    gradients a step. Beside it: lr 0.0001 (ResNet-34).

    Example:
        >>> from torch_ssam import presets
        >>> presets.nso()
        {'noise_std': 0.01, 'antithetic': True}
    """
    return {"noise_std": 0.01, "antithetic": True}


def deploy() -> dict[str, Any]:
    """Weights for few bits and noisy hardware: noise in units of each filter's range, and clipped filters. Ours, no paper's.

    In our trials a vision transformer had 0.2, and on a CNN without BatchNorm 0.3 cost clean accuracy. One gradient a step.
    Let the noise rise over the first half of the training, `schedules.LambdaNoiseStd(opt, lambda step: min(1.0, step /
    half))`, or set itself, `schedules.AdaptiveNoiseStd`.

    Example:
        >>> from torch_ssam import presets
        >>> presets.deploy()
        {'noise_std': 0.3, 'scale': 'absmax', 'weight_clip': 2.0}
    """
    return {"noise_std": 0.3, "scale": "absmax", "weight_clip": 2.0}
