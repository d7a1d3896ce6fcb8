"""What PyTorch remembers of weights for the length of a block, and must compute anew once they were written to.

Autocast keeps its casts of parameters, `torch.nn.utils.parametrize.cached` what parametrized modules computed from
them; neither looks at the parameter's version, so a pass would see the weights of the one before. Tests:
test_loops.py, test_sharpness.py.
"""

from __future__ import annotations

import torch
from torch.nn.utils import parametrize


def forget_cached_weights() -> None:
    """To be called after every write to parameters, with or without such a block around it."""
    if torch._C._is_any_autocast_enabled():
        torch.clear_autocast_cache()
    cache = parametrize._cache  # the block's end puts a new one in its place
    if cache:
        cache.clear()
