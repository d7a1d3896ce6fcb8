"""The parameters of a model by name: who holds each, which patterns fit it, which dimension counts its filters.

Used by optim/groups.py and by robustness. Tests: test_groups.py, test_robustness_weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


@dataclass(frozen=True)
class Member:
    """A parameter under one of its names, and the modules on the way to it, the root first."""

    name: str
    param: Tensor
    path: tuple[nn.Module, ...]

    @property
    def own_name(self) -> str:
        """What its module calls it, also where it is parametrized."""
        parts = self.name.split(".")
        return parts[-2] if self._parametrized(parts) else parts[-1]

    @property
    def holder(self) -> nn.Module:
        """The module whose parameter it is, also where it is parametrized."""
        return self.path[-3] if self._parametrized(self.name.split(".")) else self.path[-1]

    @staticmethod
    def _parametrized(parts: list[str]) -> bool:
        return len(parts) > 2 and parts[-3] == "parametrizations"


def named_members(model: nn.Module) -> list[Member]:
    """Every name of every parameter; a tied one has several."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for name, param in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")[:-1]
        path = (model, *(modules[".".join(parts[: i + 1])] for i in range(len(parts))))
        found.append(Member(name, param, path))
    return found


def listed(members: list[Member]) -> str:
    """The first names, for a message."""
    names = [member.name for member in members]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def name_fits(pattern: str, name: str) -> bool:
    """Whether a pattern fits the name of a parameter, or of a module that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def usual_channel_dim(member: Member) -> int:
    """1 for weights of ConvTranspose layers and of transformers' Conv1D, which are (in, out), 0 elsewhere."""
    owner = member.holder
    columns = (
        isinstance(owner, _ConvTransposeNd) or type(owner).__name__ == "Conv1D"
    )  # transformers.pytorch_utils
    return int(columns and member.own_name == "weight")
