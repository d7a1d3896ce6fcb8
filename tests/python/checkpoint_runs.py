"""Training runs that end in the same bits on every machine, to write checkpoints with one version and go on with another.

A run is a description in JSON (model, optimizer, how it is driven, when it is saved), which stays beside the checkpoint.
Gradients are functions of single weights, made of float additions and multiplications that torch cannot fuse; where
torch's own optimizers update, they are coarse and the options powers of two, so that it is all one whether a product is
rounded before it is added. Written by write_checkpoints.py, read by test_old_checkpoints.py; the same in C++:
tests/cpp/checkpoint_runs.h.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import torch_ssam

Description = dict[str, Any]
SHAPES: dict[str, tuple[int, ...]] = {  # a block of noise has 64 elements
    "conv": (4, 2, 3, 3),
    "linear": (5, 7),
    "bias": (7,),
    "frozen": (3, 2),
    "transposed": (4, 6),
    "scalar": (),
}


# -- models --------------------------------------------------------------------------------------------------


def make_model(run: Description, seed: int) -> nn.Module:
    """The model of a run; a resumed run takes another seed, of which nothing may remain."""
    dtype = getattr(torch, run.get("dtype", "float32"))
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if run["model"] == "tensors":
        params = nn.ParameterDict()
        for name, shape in SHAPES.items():  # one by one, or it sorts them
            value = values(*shape[::-1]).t() if name == "transposed" else values(*shape)
            value = (
                value.float() if name in run.get("in_float32", ()) else value
            )  # as norms in a 16-bit model
            params[name] = nn.Parameter(value, requires_grad=name != "frozen")
        params["tied"] = params["linear"]
        return params
    layer = torch_ssam.DiagonalLinear(7, **{"dtype": dtype, "seed": seed, **run["layer"]})
    parts = [("linear", nn.Linear(5, 7, dtype=dtype)), ("diagonal", layer)]
    model = nn.Sequential(OrderedDict(parts[1:] if run["model"] == "layer" else parts))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(values(*p.shape))
    return model


def pattern(like: Tensor, shift: int) -> Tensor:
    """Numbers from -1/2 to 1/2 in steps of 1/16, in the tensor's shape, others for every shift."""
    index = torch.arange(like.numel()).reshape(like.shape)
    return ((index * 37 + shift) % 17 - 8).to(like.dtype) / 16


def gradient(param: Tensor, place: int, step: int, coarse: bool) -> Tensor:
    """What backward gives a parameter: g = 3/4 w + w^2 / 8 - target, rounded after every operation."""
    w = param.detach()
    w = w if w.dtype == torch.float64 else w.float()
    g = w * 0.75
    g = g + w * w * 0.125
    g = g - pattern(w, 11 * place + 5 * step)
    if coarse:  # few enough bits that its square is exact
        g = (g * 64).round() / 64
    return g.to(param.dtype)


def backward(params: Iterable[Tensor], layers: Iterable[nn.Module], step: int, coarse: bool) -> None:
    """A backward pass: through the DiagonalLinear layers, by hand to everything else."""
    done = set()
    for layer in layers:
        weight: Any = layer.weight
        x = pattern(weight.new_empty(3, weight.shape[1]), step)
        y = layer(x)
        y.backward(gradient(y, 0, step, coarse))
        done.add(id(weight))
    by_hand = [(i, p) for i, p in enumerate(params) if p.requires_grad and id(p) not in done]
    if by_hand:
        grads = [gradient(p, i, step, coarse) for i, p in by_hand]
        torch.autograd.backward([p for _, p in by_hand], grads)


# -- optimizers ----------------------------------------------------------------------------------------------


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the optimizer takes them, from JSON."""
    found = {}
    for name, value in options.items():
        if isinstance(value, dict):  # {"tensor": 0.5}
            value = torch.tensor(value["tensor"])
        elif name == "master_dtype" and value is not None:
            value = getattr(torch, value)
        elif isinstance(value, list):
            value = tuple(value)
        found[name] = value
    return found


def make_groups(run: Description, model: nn.Module) -> Any:
    """The parameters, or, where the description has groups, as many groups of them."""
    if run.get("named"):
        return list(model.named_parameters())
    params = list(model.parameters())
    if "groups" not in run:
        return params
    count = len(run["groups"])
    bounds = [round(i * len(params) / count) for i in range(count + 1)]
    return [{"params": params[bounds[i] : bounds[i + 1]], **plain(g)} for i, g in enumerate(run["groups"])]


def make_base(run: Description, model: nn.Module) -> Any:
    module, name = run["base"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(
        make_groups(run, model), **plain(run["base_options"])
    )


def make_optimizer(run: Description, model: nn.Module) -> Any:
    if run["front"] == "wrap":
        return torch_ssam.wrap(make_base(run, model), **plain(run["options"]))
    return getattr(torch_ssam, run["front"])(make_groups(run, model), **plain(run["options"]))


def with_other_options(run: Description, seed: int = 1) -> Description:
    """The same run under options that a checkpoint must replace: all but those that stay as constructed."""
    stay = {k: v for k, v in run["options"].items() if k in ("keep_perturbed", "master_dtype")}
    other: Description = {**run, "options": {**stay, "noise_std": 0.5, "seed": seed}}
    if run["front"] != "wrap":
        other["options"]["lr"] = 0.5
    else:
        other["base_options"] = {"lr": 0.5}
    if "groups" in run:
        other["groups"] = [{k: v for k, v in g.items() if k == "master_dtype"} for g in run["groups"]]
    return other


def make_schedules(run: Description, opt: Any) -> list[Any]:
    return [getattr(torch_ssam.schedules, name)(opt, **options) for name, options in run.get("schedules", ())]


# -- training ------------------------------------------------------------------------------------------------


def parameters_of(opt: Any) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def layers_in(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, torch_ssam.DiagonalLinear)]


class Training:
    """Model, optimizer and schedules of a run, and how far it has come."""

    def __init__(self, run: Description, model: nn.Module, opt: Any, step: int) -> None:
        self.run, self.model, self.opt, self.step = run, model, opt, step
        self.coarse = run["front"] == "wrap"
        self.schedules = make_schedules(run, opt)

    def _backward(self) -> None:
        backward(parameters_of(self.opt), layers_in(self.model), self.step, self.coarse)

    def _closure(self) -> Tensor:
        self.opt.zero_grad()
        self._backward()
        return torch.tensor(0.5)

    def go_on(self, steps: int) -> None:
        """Trains, driven as the run says. In train with keep_perturbed, and of bases with modes."""
        drive, opt = self.run["drive"], self.opt
        opt.train()
        for _ in range(steps):
            opt.zero_grad()
            for lr in self.run.get("lrs", [])[self.step : self.step + 1]:  # a schedule in powers of two
                for group in opt.param_groups:
                    group["lr"] = lr
            if drive == "closure":
                opt.step(self._closure)
            else:
                if drive == "kept":
                    self._backward()
                elif drive == "perturbations":
                    for _ in opt.perturbations():
                        self._backward()
                else:
                    with opt.perturb():
                        self._backward()
                opt.step()
            for schedule in self.schedules:
                schedule.step()
            self.step += 1

    def saved(self) -> dict[str, Any]:
        """What a program would save now."""
        found = {"model": self.model.state_dict(), "opt": self.opt.state_dict()}
        if self.schedules:
            found["schedules"] = [schedule.state_dict() for schedule in self.schedules]
        return found

    def checkpoint(self) -> bytes:
        """The file of a checkpoint at the moment that the run names."""
        moment = self.run.get("saved", "as it is")
        if moment == "inside a pass":
            with self.opt.perturb():
                return to_file(self.saved())
        if moment == "in eval":
            self.opt.eval()
        return to_file(self.saved())

    def result(self) -> dict[str, Any]:
        """Weights, state and options as they are, then the weights in every pass of the next step."""
        opt = self.opt
        opt.eval()
        found = from_file(to_file({"model": self.model.state_dict(), "opt": opt.state_dict()}))  # copies
        return {**found, "next": list(self._next_passes())}

    def _next_passes(self) -> Iterator[list[Tensor]]:
        opt = self.opt
        if self.run["drive"] == "kept":
            opt.train()
            yield copies(parameters_of(opt))
            opt.eval()
            return
        for _ in opt.perturbations():
            yield copies(parameters_of(opt))


def start(run: Description) -> Training:
    model = make_model(run, seed=0)
    return Training(run, model, make_optimizer(run, model), 0)


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def resume(run: Description, file: bytes, *, optimizer_first: bool = False) -> Training:
    """A run that goes on from a checkpoint, in objects of its own."""
    saved = from_file(file)
    model = make_model(run, seed=5)
    training = Training(run, model, make_optimizer(run, model), run["steps"])
    loads: list[tuple[Any, Any]] = [(model, saved["model"]), (training.opt, saved["opt"])]
    loads += zip(training.schedules, saved.get("schedules", ()), strict=True)
    for what, state in reversed(loads) if optimizer_first else loads:
        what.load_state_dict(state)
    return training


def resume_in_base(run: Description, file: bytes) -> Training:
    """A wrapped optimizer's checkpoint loaded into the plain base, which is then wrapped."""
    saved = from_file(file)
    model = make_model(run, seed=5)
    model.load_state_dict(saved["model"])
    base = make_base(run, model)
    base.load_state_dict(saved["opt"])
    opt = torch_ssam.wrap(base, **{k: v for k, v in plain(run["options"]).items() if k != "seed"})
    return Training(run, model, opt, run["steps"])


def resume_whole(run: Description, file: bytes) -> Training:
    """A run whose model, optimizer and schedules were saved as objects."""
    model, opt, schedules = from_object(run, file)
    training = Training({**run, "schedules": []}, model, opt, run["steps"])
    training.schedules = schedules
    return training


# -- WeightNoise ---------------------------------------------------------------------------------------------


def make_noise(run: Description, model: nn.Module, seed: int) -> torch_ssam.WeightNoise:
    return torch_ssam.WeightNoise(make_groups(run, model), seed=seed, **run["options"])


def noisy_weights(noise: torch_ssam.WeightNoise, count: int) -> list[list[Tensor]]:
    """The weights in the next `count` draws, and the noise itself."""
    params = [p for group in noise.param_groups for p in group["params"]]
    found = []
    for k in range(count):
        found.append(copies(noise.noise(p, sample=k) for p in params))
        with noise.applied(sample=k, negate=k % 2 == 1):
            found.append(copies(params))
    return found


# -- modules and results -------------------------------------------------------------------------------------


def module_results(model: nn.Module) -> dict[str, Any]:
    """Weights, and what the layers give in three forwards."""
    layers = layers_in(model)
    inputs = [pattern(layer.weight.new_empty(3, layer.weight.shape[1]), 2) for layer in layers]  # type: ignore
    outputs = [layer(x).detach() for _ in range(3) for layer, x in zip(layers, inputs, strict=True)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {"state": state, "outputs": outputs, "text": repr(model)}


def values_of(found: Any, run: Description) -> dict[str, Any]:
    """The named attributes of a result: numbers, arrays and tuples of tensors."""
    values = {name: getattr(found, name) for name in run["names"]}
    return {k: list(v) if k in run.get("lists", ()) else torch.as_tensor(v) for k, v in values.items()}


# -- files and bits ------------------------------------------------------------------------------------------


def to_file(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def from_file(file: bytes, weights_only: bool = True) -> Any:
    return torch.load(io.BytesIO(file), weights_only=weights_only)


def from_object(run: Description, file: bytes) -> Any:
    """An object that was saved whole, by torch.save or by pickle."""
    return pickle.loads(file) if run.get("by") == "pickle" else from_file(file, weights_only=False)


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two results differ: tensors by bits, dicts by what is expected (later versions may add names)."""
    if isinstance(expected, Tensor):
        yield from _tensors_differ(found, expected, where)
    elif isinstance(expected, dict):
        for name, value in expected.items():
            if name not in found:
                yield f"{where}[{name!r}] is missing"
            else:
                yield from differences(found[name], value, f"{where}[{name!r}]")
    elif isinstance(expected, list | tuple):
        if len(found) != len(expected):
            yield f"{where} has {len(found)} entries, expected {len(expected)}"
        for i, (a, b) in enumerate(zip(found, expected, strict=False)):
            yield from differences(a, b, f"{where}[{i}]")
    elif found != expected:
        yield f"{where} is {found!r}, expected {expected!r}"


def _tensors_differ(found: Any, expected: Tensor, where: str) -> Iterator[str]:
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (expected.shape, expected.dtype):
        came = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        yield f"{where} is {came}, expected a tensor, {expected.dtype} {tuple(expected.shape)}"
        return
    a, b = (t.detach().contiguous().view(-1) for t in (found, expected))
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[b.element_size()]
    other = (a.view(bits) != b.view(bits)).nonzero().flatten().tolist()
    if other:
        i = other[0]
        yield f"{where}: {len(other)} of {b.numel()} elements differ, first [{i}]: {a[i].item()!r}, expected {b[i].item()!r}"
