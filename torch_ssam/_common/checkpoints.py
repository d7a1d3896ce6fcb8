"""Checkpoints to measure: modules, state_dicts or files, loaded into a model that is afterwards what it was.

Used by the comparisons of sharpness and robustness. Tests: tests/python/test_sharpness.py, test_measured_models.py,
test_robustness_report.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .measured_model import MeasuredModel

Checkpoint = nn.Module | Mapping[str, Any] | str | Path


class LoadedModel(MeasuredModel):
    """Context in which the model has the weights, buffers and extra state of a checkpoint; all is put back."""

    def __init__(self, model: nn.Module, name: str, state: Mapping[str, Tensor] | None) -> None:
        super().__init__(model)
        self._name, self._state = name, state
        self._extra_states: list[tuple[nn.Module, Any]] = []

    def _begin(self) -> None:
        super()._begin()
        if self._state is None:
            return
        for module in self.model.modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                self._extra_states.append((module, copy.deepcopy(module.get_extra_state())))
        try:
            self.model.load_state_dict(dict(self._state))
        except RuntimeError as error:
            raise ValueError(f"checkpoint {self._name!r} does not fit the model: {error}") from None

    def _end(self) -> None:
        super()._end()
        for module, state in self._extra_states:
            module.set_extra_state(state)
        self._extra_states = []


def read_checkpoint(name: str, checkpoint: Checkpoint) -> Mapping[str, Tensor] | None:
    """The state_dict of a checkpoint; None for a module, which is measured as it is."""
    if isinstance(checkpoint, nn.Module):
        return None
    state: Any = checkpoint
    if isinstance(checkpoint, str | Path):
        if not Path(checkpoint).is_file():
            raise ValueError(
                f"checkpoint {name!r}: {checkpoint} is no file; expected one that torch.save wrote."
            )
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, for files of many kinds
            raise ValueError(
                f"checkpoint {name!r}: {checkpoint} cannot be read ({type(error).__name__}: {error}); expected a file that "
                "torch.save wrote, without objects of one's own."
            ) from None
    for key in ("state_dict", "model"):  # as training programs nest it
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise TypeError(
            f"checkpoint {name!r} is a {type(state).__name__}; expected a state_dict of the model."
        )
    return state
