"""torch_ssam: Stochastic Sharpness-Aware Minimization for PyTorch.

Quick start::

    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01, momentum=0.9)
    with opt.perturb():                  # inside, the parameters hold clean + noise
        loss = criterion(model(x), y)
        loss.backward()
    opt.step()                           # updates the clean weights

To train: SSAM, SSAMAdamW, wrap (any torch optimizer), WeightNoise (noise on weights, on and off), param_groups and
describe (who gets noise), update_bn and frozen_batchnorm. How much noise: schedules (AdaptiveNoiseStd sets it),
suggest_noise_std, presets (published methods). To measure: sharpness, robustness, pac_bayes, and torch_ssam.compare,
which is imported by itself. To study: DiagonalLinear, theory, simulate. In frameworks: torch_ssam.lightning,
torch_ssam.transformers, imported by themselves. `python -m torch_ssam` lists the commands.
"""

from pathlib import Path as _Path

from torch_ssam.nn.diagonal_linear import DiagonalLinear
from torch_ssam.noise.weight_noise import WeightNoise
from torch_ssam.noise.weights import PerturbedWeightsChanged
from torch_ssam.ops import library as library
from torch_ssam.optim.adamw import SSAMAdamW
from torch_ssam.optim.clean_weights import PerturbedWeightsSaved, frozen_batchnorm, update_bn
from torch_ssam.optim.groups import describe, param_groups
from torch_ssam.optim.ssam import SSAM
from torch_ssam.optim.wrap import WrappedOptimizer, wrap

from . import _former_paths as _former_paths
from . import pac_bayes, presets, robustness, schedules, sharpness, theory
from ._version import __version__
from .simulate import Simulation, simulate
from .suggest import SuggestedNoise, suggest_noise_std

# For C++ projects: cmake -DCMAKE_PREFIX_PATH=$(python -c "import torch_ssam; print(torch_ssam.cmake_prefix_path)")
cmake_prefix_path: str = str(_Path(__file__).parent / "share" / "cmake")

__all__ = [
    "SSAM",
    "DiagonalLinear",
    "PerturbedWeightsChanged",
    "PerturbedWeightsSaved",
    "SSAMAdamW",
    "Simulation",
    "SuggestedNoise",
    "WeightNoise",
    "WrappedOptimizer",
    "__version__",
    "cmake_prefix_path",
    "describe",
    "frozen_batchnorm",
    "pac_bayes",
    "param_groups",
    "presets",
    "robustness",
    "schedules",
    "sharpness",
    "simulate",
    "suggest_noise_std",
    "theory",
    "update_bn",
    "wrap",
]


def __dir__() -> list[str]:
    return __all__
