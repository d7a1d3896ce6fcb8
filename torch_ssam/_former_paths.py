"""Modules under the names they had before there were rooms: whole optimizers and models that were pickled then name them.

`torch.save(model)` and `pickle.dump(optimizer)` write the module of each class. Tests: test_old_checkpoints.py.
"""

from __future__ import annotations

import importlib
import sys

FORMER = {
    "_clean": "optim.attached",
    "_diagonal": "nn.diagonal_linear",
    "_noise": "noise.state",
    "_ssam": "optim.ssam",
    "_weight_noise": "noise.weight_noise",
    "_wrap": "optim.wrap",
}

for _former, _now in FORMER.items():
    sys.modules[f"torch_ssam.{_former}"] = importlib.import_module(f"torch_ssam.{_now}")
