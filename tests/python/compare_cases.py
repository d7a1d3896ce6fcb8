"""A small setting of torch_ssam.compare and the one thread of its workers, for all tests of it."""

from __future__ import annotations

import pytest
import torch

from torch_ssam.compare import Setting

SMALL = Setting(
    "tiny",
    data="digits",
    model="mlp",
    train=200,
    validation=100,
    epochs=4,
    batch=20,
    rates=(0.03, 0.1),
    adam_rates=(1e-3, 3e-3),
    knob_values=1,
    seeds=2,
    robustness_seeds=0,
    sharpness_draws=2,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as the workers; conftest puts it back
