"""The outputs of a model at its clean and at its noisy weights: what schedules look at that set the noise by what it does.

The look leaves no trace. The noise is that of the next pass, whose draw is not used up; random generators are set back
before each of the two runs, so that dropout is the same in both, and once more at the end; and buffers (BatchNorm's
statistics, say), flags and tensor attributes of every module that runs are put back after each. Which modules run is seen
by a hook of torch, since all that is given is a function. Tests: test_adaptive_noise.py.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_map_only

from torch_ssam.noise.saved_model import Generators, SavedModule, SavedTensor, in_turn
from torch_ssam.noise.scope import Scope
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.untraced import untraced
from torch_ssam.optim.clean_weights import Owner


class _NoisyWeights(Scope):
    """Inside, clean weights hold the noise of the next pass, which is not used up."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def _begin(self) -> None:
        self._owner._inside_pass = True
        self._owner._noise.apply()

    def _end(self) -> None:
        try:
            self._owner._noise.restore()
        finally:
            self._owner._inside_pass = False


class _CleanWeights(Scope):
    """Inside, weights that are kept perturbed are clean; a wrapped optimizer's own modes stay, unlike in clean_weights()."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._was_training = False

    def _begin(self) -> None:
        self._owner._noise_off()
        self._was_training = True

    def _end(self) -> None:
        if self._was_training:  # else eval() raised, and the weights are as others wrote them
            self._owner._noise_on()


def _memory(tensor: Tensor) -> int:
    """Where it lies; 0 where that cannot be told."""
    tensor = local_of(tensor)
    return 0 if tensor.layout != torch.strided or tensor.is_meta else tensor.untyped_storage().data_ptr()


class _SeenModules:
    """Runs a function, and puts back what the modules that it calls write to themselves, weights apart.

    Nor what lies in the memory of weights, as the attribute of the old spectral_norm does: those are ours to move.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self._weights = set(map(_memory, params)) - {0}
        self._seen: set[int] = set()
        self._modules: list[nn.Module] = []
        self._saved: list[SavedModule] = []
        self._tensors: dict[int, SavedTensor] = {}

    @untraced
    def _see(self, module: nn.Module, _: Any) -> None:
        """Called before each module; the first of a tree has all of it saved, also what is compiled inside."""
        if id(module) in self._seen:
            return
        new = [one for one in module.modules() if id(one) not in self._seen]
        self._seen |= set(map(id, new))
        self._modules += new
        saved = [SavedModule(one) for one in new]
        self._saved += saved
        self._weights |= {_memory(p) for one in new for p in one.parameters(recurse=False)} - {0}
        buffers = [buffer for one in new for buffer in one._buffers.values() if buffer is not None]
        for tensor in [*buffers, *(tensor for one in saved for tensor in one.tensors())]:
            if id(tensor) not in self._tensors and _memory(tensor) not in self._weights:
                self._tensors[id(tensor)] = SavedTensor(tensor)

    def run(self, outputs: Callable[[], Any]) -> Any:
        hook = register_module_forward_pre_hook(self._see)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are")
                return outputs()
        finally:
            hook.remove()
            self._reshard()
            in_turn(
                [one.put_back for one in self._saved],
                [one.put_back for one in self._tensors.values()],
                [one.put_flags_back for one in self._saved],
            )

    def _reshard(self) -> None:
        """FSDP2 leaves the outermost module gathered after a forward without gradients: the noise would not reach it."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        for module in self._modules if fsdp is not None else ():
            if isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
                module.reshard()


def check_not_captured(optimizer: Owner) -> list[Tensor]:
    """Raises RuntimeError while a CUDA graph is captured; else the parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if any([p.is_cuda for p in params]) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "what noise does is looked at while a CUDA graph is captured: the result is read, which a graph cannot, and a "
            "graph holds on to the noise_std that it was captured with. Look between replays of graphs without noise."
        )
    return params


def clean_and_noisy(optimizer: Owner, outputs: Callable[[], Any]) -> tuple[Any, Any]:
    """What the function returns at the clean weights, and at those of the next pass.

    Raises: RuntimeError: inside a pass, or while a CUDA graph is captured.
    """
    if optimizer._inside_pass:
        raise RuntimeError(
            "outputs are compared inside perturb(): leave the pass first, so that there are clean weights to compare with."
        )
    params = check_not_captured(optimizer)
    optimizer._settle()
    other: Scope = _CleanWeights(optimizer) if optimizer._training else _NoisyWeights(optimizer)
    seen, generators = _SeenModules(params), Generators(params)
    random = generators.state()
    try:
        with torch.no_grad():
            # A copy: graphs of torch.compile write the second result over the first.
            first = tree_map_only(Tensor, torch.clone, seen.run(outputs))
            generators.set(random)
            with other:
                second = seen.run(outputs)
    finally:
        generators.set(random)
    return (second, first) if isinstance(other, _CleanWeights) else (first, second)
