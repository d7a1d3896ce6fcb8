"""BatchNorm folded into the layer before it, as tools do that deploy networks. Tests: tests/python/test_robustness_fold.py.

Which layer feeds which is read off a graph that torch.fx traces; the arithmetic is torch.nn.utils.fusion's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from torch_ssam.ops.plain_numbers import float64_of

from ._weights import check_model


def fold_batchnorm(model: nn.Module, example: Any = None) -> nn.Module:
    """A copy of the model in which every BatchNorm layer is folded into the convolution or Linear layer before it.

    W <- W gamma / sqrt(var + eps) for each output channel, b <- (b - mean) gamma / sqrt(var + eps) + beta, and nn.Identity in the
    layer's place: in eval mode the same function, up to rounding. Networks are deployed so, and steps that a whole tensor shares
    (`per="tensor"`) make sense only then: before, filters of any size pass, which BatchNorm scales back.

    Args:
        model: traceable by torch.fx (no control flow that depends on data); unchanged.
        example: inputs to check the copy with, a tensor or a tuple of arguments; None for no check.

    Returns: the copy, of the model's class, every module's `training` flag as it was; it is to be used in eval mode.
    Raises:
        TypeError: no module.
        ValueError: a BatchNorm layer that cannot be folded, each named with why: not fed by a convolution or Linear alone, called
            more than once, without running statistics; a model that torch.fx cannot trace; a copy whose outputs are others.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    >>> robustness.fold_batchnorm(model)
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Identity()
      (2): ReLU()
    )
    """
    check_model(model)
    folded = copy.deepcopy(model)
    norms = {name for name, module in folded.named_modules() if isinstance(module, _BatchNorm)}
    if norms:
        for norm, layer in _pairs(folded, norms):
            _replace(folded, layer, _fused(layer, norm))
            _replace(folded, norm, nn.Identity().train(norm.training))
    if example is not None:
        _check_same(model, folded, example)
    return folded


def _pairs(model: nn.Module, norms: set[str]) -> list[tuple[nn.Module, nn.Module]]:
    """Each BatchNorm layer and the layer that it can be folded into."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace the model ({type(error).__name__}: {error}), so that it is not known which layer feeds "
            "which BatchNorm; expected a forward() without control flow that depends on data. Fold it by hand with "
            "torch.nn.utils.fusion."
        ) from None
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(modules[str(node.target)]), []).append(node)
    found: list[tuple[nn.Module, nn.Module]] = []
    refused: dict[str, str] = {}
    for name in sorted(norms):
        uses = calls.get(id(modules[name]), [])
        why = _why_not(modules, uses, calls)
        if why:
            refused[name] = why
        else:
            (source,) = uses[0].all_input_nodes
            found.append((modules[name], modules[str(source.target)]))
    if refused:
        reasons = "; ".join(f"{name} {why}" for name, why in refused.items())
        raise ValueError(
            f"{len(refused)} of {len(norms)} BatchNorm layers cannot be folded: {reasons}. Expected each right behind a "
            "convolution or Linear layer that feeds it alone."
        )
    return found


def _why_not(modules: dict[str, nn.Module], uses: list[fx.Node], calls: dict[int, list[fx.Node]]) -> str:
    """Why a BatchNorm layer cannot be folded, or nothing."""
    if len(uses) != 1:
        return f"is called {len(uses)} times"
    norm = modules[str(uses[0].target)]
    if not isinstance(norm.running_mean, Tensor) or not isinstance(norm.running_var, Tensor):
        return "has no running statistics"
    sources = uses[0].all_input_nodes
    if len(sources) != 1 or sources[0].op != "call_module":
        what = ", ".join(f"{node.op} {node.name}" for node in sources)
        return f"does not follow a layer but {what}"
    target = str(sources[0].target)
    layer = modules[target]
    if not isinstance(layer, _ConvNd | nn.Linear):
        return f"follows {target}, a {type(layer).__name__}"
    if len(calls[id(layer)]) != 1:
        return f"follows {target}, which is called {len(calls[id(layer)])} times"
    if len(sources[0].users) != 1:
        return f"follows {target}, whose output also goes elsewhere"
    if parametrize.is_parametrized(layer) or layer._forward_pre_hooks or layer._forward_hooks:
        return f"follows {target}, which has hooks or parametrizations"
    if isinstance(layer, _ConvTransposeNd) and layer.groups != 1:
        return f"follows {target}, a transposed convolution of {layer.groups} groups"
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if channels != norm.num_features:
        return f"has {norm.num_features} features and follows {target}, which has {channels}"
    tied = {id(p) for p in layer.parameters()}
    if any(
        id(p) in tied for other in modules.values() if other is not layer for p in other._parameters.values()
    ):
        return f"follows {target}, whose weights another layer shares"
    return ""


def _fused(layer: Any, norm: Any) -> nn.Module:
    flag = layer.training
    both = layer.eval(), norm.eval()  # what torch's functions ask for
    fused: nn.Module
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_eval(*both)
    else:
        fused = fuse_conv_bn_eval(*both, transpose=isinstance(layer, _ConvTransposeNd))
    for before, after in zip((layer.weight, layer.bias), (fused.weight, fused.bias), strict=True):
        if before is not None:
            after.requires_grad_(before.requires_grad)
    return fused.train(flag)


def _replace(model: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """Under every name that it has."""
    for owner in list(model.modules()):
        for name, module in list(owner._modules.items()):
            if module is before:
                setattr(owner, name, after)


@torch.no_grad()
def _check_same(model: nn.Module, folded: nn.Module, example: Any) -> None:
    arguments = example if isinstance(example, tuple) else (example,)
    outputs = []
    for each in (copy.deepcopy(model), folded):
        flags = [(module, module.training) for module in each.modules()]
        outputs.append(each.eval()(*arguments))
        for module, flag in flags:
            module.training = flag
    before, after = outputs
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        raise TypeError(
            f"the model gives a {type(before).__name__}; expected a tensor, to check the copy with example."
        )
    scale = float(float64_of(before).abs().max())
    gap = float((float64_of(before) - float64_of(after)).abs().max())
    if not gap <= min(1000 * torch.finfo(before.dtype).eps, 0.1) * scale:
        raise ValueError(
            f"the folded copy differs from the model by {gap:.3g} on the example, whose outputs reach {scale:.3g}; BatchNorm "
            "normalises another axis than the layer before it writes."
        )
