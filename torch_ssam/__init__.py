"""torch_ssam: Stochastic Sharpness-Aware Minimization for PyTorch.

Quick start::

    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01, momentum=0.9)
    with opt.perturb():                  # inside, the parameters hold clean + noise
        loss = criterion(model(x), y)
        loss.backward()
    opt.step()                           # updates the clean weights
"""

from pathlib import Path as _Path

from . import _library as _library
from . import pac_bayes, schedules, sharpness, theory
from ._clean import PerturbedWeightsSaved, frozen_batchnorm, update_bn
from ._diagonal import DiagonalLinear
from ._noise import PerturbedWeightsChanged
from ._ssam import SSAM
from ._version import __version__
from ._weight_noise import WeightNoise
from ._wrap import WrappedOptimizer, wrap
from .simulate import Simulation, simulate

# For C++ projects: cmake -DCMAKE_PREFIX_PATH=$(python -c "import torch_ssam; print(torch_ssam.cmake_prefix_path)")
cmake_prefix_path: str = str(_Path(__file__).parent / "share" / "cmake")

__all__ = [
    "SSAM",
    "DiagonalLinear",
    "PerturbedWeightsChanged",
    "PerturbedWeightsSaved",
    "Simulation",
    "WeightNoise",
    "WrappedOptimizer",
    "__version__",
    "cmake_prefix_path",
    "frozen_batchnorm",
    "pac_bayes",
    "schedules",
    "sharpness",
    "simulate",
    "theory",
    "update_bn",
    "wrap",
]
