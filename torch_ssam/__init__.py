"""torch_ssam: Stochastic Sharpness-Aware Minimization for PyTorch.

Quick start::

    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01, momentum=0.9)
    with opt.perturb():                  # inside, the parameters hold clean + noise
        loss = criterion(model(x), y)
        loss.backward()
    opt.step()                           # updates the clean weights
"""

from . import _library as _library
from . import schedules
from ._diagonal import DiagonalLinear
from ._noise import PerturbedWeightsChanged
from ._ssam import SSAM
from ._version import __version__
from ._weight_noise import WeightNoise
from ._wrap import WrappedOptimizer, wrap

__all__ = [
    "SSAM",
    "DiagonalLinear",
    "PerturbedWeightsChanged",
    "WeightNoise",
    "WrappedOptimizer",
    "__version__",
    "schedules",
    "wrap",
]
